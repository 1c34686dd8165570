//! `rsup ping`.

use crate::cli::error::CliError;
use crate::cli::{Context, render};
use crate::control::Ping;

/// Ask whether the daemon runs; exit code 1 if not
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup ping --json")]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), CliError> {
    let pong = render::Pong(cx.client()?.ask(&Ping)?);
    if cx.out.json {
        cx.out.document(&pong)
    } else {
        cx.out.text(&pong.to_string())
    }
}
