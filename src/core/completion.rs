//! Apps that have ended by themselves and are not started again.

use super::Supervisor;
use super::app::{App, Wanted};
use super::restart::{Instance, RestartState};
use super::view::Exit;
use crate::config::AppName;
use crate::exit::SIGKILL;

/// How an app ended for good that rsup did not stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Every worker exited with 0, and by policy none is started again.
    Succeeded,
    /// With the exit code of the worker that failed; 128 plus the signal's number if a signal
    /// killed it. 1 if several failed in different ways, or one was given up that had not failed by
    /// itself.
    Failed(u8),
}

impl Completion {
    /// The completion of two apps, or workers, together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Succeeded, end) | (end, Self::Succeeded) => end,
            (Self::Failed(one), Self::Failed(another)) => {
                Self::Failed(if one == another { one } else { 1 })
            }
        }
    }

    /// The exit code for exit(3).
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Failed(code) => code,
        }
    }
}

impl Supervisor {
    /// The completion of an app; `None` while it runs, will be started again, or was stopped by a
    /// command.
    pub fn completion_of(&self, app: &AppName) -> Option<Completion> {
        self.apps.get(app).and_then(App::completion)
    }

    /// The completion of all apps together; `None` while one of them has not ended, and if there
    /// are none.
    pub fn completion_of_all(&self) -> Option<Completion> {
        self.agenda.all_completed()?.reduce(Completion::and)
    }

    /// The completion of the first app that has ended.
    pub fn completion_of_any(&self) -> Option<(&AppName, Completion)> {
        self.agenda.first_completed()
    }
}

impl App {
    pub fn completion(&self) -> Option<Completion> {
        let settled = self.goal() == Wanted::Up && self.rollout.is_none() && self.queue.is_empty();
        if !settled || self.workers().next().is_some() {
            return None;
        }
        self.sets
            .values()
            .flat_map(|set| set.instances.values())
            .map(Instance::completion)
            .reduce(|one, another| Some(one?.and(another?)))
            .flatten()
    }
}

impl Instance {
    fn completion(&self) -> Option<Completion> {
        let given_up = match self.state {
            RestartState::Open | RestartState::Backoff { .. } => return None,
            RestartState::Errored => true,
            RestartState::Exited => false,
        };
        Some(match self.exit {
            Some(Exit::Code(0)) if !given_up => Completion::Succeeded,
            Some(Exit::Code(0) | Exit::Unknown) | None => Completion::Failed(1),
            // exit(3) passes on the lower eight bits, so it fits.
            Some(Exit::Code(code)) => Completion::Failed(u8::try_from(code).unwrap_or(1)),
            Some(Exit::OutOfMemory | Exit::Starved { .. }) => {
                Completion::Failed(u8::try_from(128 + SIGKILL).unwrap_or(1))
            }
            Some(Exit::Signal { signal, .. }) => {
                Completion::Failed(u8::try_from(128 + signal).unwrap_or(1))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::sim::web;
    use super::super::types::Revision;
    use super::*;

    fn app(instances: &[(RestartState, Option<Exit>)]) -> Option<Completion> {
        let spec = web(instances.len().max(1) as u16);
        let mut app = App::new(Arc::new(Revision {
            number: 1,
            spec,
            base_env: Default::default(),
        }));
        app.set().instances = (0..)
            .zip(instances)
            .map(|(number, (state, exit))| {
                let instance = Instance {
                    state: state.clone(),
                    exit: *exit,
                    ..Instance::default()
                };
                (number, instance)
            })
            .collect();
        app.completion()
    }

    #[test]
    fn an_app_is_over_when_every_worker_is() {
        let code = |code| Some(Exit::Code(code));
        let killed = Some(Exit::Signal {
            signal: 9,
            core_dumped: false,
        });
        assert_eq!(
            app(&[
                (RestartState::Exited, code(0)),
                (RestartState::Exited, code(0))
            ]),
            Some(Completion::Succeeded)
        );
        assert_eq!(
            app(&[(RestartState::Exited, code(0)), (RestartState::Open, None)]),
            None
        );
        assert_eq!(
            app(&[
                (RestartState::Exited, code(0)),
                (RestartState::Exited, code(3))
            ]),
            Some(Completion::Failed(3))
        );
        assert_eq!(
            app(&[(RestartState::Exited, killed)]),
            Some(Completion::Failed(137))
        );
        assert_eq!(
            app(&[
                (RestartState::Exited, code(3)),
                (RestartState::Errored, code(4))
            ]),
            Some(Completion::Failed(1))
        );
        assert_eq!(
            app(&[(RestartState::Errored, code(0))]),
            Some(Completion::Failed(1)),
            "it ended again and again"
        );
        assert_eq!(
            app(&[(RestartState::Errored, None)]),
            Some(Completion::Failed(1)),
            "it was never ready"
        );
        assert_eq!(app(&[]), None);
    }
}
