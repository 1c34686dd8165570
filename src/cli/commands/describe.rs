//! `rsup describe`.

use crate::cli::error::CliError;
use crate::cli::{Context, render, targets};
use crate::control::Describe;

/// Show everything about an app: workers, settings, recent events
#[derive(Debug, clap::Args)]
#[command(visible_aliases = ["show", "info"], after_long_help = "Example:\n  rsup describe api")]
pub struct Args {
    /// A name, `name:worker`, `all`, or a file whose apps are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let targets = targets::select(&client, &args.targets)?.targets;
    let all = client.ask(&Describe(targets))?;
    if cx.out.json {
        cx.out.document(&all)
    } else {
        cx.out.text(&render::descriptions(&all, cx.out.look))
    }
}
