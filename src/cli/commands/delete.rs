//! `rsup delete`.

use crate::cli::client::CallError;
use crate::cli::error::CliError;
use crate::cli::{Context, action, daemonize, targets};
use crate::control::{Action, Ping};
use crate::daemon;

/// Stop apps and forget them
///
/// Their log files stay. With `all`, no daemon or no app is nothing to do, which is said on stderr; the exit code
/// is 0. Apps that a daemon of before knew, which the next one would know again, are forgotten too.
#[derive(Debug, clap::Args)]
#[command(visible_aliases = ["del", "rm"], after_long_help = "Example:\n  rsup delete api")]
pub struct Args {
    /// A name, `all`, or a file whose apps are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let mut client = cx.client()?;
    let paths = cx.paths()?;
    if matches!(client.try_ask(&Ping), Err(CallError::NoDaemon))
        && !daemon::known_from_before(&paths).is_empty()
    {
        // Only a daemon can make the next one forget them.
        client = daemonize::ensure(&paths)?;
    }
    let Some(selection) = targets::select_to_end(&client, &args.targets, cx)? else {
        return action::conclude(&cx.out, &[], true);
    };
    let delete = Action::Delete {
        targets: selection.whole_apps("delete")?.targets,
    };
    let outcomes = action::run(&cx.out, &client, delete, Vec::new(), !args.no_wait)?;
    action::conclude(&cx.out, &outcomes, !args.no_wait)
}
