//! The one place that ends the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(rsup::cli::run(std::env::args_os()))
}
