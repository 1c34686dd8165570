//! Carries out what the supervisor wants.

use std::time::Duration;

use super::{AbortOnDrop, Daemon, Event, complain, drain, fdstore, messages, probe};
use crate::config::{AppName, Listen, SocketFile};
use crate::core::{Effect, Input, Reach, Steering, Worker, WorkerId};
use crate::exit::signal_name;
use crate::sys::listen::{is_nonblocking, set_nonblocking};
use crate::sys::procfs;
use std::os::fd::AsFd;

/// Ended workers whose last log lines are kept, 8 KB each at the most.
const REMEMBERED: usize = 16;

/// Until an accept queue that could not be looked after is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Daemon {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Listen {
                app,
                addresses,
                slots,
                file,
            } => {
                let result = self.listen(&app, &addresses, slots, file);
                self.keep_sockets(&app);
                self.inbox.push_back(Input::Listening { app, result });
            }
            Effect::Unlisten { app } => {
                if let Some(resources) = self.apps.get_mut(&app) {
                    resources.relaying.clear();
                    let _ = resources.ready.send(false);
                    resources.sockets.close();
                }
                self.keep_sockets(&app);
            }
            Effect::Steer {
                app,
                balance,
                tables,
            } => self.steer(&app, balance, &tables),
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
                self.app(&worker.app)
                    .relays
                    .hold_for(revision.spec.hold_timeout);
                if self.await_trial(&worker, instance, &revision, hide_port) {
                    return;
                }
                if let Err(reason) = self.spawn(&worker, instance, &revision, hide_port) {
                    self.inbox.push_back(Input::SpawnFailed { worker, reason });
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
                self.unsaved();
            }
            Effect::Forget { worker } => {
                if let Some(ended) = self.running.remove(&worker.generation) {
                    self.isolation.forget(&ended.confinement);
                }
                if let Some(app) = self.apps.get_mut(&worker.app) {
                    app.sockets.taken_back(worker.generation);
                }
                self.state.processes.remove(&worker.generation);
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
                self.unsaved_for_reboot();
                self.on_finished(op, result);
            }
            Effect::Record(event) => {
                messages::about(&event.app, &event.line(), event.what.is_bad());
                self.event_log.record(event);
            }
            Effect::Removed { app } => {
                self.apps.remove(&app);
                self.takeover.seen(&app);
                self.admin.forget(&app);
                self.isolation.forget_app(&app);
                self.event_log.forget(&app);
                self.keep_sockets(&app);
                self.unsaved_for_reboot();
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

    fn listen(
        &mut self,
        app: &AppName,
        addresses: &[Listen],
        slots: u16,
        file: SocketFile,
    ) -> Result<(), String> {
        let resources = self.app(app);
        resources
            .sockets
            .hold(addresses, slots, file)
            .map_err(|why| why.to_string())?;
        // The relays that run hold sockets of addresses that may have been given up, and know
        // nothing of new ones.
        let looked_after: Vec<Option<u16>> =
            resources.relaying.drain().map(|(slot, _)| slot).collect();
        for slot in looked_after.into_iter().flatten() {
            self.start_relays(app, Some(slot));
        }
        // The lobby is nobody's; every slot that has no worker yet is looked after as well.
        self.start_relays(app, None);
        let busy: Vec<u16> = self.supervisor.workers(app).map(|w| w.id.slot).collect();
        for slot in 0..slots {
            if !busy.contains(&slot) {
                self.relay(app, slot, true, false);
            }
        }
        Ok(())
    }

    fn steer(&mut self, app: &AppName, balance: crate::config::Balance, tables: &[Steering]) {
        let Some(resources) = self.apps.get_mut(app) else {
            return;
        };
        match resources.sockets.steer(balance, tables) {
            Ok(anybody) => {
                let _ = resources
                    .ready
                    .send_if_modified(|ready| std::mem::replace(ready, anybody) != anybody);
            }
            Err(why) => complain(&format!("{app}: cannot steer its connections"), why),
        }
    }

    /// Off: the slot gets a worker. On: it has none, or one that is told to stop.
    fn relay(&mut self, app: &AppName, slot: u16, on: bool, hung: bool) {
        self.mend(app);
        if on {
            // One that accepts nothing any more does not miss its blocking accept.
            let accepts = |w: &Worker| w.id.slot == slot && !hung && !self.is_halted(&w.id);
            let worker_lives = self.supervisor.workers(app).any(accepts);
            let resources = self.app(app);
            let Ok(queues) = resources.sockets.queues(Some(slot)) else {
                return;
            };
            for queue in queues {
                if is_nonblocking(queue.fd.as_fd()).unwrap_or(false) {
                    continue;
                }
                // A worker that uses blocking accept shares the mode with us and is left alone with
                // its queue until it is gone.
                if worker_lives {
                    return;
                }
                if let Err(why) = set_nonblocking(queue.fd.as_fd(), true) {
                    return complain(&format!("{app}: cannot look after slot {slot}"), why);
                }
            }
            self.start_relays(app, Some(slot));
        } else if let Some(resources) = self.apps.get_mut(app) {
            for relay in resources.relaying.remove(&Some(slot)).into_iter().flatten() {
                relay.stop();
            }
            // What a worker inherits is blocking, as with systemd; takeover sets it as the app's own was.
            for queue in resources.sockets.queues(Some(slot)).into_iter().flatten() {
                let _ = set_nonblocking(queue.fd.as_fd(), false);
            }
        }
    }

    /// Looks whether a worker shut its socket down, and makes up for it.
    pub(super) fn mend(&mut self, app: &AppName) {
        if let Some(Err(why)) = self
            .apps
            .get_mut(app)
            .map(|resources| resources.sockets.mend())
        {
            complain(
                &format!("{app}: a socket that a worker shut down cannot listen again"),
                why,
            );
        }
    }

    pub(super) fn start_relays(&mut self, app: &AppName, slot: Option<u16>) {
        let resources = self.app(app);
        if resources.relaying.contains_key(&slot) {
            return;
        }
        let relays: std::io::Result<Vec<_>> = resources.sockets.queues(slot).and_then(|queues| {
            let watch = |queue: super::sockets::Queue| {
                set_nonblocking(queue.fd.as_fd(), true)?;
                resources.relays.watch(queue)
            };
            queues.into_iter().map(watch).collect()
        });
        match relays {
            Ok(relays) => {
                resources.relaying.insert(slot, relays);
            }
            Err(why) => {
                complain(&format!("{app}: cannot look after an accept queue"), why);
                // Out of descriptors: what waits there goes on waiting.
                let (events, app) = (self.events.clone(), app.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    let _ = events.send(Event::LookAfter { app, slot });
                });
            }
        }
    }

    /// What could not be looked after before, unless a worker has the slot by now.
    pub(super) fn look_after(&mut self, app: &AppName, slot: Option<u16>) {
        let taken = |slot: u16| self.supervisor.workers(app).any(|w| w.id.slot == slot);
        if self.apps.contains_key(app) && !slot.is_some_and(taken) {
            self.start_relays(app, slot);
        }
    }

    fn drain(&mut self, worker: WorkerId) {
        let Some(resources) = self.apps.get(&worker.app) else {
            return;
        };
        let Ok(queues) = resources.sockets.queues(Some(worker.slot)) else {
            return;
        };
        let ports = resources.sockets.ports();
        let events = self.events.clone();
        let generation = worker.generation;
        let pid = self.running.get(&generation).map(|running| running.pid);
        let task = tokio::spawn(async move {
            let halted = || pid.is_some_and(procfs::is_halted);
            drain::until_empty(queues, ports, halted).await;
            let _ = events.send(Event::Input(Input::Drained { worker }));
        });
        // It holds copies of the sockets, and must not outlive the worker with them.
        if let Some(running) = self.running.get_mut(&generation) {
            running.drain = Some(AbortOnDrop(task));
        }
    }

    /// The worker's process was stopped by a signal (SIGSTOP): it accepts nothing.
    fn is_halted(&self, worker: &WorkerId) -> bool {
        let running = self.running.get(&worker.generation);
        running.is_some_and(|running| procfs::is_halted(running.pid))
    }

    fn signal(&mut self, worker: &WorkerId, signal: i32, reach: Reach) {
        let Some(running) = self.running.get_mut(&worker.generation) else {
            return self.give_up_trial(worker);
        };
        running.remember_tree();
        let result = match reach {
            Reach::Worker => running.signal(signal),
            Reach::Tree => {
                running.signal_tree(signal);
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
