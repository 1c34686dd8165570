//! The pure supervisor: [`Input`]s in, [`Effect`]s out, time as an argument. It knows no clock, no
//! socket and no process, so that every sequence of events can be replayed in a test.

// A new state has to be thought of everywhere.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod agenda;
mod app;
mod apps;
mod completion;
mod hiding;
mod io;
mod reason;
mod release;
mod requests;
mod restart;
mod revive;
mod rollout;
mod saved;
mod set;
mod show;
#[cfg(test)]
mod sim;
mod weights;
mod worker;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::human::{format_duration, size};
pub use completion::Completion;
pub use hiding::Traces;
pub use io::*;
pub use revive::Found;
pub use saved::{Change, OLDEST_STATE, OpError, STATE_VERSION, Version1, Written};
pub use worker::Worker;

use crate::config::{AppName, SupervisorSpec};
use crate::model::ActionError;
pub use crate::model::types::*;
pub use crate::model::view::*;
use crate::model::{types, view};
use agenda::Agenda;
use app::{App, Context, Wanted};
use apps::Apps;
use hiding::Hiding;
use requests::Asked;
use rollout::Queued;

/// All apps of one daemon. Its whole state is written down as [`Change`]s and read back (see
/// [`STATE_VERSION`]); versions before those wrote it as one document, which is still read.
#[derive(Debug, Deserialize)]
#[serde(try_from = "saved::SavedSupervisor")]
pub struct Supervisor {
    apps: Apps,
    next_generation: u64,
    /// Of the generator for jitter.
    seed: u64,
    /// `[supervisor]` as it was last given, so that a later daemon has it too.
    pub settings: Option<Settings>,
    agenda: Agenda,
    out: VecDeque<Effect>,
    /// The time of the last [`Input::Tick`]: what was due by then is done.
    ticked: Time,
    /// When the driver of this core last called, and by when it must call again.
    due: Option<(Time, Time)>,
}

/// A driver that calls so much later than asked for stood still: stopped, starved, or its whole
/// machine was. A busy loop is late by less.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// While any deadline runs, the driver calls at least this often, so that standing
/// still is noticed before the deadline too.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// `[supervisor]` of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub source: PathBuf,
    pub spec: SupervisorSpec,
}

impl Supervisor {
    pub fn new(seed: u64) -> Self {
        Self {
            apps: Apps::default(),
            next_generation: 0,
            seed,
            settings: None,
            agenda: Agenda::default(),
            out: VecDeque::new(),
            ticked: Time::default(),
            due: None,
        }
    }

