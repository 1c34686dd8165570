//! `rsup kill`.

use crate::cli::client::Interrupt;
use crate::cli::error::CliError;
use crate::cli::progress::Progress;
use crate::cli::{Context, render, targets};
use crate::control::{Reply, Request};

/// Stop every app gracefully, then end the daemon
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup kill")]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let progress = Progress::new(&cx.out);
    let reply = client.act(Request::Kill, true, &Interrupt::hold(), &|step| {
        progress.show(step)
    });
    progress.clear();
    match reply.map_err(|error| client.explain(error))? {
        Reply::Killed => {
            let killed = render::Killed { killed: true };
            if cx.out.json {
                cx.out.document(&killed)
            } else {
                cx.out.text(&killed.to_string())
            }
        }
        _ => Err(targets::unexpected()),
    }
}
