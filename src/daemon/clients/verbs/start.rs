//! `rsup start`, of new apps, or of known and stopped ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Step, Task};
use crate::config::{AppName, AppSpec};
use crate::control::{Failure, FailureCode, Target, Untouched};
use crate::core::{AppPhase, OperationKind, Request};
use crate::daemon::{Daemon, now};

impl Daemon {
    pub(super) fn start_apps(
        &self,
        apps: Vec<AppSpec>,
        base_env: BTreeMap<String, String>,
    ) -> Result<Vec<Task>, Failure> {
        let base_env = Arc::new(base_env);
        let (mut tasks, mut fresh) = (Vec::new(), Vec::new());
        for spec in apps {
            let waiting = self.supervisor.waiting_start(&spec.name);
            let step = match (self.runs(&spec.name), waiting) {
                (Some(old), _) if !is_same(old, &spec) => Step::Refuse(clash(old, &spec)),
                (Some(old), _) if !old.differences(&spec).is_empty() => {
                    Step::Refuse(differs(old, &spec))
                }
                (Some(_), _) => self.start_known(&spec.name),
                (None, Some(op)) => Step::Join(op),
                (None, None) => {
                    fresh.push(spec.clone());
                    Step::Begin(Request::Start {
                        spec: Box::new(spec.clone()),
                        base_env: base_env.clone(),
                    })
                }
            };
            tasks.push(Task {
                app: spec.name,
                kind: OperationKind::Start,
                step,
            });
        }
        self.check_specs(&fresh)?;
        Ok(tasks)
    }

    pub(super) fn start_stopped(&self, targets: &[Target]) -> Result<Vec<Task>, Failure> {
        let apps = self.whole_apps(targets, "start")?.into_iter();
        let task = |app: AppName| Task {
            step: self.start_known(&app),
            kind: OperationKind::Start,
            app,
        };
        Ok(apps.map(task).collect())
    }

    /// The spec that it runs with, unless it is stopped, or ended for good.
    pub(in crate::daemon) fn runs(&self, app: &AppName) -> Option<&AppSpec> {
        let view = self.supervisor.view(app, now())?;
        let spec = &self.supervisor.revision(app)?.spec;
        match view.phase {
            AppPhase::Starting | AppPhase::Ready | AppPhase::Degraded | AppPhase::Reloading => {
                Some(spec)
            }
            AppPhase::Stopping | AppPhase::Stopped | AppPhase::Errored => None,
        }
    }

    /// Starts the app as it was last configured. If it is starting already, this action waits for
    /// that too.
    fn start_known(&self, app: &AppName) -> Step {
        if let Some(op) = self.supervisor.waiting_start(app) {
            return Step::Join(op);
        }
        let under_way = self.supervisor.action(app);
        let view = self.supervisor.view(app, now());
        match (view.map(|view| view.phase), under_way) {
            (Some(AppPhase::Ready), None) => Step::Leave(Untouched::Runs),
            (_, Some((op, OperationKind::Start))) => Step::Join(op),
            (_, Some((_, OperationKind::Stop | OperationKind::Delete)))
            | (
                None
                | Some(
                    AppPhase::Starting
                    | AppPhase::Degraded
                    | AppPhase::Reloading
                    | AppPhase::Stopping
                    | AppPhase::Stopped
                    | AppPhase::Errored,
                ),
                None,
            ) => Step::Begin(Request::StartStopped),
            (
                _,
                Some((_, OperationKind::Restart | OperationKind::Reload | OperationKind::Scale)),
            ) => Step::Leave(Untouched::Runs),
        }
    }
}

/// Whether it is the same app, perhaps with other settings: from the same file, or the same
/// command.
fn is_same(old: &AppSpec, new: &AppSpec) -> bool {
    match (&old.source, &new.source) {
        // By whatever path the file is given.
        (Some(source), Some(same)) => {
            source == same
                || (old.source_resolved.is_some() && old.source_resolved == new.source_resolved)
        }
        (None, None) => {
            old.command == new.command
                && (old.cwd == new.cwd || old.cwd_resolved == new.cwd_resolved)
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn clash(old: &AppSpec, new: &AppSpec) -> Failure {
    let from = match &old.source {
        Some(file) => format!("from {}", file.display()),
        None => format!("in {}: {}", old.cwd.display(), old.command.join(" ")),
    };
    let why = format!("another app called {} runs already\n{from}", old.name);
    let hint = match &new.source {
        Some(file) => format!(
            "if it is the same, `rsup up {}` moves it here by a reload; if not, give this one another name",
            file.display()
        ),
        None => format!("give this one another name, or `rsup delete {}`", old.name),
    };
    Failure::new(FailureCode::AlreadyRunning, why).hint(hint)
}

/// The note on an app that runs with other settings: a start replaces nothing.
fn differs(old: &AppSpec, new: &AppSpec) -> Failure {
    let name = &old.name;
    let what = old.differences(new).join(", ");
    let (said, hint) = match &new.source {
        Some(file) => (
            "its file says",
            format!("rsup up {}, or rsup reload {name}", file.display()),
        ),
        None => (
            "asked for",
            format!(
                "rsup delete {name}, then start it again; `rsup scale` changes the number of workers"
            ),
        ),
    };
    let why = format!(
        "{name} runs already, with other settings than {said}: {what}\nnothing was changed"
    );
    Failure::new(FailureCode::AlreadyRunning, why).hint(hint)
}
