//! One app: what is wanted, what is there, and the reconciliation of the two.

mod ends;
mod events;
mod hiding;
mod reconcile;
mod revive;
mod time;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hiding::Hiding;
use super::io::{Effect, Steering};
use super::reason::{Explains, Reason};
use super::release::Releases;
use super::rollout::plan::Stage;
use super::rollout::{Queue, Rollout};
use super::saved::SavedApp;
use super::set::Set;
use super::types::{Revision, Time, WorkerId};
use super::view::{Progress, Step};
use super::worker::{State, Worker};
use crate::config::{AppName, AppSpec, Balance, Listen, SocketFile};
use crate::model::{Event, What, WorkerName};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    Up,
    Down,
    Deleted,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "SavedApp")]
pub struct App {
    pub name: AppName,
    /// By its operator; what rsup works towards now is its [`App::goal`].
    pub wanted: Wanted,
    /// The whole supervisor is being stopped.
    pub halted: bool,
    /// Every revision that something refers to.
    pub releases: Releases,
    /// The number of the wanted one.
    pub current: u64,
    /// Numbers are never used twice, not even that of a revision that failed.
    pub last_revision: u64,
    pub instances: u16,
    /// By revision: that of the wanted one, and of each other that has workers.
    pub sets: BTreeMap<u64, Set>,
    pub slots: Vec<Option<Worker>>,
    pub rollout: Option<Rollout>,
    pub queue: Queue,
    pub listening: Listening,
    /// What was last put in force.
    pub steered: Option<(Balance, Vec<Steering>)>,
    /// Set by [`App::blame`] alone; [`App::forgive`] ends it.
    pub reason: Option<Reason>,
    /// What is known of each command that may be run.
    pub hiding: Vec<(Vec<String>, Hiding)>,
}

/// The state of the app's sockets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listening {
    pub held: Option<Held>,
    /// Asked for, not yet confirmed.
    pub pending: Option<Held>,
    /// When to ask again after a refusal.
    pub again: Option<Time>,
    /// The app has had its sockets once: from then on it outlives a failed start.
    pub proven: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub addresses: BTreeSet<Listen>,
    pub slots: u16,
    /// Of the unix sockets among them.
    #[serde(default)]
    pub file: SocketFile,
}

impl Held {
    pub fn effect(&self, app: &AppName) -> Effect {
        let addresses = self.addresses.iter().cloned().collect();
        Effect::Listen {
            app: app.clone(),
            addresses,
            slots: self.slots,
            file: self.file,
        }
    }
}

/// What the supervisor lends to an app while it handles one input.
pub struct Context<'a> {
    pub now: Time,
    pub out: &'a mut VecDeque<Effect>,
    pub next_generation: &'a mut u64,
    pub random: &'a mut fastrand::Rng,
}

impl App {
    pub fn new(revision: Arc<Revision>) -> Self {
        Self {
            name: revision.spec.name.clone(),
            wanted: Wanted::Up,
            halted: false,
            instances: revision.spec.instances,
            current: revision.number,
            last_revision: revision.number,
            releases: Releases::new(revision),
            sets: BTreeMap::new(),
            slots: Vec::new(),
            rollout: None,
            queue: Queue::new(),
            listening: Listening::default(),
            steered: None,
            reason: None,
            hiding: Vec::new(),
        }
    }

