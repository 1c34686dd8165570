//! `rsup daemon`: what `rsup start` runs in the background.

use nix::errno::Errno;

use crate::cli::Context;
use crate::cli::problem::Problem;
use crate::daemon;

/// Run the daemon; `rsup start` does this by itself
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), Problem> {
    let paths = cx.paths()?;
    paths.create().map_err(Problem::usage)?;
    // Away from the terminal, whose end must not reach us. Started by hand from a shell, this
    // process may lead its group already: then it stays where it is.
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(Problem::failed("local", format!("cannot leave the terminal: {error}"))),
    }
    daemon::run(paths, daemon::Options { foreground: false, start: None, json_log: cx.out.json })?;
    Ok(())
}
