//! How an app continues after the daemon's death.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::io::{Effect, Reach};
use super::super::revive::Found;
use super::super::rollout::{Phase, Rollout};
use super::super::types::{OpId, WorkerId};
use super::super::view::{Exit, Step};
use super::super::worker::{Clock, State};
use super::{App, Context, Listening, Wanted};
use crate::exit::SIGKILL;
use crate::model::{Retire, What};

/// A starting worker could not report readiness to a dead daemon: it gets at least this much time.
const GRACE: Duration = Duration::from_secs(5);

impl App {
    pub fn revive(&mut self, found: &BTreeMap<WorkerId, Found>, cx: &mut Context<'_>) {
        self.sockets_again(cx);
        // Retired workers come first: the failure of a replacement looks at who is left.
        let mut ids: Vec<(bool, WorkerId)> = self
            .workers()
            .map(|w| (self.is_current(w), w.id.clone()))
            .collect();
        ids.sort();
        for (_, id) in &ids {
            let gone = Found::Gone {
                exit: Exit::Unknown,
                descendants: false,
            };
            self.resolve(id, found.get(id).unwrap_or(&gone), cx);
        }
        self.relays_again(cx);
        self.steered = None;
        self.steer(cx);
        if self.goal() != Wanted::Up {
            self.refuse(cx);
        }
        for (_, id) in &ids {
            self.revive_worker(id, cx);
            self.was_not_needed(id);
        }
        let grace = cx.now + GRACE.min(self.spec().reload.deadline);
        match self.rollout.as_mut().map(|rollout| &mut rollout.phase) {
            Some(Phase::Progress { deadline: Some(at) } | Phase::RollBack { deadline: at, .. }) => {
                *at = grace.max(*at)
            }
            Some(Phase::Progress { deadline: None } | Phase::Finish { .. }) | None => {}
        }
        let live = self.workers().filter(|w| w.pid.is_some()).count();
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let adopted = What::Adopted {
            live: count(live),
            of: count(ids.len()),
        };
        self.record(adopted, cx);
    }

    /// Requests again what was not answered. Sockets that are not wanted may still be open.
    fn sockets_again(&self, cx: &mut Context<'_>) {
        let app = self.name.clone();
        match &self.listening {
            Listening {
                pending: Some(want),
                ..
            } => {
                cx.out.push_back(want.effect(&app));
            }
            Listening {
                pending: None,
                held: None,
                ..
            } => cx.out.push_back(Effect::Unlisten { app }),
            Listening {
                pending: None,
                held: Some(_),
                ..
            } => {}
        }
    }

    /// Brings the state in line with what exists.
    fn resolve(&mut self, id: &WorkerId, found: &Found, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        match (&worker.state, *found) {
            (
                State::Sweeping { .. },
                Found::Alive { .. }
                | Found::Deaf { .. }
                | Found::OutOfReach { .. }
                | Found::Gone {
                    descendants: true, ..
                },
            ) => {}
            (
                State::Sweeping { .. },
                Found::Gone {
                    descendants: false, ..
                }
                | Found::NeverStarted,
            ) => self.remove(id, cx),
            (_, Found::Alive { pid }) => self.lives(id, pid, cx),
            (_, Found::Deaf { pid }) => {
                self.lives(id, pid, cx);
                self.retire_faulty(id, Retire::Deaf, cx);
            }
            (_, Found::OutOfReach { pid }) => {
                self.lives(id, pid, cx);
                self.out_of_reach(id, cx);
            }
            (_, Found::Gone { exit, descendants }) => self.on_exited(id, exit, descendants, cx),
            (State::Spawning { .. } | State::Starting { .. }, Found::NeverStarted) => {
                self.never_started(id, cx)
            }
            (
                State::Draining { .. } | State::Stopping { .. } | State::Killing { .. },
                Found::NeverStarted,
            ) => self.remove(id, cx),
            (State::Ready { .. }, Found::NeverStarted) => {
                self.on_exited(id, Exit::Unknown, false, cx)
            }
        }
    }

    /// The plan starts another worker in its place, with another generation, if it is still wanted.
    fn never_started(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self
            .slots
            .get_mut(usize::from(id.slot))
            .and_then(Option::take)
        else {
            return;
        };
        cx.out.push_back(Effect::Forget { worker: id.clone() });
        if worker.revision != self.current
            && worker.stays()
            && let Some(instance) = self
                .sets
                .get_mut(&worker.revision)
                .and_then(|set| set.instances.get_mut(&worker.instance))
        {
            instance.lost = true;
        }
    }

