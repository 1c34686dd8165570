//! `rsup daemon`: what `rsup start` runs in the background.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::getpid;

use crate::cli::error::CliError;
use crate::cli::{Context, render};
use crate::logs::stderr;
use crate::paths::Paths;
use crate::sys::inherit;
use crate::{daemon, keeper};

/// Pause between an error of a service and its exit.
const PAUSE: Duration = Duration::from_secs(1);

/// Run the daemon; `rsup start` does this by itself
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End, with all apps, at the end of standard input: the process at its other end is gone
    #[arg(long, hide = true)]
    until_eof: bool,
    /// Say whether this program can go on with the state that `rsup upgrade` hands over
    #[arg(long, hide = true)]
    try_state: bool,
    /// As a service of systemd: stay in the foreground, go on from the saved state
    #[arg(long, hide = true, conflicts_with = "until_eof")]
    service: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    if args.try_state {
        daemon::try_state().map_err(|why| CliError::failed("state", why))?;
        return cx.out.text(&format!("{}\n", daemon::CAN_GO_ON));
    }
    // A unit sets what its service inherits, and the program before an upgrade has closed the rest.
    if !args.service && !daemon::takes_over() {
        keeper::detach();
    }
    // Before there is a second thread.
    if let Some(Ok(words)) = inherit::take_named(keeper::WORDS) {
        stderr::set_witness(words);
    }
    let paths = cx.paths()?;
    paths.create().map_err(CliError::usage)?;
    // The caller may block signals; a process inherits that.
    SigSet::empty().thread_set_mask().map_err(|error| {
        CliError::failed("local", format!("cannot let signals through: {error}"))
    })?;
    if args.service {
        return serve(paths, cx);
    }
    // Leaves the terminal, whose end must not reach the daemon. Where this process leads its group
    // already (started by hand from a shell, or in the foreground before it became this program),
    // it stays there.
    let left = if daemon::takes_over() {
        Err(Errno::EPERM)
    } else {
        nix::unistd::setsid()
    };
    match left {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => {
            return Err(CliError::failed(
                "local",
                format!("cannot leave the terminal: setsid: {error}"),
            ));
        }
    }
    if args.until_eof {
        std::thread::Builder::new()
            .name("until-eof".into())
            .spawn(end_with_stdin)
            .map_err(|error| {
                CliError::failed(
                    "local",
                    crate::sys::needs::words("cannot start a thread", &error),
                )
            })?;
    }
    daemon::run(
        paths,
        daemon::Options {
            json_log: cx.out.json,
            open_console: Some(render::to_stdout),
            ..Default::default()
        },
    )?;
    Ok(())
}

/// Runs as a service. A watcher may start the service again at once: an error that stays must not
/// fill the journal.
fn serve(paths: Paths, cx: &Context) -> Result<(), CliError> {
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        point_to_journal(&paths.daemon_log());
    }
    let options = daemon::Options {
        json_log: cx.out.json,
        service: true,
        ..daemon::Options::default()
    };
    daemon::run(paths, options).map_err(|error| {
        let problem = CliError::from(error);
        cx.out.problem(&problem);
        std::thread::sleep(PAUSE);
        CliError::AlreadyReported(problem.exit())
    })
}

/// Writes into the usual log file where the daemon's messages are now.
fn point_to_journal(log: &Path) {
    let append = || {
        let mut file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)?;
        io::Write::write_all(
            &mut file,
            b"rsup runs as a service: its messages are in the journal (journalctl -t rsup)\n",
        )
    };
    // A failure is ignored: the messages exist in the journal.
    drop(append());
}

/// Ends gracefully, as on SIGTERM, at the end of standard input.
fn end_with_stdin() {
    drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
    let _ = kill(getpid(), Signal::SIGTERM);
}
