//! `rsup signal`.

use crate::cli::error::CliError;
use crate::cli::{Context, render, targets};
use crate::control::Signal;
use crate::exit::signal_number;

/// Send a signal to the workers of an app
///
/// rsup does nothing else: a worker that ends from it is started again, as after any other exit.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  rsup signal HUP api\n  rsup signal USR2 api:0")]
pub struct Args {
    /// A name (`HUP`, `SIGHUP`) or a number
    #[arg(value_name = "SIGNAL", value_parser = parse)]
    signal: i32,
    /// A name, `name:worker`, or `all`
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
}

fn parse(text: &str) -> Result<i32, String> {
    signal_number(text).ok_or_else(|| "no such signal; `kill -l` lists them".into())
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let pids = client.ask(&Signal {
        targets: targets::select(&client, &args.targets)?.targets,
        signal: args.signal,
    })?;
    let words = render::signalled(args.signal, &pids);
    cx.out.result("`rsup signal`", &pids, &words);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("HUP", 1),
            ("sighup", 1),
            ("SIGUSR2", 12),
            ("15", 15),
            ("34", 34),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for bad in ["", "0", "65", "-1", "NOPE", "SIG"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
