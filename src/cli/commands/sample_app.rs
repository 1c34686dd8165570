//! `rsup sample-app`: the web app that `rsup demo` runs.

use crate::cli::Context;
use crate::cli::problem::Problem;

/// The web app of `rsup demo`
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(Args {}: Args, _cx: &Context) -> Result<(), Problem> {
    crate::load::sample::run().map_err(|why| Problem::failed("local", why.to_string()))
}
