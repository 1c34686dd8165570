//! `rsup stop`.

use crate::cli::error::CliError;
use crate::cli::{Context, action, targets};
use crate::control::Action;

/// Stop apps; they stay known and can be started again
///
/// Each worker first stops taking new connections and finishes those that wait, then gets its stop
/// signal, and after `kill_timeout` SIGKILL. With `all`, no daemon or no app is nothing to do, which is said on
/// stderr; the exit code is 0.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup stop api web")]
pub struct Args {
    /// A name, `all`, or a file whose apps are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let Some(selection) = targets::select_to_end(&client, &args.targets, cx)? else {
        return action::conclude(&cx.out, &[], true);
    };
    let stop = Action::Stop {
        targets: selection.whole_apps("stop")?.targets,
    };
    let outcomes = action::run(&cx.out, &client, stop, Vec::new(), !args.no_wait)?;
    action::conclude(&cx.out, &outcomes, !args.no_wait)
}
