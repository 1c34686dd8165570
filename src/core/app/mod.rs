//! One app: what is wanted, what is there, and the reconciliation of the two.

mod ends;
mod events;
mod hiding;
mod reconcile;
mod revive;
mod time;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hiding::Hiding;
use super::io::{Effect, Steering};
use super::operation::{Operation, Queue};
use super::plan::Stage;
use super::reason::{Explains, Reason};
use super::saved::SavedApp;
use super::seat::Seat;
use super::types::{Revision, Time, WorkerId};
use super::view::{Progress, Step};
use super::worker::{State, Worker};
use crate::config::{AppName, AppSpec, Balance, Listen, SocketFile};

/// The reason of workers that go because of a reload, and stay if it fails.
pub const REPLACED_BY_RELOAD: &str = "replaced by a reload";
pub const RESTARTED: &str = "restarted";
/// The reason of workers whose sockets are not in the daemon's hands.
pub const OUT_OF_REACH: &str =
    "rsup was killed together with its keeper, and may not take the worker's sockets back";
const SCALED_DOWN: &str = "scaled down";

/// Events kept for `describe`.
const EVENTS: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    Up,
    Down,
    Deleted,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "SavedApp", try_from = "SavedApp")]
pub struct App {
    pub name: AppName,
    /// By its operator; what is to be done now is its [`App::goal`].
    pub wanted: Wanted,
    /// The whole supervisor is being stopped.
    pub halted: bool,
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
    /// What was last put in force.
    pub steered: Option<(Balance, Vec<Steering>)>,
    pub events: VecDeque<(Time, String)>,
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
    pub fn new(target: Arc<Revision>) -> Self {
        Self {
            name: target.spec.name.clone(),
            wanted: Wanted::Up,
            halted: false,
            instances: target.spec.instances,
            last_revision: target.number,
            target,
            slots: Vec::new(),
            seats: Vec::new(),
            operation: None,
            queue: Queue::new(),
            listening: Listening::default(),
            steered: None,
            events: VecDeque::new(),
            reason: None,
            hiding: Vec::new(),
        }
    }

    /// What is wanted of it now. An end of everything is nobody's wish for this app.
    pub fn goal(&self) -> Wanted {
        match self.wanted {
            Wanted::Up if self.halted => Wanted::Down,
            wanted => wanted,
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
        self.slots
            .get_mut(usize::from(id.slot))?
            .as_mut()
            .filter(|w| w.id.generation == id.generation)
    }

    /// As many fresh workers serve as there are to be.
    pub fn all_serve(&self, now: Time) -> bool {
        let serving = self
            .workers()
            .filter(|w| w.fresh() && stage(w, now) == Stage::Serving);
        serving.count() >= usize::from(self.instances)
    }

    pub fn spec(&self) -> &AppSpec {
        &self.target.spec
    }

    pub fn note(&mut self, text: String, bad: bool, cx: &mut Context<'_>) {
        while self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((cx.now, text.clone()));
        cx.out.push_back(Effect::Log {
            app: self.name.clone(),
            text,
            bad,
        });
    }

    /// Why it is not as it should be.
    fn blame(&mut self, explains: Explains, text: impl Into<String>) {
        self.reason = Some(Reason::new(explains, text));
    }

    /// Ends a reason together with what it explains. Called after every input.
    fn forgive(&mut self, now: Time) {
        let over = match self.reason.as_ref().map(|reason| reason.explains) {
            None | Some(Explains::Action) => false,
            Some(Explains::Sockets) => {
                self.goal() == Wanted::Up && self.listening.pending.is_none() && self.enough()
            }
            Some(Explains::Instance(instance)) => {
                let serves = |w: &Worker| {
                    w.instance == instance && w.fresh() && stage(w, now) == Stage::Serving
                };
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
                .filter(|w| w.fresh() && stage(w, cx.now) == Stage::Serving)
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
        State::Spawning { .. } | State::Starting { .. } if worker.goes_by_reload() => {
            Stage::Returning
        }
        State::Spawning { .. } | State::Starting { .. } => Stage::Coming,
        State::Ready { since, unready, .. } if worker.fresh() => {
            if !unready && since + worker.spec().reload.min_ready <= now {
                Stage::Serving
            } else {
                Stage::Coming
            }
        }
        State::Ready { unready: false, .. } => Stage::Serving,
        State::Ready { unready: true, .. } => Stage::Limping,
        State::Draining { .. }
        | State::Stopping { .. }
        | State::Killing { .. }
        | State::Sweeping { .. } => Stage::Leaving,
    }
}
