//! Brings what is there nearer to what is wanted.

use std::collections::BTreeSet;

use super::super::hiding::Port;
use super::super::io::{Effect, Reach};
use super::super::restart::{Instance, RestartState};
use super::super::rollout::plan::{
    InstanceView, Move, Policy, SetView, SlotView, Stage, Start, plan,
};
use super::super::rollout::strategy::{self, Other, Seen};
use super::super::rollout::{Phase, Rollout};
use super::super::types::{Time, WorkerId};
use super::super::view::{OperationKind, Step, WorkerPhase};
use super::super::worker::{State, Worker};
use super::{App, Context, Held, Listening, Wanted};
use crate::config::{Listen, SocketFile};
use crate::model::{Retire, What};

impl App {
    /// Called after every input; does nothing when there is nothing to do.
    pub fn reconcile(&mut self, cx: &mut Context<'_>) {
        loop {
            let moved = match self.goal() {
                Wanted::Up => self.reconcile_up(cx),
                Wanted::Down | Wanted::Deleted => self.reconcile_down(cx),
            };
            let settled = self.settle(cx);
            if !moved && !settled {
                self.forget_unused();
                return self.forgive(cx.now);
            }
        }
    }

    /// True if that changes what is seen.
    fn reconcile_down(&mut self, cx: &mut Context<'_>) -> bool {
        let stopping: Vec<u16> = self
            .workers()
            .filter(|w| w.active())
            .map(|w| w.id.slot)
            .collect();
        self.retire(&stopping, cx);
        if self.slots.iter().all(Option::is_none) {
            self.close(cx);
        }
        false
    }

    /// Clients that come while the last requests end would wait for a worker that never comes.
    pub fn refuse(&self, cx: &mut Context<'_>) {
        if self.listening.held.is_some() {
            cx.out.push_back(Effect::Refuse {
                app: self.name.clone(),
            });
        }
    }

    /// Gives the sockets up, if there are any and nothing is asked for.
    fn close(&mut self, cx: &mut Context<'_>) -> bool {
        if self.listening.held.is_none() || self.listening.pending.is_some() {
            return false;
        }
        self.listening = Listening {
            proven: true,
            ..Listening::default()
        };
        self.slots.clear();
        self.steered = None;
        cx.out.push_back(Effect::Unlisten {
            app: self.name.clone(),
        });
        true
    }

    /// True if that changes what is seen.
    fn reconcile_up(&mut self, cx: &mut Context<'_>) -> bool {
        self.wish(cx.now);
        if self.nobody_comes() {
            // Clients that wait would wait for ever: they are refused until the next start.
            if self.close(cx) && !self.spec().listen.is_empty() {
                self.record(What::Refusing, cx);
            }
            return false;
        }
        if !self.listen(cx) {
            self.steer(cx);
            return false;
        }
        let sets = self.set_views();
        let moves = plan(self.policy(), &self.slot_views(cx.now), &sets);
        let moved = !moves.is_empty();
        let mut retired = Vec::new();
        for step in &moves {
            match step {
                Move::Return { slot } => self.put_back(*slot, cx),
                Move::Retire { slot } => retired.push(*slot),
                Move::Start { .. } => {}
            }
        }
        self.retire(&retired, cx);
        for step in moves {
            if let Move::Start {
                slot,
                revision,
                instance,
            } = step
            {
                self.spawn(slot, revision, instance, cx);
            }
        }
        moved
    }

    /// Whether no worker is there and none will be started without a request.
    fn nobody_comes(&self) -> bool {
        let over = |instance: &Instance| match instance.state {
            RestartState::Errored | RestartState::Exited => true,
            RestartState::Open | RestartState::Backoff { .. } => false,
        };
        self.rollout.is_none()
            && self.slots.iter().all(Option::is_none)
            && self
                .sets
                .values()
                .filter(|set| set.replicas > 0)
                .flat_map(|set| set.instances.values())
                .all(over)
    }

