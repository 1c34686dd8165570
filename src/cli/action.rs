//! Long actions: send, show the steps, wait, report the outcome of each app.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::client::{CallError, Client, Interrupt, Meanwhile};
use super::error::{CliError, FAILED, Report};
use super::progress::Progress;
use super::render::{self, Output};
use crate::config::{self, AppName, AppSpec};
use crate::control::{Act, Action, ActionId, Ask, Known, Outcome, Untouched};
use crate::core::{AppPhase, OperationKind, Settings};
use crate::model::Cause;

/// Sends an action and waits for its outcomes. `settings`: those of the files that its apps come
/// from.
pub fn run(
    out: &Output,
    client: &Client,
    action: Action,
    settings: Vec<Settings>,
    wait: bool,
) -> Result<Vec<Outcome>, CliError> {
    sent(out, client, action, settings, wait).map_err(|error| client.explain(error))
}

/// As [`run`], with the error as the client returned it.
pub fn sent(
    out: &Output,
    client: &Client,
    action: Action,
    settings: Vec<Settings>,
    wait: bool,
) -> Result<Vec<Outcome>, CallError> {
    let act = Act {
        id: ActionId::new(),
        action,
        settings,
        cause: Cause::Command,
    };
    watched(out, client, &act, wait)
}

/// Sends an action; prints only the notes that the user should know.
pub fn quietly<Q: Ask>(out: &Output, client: &Client, what: &Q) -> Result<Q::Reply, CliError> {
    let note = |meanwhile| {
        if let Meanwhile::Notes(notes) = meanwhile {
            notes.iter().for_each(|note| out.trouble(note));
        }
    };
    let reply = client.act(what, true, &Interrupt::none(), &note);
    reply.map_err(|error| client.explain(error))
}

/// Sends an action, and shows its events as they come.
pub fn watched<Q: Ask>(
    out: &Output,
    client: &Client,
    what: &Q,
    wait: bool,
) -> Result<Q::Reply, CallError> {
    let interrupt = if wait {
        Interrupt::hold()
    } else {
        Interrupt::none()
    };
    let progress = Progress::new(out);
    let notes = Mutex::new(Vec::new());
    let reply = client.act(what, wait, &interrupt, &|meanwhile| match meanwhile {
        Meanwhile::Progress(step) => progress.show(&step),
        Meanwhile::Notes(more) => notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(more),
    });
    progress.clear();
    for note in notes.into_inner().unwrap_or_else(PoisonError::into_inner) {
        out.warning(&format!("warning: {note}\n"));
    }
    reply
}

/// The outcome of an action on one app.
pub fn only(outcomes: Vec<Outcome>) -> Result<Outcome, CliError> {
    let first = outcomes.into_iter().next();
    first.ok_or_else(|| CliError::failed("broken", "the daemon's answer is about no app"))
}

/// Apps that are reloaded from the folder that they run in, with what to say of each.
pub struct SameFolders(Vec<(AppName, String)>);

/// Compares before the action: the action changes what the daemon knows.
pub fn same_folders(apps: &[AppSpec], known: &[Known]) -> SameFolders {
    let same = apps.iter().filter_map(|new| {
        let old = known.iter().find(|old| old.spec.name == new.name)?;
        Some((new.name.clone(), config::same_folder(&old.spec, new)?))
    });
    SameFolders(same.collect())
}

impl SameFolders {
    /// A link that was not switched looks like a release that changed nothing.
    pub fn note(&self, outcomes: &mut [Outcome]) {
        let reloads = |outcome: &&mut Outcome| outcome.kind == OperationKind::Reload;
        for outcome in outcomes.iter_mut().filter(reloads) {
            let said = self.0.iter().filter(|(app, _)| *app == outcome.app);
            outcome.notes.extend(said.map(|(_, words)| words.clone()));
        }
    }
}

/// Prints what became of each app; an error if one of them failed. That it cannot be printed is none.
pub fn conclude(out: &Output, outcomes: &[Outcome], wait: bool) -> Result<(), CliError> {
    let mut printed = if out.json {
        out.document(outcomes)
    } else {
        Ok(())
    };
    // What stdout does not take, stderr says.
    let document = out.json && printed.is_ok();
    for outcome in outcomes {
        match &outcome.failure {
            Some(_) if document => {}
            Some(failure) => {
                let mut report = Report::from(failure);
                // Names the app where there are several; the daemon's message may begin with the
                // name already.
                if !report.message.contains(outcome.app.as_str()) {
                    report.message = format!("{}: {}", outcome.app, report.message);
                }
                render::error_text(&render::report(&report, out.error_look));
            }
            None if out.json => {}
            None => match outcome.untouched {
                Some(why) => out.note(&untouched(outcome, why)),
                None => {
                    let line = render::outcome(outcome, !wait, out.look);
                    printed = printed.and_then(|()| out.text(&line));
                }
            },
        }
        for note in &outcome.notes {
            out.note(&format!("{}: {note}", outcome.app));
        }
    }
    let failed = outcomes.iter().any(|outcome| outcome.failure.is_some());
    let done = outcomes.iter().filter(|outcome| outcome.failure.is_none());
    out.printed(&what_is_done(done), printed);
    if failed {
        Err(CliError::AlreadyReported(FAILED))
    } else {
        Ok(())
    }
}

/// Such as `reload of api, web is done`.
fn what_is_done<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let mut apps: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for outcome in outcomes.filter(|outcome| outcome.untouched.is_none()) {
        apps.entry(outcome.kind.as_str())
            .or_default()
            .push(outcome.app.as_str());
    }
    if apps.is_empty() {
        return "nothing was changed".into();
    }
    let parts = apps
        .iter()
        .map(|(kind, apps)| format!("{kind} of {}", apps.join(", ")));
    let parts: Vec<String> = parts.collect();
    format!("{} is done", parts.join("; "))
}

/// Why nothing was done to the app, and which command would do it.
fn untouched(outcome: &Outcome, why: Untouched) -> String {
    let app = &outcome.app;
    match why {
        Untouched::Runs => {
            let phase = outcome.view.as_ref().map(|view| view.phase);
            let phase = phase.filter(|phase| *phase != AppPhase::Ready);
            let phase = phase.map(|phase| format!(" ({})", phase.as_str()));
            let phase = phase.unwrap_or_default();
            format!("{app} runs already{phase}; `rsup reload {app}` replaces it")
        }
        Untouched::Stopped => stays_stopped(app),
        Untouched::NotInFile => format!(
            "{app} is no longer in the file and goes on; `rsup delete {app}` ends it, as does --prune"
        ),
    }
}

/// The note for a stopped app where all apps, or those of a file, are meant.
pub fn stays_stopped(app: &AppName) -> String {
    format!("{app} is stopped and stays so; `rsup start {app}` starts it")
}
