//! Carries out what the supervisor wants.

use super::fleet::{Fork, Held, Turn};
use super::{Daemon, Event, fdstore, messages, now, probe};
use crate::config::AppName;
use crate::core::{Effect, Input, Worker, WorkerId};
use crate::sys::procfs;

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
            Effect::Refuse { app } => self.network.refuse(&app),
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
                self.fleet.fork_later(fork);
            }
            Effect::Probe {
                worker,
                purpose,
                instance,
                pid,
                revision,
            } => {
                let target = probe::Try::of(
                    (&worker, purpose, instance, pid),
                    &revision,
                    &self.fleet,
                    &self.network,
                );
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
                self.fleet.look_for_traces(worker, None, &self.supervisor);
            }
            Effect::Drain { worker } => self.drain(worker),
            Effect::KeepOn { worker } => self.fleet.keep_on(&worker),
            Effect::Signal {
                worker,
                signal,
                reach,
            } => {
                let given_up = self.fleet.signal(&worker, signal, reach);
                self.inbox.extend(given_up);
                // That it was told is not to be forgotten.
                self.store.unsaved();
            }
            Effect::Forget { worker } => {
                let forgotten = self.fleet.forget(&worker);
                self.network.taken_back(&worker);
                self.store.forget_process(worker.generation);
                self.output.await_silence(worker.generation);
                let others = [
                    fdstore::name::binds,
                    fdstore::name::notify,
                    fdstore::name::node,
                ];
                others
                    .iter()
                    .for_each(|name| self.fdstore.forget(&name(worker.generation)));
                forgotten
                    .into_iter()
                    .for_each(|oldest| self.output.pump.forget(oldest));
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
                self.fleet.forget_app(&app);
                self.admin.forget(&app);
                self.event_log.forget(&app);
                self.store.unsaved_for_reboot();
            }
        }
    }

    /// Off: the slot gets a worker. On: it has none, or one that is told to stop.
    fn relay(&mut self, app: &AppName, slot: u16, on: bool, hung: bool) {
        if on {
            // One that accepts nothing any more does not miss its blocking accept.
            let accepts = |w: &Worker| w.id.slot == slot && !hung && !self.fleet.is_halted(&w.id);
            let accepts = self.supervisor.workers(app).any(accepts);
            self.network.relay(app, slot, accepts);
        } else {
            self.network.stop_relaying(app, slot);
        }
    }

    /// What could not be looked after before, unless a worker has the slot by now.
    pub(super) fn relay_again(&mut self, app: &AppName, slot: Option<u16>) {
        let taken = |slot: u16| self.supervisor.workers(app).any(|w| w.id.slot == slot);
        if !slot.is_some_and(taken) {
            self.network.relay_again(app, slot);
        }
    }

    fn drain(&mut self, worker: WorkerId) {
        let pid = self.fleet.pid_of(&worker);
        let halted = move || pid.is_some_and(procfs::is_halted);
        if let Some(empty) = self.network.drain(&worker, halted) {
            let ended = self.fleet.drain(worker, empty);
            self.inbox.extend(ended);
        }
    }

    /// Forks workers that wait, as many as a turn has time for. Each waits before its exec until the
    /// state that has them all is saved.
    pub(super) fn fork_some(&mut self) {
        if !self.fleet.has_forks() {
            return;
        }
        let turn = Turn::begin();
        let mut held: Vec<Held> = Vec::new();
        while let Some(fork) = self.fleet.next_fork() {
            match self.fork(&fork) {
                Ok(process) => {
                    self.store
                        .record_process(fork.worker.generation, process.process);
                    held.push(process);
                    let worker = fork.worker;
                    self.supervisor.handle(now(), Input::Forked { worker });
                }
                Err(reason) => self.inbox.push_back(Input::SpawnFailed {
                    worker: fork.worker,
                    reason,
                }),
            }
            if turn.is_over() {
                break;
            }
        }
        if !held.is_empty() {
            self.store.unsaved();
        }
        self.save_if_needed();
        held.into_iter().for_each(|held| self.fleet.let_go(held));
        self.settle();
    }

    fn fork(&mut self, fork: &Fork) -> Result<Held, String> {
        let spec = &fork.revision.spec;
        let sockets = match self.fleet.way_to_sockets(spec).inherits() {
            true => self
                .network
                .inherit(&fork.worker, &spec.listen)
                .map_err(|why| format!("cannot hand over its sockets: {why}"))?,
            false => Vec::new(),
        };
        self.fleet
            .spawn(fork, sockets, &mut self.fdstore, &self.output)
    }
}