    /// What each release is to have: by the strategy of the rollout, or as it was left.
    fn wish(&mut self, now: Time) {
        let (current, instances) = (self.current, self.instances);
        let mixed = self
            .sets
            .iter()
            .any(|(revision, set)| *revision != current && set.replicas > 0);
        if self.rollout.is_some() || !mixed {
            self.set().resize(instances);
        }
        for worker in self.slots.iter_mut().flatten() {
            let wanted = worker.revision != current || worker.instance < instances;
            match (&worker.retiring, wanted) {
                (None, false) if worker.active() => worker.retiring = Some(Retire::ScaledDown),
                (Some(Retire::ScaledDown), true) => worker.retiring = None,
                (Some(_) | None, _) => {}
            }
        }
        for wish in self
            .ask_strategy(now)
            .map(|(desired, _)| desired)
            .unwrap_or_default()
        {
            if let Some(set) = self.sets.get_mut(&wish.revision) {
                set.replicas = wish.replicas;
                set.share = wish.share;
            }
        }
    }

    /// Forgets releases that have no workers and are to have none.
    fn forget_sets(&mut self) {
        let (current, up) = (self.current, self.goal() == Wanted::Up);
        let slots = &self.slots;
        self.sets.retain(|revision, set| {
            *revision == current
                || (up && set.replicas > 0)
                || slots.iter().flatten().any(|w| w.revision == *revision)
        });
    }

    /// What the strategy of the rollout says, if there is one.
    pub(super) fn ask_strategy(&self, now: Time) -> Option<(strategy::Desired, strategy::Verdict)> {
        let rollout = self.rollout.as_ref()?;
        Some(strategy::next(rollout, &self.seen(rollout, now)))
    }

    fn seen(&self, rollout: &Rollout, now: Time) -> Seen {
        let target = self.sets.get(&self.current);
        let ended = |number: u16| {
            target
                .and_then(|set| set.instances.get(&number))
                .is_some_and(|i| i.state == RestartState::Exited)
        };
        let count = |there: &dyn Fn(&Worker) -> bool| {
            let workers = self.workers().filter(|w| self.is_current(w) && there(w));
            let filled: BTreeSet<u16> = workers.map(|w| w.instance).collect();
            (0..self.instances)
                .filter(|number| ended(*number) || filled.contains(number))
                .count()
        };
        let filled = count(&|w| self.stage(w, now) == Stage::Available);
        let occupied = count(&|w| w.ready());
        let back = matches!(rollout.phase, Phase::RollBack { .. });
        let others = self
            .sets
            .iter()
            .filter(|(number, _)| **number != self.current);
        let mut others: Vec<Other> = others
            .map(|(number, set)| {
                // A release that failed keeps only what serves; another one also gets back what it lost.
                let there = self.workers().filter(|w| {
                    w.revision == *number
                        && w.stays()
                        && match w.state {
                            State::Ready { .. } => true,
                            State::Spawning { .. }
                            | State::Starting { .. }
                            | State::Draining { .. } => !back,
                            State::Stopping { .. }
                            | State::Killing { .. }
                            | State::Sweeping { .. } => false,
                        }
                });
                let lost = set.instances.values().filter(|i| i.lost && !back);
                let there: Vec<&Worker> = there.collect();
                let able = there.len() + lost.count();
                let serves = |w: &&&Worker| w.phase() == WorkerPhase::Ready;
                let serving = there.iter().filter(serves).count();
                let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
                Other {
                    revision: *number,
                    able: count(able),
                    serving: count(serving),
                }
            })
            .collect();
        let from = rollout.from.map(|before| before.revision);
        others.sort_by_key(|other| Some(other.revision) != from);
        let leaving = |w: &Worker| match rollout.phase {
            Phase::Progress { .. } => false,
            Phase::Finish { generation } => !w.active() && w.id.generation <= generation,
            Phase::RollBack { .. } => w.revision != self.current,
        };
        Seen {
            target: self.current,
            instances: self.instances,
            filled: u16::try_from(filled).unwrap_or(u16::MAX),
            occupied: u16::try_from(occupied).unwrap_or(u16::MAX),
            most: self.most(),
            others,
            listening: self.listening.pending.is_none(),
            leaving: self.workers().any(leaving),
        }
    }

