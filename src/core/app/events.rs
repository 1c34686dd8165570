//! What happens to an app's workers and sockets.

use std::time::Duration;

use super::super::io::{Effect, OpError, Purpose, Reach};
use super::super::reason::Explains;
use super::super::types::{Time, WorkerId};
use super::super::view::{Exit, FailureCode, Step, WorkerPhase};
use super::super::worker::{State, Verdict, Worker};
use super::{App, Context, Listening, Wanted};
use crate::config::Check;
use crate::human::{format_duration, size};

/// Leftover descendants of a worker that died by itself get this long after their stop signal:
/// its slot waits for them.
const SWEEP_AFTER_CRASH: Duration = Duration::from_secs(2);

/// Sockets that were refused to a running app are asked for again after this long.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

impl App {
    pub fn on_spawned(&mut self, id: &WorkerId, pid: u32, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        if worker.running(pid, cx.now) {
            self.start_to_wonder(id, cx);
            self.progress(id, Step::Started, cx);
        }
    }

    pub fn on_spawn_failed(&mut self, id: &WorkerId, reason: &str, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id).map(|w| w.clone()) else {
            return;
        };
        self.remove(id, cx);
        if worker.active() {
            self.note(format!("{}: {reason}", worker.instance), true, cx);
            self.lost(&worker, None, reason, FailureCode::Spawn, cx);
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
        let (asked_for, kill_at) = match before.state {
            State::Stopping { kill_at, .. } => (true, kill_at),
            State::Killing { .. } => (true, cx.now),
            State::Draining { .. } => (true, cx.now + before.sweep_time()),
            State::Spawning { .. } | State::Starting { .. } | State::Ready { .. } => {
                (false, cx.now + before.sweep_time())
            }
            State::Sweeping { .. } => return,
        };
        self.progress(id, Step::Gone { exit }, cx);
        if descendants {
            self.exited_with_descendants(id, kill_at, cx);
        } else {
            self.remove(id, cx);
        }
        let who = format!("{} (pid {})", before.instance, before.pid.unwrap_or(0));
        if asked_for {
            self.note(format!("{who} {exit}"), false, cx);
            return;
        }
        let uptime = format_duration(cx.now.since(before.started));
        let too_soon = if before.ready() {
            ""
        } else {
            ", before it was ready"
        };
        let reason = format!("{exit} after {uptime}{too_soon}");
        if self.tries_hidden(&before, &reason, cx) {
            return;
        }
        self.note(format!("{who} {reason}"), true, cx);
        self.lost(&before, Some(exit), &reason, FailureCode::NotReady, cx);
    }

