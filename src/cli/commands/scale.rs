//! `rsup scale`.

use crate::cli::error::CliError;
use crate::cli::{Context, action};
use crate::config::{AppName, MOST_INSTANCES};
use crate::control::{Action, ScaleTo};

/// Change the number of workers of an app
///
/// It holds until the app is reloaded or restarted, when its file counts again.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  rsup scale api 4\n  rsup scale api +2\n  rsup scale api -1"
)]
pub struct Args {
    /// The app
    #[arg(value_parser = AppName::parse)]
    app: AppName,
    /// How many, or how many more (`+2`) or fewer (`-1`)
    #[arg(value_name = "N|+N|-N", allow_hyphen_values = true, value_parser = parse)]
    to: ScaleTo,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
}

fn parse(text: &str) -> Result<ScaleTo, String> {
    let bad = || format!("a number between 1 and {MOST_INSTANCES}, or a change like `+2` or `-1`");
    let by = text.starts_with(['+', '-']);
    let number: i64 = text.parse().map_err(|_| bad())?;
    match number {
        0 if by => Err("that changes nothing".into()),
        0 => Err("an app has at least one worker; `rsup stop` stops it".into()),
        // No change leads farther than from one end to the other.
        _ if by => i16::try_from(number)
            .map(|change| ScaleTo::By(change.into()))
            .map_err(|_| bad()),
        many if many > i64::from(MOST_INSTANCES) => Err(format!(
            "{many} workers are more than the {MOST_INSTANCES} that one app can have"
        )),
        exactly => u16::try_from(exactly)
            .map(ScaleTo::Exactly)
            .map_err(|_| bad()),
    }
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let scale = Action::Scale {
        app: args.app,
        to: args.to,
    };
    let outcomes = action::run(&cx.out, &client, scale, Vec::new(), !args.no_wait)?;
    action::conclude(&cx.out, &outcomes, !args.no_wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_changes() {
        assert_eq!(parse("4"), Ok(ScaleTo::Exactly(4)));
        assert_eq!(parse("+2"), Ok(ScaleTo::By(2)));
        assert_eq!(parse("-1"), Ok(ScaleTo::By(-1)));
        for bad in [
            "0",
            "+0",
            "-0",
            "",
            "x",
            "+",
            "1.5",
            "251",
            "65536",
            "-65536",
            "99999999999",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
