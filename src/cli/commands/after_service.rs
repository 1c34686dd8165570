//! `rsup after-service`: what systemd runs (`ExecStopPost=`) when the main process of our unit has
//! ended, by any cause, and before it starts the next one.

use crate::cli::Context;
use crate::cli::error::CliError;
use crate::cli::systemctl::Manager;
use crate::cli::unit::Scope;
use crate::daemon;
use crate::sys::cgroup;

/// Clean up after the main process of a unit; systemd does this by itself
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The unit
    unit: String,
    /// It is one of a user
    #[arg(long)]
    user: bool,
    /// Disable the controllers in its cgroup, so that systemd before 254 can start the next process there
    #[arg(long)]
    make_room: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let stopped = see_to_workers(&args, cx);
    // Last: stopping the workers may have enabled the controllers.
    let emptied = if args.make_room { make_room() } else { Ok(()) };
    stopped.and(emptied)
}

/// Workers of a main process that was killed go on serving, for the next one to adopt. When systemd
/// was asked for a stop there is no next one, and the state must not tell a later daemon to stop.
fn see_to_workers(args: &Args, cx: &Context) -> Result<(), CliError> {
    let paths = cx.paths()?;
    let Some(left) = daemon::left_behind(&paths) else {
        return Ok(());
    };
    let manager = Manager(if args.user {
        Scope::User
    } else {
        Scope::System
    });
    if manager.is_asked_to_stop(&args.unit) {
        daemon::run(
            paths,
            daemon::Options {
                only_stop: true,
                json_log: cx.out.json,
                ..daemon::Options::default()
            },
        )?;
        return Ok(());
    }
    let why = std::env::var("SERVICE_RESULT").unwrap_or_else(|_| "unknown".into());
    cx.out.note(&format!("rsup has died (result: {why}); workers that serve on until the next rsup adopts them: {left}"));
    Ok(())
}

fn make_room() -> Result<(), CliError> {
    // Without cgroup v2 there is nothing to do.
    let Some(folder) = cgroup::of_controlled_service() else {
        return Ok(());
    };
    let failed = |why| {
        CliError::failed(
            "cgroup",
            format!("systemd will not be able to start rsup again\n{why}"),
        )
    };
    cgroup::make_room(&folder).map_err(failed)
}
