//! Brings what is there nearer to what is wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::hiding::Port;
use super::super::io::{Effect, Reach, Steering};
use super::super::operation::Operation;
use super::super::plan::{Move, Policy, SeatView, SlotView, plan};
use super::super::seat::{Hold, Seat};
use super::super::types::{Revision, Time, WorkerId};
use super::super::view::{OperationKind, Step};
use super::super::worker::{State, Worker};
use super::{App, Context, Held, Listening, REPLACED_BY_RELOAD, SCALED_DOWN, Wanted, stage};
use crate::config::{Listen, SocketFile};

impl App {
    /// Called after every input; does nothing when
    /// there is nothing to do.
    pub fn reconcile(&mut self, cx: &mut Context<'_>) {
        loop {
            match self.goal() {
                Wanted::Up => self.reconcile_up(cx),
                Wanted::Down | Wanted::Deleted => self.reconcile_down(cx),
            }
            if !self.settle(cx) {
                self.forget_commands();
                return self.forgive(cx.now);
            }
        }
    }

    fn reconcile_down(&mut self, cx: &mut Context<'_>) {
        let stopping: Vec<u16> = self
            .workers()
            .filter(|w| w.active())
            .map(|w| w.id.slot)
            .collect();
        self.retire(&stopping, "stopped", cx);
        let idle = self.slots.iter().all(Option::is_none) && self.listening.pending.is_none();
        if idle && self.listening.held.is_some() {
            self.listening = Listening {
                proven: true,
                ..Listening::default()
            };
            self.slots.clear();
            self.steered = None;
            cx.out.push_back(Effect::Unlisten {
                app: self.name.clone(),
            });
        }
    }

    fn reconcile_up(&mut self, cx: &mut Context<'_>) {
        self.seats
            .resize_with(usize::from(self.instances), Seat::default);
        if !self.listen(cx) {
            self.steer(cx);
            return;
        }
        let instances = self.instances;
        for worker in self.workers_mut().filter(|w| w.active()) {
            let surplus = worker.instance >= instances;
            if surplus && worker.fresh() {
                worker.condemned = Some(SCALED_DOWN.into());
            } else if !surplus && worker.condemned.as_deref() == Some(SCALED_DOWN) {
                worker.condemned = None;
            }
        }
        let moves = plan(self.policy(), &self.slot_views(cx.now), &self.seat_views());
        let retired: Vec<u16> = moves
            .iter()
            .filter_map(|m| {
                if let Move::Retire { slot } = m {
                    Some(*slot)
                } else {
                    None
                }
            })
            .collect();
        self.retire(&retired, "replaced", cx);
        for step in moves {
            match step {
                Move::Retire { .. } => {}
                Move::Start { slot, instance } => {
                    self.spawn(slot, instance, self.target.clone(), None, cx)
                }
                Move::Restore { slot, instance } => {
                    if let Some(revision) = self.seats[usize::from(instance)].bereft_of.take() {
                        self.spawn(
                            slot,
                            instance,
                            revision,
                            Some(REPLACED_BY_RELOAD.into()),
                            cx,
                        );
                    }
                }
            }
        }
    }

    fn policy(&self) -> Policy {
        let before = self
            .operation
            .as_ref()
            .and_then(|o| o.before.as_ref())
            .map_or(0, |b| b.instances);
        let kind = self.operation.as_ref().map(|o| o.kind);
        let most = match kind {
            Some(OperationKind::Reload) => self.instances.max(before),
            Some(
                OperationKind::Start
                | OperationKind::Stop
                | OperationKind::Restart
                | OperationKind::Scale
                | OperationKind::Delete,
            )
            | None => self.instances,
        };
        Policy {
            instances: self.instances,
            floor: most,
            ceiling: most.saturating_add(self.spec().reload.max_surge),
            stop_first: kind == Some(OperationKind::Restart),
        }
    }

    fn slot_views(&self, now: Time) -> Vec<SlotView> {
        let view = |slot: &Option<Worker>| match slot {
            None => SlotView::Parked,
            Some(worker) => SlotView::Live {
                instance: worker.instance,
                fresh: worker.fresh() && worker.active(),
                stage: stage(worker, now),
            },
        };
        self.slots.iter().map(view).collect()
    }

    fn seat_views(&self) -> Vec<SeatView> {
        let trying = self.operation.as_ref().is_some_and(|o| o.may_go_back());
        let view = |seat: &Seat| SeatView {
            open: seat.hold == Hold::Open,
            ended: seat.hold == Hold::Exited,
            given_up: seat.hold == Hold::Errored,
            bereft: trying && seat.bereft_of.is_some(),
            last_slot: seat.last_slot,
        };
        self.seats.iter().map(view).collect()
    }

    /// The addresses of the target, of every live worker and of what may come back, and room for the
    /// surge. True once what is needed is held.
    fn listen(&mut self, cx: &mut Context<'_>) -> bool {
        if self.listening.pending.is_some() {
            return false;
        }
        let needed: BTreeSet<Listen> = self.spec().listen.iter().cloned().collect();
        let mut addresses = needed.clone();
        addresses.extend(self.workers().flat_map(|w| w.spec().listen.iter().cloned()));
        if let Some(Operation {
            before: Some(before),
            ..
        }) = self.operation.as_ref().filter(|o| o.may_go_back())
        {
            let bereft = self.seats.iter().filter_map(|s| s.bereft_of.as_ref());
            addresses.extend(
                bereft
                    .chain([&before.target])
                    .flat_map(|r| r.spec.listen.iter().cloned()),
            );
        }
        let slots = self.policy().ceiling.max(self.slots.len() as u16);
        let unix = addresses.iter().any(|address| address.tcp().is_none());
        let file = if unix {
            self.spec().socket_file()
        } else {
            SocketFile::default()
        };
        let want = Held {
            addresses,
            slots,
            file,
        };
        if self.listening.held.as_ref() == Some(&want) {
            self.listening.again = None;
            return true;
        }
        if self.listening.again.is_some_and(|at| at > cx.now) {
            return self
                .listening
                .held
                .as_ref()
                .is_some_and(|held| needed.is_subset(&held.addresses));
        }
        cx.out.push_back(want.effect(&self.name));
        self.listening.again = None;
        self.listening.pending = Some(want);
        false
    }

