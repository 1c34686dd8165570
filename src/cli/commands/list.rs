//! `rsup list`.

use crate::cli::client::{CallError, NO_DAEMON, START_HINT};
use crate::cli::error::CliError;
use crate::cli::{Context, render, systemctl};
use crate::control::{List, Listing};

/// Show all apps and their workers
#[derive(Debug, clap::Args)]
#[command(visible_aliases = ["ls", "ps", "status"], after_long_help = "Examples:\n  rsup list\n  rsup list --json | jq '.[].workers[].pid'")]
pub struct Args {}

pub fn run(Args {}: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let apps = match client.try_ask(&List) {
        Ok(Listing { apps, troubles }) => {
            if apps.is_empty() {
                cx.out.note("there are no apps; `rsup start` starts some");
            }
            if let Some((manager, unit)) = systemctl::installed().filter(|_| !cx.out.json)
                && let Some((why, command)) = manager.outdated(&unit)
            {
                cx.out
                    .note(&format!("{unit} {why}; `{command}` writes it anew"));
            }
            // Problems of the daemon itself, beside those of the apps.
            troubles.iter().for_each(|trouble| cx.out.trouble(trouble));
            apps
        }
        Err(CallError::NoDaemon) => {
            if let Some(problem) = systemctl::trouble(&cx.paths()?) {
                return Err(problem);
            }
            cx.out.note(&format!("{NO_DAEMON}; {START_HINT}"));
            Vec::new()
        }
        Err(error) => return Err(client.explain(error)),
    };
    if cx.out.json {
        return cx.out.document(&apps);
    }
    cx.out.text(&render::list(&apps, cx.out.look))
}
