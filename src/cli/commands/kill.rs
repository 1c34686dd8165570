//! `rsup kill`.

use crate::cli::error::CliError;
use crate::cli::{Context, action, render};
use crate::control::{ActionId, Kill, Killed};

/// Stop every app gracefully, then end the daemon
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup kill")]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let Killed = action::watched(&cx.out, &client, &Kill(ActionId::new()), true)
        .map_err(|error| client.explain(error))?;
    let killed = render::Killed { killed: true };
    if cx.out.json {
        cx.out.document(&killed)
    } else {
        cx.out.text(&killed.to_string())
    }
}
