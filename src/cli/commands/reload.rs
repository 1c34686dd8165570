//! `rsup reload`.

use crate::cli::error::CliError;
use crate::cli::{Context, action, reread, targets};
use crate::control::Action;
use crate::core::OperationKind;

/// Replace the workers of an app one by one, without a failed request
///
/// The app's file is read again and its folder (which may be a link to the newest release) looked
/// up again. Each replacement must be ready before the worker it replaces is taken out of the
/// traffic, drained and stopped. If one does not get ready, the old workers stay, and the exit code
/// is 1.
///
/// A stopped app stays stopped: with `all` or a file the answer says so, with its name alone it is an error.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  rsup reload api\n  rsup reload supervisor.toml --update-env"
)]
pub struct Args {
    /// A name, `all`, or a file whose apps are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Wait for an action that is under way instead of failing
    #[arg(long)]
    wait: bool,
    /// Use the environment of this shell from now on
    #[arg(long)]
    update_env: bool,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let selection = targets::select(&client, &args.targets)?.whole_apps("reload")?;
    targets::note_no_apps(&selection.known, cx);
    let (meant, mut outcomes) = selection.apps_that_run(OperationKind::Reload);
    let (apps, settings) = reread::for_command(&meant, &selection.known, &cx.out)?;
    let same = action::same_folders(&apps, &selection.known);
    if !apps.is_empty() {
        let reload = Action::Reload {
            apps,
            base_env: args.update_env.then(|| cx.base_env()),
            queue: args.wait,
        };
        let mut done = action::run(&cx.out, &client, reload, settings, !args.no_wait)?;
        same.note(&mut done);
        outcomes.extend(done);
    }
    action::conclude(&cx.out, &outcomes, !args.no_wait)
}