    /// The most workers that are wanted, now or before the rollout.
    fn most(&self) -> u16 {
        let Some(Rollout {
            kind: OperationKind::Reload,
            from: Some(before),
            ..
        }) = &self.rollout
        else {
            return self.instances;
        };
        self.instances.max(before.instances)
    }

    fn policy(&self) -> Policy {
        let kind = self.rollout.as_ref().map(|o| o.kind);
        let most = self.most();
        let stop_first = kind == Some(OperationKind::Restart);
        Policy {
            floor: if stop_first { 0 } else { most },
            ceiling: most.saturating_add(self.spec().surge(most)),
            stop_first,
        }
    }

    fn slot_views(&self, now: Time) -> Vec<SlotView> {
        let view = |slot: &Option<Worker>| match slot {
            None => SlotView::Parked,
            Some(worker) => SlotView::Live {
                revision: worker.revision,
                instance: worker.instance,
                stays: worker.stays(),
                stage: self.stage(worker, now),
            },
        };
        self.slots.iter().map(view).collect()
    }

    /// Those that were there before first: their lost workers come back before anything else is started.
    fn set_views(&self) -> Vec<SetView> {
        let trying = self.rollout.is_some();
        let mut views: Vec<SetView> = self
            .sets
            .iter()
            .map(|(revision, set)| {
                let target = *revision == self.current;
                let start = |instance: &Instance| match instance.state {
                    RestartState::Open if target || !trying || instance.lost => Start::Now,
                    RestartState::Open => Start::NotMissed,
                    RestartState::Backoff { .. } if target || !trying => Start::Later,
                    RestartState::Errored | RestartState::Exited if target || !trying => {
                        Start::Never
                    }
                    RestartState::Backoff { .. } | RestartState::Errored | RestartState::Exited => {
                        Start::NotMissed
                    }
                };
                SetView {
                    revision: *revision,
                    replicas: set.replicas,
                    instances: set
                        .instances
                        .iter()
                        .map(|(number, instance)| {
                            let view = InstanceView {
                                start: start(instance),
                                last_slot: instance.last_slot,
                            };
                            (*number, view)
                        })
                        .collect(),
                }
            })
            .collect();
        views.sort_by_key(|view| view.revision == self.current);
        views
    }

