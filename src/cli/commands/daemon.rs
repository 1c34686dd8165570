//! `rsup daemon`: what `rsup start` runs in the background.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::getpid;

use crate::cli::Context;
use crate::cli::problem::Problem;
use crate::daemon;

/// Run the daemon; `rsup start` does this by itself
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End, with all apps, at the end of standard input: whoever holds its other end is gone
    #[arg(long, hide = true)]
    until_eof: bool,
    /// Say whether this program can go on with the state that `rsup upgrade` hands over
    #[arg(long, hide = true)]
    try_state: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), Problem> {
    if args.try_state {
        daemon::try_state().map_err(|why| Problem::failed("state", why))?;
        return cx.out.text(&format!("{}\n", daemon::CAN_GO_ON));
    }
    let paths = cx.paths()?;
    paths.create().map_err(Problem::usage)?;
    // Whoever started us may hold signals back; that passes from process to process.
    SigSet::empty()
        .thread_set_mask()
        .map_err(|error| Problem::failed("local", format!("cannot let signals through: {error}")))?;
    // Away from the terminal, whose end must not reach us. Started by hand from a shell, this
    // process may lead its group already: then it stays where it is.
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(Problem::failed("local", format!("cannot leave the terminal: {error}"))),
    }
    if args.until_eof {
        std::thread::Builder::new()
            .name("until-eof".into())
            .spawn(end_with_stdin)
            .map_err(|error| Problem::failed("local", format!("cannot start a thread: {error}")))?;
    }
    daemon::run(paths, daemon::Options { json_log: cx.out.json, ..Default::default() })?;
    Ok(())
}

/// The graceful end that SIGTERM means.
fn end_with_stdin() {
    drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
    let _ = kill(getpid(), Signal::SIGTERM);
}
