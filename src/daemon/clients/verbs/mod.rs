//! What each action does with each app: a file per verb.

mod delete;
mod kill;
mod reload;
mod restart;
mod scale;
mod signal;
mod start;
mod stop;
mod up;

use super::{Caller, reply};
use crate::config::AppName;
use crate::control::{Act, Action, Answer, Failure, FailureCode, Target, Untouched};
use crate::core::{self, OpId, OperationKind};
use crate::daemon::Daemon;

/// The part of an action for one app.
pub struct Task {
    pub app: AppName,
    pub kind: OperationKind,
    pub step: Step,
}

/// What the daemon does for it.
pub enum Step {
    Begin(core::Request),
    /// Waits for an equal action that is under way.
    Join(OpId),
    Leave(Untouched),
    Refuse(Failure),
}

impl Task {
    fn begin(app: AppName, request: core::Request) -> Self {
        let kind = request.kind();
        let step = Step::Begin(request);
        Self { app, kind, step }
    }
}

impl Daemon {
    pub(super) fn act(&mut self, act: Act, wait: bool, answer: Caller) {
        let Act {
            id,
            action,
            settings,
            cause,
        } = act;
        match self.tasks(action) {
            Ok(tasks) => {
                let notes = settings.into_iter().flat_map(|new| self.supervise(new));
                let notes: Vec<String> = notes.collect();
                if !notes.is_empty() {
                    let _ = answer.send(Answer::Notes(notes));
                }
                self.begin(id, tasks, cause, (false, wait), answer);
            }
            Err(failure) => {
                self.refuse_start(&failure);
                reply::<Act>(&answer, Err(failure));
            }
        }
    }

    fn tasks(&self, action: Action) -> Result<Vec<Task>, Failure> {
        if self.ending {
            let why = "the daemon is stopping every app and will end";
            return Err(Failure::new(FailureCode::Ending, why)
                .hint("`rsup start`, once it has: it begins with the next daemon"));
        }
        match action {
            Action::Start { apps, base_env } => self.start_apps(apps, base_env),
            Action::StartStopped { targets } => self.start_stopped(&targets),
            Action::Stop { targets } => self.stop(&targets),
            Action::Restart { apps, base_env } => self.restart(apps, base_env),
            Action::Reload {
                apps,
                base_env,
                queue,
            } => self.reload(apps, base_env, queue),
            Action::Delete { targets } => self.delete(&targets),
            Action::Up {
                apps,
                base_env,
                update_env,
                prune,
            } => self.up(apps, base_env, update_env, prune),
            Action::Scale { app, to } => self.scale(app, to),
        }
    }

    /// The apps of an action that takes whole apps only. The core refuses unknown ones.
    fn whole_apps(&self, targets: &[Target], verb: &str) -> Result<Vec<AppName>, Failure> {
        let mut apps: Vec<AppName> = Vec::new();
        for target in targets {
            match target {
                Target::All => apps.extend(self.supervisor.names().cloned()),
                Target::App(app) => apps.push(app.clone()),
                Target::Worker(app, _) => {
                    let why = format!("`{target}` is one worker; {verb} is for whole apps");
                    return Err(Failure::new(FailureCode::BadRequest, why)
                        .hint(format!("rsup {verb} {app}, or rsup signal TERM {target}")));
                }
            }
        }
        let mut once = std::collections::HashSet::new();
        apps.retain(|app| once.insert(app.clone()));
        Ok(apps)
    }

    /// The same step for each app.
    fn each(
        &self,
        targets: &[Target],
        verb: &str,
        request: impl Fn() -> core::Request,
    ) -> Result<Vec<Task>, Failure> {
        let apps = self.whole_apps(targets, verb)?.into_iter();
        Ok(apps.map(|app| Task::begin(app, request())).collect())
    }
}
