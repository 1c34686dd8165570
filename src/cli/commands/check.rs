//! `rsup check`.

use std::path::PathBuf;

use crate::cli::error::CliError;
use crate::cli::{Context, log_folders, render};
use crate::config::{self, AppSpec};

/// Check a configuration file without starting anything; exit code 2 if it has errors
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  rsup check\n  rsup check /srv/api/supervisor.toml --json"
)]
pub struct Args {
    /// The file
    #[arg(value_name = "FILE", default_value = "supervisor.toml")]
    file: PathBuf,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let loaded = config::load(&args.file)?;
    for warning in &loaded.warnings {
        cx.out.warning(&warning.render(cx.out.error_look.color));
    }
    log_folders::notes(&loaded.config.apps, cx);
    if cx.out.json {
        let mut config = loaded.config;
        config.apps = config
            .apps
            .into_iter()
            .map(AppSpec::without_secrets)
            .collect();
        cx.out.document(&config)
    } else {
        cx.out
            .text(&render::checked(&args.file, &loaded.config, cx.out.look))
    }
}