    /// Takes in one thing that happened. `now` never goes back.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.make_up(now);
        // An app that nothing is due for has nothing to decide.
        let mut due = BTreeSet::new();
        if input == Input::Tick {
            self.ticked = now;
            due = self.agenda.due(now);
        }
        self.act(now, |apps, cx| match input {
            Input::Request {
                op,
                app,
                request,
                cause,
            } => requests::handle(apps, &app, Asked { op, cause }, request, cx),
            Input::Listening { app, result } => {
                with(apps, &app, cx, |app, cx| app.on_listening(&result, cx))
            }
            Input::Spawned { worker, pid } => with(apps, &worker.app, cx, |app, cx| {
                app.on_spawned(&worker, pid, cx)
            }),
            Input::Forked { worker } => {
                with(apps, &worker.app, cx, |app, cx| app.on_forked(&worker, cx))
            }
            Input::SpawnFailed { worker, reason } => with(apps, &worker.app, cx, |app, cx| {
                app.on_spawn_failed(&worker, &reason, cx)
            }),
            Input::Exited {
                worker,
                exit,
                descendants,
            } => {
                with(apps, &worker.app, cx, |app, cx| {
                    app.on_exited(&worker, exit, descendants, cx)
                });
            }
            Input::TreeGone { worker } => with(apps, &worker.app, cx, |app, cx| {
                app.on_tree_gone(&worker, cx)
            }),
            Input::Probed {
                worker,
                purpose,
                result,
            } => {
                with(apps, &worker.app, cx, |app, cx| {
                    app.on_probed(&worker, purpose, &result, cx)
                });
            }
            Input::NotProbed {
                worker,
                purpose,
                reason,
            } => {
                with(apps, &worker.app, cx, |app, cx| {
                    app.on_not_probed(&worker, purpose, &reason, cx)
                });
            }
            Input::Bound { worker, port } => with(apps, &worker.app, cx, |app, cx| {
                app.on_bound(&worker, port, cx)
            }),
            Input::BoundElsewhere { worker } => with(apps, &worker.app, cx, |app, cx| {
                app.on_bound_elsewhere(&worker, cx)
            }),
            Input::Refused { worker } => {
                with(apps, &worker.app, cx, |app, _| app.on_refused(&worker))
            }
            Input::Traces { worker, traces } => with(apps, &worker.app, cx, |app, cx| {
                app.on_traces(&worker, traces, cx)
            }),
            Input::Notified { worker } => with(apps, &worker.app, cx, |app, cx| {
                app.on_notified(&worker, cx)
            }),
            Input::Drained { worker } => {
                with(apps, &worker.app, cx, |app, cx| app.on_drained(&worker, cx))
            }
            Input::Memory { worker, bytes } => with(apps, &worker.app, cx, |app, cx| {
                app.on_memory(&worker, bytes, cx)
            }),
            Input::ForceStop => each(apps, cx, App::force_stop),
            Input::Tick => {
                for name in due {
                    with(apps, &name, cx, App::tick);
                }
            }
        });
    }

    /// No worker could be in time while everything stood still: deadlines that ran then get that
    /// time again, so that no worker is killed and no action fails for it.
    fn make_up(&mut self, now: Time) {
        let Some((seen, due)) = self.due.replace((now, now)) else {
            return;
        };
        if now.since(due) >= STOOD_STILL {
            self.act(now, |apps, cx| {
                apps.values_mut().for_each(|app| app.stood_still(seen, cx))
            });
        }
    }

    fn act(&mut self, now: Time, act: impl FnOnce(&mut Apps, &mut Context<'_>)) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let Self {
            apps,
            next_generation,
            out,
            ..
        } = self;
        act(
            apps,
            &mut Context {
                now,
                out,
                next_generation,
                random: &mut random,
            },
        );
        self.seed = random.get_seed();
        self.update_agenda();
    }

    fn update_agenda(&mut self) {
        for name in self.apps.take_touched() {
            self.agenda.note(&name, self.apps.get(&name), self.ticked);
        }
    }

    /// The next thing to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.out.pop_front()?;
        if let Effect::Signal {
            worker,
            reach: Reach::Worker,
            ..
        } = &effect
            && let Some(app) = self.apps.get_mut(&worker.app)
        {
            app.told(worker);
        }
        Some(effect)
    }

    /// Whether the state has to be written down before the effects that wait are carried out.
    pub fn to_be_saved(&self) -> bool {
        self.out.iter().any(Effect::matters)
    }

    /// The actions whose end is among the effects that wait, with what became of them.
    pub fn ends(&self) -> impl Iterator<Item = (OpId, &Result<(), ActionError>)> {
        self.out.iter().filter_map(|effect| {
            if let Effect::Finished { op, result } = effect {
                Some((*op, result))
            } else {
                None
            }
        })
    }

    /// When [`Input::Tick`] is due. Asked after each input: a driver that calls much later than
    /// this has stood still, and no deadline counts the time.
    pub fn poll_timeout(&mut self, now: Time) -> Option<Time> {
        self.make_up(now);
        let beat = self.agenda.has_deadline().then(|| now + HEARTBEAT);
        let wakes = self.agenda.wakes().into_iter().chain(beat);
        let wake = wakes.min().map(|at| at.max(now));
        self.due = wake.map(|at| (now, at));
        wake
    }

    /// The names of the apps that may have changed since this was last called, the removed ones included.
    pub fn take_changed(&mut self) -> BTreeSet<AppName> {
        self.apps.take_changed()
    }

    pub fn names(&self) -> impl Iterator<Item = &AppName> {
        self.apps.keys()
    }

    /// The live workers of an app, in the order of their slots.
    pub fn workers(&self, app: &AppName) -> impl Iterator<Item = &Worker> {
        self.apps.get(app).into_iter().flat_map(App::workers)
    }

    /// The worker, if it is still the one that is meant.
    pub fn worker(&self, id: &WorkerId) -> Option<&Worker> {
        let slot = self.apps.get(&id.app)?.slots.get(usize::from(id.slot))?;
        slot.as_ref().filter(|w| w.id.generation == id.generation)
    }

    /// Whether it is of use to look for [`Traces`] of the worker.
    pub fn wants_traces(&self, id: &WorkerId) -> bool {
        self.apps
            .get(&id.app)
            .zip(self.worker(id))
            .is_some_and(|(app, worker)| app.wants_traces(worker))
    }

    /// Since when it is known that the app tests its port by connecting to it, so that the port is hidden
    /// from its workers.
    pub fn hides_since(&self, app: &AppName) -> Option<Time> {
        let app = self.apps.get(app)?;
        match app.hiding(app.spec()) {
            Hiding::Needed { since } if app.hides(app.target()) => Some(since),
            Hiding::Needed { .. } | Hiding::Unknown | Hiding::Unneeded | Hiding::Trying => None,
        }
    }

    /// What a worker runs.
    pub fn revision_of(&self, worker: &Worker) -> Option<&Arc<Revision>> {
        self.apps.get(&worker.id.app)?.releases.get(worker.revision)
    }

    /// A release of the app that something refers to.
    pub fn release(&self, app: &AppName, number: u64) -> Option<&Revision> {
        self.apps.get(app)?.releases.get(number).map(|r| &**r)
    }

    /// What new workers of the app are started from.
    pub fn revision(&self, app: &AppName) -> Option<&Revision> {
        self.apps.get(app).map(|app| &**app.target())
    }

    /// Everything that is left after `stop all`: nothing but stopped apps.
    pub fn idle(&self) -> bool {
        !self.agenda.is_occupied()
    }
}

