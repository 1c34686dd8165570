//! `rsup restart`.

use crate::cli::error::CliError;
use crate::cli::{Context, action, reread, targets};
use crate::control::Action;
use crate::core::OperationKind;

/// Stop and start all workers of an app at once
///
/// The listening sockets stay open meanwhile, so connections wait instead of being refused. The
/// app's file is read again. To have no pause at all, use `rsup reload`. A stopped app is started if
/// its name is given; with `all` or a file it stays stopped.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup restart api")]
pub struct Args {
    /// A name, `all`, or a file whose apps are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Use the environment of this shell from now on
    #[arg(long)]
    update_env: bool,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let selection = targets::select(&client, &args.targets)?.whole_apps("restart")?;
    targets::note_no_apps(&selection.known, cx);
    let (meant, mut outcomes) = selection.apps_that_run(OperationKind::Restart);
    let (apps, settings) = reread::for_command(&meant, &selection.known, &cx.out)?;
    if !apps.is_empty() {
        let base_env = args.update_env.then(|| cx.base_env());
        let restart = Action::Restart { apps, base_env };
        let done = action::run(&cx.out, &client, restart, settings, !args.no_wait)?;
        outcomes.extend(done);
    }
    action::conclude(&cx.out, &outcomes, !args.no_wait)
}