    /// What is wanted of it now. The end of the whole supervisor is not a wish for this app.
    pub fn goal(&self) -> Wanted {
        match self.wanted {
            Wanted::Up if self.halted => Wanted::Down,
            wanted @ (Wanted::Up | Wanted::Down | Wanted::Deleted) => wanted,
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
        self.worker_and_spec(id).map(|(worker, _)| worker)
    }

    /// The worker, if it is still the one that is meant, with what it runs.
    fn worker_and_spec(&mut self, id: &WorkerId) -> Option<(&mut Worker, &AppSpec)> {
        let worker = self
            .slots
            .get_mut(usize::from(id.slot))?
            .as_mut()
            .filter(|w| w.id.generation == id.generation)?;
        let spec = &self.releases[worker.revision].spec;
        Some((worker, spec))
    }

    /// The wanted revision.
    pub fn target(&self) -> &Arc<Revision> {
        &self.releases[self.current]
    }

    /// As many workers of the wanted release serve as are wanted.
    pub fn all_serve(&self, now: Time) -> bool {
        let serving = self.workers().filter(|w| self.is_available(w, now));
        serving.count() >= usize::from(self.instances)
    }

    pub fn spec(&self) -> &AppSpec {
        &self.target().spec
    }

    /// What a worker runs.
    pub fn spec_of(&self, worker: &Worker) -> &AppSpec {
        &self.releases[worker.revision].spec
    }

    /// It runs what is wanted, and is to stay.
    pub fn is_current(&self, worker: &Worker) -> bool {
        worker.revision == self.current && worker.stays()
    }

    /// It is current, and serves.
    pub fn is_available(&self, worker: &Worker, now: Time) -> bool {
        self.is_current(worker) && self.stage(worker, now) == Stage::Available
    }

    /// How the planner sees a worker.
    pub fn stage(&self, worker: &Worker, now: Time) -> Stage {
        match worker.state {
            State::Spawning { .. } | State::Starting { .. } => Stage::Pending,
            State::Ready { unready: true, .. } => Stage::Unready,
            State::Ready { since, .. }
                if since + self.spec().reload.min_ready > now
                    && self.is_current(worker)
                    && self.replaces(worker) =>
            {
                Stage::Pending
            }
            State::Ready { .. } => Stage::Available,
            State::Draining { .. } => Stage::Draining,
            State::Stopping { .. } | State::Killing { .. } | State::Sweeping { .. } => {
                Stage::Terminating
            }
        }
    }

    /// It is to take the place of another one that still serves, so that it has to prove itself first.
    fn replaces(&self, worker: &Worker) -> bool {
        self.workers()
            .any(|w| w.instance == worker.instance && w.id != worker.id && w.active())
    }

    /// The set of the wanted revision.
    pub fn set(&mut self) -> &mut Set {
        self.sets.entry(self.current).or_default()
    }

    pub fn record(&self, what: What, cx: &mut Context<'_>) {
        self.emit(Some(self.current), None, what, cx);
    }

    fn record_of(&self, worker: &Worker, what: What, cx: &mut Context<'_>) {
        let name = WorkerName {
            instance: worker.instance,
            slot: worker.id.slot,
            generation: worker.id.generation,
            pid: worker.pid,
        };
        self.emit(Some(worker.revision), Some(name), what, cx);
    }

    fn emit(
        &self,
        revision: Option<u64>,
        worker: Option<WorkerName>,
        what: What,
        cx: &mut Context<'_>,
    ) {
        cx.out.push_back(Effect::Record(Event {
            at: cx.now,
            app: self.name.clone(),
            revision,
            worker,
            what,
        }));
    }

    /// Why it is not as it should be.
    fn blame(&mut self, reason: Reason) {
        self.reason = Some(reason);
    }

    /// Ends a reason together with what it explains. Called after every input.
    fn forgive(&mut self, now: Time) {
        let over = match self.reason.as_ref().map(Reason::explains) {
            None | Some(Explains::Action) => false,
            Some(Explains::Sockets) => {
                self.goal() == Wanted::Up && self.listening.pending.is_none() && self.enough()
            }
            Some(Explains::Instance(instance)) => {
                let serves = |w: &Worker| w.instance == instance && self.is_available(w, now);
                instance >= self.instances || self.workers().any(serves)
            }
        };
        if over {
            self.reason = None;
        }
    }

    fn progress(&mut self, id: &WorkerId, step: Step, cx: &mut Context<'_>) {
        if let Some(worker) = self.worker(id).map(|w| w.clone()) {
            self.progress_of(&worker, step, cx);
        }
    }

    fn progress_of(&self, worker: &Worker, step: Step, cx: &mut Context<'_>) {
        let done = match self.goal() {
            Wanted::Up => self
                .workers()
                .filter(|w| self.is_available(w, cx.now))
                .count(),
            Wanted::Down | Wanted::Deleted => self
                .slots
                .iter()
                .filter(|s| s.is_none())
                .count()
                .min(usize::from(self.instances)),
        };
        cx.out.push_back(Effect::Progress(Progress {
            app: self.name.clone(),
            instance: worker.instance,
            revision: worker.revision,
            pid: worker.pid,
            step,
            done: u16::try_from(done).unwrap_or(u16::MAX),
            total: self.instances,
        }));
    }
}
