//! Apps that have come to their end by themselves and will not be started again.

use super::Supervisor;
use super::app::{App, Wanted};
use super::seat::{Hold, Seat};
use super::view::Exit;
use crate::config::AppName;
use crate::exit::SIGKILL;

/// How an app ended for good that nobody had told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every worker exited with 0, and by policy none is started again.
    Well,
    /// With the exit code of the worker that failed, 128 and the signal's number if one killed it. 1 if several
    /// failed in different ways, or one was given up that had not failed by itself.
    Failed(u8),
}

impl End {
    /// Of two apps, or workers, together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Well, end) | (end, Self::Well) => end,
            (Self::Failed(one), Self::Failed(another)) => {
                Self::Failed(if one == another { one } else { 1 })
            }
        }
    }

    /// For exit(3).
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Well => 0,
            Self::Failed(code) => code,
        }
    }
}

impl Supervisor {
    /// `None` while the app runs, will be started again, or was stopped by a command.
    pub fn end_of(&self, app: &AppName) -> Option<End> {
        self.apps.get(app).and_then(App::end)
    }

    /// The end of all apps together; `None` while one of them has not come to its end, and without any.
    pub fn end_of_all(&self) -> Option<End> {
        self.apps
            .values()
            .map(App::end)
            .reduce(|one, another| Some(one?.and(another?)))
            .flatten()
    }

    /// That of the first app that has come to its end.
    pub fn end_of_any(&self) -> Option<(&AppName, End)> {
        self.apps
            .iter()
            .find_map(|(name, app)| Some((name, app.end()?)))
    }
}

impl App {
    fn end(&self) -> Option<End> {
        let settled =
            self.goal() == Wanted::Up && self.operation.is_none() && self.queue.is_empty();
        if !settled || self.workers().next().is_some() {
            return None;
        }
        self.seats
            .iter()
            .map(Seat::end)
            .reduce(|one, another| Some(one?.and(another?)))
            .flatten()
    }
}

impl Seat {
    fn end(&self) -> Option<End> {
        let given_up = match self.hold {
            Hold::Open | Hold::Backoff { .. } => return None,
            Hold::Errored => true,
            Hold::Exited => false,
        };
        Some(match self.exit {
            Some(Exit::Code(0)) if !given_up => End::Well,
            Some(Exit::Code(0) | Exit::Unknown) | None => End::Failed(1),
            // exit(3) hands on the lower eight bits, so it fits.
            Some(Exit::Code(code)) => End::Failed(u8::try_from(code).unwrap_or(1)),
            Some(Exit::OutOfMemory | Exit::Starved { .. }) => {
                End::Failed(u8::try_from(128 + SIGKILL).unwrap_or(1))
            }
            Some(Exit::Signal { signal, .. }) => {
                End::Failed(u8::try_from(128 + signal).unwrap_or(1))
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

    fn app(seats: &[(Hold, Option<Exit>)]) -> Option<End> {
        let spec = web(seats.len() as u16);
        let mut app = App::new(Arc::new(Revision {
            number: 1,
            spec,
            base_env: Default::default(),
        }));
        app.seats = seats
            .iter()
            .map(|(hold, exit)| Seat {
                hold: hold.clone(),
                exit: *exit,
                ..Seat::default()
            })
            .collect();
        app.end()
    }

    #[test]
    fn an_app_is_over_when_every_worker_is() {
        let code = |code| Some(Exit::Code(code));
        let killed = Some(Exit::Signal {
            signal: 9,
            core_dumped: false,
        });
        assert_eq!(
            app(&[(Hold::Exited, code(0)), (Hold::Exited, code(0))]),
            Some(End::Well)
        );
        assert_eq!(app(&[(Hold::Exited, code(0)), (Hold::Open, None)]), None);
        assert_eq!(
            app(&[(Hold::Exited, code(0)), (Hold::Exited, code(3))]),
            Some(End::Failed(3))
        );
        assert_eq!(app(&[(Hold::Exited, killed)]), Some(End::Failed(137)));
        assert_eq!(
            app(&[(Hold::Exited, code(3)), (Hold::Errored, code(4))]),
            Some(End::Failed(1))
        );
        assert_eq!(
            app(&[(Hold::Errored, code(0))]),
            Some(End::Failed(1)),
            "it ended again and again"
        );
        assert_eq!(
            app(&[(Hold::Errored, None)]),
            Some(End::Failed(1)),
            "it was never ready"
        );
        assert_eq!(app(&[]), None);
    }
}
