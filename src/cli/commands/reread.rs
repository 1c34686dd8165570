//! `rsup reread`: the daemon runs it to read the configuration again without a command of the user
//! (SIGHUP). Its output goes to the daemon's log.

use std::path::PathBuf;

use crate::cli::error::{CliError, FAILED};
use crate::cli::reread::{self, Reread};
use crate::cli::{Context, action};
use crate::control::{Act, Action, ActionId, Known, Snapshot};
use crate::model::Cause;

/// Reload every app that is up, from its file as it is now; the daemon does this by itself
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file whose `[supervisor]` counts, though none of its apps may be up
    file: Option<PathBuf>,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    reload(args, cx).inspect_err(|error| {
        if !matches!(error, CliError::AlreadyReported(_)) {
            cx.out.trouble("nothing was reloaded");
        }
    })
}

fn reload(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?.of_next_daemon();
    let known = client.ask(&Snapshot)?;
    let (up, stopped): (Vec<&Known>, Vec<&Known>) = known.iter().partition(|known| known.is_up());
    for known in stopped {
        let app = &known.spec.name;
        cx.out.note(&action::stays_stopped(app));
    }
    let Reread {
        apps,
        settings,
        stay,
        added,
        ..
    } = reread::read(&up, &known, args.file)?;
    for (app, file) in added {
        cx.out.note(&reread::new_in_file(&app, &file));
    }
    let mut failed = !stay.is_empty();
    for (app, why) in stay {
        cx.out.trouble(&format!("{app} stays as it is"));
        cx.out.problem(&why);
    }
    let act = Act {
        id: ActionId::new(),
        action: Action::Reload {
            apps,
            base_env: None,
            queue: true,
        },
        settings,
        cause: Cause::Hangup,
    };
    // The daemon's log has each step already.
    let outcomes = action::quietly(&cx.out, &client, &act)?;
    for outcome in &outcomes {
        let app = &outcome.app;
        match &outcome.failure {
            None => cx.out.note(&format!("{app} is reloaded")),
            Some(failure) => {
                failed = true;
                let why = &failure.message;
                cx.out.trouble(&format!("{app} was not reloaded: {why}"));
            }
        }
    }
    if failed {
        return Err(CliError::AlreadyReported(FAILED));
    }
    Ok(())
}
