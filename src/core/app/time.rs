//! What the passing of time does to an app.

use std::time::Duration;

use super::super::io::{Effect, Purpose, Reach};
use super::super::restart::RestartState;
use super::super::rollout::Phase;
use super::super::types::{Time, WorkerId};
use super::super::view::Step;
use super::super::worker::{State, Worker};
use super::events::millis;
use super::{App, Context, Wanted};
use crate::config::Check;
use crate::exit::SIGKILL;
use crate::model::event::Killed;
use crate::model::{ActionError, Loss, Retire, What};

/// What is left of a dead worker's tree is killed this often.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);

impl App {
    /// Everything that is being stopped is killed now.
    pub fn force_stop(&mut self, cx: &mut Context<'_>) {
        let workers: Vec<Worker> = self.workers().cloned().collect();
        for Worker { id, state, .. } in workers {
            match state {
                State::Draining { .. } | State::Stopping { .. } => {
                    self.kill(&id, Killed::Forced, cx)
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
        let instances = self
            .sets
            .values_mut()
            .flat_map(|set| set.instances.values_mut());
        for instance in instances {
            if matches!(instance.state, RestartState::Backoff { until } if until <= cx.now) {
                instance.state = RestartState::Open;
            }
        }
        if let Some(rollout) = &self.rollout
            && rollout.deadline().is_some_and(|at| at <= cx.now)
        {
            let kind = match rollout.phase {
                Phase::RollBack { .. } => None,
                Phase::Progress { .. } | Phase::Finish { .. } => Some(rollout.kind),
            };
            let worker = self
                .workers()
                .find(|w| w.active() && !w.ready())
                .map(|w| w.id.clone());
            let error = ActionError::Deadline {
                kind,
                deadline_ms: millis(self.spec().reload.deadline),
                worker,
            };
            self.fail(error, cx);
        }
    }

    fn tick_worker(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        match &mut worker.state {
            State::Spawning {
                deadline,
                waits: false,
            }
            | State::Starting { deadline, .. }
                if *deadline <= now =>
            {
                self.too_slow(id, cx)
            }
            State::Starting { readiness, .. } => {
                if readiness.due(now) {
                    if spec.readiness.check == Check::Alive {
                        worker.become_ready(spec, now);
                        self.became_ready(id, cx);
                    } else {
                        self.probe(id, Purpose::Readiness, cx);
                    }
                }
            }
            State::Ready {
                readiness,
                liveness,
                ..
            } => {
                let (ready, alive) = (readiness.due(now), liveness.due(now));
                if ready {
                    self.probe(id, Purpose::Readiness, cx);
                }
                if alive {
                    self.probe(id, Purpose::Liveness, cx);
                }
            }
            State::Draining { until, .. } if *until <= now => self.signal_stop(id, cx),
            State::Stopping { kill_at, .. } if *kill_at <= now => {
                let timeout_ms = millis(spec.kill_timeout);
                self.kill(id, Killed::Timeout { timeout_ms }, cx);
            }
            State::Sweeping { kill_at, .. } if *kill_at <= now => self.sweep(id, cx),
            State::Spawning { .. }
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Sweeping { .. } => {}
        }
    }

    fn probe(&self, id: &WorkerId, purpose: Purpose, cx: &mut Context<'_>) {
        let slot = self.slots.get(usize::from(id.slot));
        let Some(worker) = slot.and_then(Option::as_ref).filter(|w| w.id == *id) else {
            return;
        };
        cx.out.push_back(Effect::Probe {
            worker: id.clone(),
            purpose,
            instance: worker.instance,
            pid: worker.pid,
            revision: self.releases[worker.revision].clone(),
        });
    }

    /// Whether something has to be done by some time.
    pub fn has_deadline(&self) -> bool {
        self.rollout
            .as_ref()
            .is_some_and(|o| o.deadline().is_some())
            || self.workers().any(|w| w.deadline().is_some())
    }

    /// Nothing is known to have run since `seen`: what was to be done by some time has so much more.
    pub fn stood_still(&mut self, seen: Time, cx: &mut Context<'_>) {
        let gap = cx.now.since(seen);
        let mut news = false;
        if let Some(Phase::Progress { deadline: Some(at) } | Phase::RollBack { deadline: at, .. }) =
            self.rollout.as_mut().map(|rollout| &mut rollout.phase)
        {
            *at = *at + gap;
            news = true;
        }
        for worker in self.slots.iter_mut().flatten() {
            let spec = &self.releases[worker.revision].spec;
            news |= worker.stood_still(spec, seen, gap);
        }
        if news {
            let for_ms = millis(gap);
            self.record(What::StoodStill { for_ms }, cx);
        }
    }

    /// Not ready in time: it is stopped, and the restart policy decides.
    fn too_slow(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        let timeout_ms = millis(spec.listen_timeout);
        let last = worker.doubt.take();
        let before = worker.clone();
        worker.retiring = Some(Retire::TooSlow {
            timeout_ms,
            last: last.clone(),
        });
        let loss = Loss::TooSlow { timeout_ms, last };
        let again = self.tries_hidden(&before, Some(&loss), cx);
        self.signal_stop(id, cx);
        if !again {
            self.lost(&before, loss, cx);
        }
    }

    fn kill(&mut self, id: &WorkerId, why: Killed, cx: &mut Context<'_>) {
        let app = self.name.clone();
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.state = State::Killing { since: cx.now };
        let worker = worker.clone();
        cx.out.push_back(Effect::Relay {
            app,
            slot: id.slot,
            on: true,
            hung: worker.is_hung(),
        });
        cx.out.push_back(Effect::Signal {
            worker: id.clone(),
            signal: SIGKILL,
            reach: Reach::Tree,
        });
        self.progress(id, Step::Killed, cx);
        self.record_of(&worker, What::WorkerKilled { why }, cx);
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

    /// The earliest of the times that this app waits for and that had not passed at the last tick.
    pub fn wakes(&self, ticked: Time) -> Option<Time> {
        let workers = self
            .workers()
            .filter_map(|w| w.wakes(self.spec_of(w), ticked));
        let instances = self.sets.values().flat_map(|set| set.instances.values());
        let backoffs = instances.filter_map(|instance| match instance.state {
            RestartState::Backoff { until } => Some(until),
            RestartState::Open | RestartState::Errored | RestartState::Exited => None,
        });
        let up = backoffs
            .chain(self.listening.again)
            .filter(|_| self.goal() == Wanted::Up);
        let rollout = self.rollout.as_ref().and_then(|rollout| rollout.deadline());
        workers.chain(up).chain(rollout).min()
    }
}
