//! The ends of a start, a stop, a reload, and of a worker that should have stayed.

use std::collections::BTreeSet;

use super::super::io::Effect;
use super::super::reason::Reason;
use super::super::restart::{Ending, RestartState, is_success};
use super::super::rollout::strategy::Verdict;
use super::super::rollout::{Before, Phase, Rollout};
use super::super::types::{OpId, Time};
use super::super::view::{OperationKind, Step};
use super::super::worker::{State, Worker};
use super::events::millis;
use super::{App, Context, Wanted};
use crate::model::{ActionError, Because, Loss, Retire, What};

impl App {
    /// Ends what is finished: a stop, a delete, a start, a reload, a rollback. True if that changes
    /// the plan.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) -> bool {
        let verdict = match self.goal() {
            Wanted::Up => self.ask_strategy(cx.now).map(|(_, verdict)| verdict),
            Wanted::Down | Wanted::Deleted => self.rollout.as_ref().map(|_| {
                if self.gone() {
                    Verdict::Done
                } else {
                    Verdict::Wait
                }
            }),
        };
        match verdict {
            None | Some(Verdict::Wait) => false,
            Some(Verdict::Advance) => {
                if let Some(rollout) = &mut self.rollout {
                    rollout.phase = Phase::Finish {
                        generation: *cx.next_generation,
                    };
                }
                true
            }
            Some(Verdict::Done) => {
                self.finish(cx);
                true
            }
        }
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        let Some(rollout) = self.rollout.take() else {
            return;
        };
        self.leave_others();
        let result = match rollout.phase {
            Phase::RollBack { error, .. } => Err(error),
            Phase::Progress { .. } | Phase::Finish { .. } => {
                if self.goal() == Wanted::Up {
                    self.reason = None;
                }
                let done = What::ActionDone {
                    kind: rollout.kind,
                    after_ms: millis(cx.now.since(rollout.since)),
                };
                self.record(done, cx);
                Ok(())
            }
        };
        cx.out.push_back(Effect::Finished {
            op: rollout.op,
            result,
        });
    }

    /// Sets every release but the wanted one to no workers. Their serving workers leave as soon as
    /// the floor allows it.
    fn leave_others(&mut self) {
        let current = self.current;
        for (_, set) in self.sets.iter_mut().filter(|(n, _)| **n != current) {
            set.replicas = 0;
        }
        for worker in self.workers_mut() {
            if worker.revision != current && worker.ready() && worker.stays() {
                worker.retiring = Some(if worker.revision > current {
                    Retire::ReleaseFailed {
                        revision: worker.revision,
                    }
                } else {
                    Retire::Replaced
                });
            }
        }
    }

    /// The action has failed. A start goes on after its caller has the error; a reload rolls back.
    pub(super) fn fail(&mut self, error: ActionError, cx: &mut Context<'_>) {
        let Some(rollout) = self.rollout.take() else {
            return;
        };
        let reload = rollout.kind == OperationKind::Reload;
        let way_back = rollout
            .from
            .filter(|_| reload || matches!(error, ActionError::Listen { .. }));
        let error = match (&rollout.phase, way_back) {
            (Phase::RollBack { error: first, .. }, _) => ActionError::NoWayBack {
                first: Box::new(first.clone()),
                second: Box::new(error),
            },
            (Phase::Progress { .. } | Phase::Finish { .. }, Some(before)) => {
                return self.go_back(rollout, before, error, cx);
            }
            (Phase::Progress { .. } | Phase::Finish { .. }, None) => error,
        };
        self.leave_others();
        self.record_failure(rollout.kind, &error, 0, None, cx);
        cx.out.push_back(Effect::Finished {
            op: rollout.op,
            result: Err(error),
        });
    }

    pub(super) fn record_failure(
        &self,
        kind: OperationKind,
        error: &ActionError,
        back: u16,
        to: Option<u64>,
        cx: &mut Context<'_>,
    ) {
        let failed = What::ActionFailed {
            kind,
            error: error.clone(),
            back,
            to,
        };
        self.record(failed, cx);
    }

    /// Ends the action and whatever waits for it: the app is about to be gone.
    pub(super) fn answer_all(&mut self, error: &ActionError, cx: &mut Context<'_>) {
        let waiting = self.queue.drain(..).map(|queued| queued.op);
        let all: Vec<OpId> = self
            .rollout
            .take()
            .map(|rollout| rollout.op)
            .into_iter()
            .chain(waiting)
            .collect();
        for op in all {
            cx.out.push_back(Effect::Finished {
                op,
                result: Err(error.clone()),
            });
        }
    }

    /// Rolls back to what was wanted before: workers of that release stay or return to the traffic,
    /// those of the failed one leave as soon as the floor allows it.
    fn go_back(
        &mut self,
        rollout: Rollout,
        before: Before,
        error: ActionError,
        cx: &mut Context<'_>,
    ) {
        let failed = self.current;
        let spec = self.spec();
        let (auto_rollback, folder) = (spec.reload.auto_rollback, spec.cwd_resolved.clone());
        self.current = before.revision;
        self.instances = before.instances;
        self.sets.values_mut().for_each(|set| set.reopen());
        let whole = (0..self.instances).all(|number| {
            self.workers()
                .any(|w| w.instance == number && w.revision == self.current && can_serve(w))
        });
        let changed = failed != before.revision;
        let keeps = changed && !auto_rollback;
        let error = if changed && !whole && !keeps && self.spec().cwd_resolved == folder {
            ActionError::SameFolder {
                failed: Box::new(error),
                revision: before.revision,
                folder,
            }
        } else {
            error
        };
        let back = self
            .workers()
            .filter(|w| changed && w.revision == failed && w.ready())
            .count();
        let back = if keeps {
            0
        } else {
            u16::try_from(back).unwrap_or(u16::MAX)
        };
        self.blame(Reason::Action {
            kind: rollout.kind,
            error: error.clone(),
        });
        self.record_failure(rollout.kind, &error, back, Some(before.revision), cx);
        if keeps {
            self.keep_replaced(failed);
        } else if !whole {
            let deadline = cx.now + self.spec().reload.deadline;
            self.rollout = Some(Rollout {
                phase: Phase::RollBack { deadline, error },
                ..rollout
            });
            return;
        } else {
            self.leave_others();
        }
        cx.out.push_back(Effect::Finished {
            op: rollout.op,
            result: Err(error),
        });
    }

    /// Without `auto_rollback`, instances that were replaced already stay as they are.
    fn keep_replaced(&mut self, failed: u64) {
        let stays = |w: &&Worker| w.active() && w.stays();
        let old: BTreeSet<u16> = self
            .workers()
            .filter(stays)
            .filter(|w| w.revision == self.current)
            .map(|w| w.instance)
            .collect();
        let kept: BTreeSet<u16> = self
            .workers()
            .filter(stays)
            .filter(|w| w.revision == failed && w.ready() && !old.contains(&w.instance))
            .map(|w| w.instance)
            .filter(|number| *number < self.instances)
            .collect();
        self.leave_others();
        let instances = self.instances;
        let target = self.set();
        target.resize(instances);
        target.instances.retain(|number, _| !kept.contains(number));
        target.replicas = target.size();
        if let Some(set) = self.sets.get_mut(&failed) {
            set.instances.retain(|number, _| kept.contains(number));
            set.replicas = set.size();
        }
        for worker in self.workers_mut() {
            if worker.revision == failed && kept.contains(&worker.instance) {
                worker.retiring = None;
            }
        }
    }

    /// A worker is lost that rsup did not retire: the restart policy of its release decides, and a
    /// reload ends.
    pub(super) fn lost(&mut self, worker: &Worker, loss: Loss, cx: &mut Context<'_>) {
        self.progress_of(
            worker,
            Step::Failed {
                reason: loss.to_string(),
            },
            cx,
        );
        self.record_of(worker, What::WorkerLost { loss: loss.clone() }, cx);
        // Another worker of its release already replaces it.
        if !worker.stays() {
            return;
        }
        let revision = self.releases[worker.revision].clone();
        let ending = Ending {
            now: cx.now,
            uptime: cx.now.since(worker.started),
            was_ready: worker.ready(),
            loss: loss.clone(),
        };
        let current = worker.revision == self.current;
        if !current && self.rollout.is_some() {
            return self.lost_before(worker, &ending);
        }
        let done = revision.spec.listen.is_empty()
            && ending
                .exit()
                .is_some_and(|exit| is_success(&revision.spec, exit));
        // A failing release gets no restarts: it is removed.
        let trial = self.rollout.as_ref().is_some_and(Rollout::is_trial);
        let instance = self
            .sets
            .get_mut(&worker.revision)
            .and_then(|set| set.instances.get_mut(&worker.instance));
        let state = instance.map(|instance| {
            if !trial || done {
                instance.ended(&revision.spec, ending, cx.random);
            }
            instance.state.clone()
        });
        // A job has done its work.
        if done && state == Some(RestartState::Exited) {
            return;
        }
        if state == Some(RestartState::Errored) {
            let given_up = What::InstanceGivenUp {
                loss: loss.clone(),
                restarts: revision.spec.restart.max_restarts,
            };
            self.record_of(worker, given_up, cx);
        }
        self.blame(Reason::Instance {
            instance: worker.instance,
            why: Because::Lost { loss: loss.clone() },
        });
        let Some(rollout) = self.rollout.as_ref().filter(|_| current) else {
            return;
        };
        match rollout.phase {
            Phase::Progress { .. } | Phase::RollBack { .. } => {}
            // The workers that it replaced may still be there.
            Phase::Finish { .. } if self.died_young(rollout, worker, cx.now) => {}
            Phase::Finish { .. } => return,
        }
        let kind = rollout.kind;
        let keeps_on = match kind {
            OperationKind::Start | OperationKind::Restart | OperationKind::Scale => true,
            OperationKind::Stop | OperationKind::Reload | OperationKind::Delete => false,
        };
        let trying = keeps_on
            && matches!(
                state,
                Some(RestartState::Open | RestartState::Backoff { .. })
            );
        let error = ActionError::Worker {
            worker: worker.id.clone(),
            instance: worker.instance,
            loss,
            kind,
            trying,
        };
        self.fail(error, cx);
    }

    /// Whether a worker of a reload ended before it counts as stable.
    fn died_young(&self, rollout: &Rollout, worker: &Worker, now: Time) -> bool {
        let spec = self.spec_of(worker);
        let proof = spec.reload.min_ready.max(spec.restart.min_uptime);
        let ready = match worker.state {
            State::Ready { since, .. } => since,
            State::Spawning { .. }
            | State::Starting { .. }
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Sweeping { .. } => now,
        };
        rollout.kind == OperationKind::Reload && ready + proof > now
    }

    /// A worker of the release before that ends by itself while another release is tried is
    /// restored: if the new one never gets ready, the app must not run with fewer workers for that
    /// long. A worker that ended early is not: a new start would not help.
    fn lost_before(&mut self, worker: &Worker, ending: &Ending) {
        let trial = self.rollout.as_ref().is_some_and(Rollout::is_trial);
        let min_uptime = self.spec_of(worker).restart.min_uptime;
        let steady = ending.was_ready && ending.uptime >= min_uptime;
        if trial
            && steady
            && let Some(instance) = self
                .sets
                .get_mut(&worker.revision)
                .and_then(|set| set.instances.get_mut(&worker.instance))
        {
            instance.lost = true;
            instance.reason = Some(Because::Lost {
                loss: ending.loss.clone(),
            });
            instance.restarts = instance.restarts.saturating_add(1);
        }
    }
}

/// Whether the worker serves, will serve, or can return to the traffic.
fn can_serve(worker: &Worker) -> bool {
    worker.active() || matches!(worker.state, State::Draining { .. })
}
