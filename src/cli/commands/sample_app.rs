//! `rsup sample-app`: the web app that `rsup demo` runs.

use crate::cli::Context;
use crate::cli::error::CliError;

/// The web app of `rsup demo`
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(Args {}: Args, _cx: &Context) -> Result<(), CliError> {
    crate::load::sample::run().map_err(|why| CliError::failed("local", why.to_string()))
}