    /// The slot is not free before the last descendant is gone; what arrives there meanwhile is ours.
    fn exited_with_descendants(&mut self, id: &WorkerId, kill_at: Time, cx: &mut Context<'_>) {
        let app = self.name.clone();
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.state = State::Sweeping {
            kill_at,
            killed: false,
        };
        worker.pid = None;
        let signal = worker.spec().stop.signal;
        cx.out.push_back(Effect::Relay {
            app,
            slot: id.slot,
            on: true,
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
        let Some(worker) = self.worker(id) else {
            return;
        };
        let verdict = match purpose {
            Purpose::Readiness => worker.readiness_result(result.is_ok(), cx.now),
            Purpose::Liveness => worker.liveness_result(result.is_ok(), cx.now),
        };
        if let Err(why) = result
            && verdict != Verdict::Stale
        {
            worker.reason = Some(match purpose {
                Purpose::Readiness => format!("not ready: {why}"),
                Purpose::Liveness => format!("liveness: {why}"),
            });
        }
        match verdict {
            Verdict::Nothing if result.is_ok() && worker.phase() == WorkerPhase::Ready => {
                worker.reason = None
            }
            Verdict::Nothing | Verdict::Stale => {}
            Verdict::BecameReady => self.became_ready(id, cx),
            Verdict::Traffic => {
                let (instance, phase) = (worker.instance, worker.phase().as_str());
                match result {
                    Ok(()) => {
                        worker.reason = None;
                        self.note(
                            format!("{instance} is {phase}: its readiness check passes again"),
                            false,
                            cx,
                        );
                    }
                    Err(why) => self.note(format!("{instance} is {phase}: {why}"), true, cx),
                }
            }
            Verdict::Unhealthy => {
                let why = result.as_ref().err().map_or("", String::as_str);
                self.condemn(id, format!("liveness failed: {why}"), cx);
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
        let Some(worker) = self.worker(id) else {
            return;
        };
        if worker.not_probed(purpose, cx.now) {
            worker.reason = Some(format!(
                "{}: rsup could not ask: {reason}",
                purpose.as_str()
            ));
        }
    }

    pub fn on_notified(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        // It may say so before the confirmation of its exec has come.
        let coming = matches!(
            worker.state,
            State::Spawning { .. } | State::Starting { .. }
        );
        if coming && worker.spec().readiness.check == Check::Notify {
            worker.become_ready(cx.now);
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
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.memory = Some(bytes);
        let limit = match worker.spec().max_memory {
            Some(limit) if worker.active() => limit,
            Some(_) | None => return,
        };
        worker.over_limit = if bytes > limit {
            worker.over_limit.saturating_add(1)
        } else {
            0
        };
        // One reading may be a peak between two collections; two in a row are a leak.
        if worker.over_limit == 2 {
            let why = format!("memory {} is over max_memory {}", size(bytes), size(limit));
            self.condemn(id, why, cx);
        }
    }

    pub(super) fn became_ready(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.reason = None;
        self.was_not_needed(id);
        let Some(worker) = self.worker(id) else {
            return;
        };
        let after = cx.now.since(worker.started);
        let text = format!(
            "{} (pid {}) is ready after {}",
            worker.instance,
            worker.pid.unwrap_or(0),
            format_duration(after)
        );
        self.note(text, false, cx);
        self.progress(
            id,
            Step::Ready {
                after_ms: after.as_millis() as u64,
            },
            cx,
        );
    }

    /// The worker is to be replaced: a fresh one first, where there is room.
    pub(super) fn condemn(&mut self, id: &WorkerId, why: String, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        // A fault of its own outlasts a reload that fails.
        if !worker.fresh() && !worker.goes_by_reload() {
            return;
        }
        worker.condemned = Some(why.clone());
        worker.reason = Some(why.clone());
        let instance = worker.instance;
        if let Some(seat) = self.seats.get_mut(usize::from(instance)) {
            seat.reason = Some(why.clone());
            seat.restarts = seat.restarts.saturating_add(1);
        }
        self.blame(Explains::Instance(instance), format!("{instance}: {why}"));
        self.note(format!("{instance} is replaced: {why}"), true, cx);
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
                // The daemon starts new groups with everything held.
                self.steered = None;
            }
            Err(why) => self.not_listening(why, cx),
        }
    }

    fn not_listening(&mut self, why: &str, cx: &mut Context<'_>) {
        self.note(why.to_owned(), true, cx);
        self.listening.again = self.listening.held.as_ref().map(|_| cx.now + LISTEN_AGAIN);
        match self.goal() {
            Wanted::Up if self.enough() => return,
            Wanted::Up => {}
            Wanted::Down | Wanted::Deleted => return,
        }
        self.blame(Explains::Sockets, why);
        if self.listening.proven && self.operation.is_none() {
            // Nobody waits for it (after a reboot): its address may come up later than rsup.
            self.listening.again = Some(cx.now + LISTEN_AGAIN);
            return;
        }
        let error = OpError {
            code: FailureCode::Listen,
            message: why.to_owned(),
            hint: None,
            worker: None,
        };
        if self.listening.held.is_some() {
            self.fail_operation(error, cx);
        } else {
            // Without its sockets an app cannot run, and one that never ran is none.
            self.wanted = if self.listening.proven {
                Wanted::Down
            } else {
                Wanted::Deleted
            };
            self.answer_all(&error, cx);
            // A daemon that was killed may have got them before.
            cx.out.push_back(Effect::Unlisten {
                app: self.name.clone(),
            });
        }
    }
}

impl Worker {
    fn sweep_time(&self) -> Duration {
        SWEEP_AFTER_CRASH.min(self.spec().kill_timeout)
    }
}
