//! `rsup env`.

use crate::cli::problem::Problem;
use crate::cli::{Context, render, targets};
use crate::control::{Reply, Request};

/// Show the environment that workers run with
///
/// Written so that a shell can read it. It may hold secrets.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup env api:0")]
pub struct Args {
    /// A name, `name:worker`, or `all`
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
}

pub fn run(args: Args, cx: &Context) -> Result<(), Problem> {
    let client = cx.client()?;
    let mut all = Vec::new();
    for target in targets::select(&client, &args.targets)?.targets {
        match client.ask(Request::Env { target })? {
            Reply::Env(workers) => all.extend(workers),
            _ => return Err(targets::unexpected()),
        }
    }
    if cx.out.json { cx.out.document(&all) } else { cx.out.text(&render::environments(&all, cx.out.look)) }
}
