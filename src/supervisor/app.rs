//! One app: what is wanted, what is there, and the reconciliation of the two.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::io::{Effect, OpError, Purpose, Reach, Steering};
use super::operation::{Operation, Queue, Rollout};
use super::plan::{Move, Policy, SeatView, SlotView, Stage, plan};
use super::seat::{Ending, Hold, Seat};
use super::types::{Revision, Time, WorkerId};
use super::view::{Exit, FailureCode, OperationKind, Progress, Step};
use super::words::{humane, size};
use super::worker::{Clock, State, Verdict, Worker};
use crate::config::{AppName, AppSpec, Check, Listen};

/// The reason of workers that go because of a reload, and stay if it fails.
pub const REPLACED_BY_RELOAD: &str = "replaced by a reload";

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// Events kept for `describe`.
const EVENTS: usize = 50;

/// Leftover descendants of a worker that died by itself get this long after their stop signal:
/// its slot waits for them.
const SWEEP_AFTER_CRASH: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    Up,
    Down,
    Deleted,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub name: AppName,
    pub wanted: Wanted,
    /// What fresh workers are started from.
    pub target: Arc<Revision>,
    /// Numbers are never used twice, not even that of a revision that failed.
    pub last_revision: u64,
    pub instances: u16,
    pub slots: Vec<Option<Worker>>,
    pub seats: Vec<Seat>,
    pub operation: Option<Operation>,
    pub queue: Queue,
    pub listening: Listening,
    /// The tables last put in force.
    pub steered: Vec<Steering>,
    pub events: VecDeque<(Time, String)>,
    pub reason: Option<String>,
}

/// The state of the app's sockets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listening {
    pub held: Option<Held>,
    /// Asked for, not yet confirmed.
    pub pending: Option<Held>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub addresses: BTreeSet<Listen>,
    pub slots: u16,
}

/// What the supervisor lends to an app while it handles one input.
pub struct Context<'a> {
    pub now: Time,
    pub out: &'a mut VecDeque<Effect>,
    pub next_generation: &'a mut u64,
    pub random: &'a mut fastrand::Rng,
}

