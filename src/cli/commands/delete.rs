//! `rsup delete`.

use crate::cli::error::CliError;
use crate::cli::{Context, action, targets};
use crate::control::Action;

/// Stop apps and forget them
///
/// Their log files stay.
#[derive(Debug, clap::Args)]
#[command(visible_aliases = ["del", "rm"], after_long_help = "Example:\n  rsup delete api")]
pub struct Args {
    /// A name, `all`, or a file whose apps are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let selection = targets::select(&client, &args.targets)?.whole_apps("delete")?;
    let delete = Action::Delete {
        targets: selection.targets,
    };
    let outcomes = action::run(&cx.out, &client, delete, Vec::new(), !args.no_wait)?;
    action::conclude(&cx.out, &outcomes, !args.no_wait)
}
