//! `rsup demo`.

use crate::cli::Context;
use crate::cli::problem::Problem;
use crate::cli::values::duration;

/// Show in half a minute what rsup does: an app under load is reloaded, scaled and crashed
///
/// Runs a small web app of its own, in folders of its own, and counts every request.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup demo --duration 20s --rps 500")]
pub struct Args {
    /// How long to go on, for example `30s`
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub duration: std::time::Duration,
    /// Requests a second
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rps: u32,
}

pub fn run(_args: Args, _cx: &Context) -> Result<(), Problem> {
    Err(Problem::failed("internal", "`rsup demo` is not built in yet"))
}
