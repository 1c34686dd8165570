//! Carries out what the supervisor wants.

use std::sync::{Arc, Weak};

use super::forks::Fork;
use super::{AbortOnDrop, Daemon, Event, complain, fdstore, messages, probe};
use crate::config::AppName;
use crate::core::{Effect, Input, Reach, Worker, WorkerId};
use crate::exit::signal_name;
use crate::sys::procfs;

/// A drain under way; dropped, it is called off.
pub struct Drain {
    /// Its answer counts while this is held.
    _wanted: Arc<()>,
    _task: AbortOnDrop,
}

/// Ended workers whose last log lines are kept, 8 KB each at the most.
const REMEMBERED: usize = 16;

impl Daemon {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Listen {
                app,
                addresses,
                slots,
                file,
            } => {
                let busy: Vec<u16> = self.supervisor.workers(&app).map(|w| w.id.slot).collect();
                let what = (addresses.as_slice(), slots, file);
                let result = self.network.listen(&app, what, &busy, &mut self.fdstore);
                self.inbox.push_back(Input::Listening { app, result });
            }
            Effect::Unlisten { app } => self.network.unlisten(&app, &mut self.fdstore),
            Effect::Steer {
                app,
                balance,
                tables,
            } => self.network.steer(&app, balance, &tables),
            Effect::Relay {
                app,
                slot,
                on,
                hung,
            } => self.relay(&app, slot, on, hung),
            Effect::Spawn {
                worker,
                instance,
                revision,
                hide_port,
            } => {
                self.network
                    .hold_for(&worker.app, revision.spec.hold_timeout);
                let fork = Fork {
                    worker,
                    instance,
                    revision,
                    hide_port,
                };
                if let Some(fork) = self.await_trial(fork) {
                    self.forks.push(fork);
                }
            }
            Effect::Probe {
                worker,
                purpose,
                instance,
                pid,
                revision,
            } => {
                let target = self.probe_target(&worker, purpose, (instance, pid), &revision);
                let Some(target) = target else {
                    let reason = "no way to its slot".to_owned();
                    return self.inbox.push_back(Input::NotProbed {
                        worker,
                        purpose,
                        reason,
                    });
                };
                let events = self.events.clone();
                tokio::spawn(async move {
                    let _ = events.send(Event::Input(match probe::run(target).await {
                        Ok(()) => Input::Probed {
                            worker,
                            purpose,
                            result: Ok(()),
                        },
                        Err(probe::Failed::Worker(why)) => Input::Probed {
                            worker,
                            purpose,
                            result: Err(why),
                        },
                        Err(probe::Failed::Rsup(reason)) => Input::NotProbed {
                            worker,
                            purpose,
                            reason,
                        },
                    }));
                });
            }
            Effect::LookForTraces { worker } => {
                // Without a thread: the next look, or the worker's end, has another chance.
                self.look_for_traces(worker, None);
            }
            Effect::Drain { worker } => self.drain(worker),
            Effect::KeepOn { worker } => {
                if let Some(running) = self.running.get_mut(&worker.generation) {
                    running.drain = None;
                }
            }
            Effect::Signal {
                worker,
                signal,
                reach,
            } => {
                self.signal(&worker, signal, reach);
                // That it was told is not to be forgotten.
                self.store.unsaved();
            }
            Effect::Forget { worker } => {
                if let Some(ended) = self.running.remove(&worker.generation) {
                    self.census.worker_ended(ended.pid);
                    self.isolation.forget(&ended.confinement);
                }
                self.network.taken_back(&worker);
                self.store.forget_process(worker.generation);
                self.forget_output(worker.generation);
                let others = [
                    fdstore::name::binds,
                    fdstore::name::notify,
                    fdstore::name::node,
                ];
                others
                    .iter()
                    .for_each(|name| self.fdstore.forget(&name(worker.generation)));
                self.forget_later(worker.generation);
                self.meter.forget(worker.generation);
            }
            Effect::Progress(progress) => self.calls.progress(&progress),
            Effect::Finished { op, result } => {
                self.store.unsaved_for_reboot();
                self.on_finished(op, result);
            }
            Effect::Record(event) => {
                messages::about(&event.app, &event.line(), event.what.is_bad());
                self.event_log.record(event);
            }
            Effect::Removed { app } => {
                self.network.remove(&app, &mut self.fdstore);
                self.takeover.seen(&app);
                self.admin.forget(&app);
                self.isolation.forget_app(&app);
                self.event_log.forget(&app);
                self.store.unsaved_for_reboot();
            }
        }
    }

    /// Nothing is written to a worker's pipes any more: once they are empty, nobody has to keep them.
    pub(super) fn forget_output(&mut self, generation: u64) {
        let read = self.pump.tail(generation);
        let events = self.events.clone();
        tokio::spawn(async move {
            let _ = read.await;
            let _ = events.send(Event::Silent { generation });
        });
    }

    /// The last words of a worker are asked for after its end: those of the latest few are kept.
    fn forget_later(&mut self, generation: u64) {
        self.remembered.push_back(generation);
        if self.remembered.len() > REMEMBERED
            && let Some(oldest) = self.remembered.pop_front()
        {
            self.pump.forget(oldest);
        }
    }

    /// Off: the slot gets a worker. On: it has none, or one that is told to stop.
    fn relay(&mut self, app: &AppName, slot: u16, on: bool, hung: bool) {
        if on {
            // One that accepts nothing any more does not miss its blocking accept.
            let accepts = |w: &Worker| w.id.slot == slot && !hung && !self.is_halted(&w.id);
            let accepts = self.supervisor.workers(app).any(accepts);
            self.network.relay(app, slot, accepts);
        } else {
            self.network.stop_relaying(app, slot);
        }
    }

    /// What could not be looked after before, unless a worker has the slot by now.
    pub(super) fn look_after(&mut self, app: &AppName, slot: Option<u16>) {
        let taken = |slot: u16| self.supervisor.workers(app).any(|w| w.id.slot == slot);
        if !slot.is_some_and(taken) {
            self.network.look_after(app, slot);
        }
    }

    fn drain(&mut self, worker: WorkerId) {
        let events = self.events.clone();
        let generation = worker.generation;
        let pid = self.running.get(&generation).map(|running| running.pid);
        let halted = move || pid.is_some_and(procfs::is_halted);
        let Some(empty) = self.network.drain(&worker, halted) else {
            return;
        };
        let Some(running) = self.running.get_mut(&generation) else {
            return self.inbox.push_back(Input::Drained { worker });
        };
        let wanted = Arc::new(());
        let of = Arc::downgrade(&wanted);
        let task = tokio::spawn(async move {
            empty.await;
            let _ = events.send(Event::Drained { worker, of });
        });
        // It holds copies of the sockets, and must not outlive the worker with them.
        running.drain = Some(Drain {
            _wanted: wanted,
            _task: AbortOnDrop(task),
        });
    }

    /// The answer of a drain that was called off meanwhile is not that of the next one.
    pub(super) fn on_drained(&mut self, worker: WorkerId, of: &Weak<()>) {
        if of.upgrade().is_some() {
            self.handle(Input::Drained { worker });
        }
    }

    /// The worker's process was stopped by a signal (SIGSTOP): it accepts nothing.
    fn is_halted(&self, worker: &WorkerId) -> bool {
        let running = self.running.get(&worker.generation);
        running.is_some_and(|running| procfs::is_halted(running.pid))
    }

    fn signal(&mut self, worker: &WorkerId, signal: i32, reach: Reach) {
        let Some(running) = self.running.get_mut(&worker.generation) else {
            return self.give_up_fork(worker);
        };
        running.remember_tree(&self.census);
        let result = match reach {
            Reach::Worker => running.signal(signal),
            Reach::Tree => {
                running.signal_tree(signal, &self.census);
                Ok(())
            }
        };
        // A process that is gone already needs no signal.
        if let Err(why) = result
            && why.raw_os_error() != Some(nix::libc::ESRCH)
        {
            complain(
                &format!("{worker}: cannot send {}", signal_name(signal)),
                why,
            );
        }
    }
}
