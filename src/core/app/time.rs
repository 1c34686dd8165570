//! What the passing of time does to an app.

use std::time::Duration;

use super::super::io::{Effect, OpError, Purpose, Reach};
use super::super::operation::Course;
use super::super::seat::Hold;
use super::super::types::{Time, WorkerId};
use super::super::view::{FailureCode, Step};
use super::super::worker::{State, Worker};
use super::{App, Context, Wanted};
use crate::config::Check;
use crate::exit::SIGKILL;
use crate::human::format_duration;

/// What is left of a dead worker's tree is killed this often.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);

impl App {
    /// Everything that is being stopped is killed now.
    pub fn hurry(&mut self, cx: &mut Context<'_>) {
        let workers: Vec<Worker> = self.workers().cloned().collect();
        for Worker { id, state, .. } in workers {
            match state {
                State::Draining { .. } | State::Stopping { .. } => {
                    self.kill(&id, "it was to end at once", cx)
                }
                State::Sweeping { killed: false, .. } => self.sweep(&id, cx),
                State::Sweeping { killed: true, .. }
                | State::Spawning { .. }
                | State::Starting { .. }
                | State::Ready { .. }
                | State::Killing { .. } => {}
            }
        }
    }

    /// Acts on every deadline that has passed.
    pub fn tick(&mut self, cx: &mut Context<'_>) {
        let ids: Vec<WorkerId> = self.workers().map(|w| w.id.clone()).collect();
        for id in ids {
            self.tick_worker(&id, cx);
            self.look(&id, cx);
        }
        for seat in &mut self.seats {
            if matches!(seat.hold, Hold::Backoff { until } if until <= cx.now) {
                seat.hold = Hold::Open;
            }
        }
        if let Some(operation) = &self.operation
            && operation.deadline().is_some_and(|at| at <= cx.now)
        {
            let what = match operation.course {
                Course::Back { .. } => "the way back",
                Course::Forward { .. } | Course::Ending { .. } => operation.kind.as_str(),
            };
            let message = format!(
                "{what} was not done within reload.deadline {}",
                format_duration(self.spec().reload.deadline)
            );
            let hint = Some("raise reload.deadline, or look at the log of the worker".into());
            let worker = self
                .workers()
                .find(|w| w.active() && !w.ready())
                .map(|w| w.id.clone());
            self.fail_operation(
                OpError {
                    code: FailureCode::NotReady,
                    message,
                    hint,
                    worker,
                },
                cx,
            );
        }
    }

    fn tick_worker(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some(worker) = self.worker(id) else {
            return;
        };
        match &mut worker.state {
            State::Spawning { deadline } | State::Starting { deadline, .. } if *deadline <= now => {
                self.too_slow(id, cx)
            }
            State::Starting { readiness, .. } => {
                if readiness.due(now) {
                    if worker.spec().readiness.check == Check::Alive {
                        worker.become_ready(now);
                        self.became_ready(id, cx);
                    } else {
                        cx.out.push_back(Effect::Probe {
                            worker: id.clone(),
                            purpose: Purpose::Readiness,
                        });
                    }
                }
            }
            State::Ready {
                readiness,
                liveness,
                ..
            } => {
                if readiness.due(now) {
                    cx.out.push_back(Effect::Probe {
                        worker: id.clone(),
                        purpose: Purpose::Readiness,
                    });
                }
                if liveness.due(now) {
                    cx.out.push_back(Effect::Probe {
                        worker: id.clone(),
                        purpose: Purpose::Liveness,
                    });
                }
            }
            State::Draining { until } if *until <= now => self.signal_stop(id, cx),
            State::Stopping { kill_at, .. } if *kill_at <= now => {
                let why = format!(
                    "it had not ended within kill_timeout {}",
                    format_duration(worker.spec().kill_timeout)
                );
                self.kill(id, &why, cx);
            }
            State::Sweeping { kill_at, .. } if *kill_at <= now => self.sweep(id, cx),
            State::Spawning { .. }
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Sweeping { .. } => {}
        }
    }

    /// Whether something has to be done by some time.
    pub fn hurries(&self) -> bool {
        self.operation
            .as_ref()
            .is_some_and(|o| o.deadline().is_some())
            || self.workers().any(|w| w.deadline().is_some())
    }

    /// Nothing is known to have run since `seen`: what was to be done by some time has so much more.
    pub fn stood_still(&mut self, seen: Time, cx: &mut Context<'_>) {
        let gap = cx.now.since(seen);
        let mut news = self
            .operation
            .as_ref()
            .is_some_and(|o| o.deadline().is_some());
        if let Some(Course::Forward { deadline: Some(at) } | Course::Back { deadline: at, .. }) =
            self.operation.as_mut().map(|o| &mut o.course)
        {
            *at = *at + gap;
        }
        for worker in self.workers_mut() {
            news |= worker.stood_still(seen, gap);
        }
        if news {
            self.note(
                format!(
                    "rsup or its machine stood still for {}: nobody is blamed for it",
                    format_duration(gap)
                ),
                true,
                cx,
            );
        }
    }

    /// Not ready in time: it is stopped, and its seat's policy decides.
    fn too_slow(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        let timeout = format_duration(worker.spec().listen_timeout);
        let last = worker
            .reason
            .take()
            .map(|r| format!(" ({r})"))
            .unwrap_or_default();
        let reason = format!("was not ready within listen_timeout {timeout}{last}");
        let before = worker.clone();
        worker.condemned = Some(reason.clone());
        if self.tries_hidden(&before, &reason, cx) {
            self.signal_stop(id, cx);
            return;
        }
        self.note(
            format!(
                "{} (pid {}) {reason}",
                before.instance,
                before.pid.unwrap_or(0)
            ),
            true,
            cx,
        );
        self.signal_stop(id, cx);
        self.lost(&before, None, &reason, FailureCode::NotReady, cx);
    }

    fn kill(&mut self, id: &WorkerId, why: &str, cx: &mut Context<'_>) {
        let app = self.name.clone();
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.state = State::Killing { since: cx.now };
        let instance = worker.instance;
        cx.out.push_back(Effect::Relay {
            app,
            slot: id.slot,
            on: true,
        });
        cx.out.push_back(Effect::Signal {
            worker: id.clone(),
            signal: SIGKILL,
            reach: Reach::Tree,
        });
        self.progress(id, Step::Killed, cx);
        self.note(format!("{instance} was killed: {why}"), true, cx);
    }

    pub(super) fn sweep(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.state = State::Sweeping {
            kill_at: cx.now + SWEEP_AGAIN,
            killed: true,
        };
        cx.out.push_back(Effect::Signal {
            worker: id.clone(),
            signal: SIGKILL,
            reach: Reach::Tree,
        });
    }

    /// Everything that this app waits for.
    pub fn wakes(&self, now: Time) -> Option<Time> {
        let workers = self.workers().filter_map(|w| w.wakes(now));
        let seats = self.seats.iter().filter_map(|s| match s.hold {
            Hold::Backoff { until } => Some(until),
            Hold::Open | Hold::Errored | Hold::Exited => None,
        });
        let up = seats
            .chain(self.listening.again)
            .filter(|_| self.goal() == Wanted::Up);
        let operation = self.operation.as_ref().and_then(|o| o.deadline());
        workers.chain(up).chain(operation).min()
    }
}
