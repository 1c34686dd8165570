//! `rsup ping`.

use crate::cli::error::CliError;
use crate::cli::{Context, render, targets};
use crate::control::{Reply, Request};

/// Ask whether the daemon runs; exit code 1 if not
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup ping --json")]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), CliError> {
    match cx.client()?.ask(Request::Ping)? {
        Reply::Pong {
            pid,
            version,
            protocol,
            uptime_ms,
            memory,
            admin,
            troubles,
        } => {
            let pong = render::Pong {
                pid,
                version,
                protocol,
                uptime_ms,
                memory,
                admin,
                troubles,
            };
            if cx.out.json {
                cx.out.document(&pong)
            } else {
                cx.out.text(&pong.to_string())
            }
        }
        _ => Err(targets::unexpected()),
    }
}