    /// The addresses of the target, of every live worker and of what may come back, and room for the
    /// surge. True once what is needed is held.
    fn listen(&mut self, cx: &mut Context<'_>) -> bool {
        if self.listening.pending.is_some() {
            return false;
        }
        let needed: BTreeSet<Listen> = self.spec().listen.iter().cloned().collect();
        let mut addresses = needed.clone();
        let listens = |revision: u64| self.releases[revision].spec.listen.iter().cloned();
        addresses.extend(self.workers().flat_map(|w| listens(w.revision)));
        let kept = self.sets.iter().filter(|(_, set)| set.replicas > 0);
        addresses.extend(kept.flat_map(|(revision, _)| listens(*revision)));
        if let Some(Rollout {
            from: Some(before), ..
        }) = self.rollout.as_ref().filter(|rollout| rollout.is_trial())
        {
            addresses.extend(listens(before.revision));
        }
        let slots = self
            .policy()
            .ceiling
            .max(u16::try_from(self.slots.len()).unwrap_or(u16::MAX));
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

    fn spawn(&mut self, slot: u16, revision: u64, instance: u16, cx: &mut Context<'_>) {
        *cx.next_generation += 1;
        let id = WorkerId {
            app: self.name.clone(),
            slot,
            generation: *cx.next_generation,
        };
        if let Some(instance) = self
            .sets
            .get_mut(&revision)
            .and_then(|set| set.instances.get_mut(&instance))
        {
            instance.last_slot = Some(slot);
            instance.lost = false;
        }
        let release = self.releases[revision].clone();
        let hide_port = self.hides(&release);
        self.slots[usize::from(slot)] = Some(Worker {
            id: id.clone(),
            instance,
            revision,
            pid: None,
            started: cx.now,
            state: State::Spawning {
                deadline: cx.now + release.spec.listen_timeout,
                waits: true,
            },
            retiring: None,
            memory: None,
            over_limit: 0,
            doubt: None,
            port: Port {
                hidden: hide_port,
                ..Port::default()
            },
        });
        cx.out.push_back(Effect::Relay {
            app: self.name.clone(),
            slot,
            on: false,
            hung: false,
        });
        cx.out.push_back(Effect::Spawn {
            worker: id,
            instance,
            revision: release,
            hide_port,
        });
    }

    fn put_back(&mut self, slot: u16, cx: &mut Context<'_>) {
        let Some(id) = self
            .slots
            .get(usize::from(slot))
            .and_then(Option::as_ref)
            .map(|w| w.id.clone())
        else {
            return;
        };
        let now = cx.now;
        let Some((worker, spec)) = self.worker_and_spec(&id) else {
            return;
        };
        if worker.return_to_traffic(spec, now) {
            let worker = worker.clone();
            cx.out.push_back(Effect::KeepOn { worker: id });
            self.record_of(&worker, What::WorkerReturned, cx);
        }
    }

    /// Out of the traffic in one swap, then drain; those that took none are stopped at once, and so are those
    /// that hang: what waits for them goes to others.
    fn retire(&mut self, slots: &[u16], cx: &mut Context<'_>) {
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
            let spec = &self.releases[worker.revision].spec;
            let steered = spec.listen.iter().any(|l| l.tcp().is_some());
            match worker.state {
                State::Ready { since, .. } if steered && !worker.is_hung() => {
                    worker.state = State::Draining {
                        until: cx.now + spec.drain_timeout,
                        since,
                    };
                    draining.push(worker.id.clone());
                }
                State::Ready { .. }
                | State::Spawning { .. }
                | State::Starting { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Sweeping { .. } => {
                    // Out of the traffic before it is told.
                    worker.state = State::Stopping {
                        kill_at: cx.now + spec.kill_timeout,
                        told: false,
                    };
                    silent.push(worker.id.clone());
                }
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
        let (app, now) = (self.name.clone(), cx.now);
        let Some((worker, spec)) = self.worker_and_spec(id) else {
            return;
        };
        let signal = spec.stop.signal;
        let kill_at = now + spec.kill_timeout;
        worker.state = State::Stopping {
            kill_at,
            told: false,
        };
        let hung = worker.is_hung();
        // From here on the worker may close its copy of the socket: what still arrives is ours.
        cx.out.push_back(Effect::Relay {
            app,
            slot: id.slot,
            on: true,
            hung,
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
                hung: false,
            });
            cx.out.push_back(Effect::Forget { worker: id.clone() });
        }
    }

    /// Why a worker goes, as far as it is known.
    pub fn why_it_goes(&self, worker: &Worker) -> Option<Retire> {
        if let Some(why) = &worker.retiring {
            return Some(why.clone());
        }
        match self.goal() {
            Wanted::Down | Wanted::Deleted => return Some(Retire::Stopped),
            Wanted::Up => {}
        }
        if worker.revision != self.current {
            let failed = worker.revision > self.current;
            let kept = self
                .sets
                .get(&worker.revision)
                .is_some_and(|set| set.replicas > 0 && self.rollout.is_none());
            return match (kept && worker.active(), failed) {
                (true, _) => None,
                (false, true) => Some(Retire::ReleaseFailed {
                    revision: worker.revision,
                }),
                (false, false) => Some(Retire::Replaced),
            };
        }
        None
    }

    /// What is remembered is of releases that something refers to.
    fn forget_unused(&mut self) {
        self.forget_sets();
        let from = self.rollout.as_ref().and_then(|rollout| rollout.from);
        let used: BTreeSet<u64> = [self.current]
            .into_iter()
            .chain(from.map(|before| before.revision))
            .chain(self.sets.keys().copied())
            .chain(self.workers().map(|w| w.revision))
            .collect();
        self.releases.keep(&used);
        self.forget_commands();
    }
}