/// Hands an input to its app and lets the app act on it. Inputs about deleted apps are late and void.
fn with(
    apps: &mut Apps,
    name: &AppName,
    cx: &mut Context<'_>,
    act: impl FnOnce(&mut App, &mut Context<'_>),
) {
    if let Some(app) = apps.get_mut(name) {
        act(app, cx);
        after(apps, name, cx);
    }
}

/// As [`with`], for every app.
fn each(apps: &mut Apps, cx: &mut Context<'_>, act: impl Fn(&mut App, &mut Context<'_>)) {
    let names: Vec<AppName> = apps.keys().cloned().collect();
    for name in names {
        with(apps, &name, cx, &act);
    }
}

/// Reconciles, takes up what was queued, and lets go of a deleted app.
fn after(apps: &mut Apps, name: &AppName, cx: &mut Context<'_>) {
    let Some(app) = apps.get_mut(name) else {
        return;
    };
    app.reconcile(cx);
    let removed = app.goal() == Wanted::Deleted && app.gone();
    let next = app
        .rollout
        .is_none()
        .then(|| app.queue.pop_front())
        .flatten();
    let (goal, env) = (app.goal(), app.target().base_env.clone());
    if removed {
        apps.remove(name);
        cx.out.push_back(Effect::Removed { app: name.clone() });
    }
    let Some(Queued {
        op,
        spec,
        base_env,
        cause,
    }) = next
    else {
        return;
    };
    let request = match goal {
        Wanted::Up => Request::Reload {
            spec,
            base_env,
            queue: false,
        },
        // A start has waited for the end of a stop.
        Wanted::Down | Wanted::Deleted => Request::Start {
            spec,
            base_env: base_env.unwrap_or(env),
        },
    };
    requests::handle(apps, name, Asked { op, cause }, request, cx);
}
