//! Inputs about an app's workers and sockets.

use std::time::Duration;

use super::super::io::{Effect, Purpose, Reach};
use super::super::reason::Reason;
use super::super::types::{Time, WorkerId};
use super::super::view::{Exit, Step, WorkerPhase};
use super::super::worker::{ProbeOutcome, State};
use super::{App, Context, Listening, Wanted};
use crate::config::{AppSpec, Check};
use crate::model::{ActionError, Because, Doubt, Loss, Retire, What, foreground};

/// Descendants that a crashed worker leaves get this much time after their stop signal: its slot
/// waits for them.
const SWEEP_AFTER_CRASH: Duration = Duration::from_secs(2);

/// Sockets that a running app could not get are requested again after this time.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

impl App {
    pub fn on_spawned(&mut self, id: &WorkerId, pid: u32, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        if worker.running(spec, pid, now) {
            self.look_for_traces_later(id, cx);
            self.progress(id, Step::Started, cx);
        }
    }

    pub fn on_forked(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        if let Some((worker, spec)) = self.worker_and_spec(id) {
            worker.forked(spec, cx.now);
        }
    }

    pub fn on_spawn_failed(&mut self, id: &WorkerId, reason: &str, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id).map(|w| w.clone()) else {
            return;
        };
        self.remove(id, cx);
        if worker.active() {
            let loss = Loss::NotStarted {
                why: reason.to_owned(),
            };
            self.lost(&worker, loss, cx);
        }
    }

    pub fn on_exited(
        &mut self,
        id: &WorkerId,
        exit: Exit,
        descendants: bool,
        cx: &mut Context<'_>,
    ) {
        let Some(before) = self.worker(id).map(|w| w.clone()) else {
            return;
        };
        let sweep_time = sweep_time(self.spec_of(&before));
        let (asked_for, kill_at) = match before.state {
            State::Stopping { kill_at, .. } => (true, kill_at),
            State::Killing { .. } => (true, cx.now),
            State::Draining { .. } => (true, cx.now + sweep_time),
            State::Spawning { .. } | State::Starting { .. } | State::Ready { .. } => {
                (false, cx.now + sweep_time)
            }
            State::Sweeping { .. } => return,
        };
        self.progress(id, Step::Gone { exit }, cx);
        if descendants {
            self.exited_with_descendants(id, kill_at, cx);
        } else {
            self.remove(id, cx);
        }
        if asked_for {
            self.record_of(&before, What::WorkerStopped { exit }, cx);
            return;
        }
        let uptime = cx.now.since(before.started);
        let spec = self.spec_of(&before);
        let early = !before.ready() || uptime < spec.restart.min_uptime;
        let background = (descendants && early && exit == Exit::Code(0))
            .then(|| foreground::program(&spec.command));
        let loss = Loss::Exited {
            exit,
            uptime_ms: millis(uptime),
            ready: before.ready(),
            background,
        };
        if self.tries_hidden(&before, Some(&loss), cx) {
            return;
        }
        self.lost(&before, loss, cx);
    }

    /// The slot is not free before the last descendant is gone; rsup relays connections that arrive
    /// there meanwhile.
    fn exited_with_descendants(&mut self, id: &WorkerId, kill_at: Time, cx: &mut Context<'_>) {
        let app = self.name.clone();
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        worker.state = State::Sweeping {
            kill_at,
            killed: false,
        };
        worker.pid = None;
        let signal = spec.stop.signal;
        cx.out.push_back(Effect::Relay {
            app,
            slot: id.slot,
            on: true,
            hung: false,
        });
        if kill_at > cx.now {
            cx.out.push_back(Effect::Signal {
                worker: id.clone(),
                signal,
                reach: Reach::Tree,
            });
        } else {
            self.sweep(id, cx);
        }
    }

    pub fn on_tree_gone(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        if self
            .worker(id)
            .is_some_and(|w| matches!(w.state, State::Sweeping { .. }))
        {
            self.remove(id, cx);
        }
    }

    pub fn on_probed(
        &mut self,
        id: &WorkerId,
        purpose: Purpose,
        result: &Result<(), String>,
        cx: &mut Context<'_>,
    ) {
        let now = cx.now;
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        let verdict = match purpose {
            Purpose::Readiness => worker.readiness_result(spec, result.is_ok(), now),
            Purpose::Liveness => worker.liveness_result(spec, result.is_ok(), now),
        };
        let doubt = result.as_ref().err().map(|why| match purpose {
            Purpose::Readiness => Doubt::NotReady { why: why.clone() },
            Purpose::Liveness => Doubt::NotAlive { why: why.clone() },
        });
        if doubt.is_some() && verdict != ProbeOutcome::Stale {
            worker.doubt.clone_from(&doubt);
        }
        match verdict {
            ProbeOutcome::Nothing if result.is_ok() && worker.phase() == WorkerPhase::Ready => {
                worker.doubt = None;
            }
            ProbeOutcome::Nothing | ProbeOutcome::Stale => {}
            ProbeOutcome::BecameReady => self.became_ready(id, cx),
            ProbeOutcome::Traffic => {
                if doubt.is_none() {
                    worker.doubt = None;
                }
                let worker = worker.clone();
                let what = match doubt {
                    Some(why) => What::WorkerUnready { why },
                    None => What::WorkerReadyAgain,
                };
                self.record_of(&worker, what, cx);
            }
            ProbeOutcome::Unhealthy => {
                let failure = result.clone().err().unwrap_or_default();
                self.retire_faulty(id, Retire::Liveness { failure }, cx);
            }
        }
    }

    pub fn on_not_probed(
        &mut self,
        id: &WorkerId,
        purpose: Purpose,
        reason: &str,
        cx: &mut Context<'_>,
    ) {
        let now = cx.now;
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        if worker.not_probed(spec, purpose, now) {
            worker.doubt = Some(Doubt::NotAsked {
                purpose: purpose.as_str().to_owned(),
                why: reason.to_owned(),
            });
        }
    }

    pub fn on_notified(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        // The notification may come before the confirmation of exec.
        let coming = matches!(
            worker.state,
            State::Spawning { .. } | State::Starting { .. }
        );
        if coming && spec.readiness.check == Check::Notify {
            worker.become_ready(spec, now);
            self.became_ready(id, cx);
        }
    }

    pub fn on_drained(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        if self
            .worker(id)
            .is_some_and(|w| matches!(w.state, State::Draining { .. }))
        {
            self.signal_stop(id, cx);
        }
    }

    pub fn on_memory(&mut self, id: &WorkerId, bytes: u64, cx: &mut Context<'_>) {
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        worker.memory = Some(bytes);
        let limit = match spec.max_memory {
            Some(limit) if worker.active() => limit,
            Some(_) | None => return,
        };
        worker.over_limit = if bytes > limit {
            worker.over_limit.saturating_add(1)
        } else {
            0
        };
        // One reading may be a peak between two garbage collections; two in a row are taken for a
        // leak.
        if worker.over_limit == 2 {
            self.retire_faulty(id, Retire::Memory { bytes, limit }, cx);
        }
    }

    pub(super) fn became_ready(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.doubt = None;
        self.was_not_needed(id);
        let Some(worker) = self.worker(id).map(|w| w.clone()) else {
            return;
        };
        let after_ms = millis(cx.now.since(worker.started));
        self.record_of(&worker, What::WorkerReady { after_ms }, cx);
        self.progress(id, Step::Ready { after_ms }, cx);
    }

    /// The worker is replaced for a fault of its own: the replacement starts first, where there is
    /// room.
    pub(super) fn retire_faulty(&mut self, id: &WorkerId, why: Retire, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id).filter(|w| w.stays()) else {
            return;
        };
        worker.retiring = Some(why.clone());
        let worker = worker.clone();
        let instance = worker.instance;
        if let Some(of) = self
            .sets
            .get_mut(&worker.revision)
            .and_then(|set| set.instances.get_mut(&instance))
        {
            of.reason = Some(Because::Retired { why: why.clone() });
            of.restarts = of.restarts.saturating_add(1);
        }
        self.blame(Reason::Instance {
            instance,
            why: Because::Retired { why: why.clone() },
        });
        self.record_of(&worker, What::WorkerRetired { why }, cx);
    }

    pub fn on_listening(&mut self, result: &Result<(), String>, cx: &mut Context<'_>) {
        let Some(held) = self.listening.pending.take() else {
            return;
        };
        match result {
            Ok(()) => {
                self.slots
                    .resize_with(usize::from(held.slots).max(self.slots.len()), || None);
                self.listening = Listening {
                    held: Some(held),
                    proven: true,
                    ..Listening::default()
                };
                // In new groups the daemon holds every connection.
                self.steered = None;
            }
            Err(why) => self.not_listening(why, cx),
        }
    }

    fn not_listening(&mut self, why: &str, cx: &mut Context<'_>) {
        self.record(
            What::NotListening {
                why: why.to_owned(),
            },
            cx,
        );
        self.listening.again = self.listening.held.as_ref().map(|_| cx.now + LISTEN_AGAIN);
        match self.goal() {
            Wanted::Up if self.enough() => return,
            Wanted::Up => {}
            Wanted::Down | Wanted::Deleted => return,
        }
        self.blame(Reason::Sockets {
            why: why.to_owned(),
        });
        if self.listening.proven && self.rollout.is_none() {
            // No caller waits (after a reboot): the address may come up later than rsup.
            self.listening.again = Some(cx.now + LISTEN_AGAIN);
            return;
        }
        let error = ActionError::Listen {
            why: why.to_owned(),
        };
        if self.listening.held.is_some() {
            self.fail(error, cx);
        } else {
            if let Some(rollout) = self.rollout.clone() {
                self.record_failure(rollout.kind, &error, 0, None, cx);
                self.undo(&rollout);
            }
            // Without its sockets an app cannot run, and one that never ran is stopped.
            self.wanted = if self.listening.proven {
                Wanted::Down
            } else {
                Wanted::Deleted
            };
            self.answer_all(&error, cx);
            // A daemon that was killed may have opened them before.
            cx.out.push_back(Effect::Unlisten {
                app: self.name.clone(),
            });
        }
    }
}

fn sweep_time(spec: &AppSpec) -> Duration {
    SWEEP_AFTER_CRASH.min(spec.kill_timeout)
}

/// A duration in whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
