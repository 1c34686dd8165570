//! `rsup kill`.

use crate::cli::client::CallError;
use crate::cli::error::CliError;
use crate::cli::{Context, action, render, targets};
use crate::control::{ActionId, Kill, Killed, Ping};

/// Stop every app gracefully, then end the daemon
///
/// Where no daemon runs there is nothing to do, which is said on stderr; the exit code is 0.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup kill")]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    // One that goes while it is asked is something else.
    let runs = !matches!(client.try_ask(&Ping), Err(CallError::NoDaemon));
    if runs {
        let Killed = action::watched(&cx.out, &client, &Kill(ActionId::new()), true)
            .map_err(|error| client.explain(error))?;
    } else {
        targets::nothing_runs(cx)?;
    }
    let killed = render::Killed { killed: runs };
    cx.out.result("`rsup kill`", &killed, &killed.to_string());
    Ok(())
}