    fn lives(&mut self, id: &WorkerId, pid: u32, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        let news = worker.running(spec, pid, now);
        let grace = now + GRACE.min(spec.listen_timeout);
        match &mut worker.state {
            State::Starting {
                deadline,
                readiness,
            } => {
                *deadline = grace.max(*deadline);
                readiness.again(cx.now);
            }
            State::Ready {
                readiness,
                liveness,
                ..
            } => {
                readiness.again(cx.now);
                liveness.again(cx.now);
            }
            State::Spawning { .. }
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Sweeping { .. } => {}
        }
        if news {
            self.progress(id, Step::Started, cx);
        }
    }

    /// No traffic can be steered to it any more, and no probe reaches it.
    fn out_of_reach(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.retiring = Some(Retire::OutOfReach);
        if let State::Ready {
            unready,
            readiness,
            liveness,
            ..
        } = &mut worker.state
        {
            *unready = true;
            *readiness = Clock::never();
            *liveness = Clock::never();
        }
        let worker = worker.clone();
        let why = Retire::OutOfReach;
        self.record_of(&worker, What::WorkerRetired { why }, cx);
    }

    /// Only switches relaying on: a new daemon relays nothing by itself, and must not touch the
    /// sockets of workers that accept from them.
    fn relays_again(&self, cx: &mut Context<'_>) {
        for (slot, worker) in (0u16..).zip(&self.slots) {
            let on = match worker.as_ref().map(|w| &w.state) {
                None
                | Some(State::Stopping { .. } | State::Killing { .. } | State::Sweeping { .. }) => {
                    true
                }
                Some(
                    State::Spawning { .. }
                    | State::Starting { .. }
                    | State::Ready { .. }
                    | State::Draining { .. },
                ) => false,
            };
            if on {
                cx.out.push_back(Effect::Relay {
                    app: self.name.clone(),
                    slot,
                    on,
                    hung: worker.as_ref().is_some_and(|w| w.is_hung()),
                });
            }
        }
    }

    /// Continues with the worker's next step.
    fn revive_worker(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        let worker_id = id.clone();
        match worker.state {
            State::Draining { .. } => cx.out.push_back(Effect::Drain { worker: worker_id }),
            State::Stopping { told: false, .. } => self.signal_stop(id, cx),
            State::Killing { .. } => cx.out.push_back(Effect::Signal {
                worker: worker_id,
                signal: SIGKILL,
                reach: Reach::Tree,
            }),
            State::Stopping { told: true, .. }
            | State::Spawning { .. }
            | State::Starting { .. }
            | State::Ready { .. }
            | State::Sweeping { .. } => {}
        }
    }

    /// The halt of everything is no longer under way.
    pub fn halt_is_over(&mut self, down: bool) {
        // A halted app has no other action.
        if std::mem::take(&mut self.halted) {
            self.rollout = None;
        }
        if down && self.wanted == Wanted::Up {
            if let Some(rollout) = self.rollout.take() {
                self.undo(&rollout);
            }
            self.queue.clear();
            self.wanted = Wanted::Down;
        }
    }

    /// Keeps only what is wanted.
    pub fn reboot(&mut self, down: bool) {
        if let Some(rollout) = self.rollout.take() {
            self.undo(&rollout);
        }
        self.halted = false;
        if down {
            self.wanted = Wanted::Down;
        }
        self.queue.clear();
        self.slots.clear();
        self.sets.clear();
        // Of the sockets only the fact that it once had them counts.
        self.listening = Listening {
            proven: self.listening.proven,
            ..Listening::default()
        };
        self.steered = None;
        self.still_needed();
        self.reason = None;
    }

    /// An unfinished reload has changed nothing.
    pub fn undo(&mut self, rollout: &Rollout) {
        if rollout.is_trial()
            && let Some(before) = rollout.from
        {
            self.current = before.revision;
            self.instances = before.instances;
        }
    }

    /// The stop signal was sent.
    pub fn told(&mut self, id: &WorkerId) {
        if let Some(State::Stopping { told, .. }) = self.worker(id).map(|w| &mut w.state) {
            *told = true;
        }
    }

    /// The actions that a caller may wait for.
    pub fn ops(&self) -> impl Iterator<Item = OpId> {
        self.rollout
            .iter()
            .map(|rollout| rollout.op)
            .chain(self.queue.iter().map(|queued| queued.op))
    }
}