impl App {
    pub fn new(target: Arc<Revision>) -> Self {
        Self {
            name: target.spec.name.clone(),
            wanted: Wanted::Up,
            instances: target.spec.instances,
            last_revision: target.number,
            target,
            slots: Vec::new(),
            seats: Vec::new(),
            operation: None,
            queue: Queue::new(),
            listening: Listening::default(),
            steered: Vec::new(),
            events: VecDeque::new(),
            reason: None,
        }
    }

    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.slots.iter().flatten()
    }

    fn workers_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.slots.iter_mut().flatten()
    }

    /// The worker, if it is still the one that is meant.
    fn worker(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.slots.get_mut(usize::from(id.slot))?.as_mut().filter(|w| w.id.generation == id.generation)
    }

    pub fn spec(&self) -> &AppSpec {
        &self.target.spec
    }

    // ---- what happened ----

    pub fn on_spawned(&mut self, id: &WorkerId, pid: u32, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else { return };
        worker.running(pid, cx.now);
        self.progress(id, Step::Started, cx);
    }

    pub fn on_spawn_failed(&mut self, id: &WorkerId, reason: &str, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id).map(|w| w.clone()) else { return };
        self.remove(id, cx);
        if worker.active() {
            self.note(format!("{}: {reason}", worker.instance), true, cx);
            self.lost(&worker, None, reason, FailureCode::Spawn, cx);
        }
    }

    pub fn on_exited(&mut self, id: &WorkerId, exit: Exit, descendants: bool, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else { return };
        let before = worker.clone();
        let asked_for = match before.state {
            State::Stopping { .. } | State::Killing { .. } | State::Draining { .. } => true,
            State::Spawning { .. } | State::Starting { .. } | State::Ready { .. } => false,
            State::Sweeping { .. } => return,
        };
        if descendants {
            let killed = matches!(before.state, State::Killing { .. });
            let kill_at = match before.state {
                State::Stopping { kill_at } => kill_at,
                State::Killing { .. } => cx.now,
                State::Spawning { .. } | State::Starting { .. } | State::Ready { .. } | State::Draining { .. } | State::Sweeping { .. } => {
                    cx.now + SWEEP_AFTER_CRASH.min(before.spec().kill_timeout)
                }
            };
            worker.state = State::Sweeping { kill_at, killed };
            worker.pid = None;
            let signal = if killed { SIGKILL } else { before.spec().stop.signal };
            cx.out.push_back(Effect::Signal { worker: id.clone(), signal, reach: Reach::Tree });
        }
        self.progress(id, Step::Gone { exit }, cx);
        let uptime = cx.now.since(before.started);
        if asked_for {
            self.note(format!("{} (pid {}) {exit}", before.instance, before.pid.unwrap_or(0)), false, cx);
        } else {
            let reason = if before.ready() {
                format!("{exit} after {}", humane(uptime))
            } else {
                format!("{exit} after {}, before it was ready", humane(uptime))
            };
            self.note(format!("{} (pid {}) {reason}", before.instance, before.pid.unwrap_or(0)), true, cx);
            self.lost(&before, Some(exit), &reason, FailureCode::NotReady, cx);
        }
        if descendants {
            cx.out.push_back(Effect::Relay { app: self.name.clone(), slot: id.slot, on: true });
        } else {
            self.remove(id, cx);
        }
    }

    pub fn on_tree_gone(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        if self.worker(id).is_some_and(|w| matches!(w.state, State::Sweeping { .. })) {
            self.remove(id, cx);
        }
    }

    pub fn on_probed(&mut self, id: &WorkerId, purpose: Purpose, result: &Result<(), String>, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else { return };
        if let Err(why) = result {
            worker.reason = Some(match purpose {
                Purpose::Readiness => format!("not ready: {why}"),
                Purpose::Liveness => format!("liveness: {why}"),
            });
        }
        let verdict = match purpose {
            Purpose::Readiness => worker.readiness_result(result.is_ok(), cx.now),
            Purpose::Liveness => worker.liveness_result(result.is_ok(), cx.now),
        };
        match verdict {
            Verdict::Nothing => {}
            Verdict::BecameReady => self.became_ready(id, cx),
            Verdict::Traffic => {
                let (instance, phase) = (worker.instance, worker.phase());
                if result.is_ok() {
                    worker.reason = None;
                }
                self.note(format!("{instance} is {}: {}", phase.as_str(), result.as_ref().err().map_or("its readiness check passes again", |e| e)), result.is_err(), cx);
            }
            Verdict::Unhealthy => {
                let why = format!("liveness failed: {}", result.as_ref().err().map_or("", |e| e));
                if let State::Ready { unready, liveness, .. } = &mut worker.state {
                    *unready = true;
                    *liveness = Clock::never();
                }
                self.condemn(id, why, cx);
            }
        }
    }

    pub fn on_notified(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else { return };
        if matches!(worker.state, State::Starting { .. }) && worker.spec().readiness.check == Check::Notify {
            worker.become_ready(cx.now);
            self.became_ready(id, cx);
        }
    }

    pub fn on_drained(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        if self.worker(id).is_some_and(|w| matches!(w.state, State::Draining { .. })) {
            self.signal_stop(id, cx);
        }
    }

    pub fn on_memory(&mut self, id: &WorkerId, bytes: u64, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else { return };
        worker.memory = Some(bytes);
        let limit = match worker.spec().max_memory {
            Some(limit) if worker.active() && worker.fresh() => limit,
            Some(_) | None => return,
        };
        worker.over_limit = if bytes > limit { worker.over_limit.saturating_add(1) } else { 0 };
        // One reading may be a peak between two collections; two in a row are a leak.
        if worker.over_limit == 2 {
            let why = format!("memory {} is over max_memory {}", size(bytes), size(limit));
            self.condemn(id, why, cx);
        }
    }

    pub fn hurry(&mut self, cx: &mut Context<'_>) {
        // The end of draining is the beginning of stopping, which is to be short as well.
        for _ in 0..2 {
            for worker in self.workers_mut() {
                match &mut worker.state {
                    State::Draining { until } => *until = cx.now,
                    State::Stopping { kill_at } | State::Sweeping { kill_at, .. } => *kill_at = cx.now,
                    State::Spawning { .. } | State::Starting { .. } | State::Ready { .. } | State::Killing { .. } => {}
                }
            }
            self.tick(cx);
        }
    }

    /// Acts on every deadline that has passed.
    pub fn tick(&mut self, cx: &mut Context<'_>) {
        let ids: Vec<WorkerId> = self.workers().map(|w| w.id.clone()).collect();
        for id in ids {
            self.tick_worker(&id, cx);
        }
        for seat in &mut self.seats {
            if matches!(seat.hold, Hold::Backoff { until } if until <= cx.now) {
                seat.hold = Hold::Open;
            }
        }
        let late = self.operation.as_ref().and_then(|o| o.rollout.as_ref()).is_some_and(|r| r.failed.is_none() && r.deadline <= cx.now);
        if late {
            let within = humane(self.spec().reload.deadline);
            let worker = self.workers().find(|w| w.active() && !w.ready()).map(|w| w.id.clone());
            self.fail_operation(
                OpError {
                    code: FailureCode::NotReady,
                    message: format!("the reload was not done within its deadline of {within}"),
                    hint: Some("raise reload.deadline or look at the log of the replacement".into()),
                    worker,
                },
                cx,
            );
        }
    }

    fn tick_worker(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some(worker) = self.worker(id) else { return };
        match &mut worker.state {
            State::Spawning { deadline } | State::Starting { deadline, .. } if *deadline <= now => {
                let timeout = humane(worker.spec().listen_timeout);
                let last = worker.reason.take().map(|r| format!(" ({r})")).unwrap_or_default();
                let reason = format!("was not ready within listen_timeout {timeout}{last}");
                let before = worker.clone();
                worker.condemned = Some(reason.clone());
                self.note(format!("{} (pid {}) {reason}", before.instance, before.pid.unwrap_or(0)), true, cx);
                self.signal_stop(id, cx);
                self.lost(&before, None, &reason, FailureCode::NotReady, cx);
            }
            State::Starting { readiness, .. } => {
                if readiness.due(now) {
                    if worker.spec().readiness.check == Check::Alive {
                        worker.become_ready(now);
                        self.became_ready(id, cx);
                    } else {
                        cx.out.push_back(Effect::Probe { worker: id.clone(), purpose: Purpose::Readiness });
                    }
                }
            }
            State::Ready { readiness, liveness, .. } => {
                if readiness.due(now) {
                    cx.out.push_back(Effect::Probe { worker: id.clone(), purpose: Purpose::Readiness });
                }
                if liveness.due(now) {
                    cx.out.push_back(Effect::Probe { worker: id.clone(), purpose: Purpose::Liveness });
                }
            }
            State::Draining { until } if *until <= now => self.signal_stop(id, cx),
            State::Stopping { kill_at } if *kill_at <= now => {
                worker.state = State::Killing { since: now };
                let (instance, timeout) = (worker.instance, worker.spec().kill_timeout);
                cx.out.push_back(Effect::Signal { worker: id.clone(), signal: SIGKILL, reach: Reach::Tree });
                self.progress(id, Step::Killed, cx);
                self.note(format!("{instance} was killed: it had not ended within kill_timeout {}", humane(timeout)), true, cx);
            }
            State::Sweeping { kill_at, killed: killed @ false } if *kill_at <= now => {
                *killed = true;
                cx.out.push_back(Effect::Signal { worker: id.clone(), signal: SIGKILL, reach: Reach::Tree });
            }
            State::Spawning { .. } | State::Draining { .. } | State::Stopping { .. } | State::Killing { .. } | State::Sweeping { .. } => {}
        }
    }

    fn became_ready(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else { return };
        worker.reason = None;
        let after = cx.now.since(worker.started);
        let text = format!("{} (pid {}) is ready after {}", worker.instance, worker.pid.unwrap_or(0), humane(after));
        self.note(text, false, cx);
        self.progress(id, Step::Ready { after_ms: after.as_millis() as u64 }, cx);
    }

    /// The worker is to be replaced: a fresh one first, where there is room.
    fn condemn(&mut self, id: &WorkerId, why: String, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else { return };
        if worker.condemned.is_some() {
            return;
        }
        worker.condemned = Some(why.clone());
        worker.reason = Some(why.clone());
        let instance = worker.instance;
        if let Some(seat) = self.seats.get_mut(usize::from(instance)) {
            seat.reason = Some(why.clone());
            seat.restarts = seat.restarts.saturating_add(1);
        }
        self.reason = Some(format!("{instance}: {why}"));
        self.note(format!("{instance} is replaced: {why}"), true, cx);
    }

    /// A worker that was to stay is lost: the seat's policy decides, and a reload ends.
    fn lost(&mut self, worker: &Worker, exit: Option<Exit>, reason: &str, code: FailureCode, cx: &mut Context<'_>) {
        self.progress_of(worker, Step::Failed { reason: reason.to_owned() }, cx);
        if !worker.fresh() {
            return;
        }
        let ending = Ending { now: cx.now, uptime: cx.now.since(worker.started), was_ready: worker.ready(), exit, reason };
        // A release that fails is no restart of the instance, which its old worker still serves.
        let on_trial = worker.revision.number == self.target.number
            && self.operation.as_ref().and_then(|o| o.rollout.as_ref()).is_some_and(|r| r.from.is_some() && r.failed.is_none());
        if let Some(seat) = self.seats.get_mut(usize::from(worker.instance)).filter(|_| !on_trial) {
            seat.ended(&worker.revision.spec, ending, cx.random);
            if let (Hold::Errored, Some(why)) = (&seat.hold, seat.reason.clone()) {
                self.note(format!("{} is errored: {why}", worker.instance), true, cx);
            }
        }
        self.reason = Some(format!("{}: {reason}", worker.instance));
        if worker.revision.number != self.target.number || self.operation.is_none() {
            return;
        }
        let hint = match code {
            FailureCode::Spawn => None,
            _ => Some(format!("see its log: rsup logs {}", self.name)),
        };
        let message = format!("worker {}:{} {reason}", self.name, worker.instance);
        self.fail_operation(OpError { code, message, hint, worker: Some(worker.id.clone()) }, cx);
    }

    // ---- what is to be done ----

    /// Brings what is there nearer to what is wanted. Called after every input; does nothing when
    /// there is nothing to do.
    pub fn reconcile(&mut self, cx: &mut Context<'_>) {
        match self.wanted {
            Wanted::Up => self.reconcile_up(cx),
            Wanted::Down | Wanted::Deleted => self.reconcile_down(cx),
        }
        self.settle(cx);
    }

    fn reconcile_down(&mut self, cx: &mut Context<'_>) {
        let stopping: Vec<u16> = self.workers().filter(|w| w.active()).map(|w| w.id.slot).collect();
        self.retire(&stopping, "stopped", cx);
        let idle = self.slots.iter().all(Option::is_none) && self.listening.pending.is_none();
        if idle && self.listening.held.take().is_some() {
            self.steered.clear();
            cx.out.push_back(Effect::Unlisten { app: self.name.clone() });
        }
    }

    fn reconcile_up(&mut self, cx: &mut Context<'_>) {
        self.seats.resize_with(usize::from(self.instances), Seat::default);
        if !self.listen(cx) {
            self.steer(cx);
            return;
        }
        let instances = self.instances;
        for worker in self.workers_mut() {
            if worker.instance >= instances && worker.active() && worker.fresh() {
                worker.condemned = Some("scaled down".into());
            }
        }
        let moves = plan(self.policy(), &self.slot_views(cx.now), &self.seat_views());
        let retired: Vec<u16> = moves.iter().filter_map(|m| if let Move::Retire { slot } = m { Some(*slot) } else { None }).collect();
        self.retire(&retired, "replaced", cx);
        for step in moves {
            if let Move::Start { slot, instance } = step {
                self.spawn(slot, instance, cx);
            }
        }
    }

    pub fn policy(&self) -> Policy {
        let instances = self.instances;
        let rollout = self.operation.as_ref().and_then(|o| o.rollout.as_ref());
        let most = rollout.map_or(instances, |r| instances.max(r.old_instances));
        Policy {
            instances,
            floor: most,
            ceiling: most.saturating_add(self.spec().reload.max_surge),
            stop_first: self.operation.as_ref().is_some_and(|o| o.kind == OperationKind::Restart),
        }
    }

    fn slot_views(&self, now: Time) -> Vec<SlotView> {
        let view = |slot: &Option<Worker>| match slot {
            None => SlotView::Parked,
            Some(worker) => SlotView::Live { instance: worker.instance, fresh: worker.fresh() && worker.active(), stage: stage(worker, now) },
        };
        self.slots.iter().map(view).collect()
    }

    fn seat_views(&self) -> Vec<SeatView> {
        self.seats.iter().map(|s| SeatView { open: s.hold == Hold::Open, last_slot: s.last_slot }).collect()
    }

    /// The addresses of the target and of every live worker, and room for the surge. True once held.
    fn listen(&mut self, cx: &mut Context<'_>) -> bool {
        if self.listening.pending.is_some() {
            return false;
        }
        let mut addresses: BTreeSet<Listen> = self.spec().listen.iter().cloned().collect();
        addresses.extend(self.workers().flat_map(|w| w.spec().listen.iter().cloned()));
        let slots = self.policy().ceiling.max(self.slots.len() as u16);
        let want = Held { addresses, slots };
        if self.listening.held.as_ref() == Some(&want) {
            return true;
        }
        cx.out.push_back(Effect::Listen { app: self.name.clone(), addresses: want.addresses.iter().cloned().collect(), slots });
        self.listening.pending = Some(want);
        false
    }

    pub fn on_listening(&mut self, result: &Result<(), String>, cx: &mut Context<'_>) {
        let Some(held) = self.listening.pending.take() else { return };
        match result {
            Ok(()) => {
                self.slots.resize_with(usize::from(held.slots).max(self.slots.len()), || None);
                self.listening.held = Some(held);
                // The daemon starts new groups with everything held.
                self.steered.clear();
            }
            Err(why) => {
                self.note(why.clone(), true, cx);
                self.reason = Some(why.clone());
                let error = OpError { code: FailureCode::Listen, message: why.clone(), hint: None, worker: None };
                self.fail_operation(error, cx);
                // Without its sockets an app cannot run; one that ran before a reload still holds them.
                if self.listening.held.is_none() {
                    self.wanted = if self.last_revision == 1 { Wanted::Deleted } else { Wanted::Down };
                }
            }
        }
    }

    fn spawn(&mut self, slot: u16, instance: u16, cx: &mut Context<'_>) {
        *cx.next_generation += 1;
        let id = WorkerId { app: self.name.clone(), slot, generation: *cx.next_generation };
        let revision = self.target.clone();
        if let Some(seat) = self.seats.get_mut(usize::from(instance)) {
            seat.last_slot = Some(slot);
        }
        self.slots[usize::from(slot)] = Some(Worker {
            id: id.clone(),
            instance,
            pid: None,
            started: cx.now,
            state: State::Spawning { deadline: cx.now + revision.spec.listen_timeout },
            condemned: None,
            memory: None,
            over_limit: 0,
            reason: None,
            revision: revision.clone(),
        });
        cx.out.push_back(Effect::Relay { app: self.name.clone(), slot, on: false });
        cx.out.push_back(Effect::Spawn { worker: id, instance, revision });
    }

    /// Out of the traffic in one swap, then drain; those that took none are stopped at once.
    fn retire(&mut self, slots: &[u16], why: &str, cx: &mut Context<'_>) {
        let mut draining = Vec::new();
        let mut silent = Vec::new();
        for slot in slots {
            let Some(worker) = self.slots.get_mut(usize::from(*slot)).and_then(Option::as_mut) else { continue };
            if worker.condemned.is_none() {
                worker.condemned = Some(why.to_owned());
            }
            let steered = worker.spec().listen.iter().any(|l| l.tcp().is_some());
            if worker.ready() && steered {
                worker.state = State::Draining { until: cx.now + worker.spec().drain_timeout };
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

    fn signal_stop(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let app = self.name.clone();
        let Some(worker) = self.worker(id) else { return };
        worker.state = State::Stopping { kill_at: cx.now + worker.spec().kill_timeout };
        let signal = worker.spec().stop.signal;
        // From here on the worker may close its copy of the socket: what still arrives is ours.
        cx.out.push_back(Effect::Relay { app, slot: id.slot, on: true });
        cx.out.push_back(Effect::Signal { worker: id.clone(), signal, reach: Reach::Worker });
        self.progress(id, Step::Stopping, cx);
    }

    fn remove(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        if self.worker(id).is_some() {
            self.slots[usize::from(id.slot)] = None;
            cx.out.push_back(Effect::Relay { app: self.name.clone(), slot: id.slot, on: true });
            cx.out.push_back(Effect::Forget { worker: id.clone() });
        }
    }

    /// Puts the weights in force, if they are not yet.
    fn steer(&mut self, cx: &mut Context<'_>) {
        let Some(held) = &self.listening.held else { return };
        let tables: Vec<Steering> = held
            .addresses
            .iter()
            .filter(|a| a.tcp().is_some())
            .map(|address| Steering { address: address.clone(), weights: self.weights(address) })
            .collect();
        if tables != self.steered {
            self.steered.clone_from(&tables);
            cx.out.push_back(Effect::Steer { app: self.name.clone(), balance: self.spec().balance, tables });
        }
    }

    /// Ready workers that listen on the address, equally; if every one of them is unready, still
    /// them: a dependency that fails for all must not turn a degraded app into a dead one.
    fn weights(&self, address: &Listen) -> Vec<u32> {
        let weigh = |take_unready: bool| -> Vec<u32> {
            let takes = |w: &Worker| match &w.state {
                State::Ready { unready, .. } => (take_unready || !unready) && w.spec().listen.contains(address),
                State::Spawning { .. }
                | State::Starting { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Sweeping { .. } => false,
            };
            self.slots.iter().map(|slot| u32::from(slot.as_ref().is_some_and(takes))).collect()
        };
        let weights = weigh(false);
        if weights.iter().any(|w| *w > 0) { weights } else { weigh(true) }
    }

    // ---- the ends of things ----

    /// Ends what is finished: a stop, a delete, a start, a reload, a rollback.
    fn settle(&mut self, cx: &mut Context<'_>) {
        let done = match self.wanted {
            Wanted::Up => self.listening.pending.is_none() && self.as_wanted(cx.now),
            Wanted::Down | Wanted::Deleted => self.slots.iter().all(Option::is_none) && self.listening.held.is_none() && self.listening.pending.is_none(),
        };
        if !done {
            return;
        }
        let Some(operation) = self.operation.take() else { return };
        let failed = operation.rollout.and_then(|r| r.failed);
        let result = match failed {
            Some(error) => Err(error),
            None => {
                if self.wanted == Wanted::Up {
                    self.reason = None;
                }
                self.note(format!("{} done after {}", operation.kind.as_str(), humane(cx.now.since(operation.since))), false, cx);
                Ok(())
            }
        };
        if let Some(op) = operation.op {
            cx.out.push_back(Effect::Finished { op, result });
        }
    }

    /// Every wanted worker is available and nobody else is left.
    fn as_wanted(&self, now: Time) -> bool {
        let available = |instance: u16| self.workers().any(|w| w.instance == instance && w.fresh() && stage(w, now) == Stage::Serving);
        (0..self.instances).all(available) && self.workers().all(Worker::fresh)
    }

    /// The action cannot succeed any more. A start goes on trying without its asker; a reload goes back.
    pub fn fail_operation(&mut self, error: OpError, cx: &mut Context<'_>) {
        let Some(mut operation) = self.operation.take() else { return };
        let answer = match operation.rollout.take() {
            Some(rollout) => match (rollout.from.clone(), &rollout.failed) {
                (Some(from), None) => {
                    if self.abort(&rollout, from, &error, cx) {
                        operation.rollout = Some(Rollout { failed: Some(error), ..rollout });
                        self.operation = Some(operation);
                        return;
                    }
                    error
                }
                (_, Some(first)) => OpError { message: format!("{}; going back failed too: {}", first.message, error.message), ..first.clone() },
                (None, None) => error,
            },
            None => error,
        };
        if let Some(op) = operation.op {
            cx.out.push_back(Effect::Finished { op, result: Err(answer) });
        }
    }

    /// Back to the old revision: old workers stay, replacements that are not ready go, and those
    /// that are ready go as soon as an old one has taken their place again. True if there are such.
    fn abort(&mut self, rollout: &Rollout, from: Arc<Revision>, error: &OpError, cx: &mut Context<'_>) -> bool {
        let failed = std::mem::replace(&mut self.target, from);
        let rollback = failed.spec.reload.auto_rollback;
        let back = self.target.number;
        self.instances = rollout.old_instances;
        let mut replaced = 0;
        for worker in self.workers_mut().filter(|w| w.active()) {
            if worker.revision.number == failed.number {
                if !worker.ready() || rollback {
                    replaced += usize::from(worker.ready());
                    worker.condemned = Some(format!("revision {} failed", failed.number));
                }
            } else if worker.condemned.as_deref() == Some(REPLACED_BY_RELOAD) {
                worker.condemned = None;
            }
        }
        self.seats.iter_mut().for_each(Seat::reopen);
        self.reason = Some(format!("reload to revision {} failed: {}", failed.number, error.message));
        let tail = if replaced > 0 { format!("; {replaced} replaced worker(s) go back to revision {back}") } else { String::new() };
        self.note(format!("reload aborted: {}{tail}", error.message), true, cx);
        replaced > 0
    }

    /// Everything that this app waits for.
    pub fn wakes(&self, now: Time) -> Option<Time> {
        let workers = self.workers().filter_map(|w| w.wakes(now));
        let seats = self.seats.iter().filter_map(|s| match s.hold {
            Hold::Backoff { until } if self.wanted == Wanted::Up => Some(until),
            Hold::Backoff { .. } | Hold::Open | Hold::Errored | Hold::Exited => None,
        });
        let rollout = self.operation.iter().filter_map(|o| o.rollout.as_ref()).filter(|r| r.failed.is_none()).map(|r| r.deadline);
        workers.chain(seats).chain(rollout).min()
    }

    // ---- what is said ----

    pub fn note(&mut self, text: String, bad: bool, cx: &mut Context<'_>) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((cx.now, text.clone()));
        cx.out.push_back(Effect::Log { app: self.name.clone(), text, bad });
    }

    fn progress(&mut self, id: &WorkerId, step: Step, cx: &mut Context<'_>) {
        if let Some(worker) = self.worker(id).map(|w| w.clone()) {
            self.progress_of(&worker, step, cx);
        }
    }

    fn progress_of(&self, worker: &Worker, step: Step, cx: &mut Context<'_>) {
        let done = match self.wanted {
            Wanted::Up => self.workers().filter(|w| w.fresh() && stage(w, cx.now) == Stage::Serving).count(),
            Wanted::Down | Wanted::Deleted => self.slots.iter().filter(|s| s.is_none()).count().min(usize::from(self.instances)),
        };
        cx.out.push_back(Effect::Progress(Progress {
            app: self.name.clone(),
            instance: worker.instance,
            revision: worker.revision.number,
            pid: worker.pid,
            step,
            done: done as u16,
            total: self.instances,
        }));
    }
}

/// How the planner sees a worker.
pub fn stage(worker: &Worker, now: Time) -> Stage {
    match worker.state {
        State::Spawning { .. } | State::Starting { .. } => Stage::Coming,
        State::Ready { .. } if !worker.fresh() => Stage::Serving,
        State::Ready { since, unready, .. } => {
            if !unready && since + worker.spec().reload.min_ready <= now { Stage::Serving } else { Stage::Coming }
        }
        State::Draining { .. } | State::Stopping { .. } | State::Killing { .. } | State::Sweeping { .. } => Stage::Leaving,
    }
}