    /// Whether the app can have all its workers with the sockets it holds.
    pub(super) fn enough(&self) -> bool {
        let enough = |held: &Held| {
            held.slots >= self.policy().ceiling
                && self
                    .spec()
                    .listen
                    .iter()
                    .all(|a| held.addresses.contains(a))
        };
        self.listening.held.as_ref().is_some_and(enough)
    }

    fn spawn(
        &mut self,
        slot: u16,
        instance: u16,
        revision: Arc<Revision>,
        condemned: Option<String>,
        cx: &mut Context<'_>,
    ) {
        *cx.next_generation += 1;
        let id = WorkerId {
            app: self.name.clone(),
            slot,
            generation: *cx.next_generation,
        };
        if let Some(seat) = self.seats.get_mut(usize::from(instance)) {
            seat.last_slot = Some(slot);
        }
        let hide_port = self.hides(&revision);
        self.slots[usize::from(slot)] = Some(Worker {
            id: id.clone(),
            instance,
            pid: None,
            started: cx.now,
            state: State::Spawning {
                deadline: cx.now + revision.spec.listen_timeout,
            },
            condemned,
            memory: None,
            over_limit: 0,
            reason: None,
            port: Port {
                hidden: hide_port,
                ..Port::default()
            },
            revision: revision.clone(),
        });
        cx.out.push_back(Effect::Relay {
            app: self.name.clone(),
            slot,
            on: false,
        });
        cx.out.push_back(Effect::Spawn {
            worker: id,
            instance,
            revision,
            hide_port,
        });
    }

    /// Out of the traffic in one swap, then drain; those that took none are stopped at once.
    fn retire(&mut self, slots: &[u16], why: &str, cx: &mut Context<'_>) {
        let mut draining = Vec::new();
        let mut silent = Vec::new();
        for slot in slots {
            let Some(worker) = self
                .slots
                .get_mut(usize::from(*slot))
                .and_then(Option::as_mut)
            else {
                continue;
            };
            if worker.condemned.is_none() {
                worker.condemned = Some(why.to_owned());
            }
            let steered = worker.spec().listen.iter().any(|l| l.tcp().is_some());
            if worker.ready() && steered {
                worker.state = State::Draining {
                    until: cx.now + worker.spec().drain_timeout,
                };
                draining.push(worker.id.clone());
            } else {
                silent.push(worker.id.clone());
            }
        }
        self.steer(cx);
        for id in silent {
            self.signal_stop(&id, cx);
        }
        for id in draining {
            self.progress(&id, Step::Draining, cx);
            cx.out.push_back(Effect::Drain { worker: id });
        }
    }

    pub(super) fn signal_stop(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let app = self.name.clone();
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.state = State::Stopping {
            kill_at: cx.now + worker.spec().kill_timeout,
            told: false,
        };
        let signal = worker.spec().stop.signal;
        // From here on the worker may close its copy of the socket: what still arrives is ours.
        cx.out.push_back(Effect::Relay {
            app,
            slot: id.slot,
            on: true,
        });
        cx.out.push_back(Effect::Signal {
            worker: id.clone(),
            signal,
            reach: Reach::Worker,
        });
        self.progress(id, Step::Stopping, cx);
    }

    pub(super) fn remove(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        if self.worker(id).is_some() {
            self.slots[usize::from(id.slot)] = None;
            cx.out.push_back(Effect::Relay {
                app: self.name.clone(),
                slot: id.slot,
                on: true,
            });
            cx.out.push_back(Effect::Forget { worker: id.clone() });
        }
    }

    /// Puts the weights in force, if they are not yet.
    pub(super) fn steer(&mut self, cx: &mut Context<'_>) {
        let Some(held) = &self.listening.held else {
            return;
        };
        let tables: Vec<Steering> = held
            .addresses
            .iter()
            .filter(|a| a.tcp().is_some())
            .map(|address| Steering {
                address: address.clone(),
                weights: self.weights(address),
            })
            .collect();
        let balance = self.spec().balance;
        if tables.is_empty()
            || self
                .steered
                .as_ref()
                .is_some_and(|(b, t)| *b == balance && *t == tables)
        {
            return;
        }
        self.steered = Some((balance, tables.clone()));
        cx.out.push_back(Effect::Steer {
            app: self.name.clone(),
            balance,
            tables,
        });
    }

    /// Ready workers that listen on the address, equally; if every one of them is unready, still
    /// them: a dependency that fails for all must not turn a degraded app into a dead one.
    fn weights(&self, address: &Listen) -> Vec<u32> {
        let weigh = |take_unready: bool| -> Vec<u32> {
            let takes = |w: &Worker| match &w.state {
                State::Ready { unready, .. } => {
                    (take_unready || !unready)
                        && !w.is_out_of_reach()
                        && w.spec().listen.contains(address)
                }
                State::Spawning { .. }
                | State::Starting { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Sweeping { .. } => false,
            };
            self.slots
                .iter()
                .map(|slot| u32::from(slot.as_ref().is_some_and(takes)))
                .collect()
        };
        let weights = weigh(false);
        if weights.iter().any(|w| *w > 0) {
            weights
        } else {
            weigh(true)
        }
    }
}
