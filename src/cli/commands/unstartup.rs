//! `rsup unstartup`.

use super::startup::Which;
use crate::cli::error::CliError;
use crate::cli::systemctl::{self, Manager};
use crate::cli::{Context, render};

/// Remove what `rsup startup` installed, and stop rsup with all apps
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  sudo rsup unstartup\n  rsup unstartup --no-stop")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Leave rsup running until the next boot
    #[arg(long)]
    no_stop: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let scope = args.which.scope();
    let manager = Manager::reach(scope)?;
    let folder = manager.folder()?;
    let mut removed = Vec::new();
    for kind in ["socket", "service"] {
        let name = format!("{}.{kind}", args.which.name);
        let path = folder.join(&name);
        if systemctl::read_own(&path)?.is_none() {
            continue;
        }
        let words: &[&str] = if args.no_stop {
            &["disable", &name]
        } else {
            &["disable", "--now", &name]
        };
        manager.ask(words)?;
        std::fs::remove_file(&path).map_err(|error| {
            CliError::failed(
                "local",
                format!("cannot remove {}: {error}", path.display()),
            )
        })?;
        removed.push(path);
    }
    if removed.is_empty() {
        let path = folder.join(format!("{}.service", args.which.name));
        let problem = CliError::failed("not_installed", format!("there is no {}", path.display()));
        return Err(
            problem.hint("`rsup startup` installs it; --user and --system say whose, --name which")
        );
    }
    manager.ask(&["daemon-reload"])?;
    let removed = render::Removed {
        removed,
        stopped: !args.no_stop,
    };
    let words = removed.to_string();
    cx.out.result("`rsup unstartup`", &removed, &words);
    Ok(())
}
