//! `rsup sample-app`: the web app that `rsup demo` runs.

use crate::cli::Context;
use crate::cli::problem::Problem;

/// The web app of `rsup demo`
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(Args {}: Args, _cx: &Context) -> Result<(), Problem> {
    Err(Problem::failed("internal", "`rsup sample-app` is not built in yet"))
}
