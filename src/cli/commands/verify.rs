//! `rsup verify`.

use crate::cli::Context;
use crate::cli::problem::Problem;
use crate::cli::values::duration;
use crate::config::AppName;

/// Put load on an app, reload it meanwhile, and count the failed requests
///
/// Exit code 1 if there was one.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup verify api --rps 200 --duration 20s --path /health")]
pub struct Args {
    /// The app
    #[arg(value_parser = AppName::parse)]
    pub app: AppName,
    /// Requests a second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rps: u32,
    /// How long to go on, for example `20s`
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub duration: std::time::Duration,
    /// The path that is asked for
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub path: String,
    /// Connections at the same time, at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// Use connections for more than one request
    #[arg(long)]
    pub keep_alive: bool,
}

pub fn run(_args: Args, _cx: &Context) -> Result<(), Problem> {
    Err(Problem::failed("internal", "`rsup verify` is not built in yet"))
}
