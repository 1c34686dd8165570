//! `rsup kill`.

use crate::cli::client::CallError;
use crate::cli::error::CliError;
use crate::cli::{Context, action, render, targets};
use crate::control::{ActionId, Kill, Killed};

/// Stop every app gracefully, then end the daemon
///
/// Where no daemon runs there is nothing to do, which is said on stderr; the exit code is 0.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup kill")]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let killed = match action::watched(&cx.out, &client, &Kill(ActionId::new()), true) {
        Ok(Killed) => render::Killed { killed: true },
        Err(CallError::NoDaemon) => {
            targets::nothing_runs(cx)?;
            render::Killed { killed: false }
        }
        Err(error) => return Err(client.explain(error)),
    };
    cx.out.result("`rsup kill`", &killed, &killed.to_string());
    Ok(())
}
