//! `rsup env`.

use crate::cli::error::CliError;
use crate::cli::render::Environment;
use crate::cli::{Context, render, targets};
use crate::control::Env;

/// Show the environment that workers run with
///
/// Values are hidden, since most secrets live here: only those that rsup sets itself and a few that are
/// the same everywhere (PATH, HOME, NODE_ENV and the like) are shown. With --show-values it is written so that a shell
/// can read it. As JSON a hidden value is null.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  rsup env api:0\n  rsup env api:0 --show-values")]
pub struct Args {
    /// A name, `name:worker`, or `all`
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Show all values, secrets too
    #[arg(long)]
    show_values: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let targets = targets::select(&client, &args.targets)?.targets;
    let all: Vec<_> = client
        .ask(&Env(targets))?
        .into_iter()
        .map(|worker| Environment::of(worker, args.show_values))
        .collect();
    if cx.out.json {
        cx.out.document(&all)
    } else {
        cx.out.text(&render::environments(&all, cx.out.look))
    }
}
