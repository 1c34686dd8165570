//! Writes a state in version 1, so that `rsup upgrade` can go back to a program that reads no other. What that
//! version has no word for is left out where the older program can find it out again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::super::app::{App, Listening, Wanted};
use super::super::io::{Env, Steering};
use super::super::restart::{Instance, RestartState};
use super::super::rollout::{Before, Phase, Rollout};
use super::super::types::{OpId, Revision, Time, WorkerId};
use super::super::view::{Exit, FailureCode, OperationKind};
use super::super::worker::{State, Worker};
use super::super::{Settings, Supervisor};
use crate::config::{AppName, AppSpec, Balance};
use crate::model::{ActionError, Retire};

#[derive(Serialize)]
pub struct Version1<'a> {
    apps: BTreeMap<&'a AppName, OldApp<'a>>,
    next_generation: u64,
    seed: u64,
    settings: &'a Option<Settings>,
}

#[derive(Serialize)]
struct OldApp<'a> {
    name: &'a AppName,
    wanted: Wanted,
    revisions: &'a BTreeMap<u64, Arc<Revision>>,
    target: u64,
    last_revision: u64,
    instances: u16,
    slots: Vec<Option<OldWorker<'a>>>,
    seats: Vec<Seat>,
    operation: Option<Operation>,
    queue: Vec<(OpId, &'a AppSpec, &'a Option<Env>)>,
    listening: &'a Listening,
    steered: &'a Option<(Balance, Vec<Steering>)>,
    /// It logged them; rsup has a file for that now.
    events: [(); 0],
    reason: Option<String>,
}

#[derive(Serialize)]
struct OldWorker<'a> {
    id: &'a WorkerId,
    instance: u16,
    revision: u64,
    pid: Option<u32>,
    started: Time,
    state: &'a State,
    condemned: Option<String>,
    memory: Option<u64>,
    over_limit: u8,
    reason: Option<String>,
}

#[derive(Serialize, Default)]
struct Seat {
    restarts: u32,
    unstable: u32,
    streak: u32,
    hold: RestartState,
    last_slot: Option<u16>,
    bereft_of: Option<u64>,
    reason: Option<String>,
    exit: Option<Exit>,
}

#[derive(Serialize)]
struct Operation {
    kind: OperationKind,
    since: Time,
    op: OpId,
    before: Option<OldBefore>,
    course: Course,
}

#[derive(Serialize)]
struct OldBefore {
    target: u64,
    instances: u16,
}

#[derive(Serialize)]
enum Course {
    Forward { deadline: Option<Time> },
    Ending { generation: u64 },
    Back { deadline: Time, error: OpError },
}

/// Why an action failed, in words.
#[derive(Serialize)]
pub struct OpError {
    code: FailureCode,
    message: String,
    hint: Option<String>,
    worker: Option<WorkerId>,
}

impl Supervisor {
    /// The state as version 1 wrote it.
    ///
    /// # Errors
    /// When that version has no words for what is under way.
    pub fn as_version_1(&self) -> Result<Version1<'_>, String> {
        if let Some(app) = self.apps.values().find(|app| app.halted) {
            return Err(format!(
                "`{}` is being stopped together with rsup",
                app.name
            ));
        }
        Ok(Version1 {
            apps: self
                .apps
                .iter()
                .map(|(name, app)| (name, old(app)))
                .collect(),
            next_generation: self.next_generation,
            seed: self.seed,
            settings: &self.settings,
        })
    }
}

fn old(app: &App) -> OldApp<'_> {
    let slots = app.slots.iter().map(Option::as_ref);
    let queue = app.queue.iter();
    OldApp {
        name: &app.name,
        wanted: app.wanted,
        revisions: app.releases.by_number(),
        target: app.current,
        last_revision: app.last_revision,
        instances: app.instances,
        slots: slots.map(|slot| slot.map(|w| worker(app, w))).collect(),
        seats: (0..app.instances).map(|number| seat(app, number)).collect(),
        operation: app.rollout.as_ref().map(|rollout| operation(app, rollout)),
        queue: queue.map(|q| (q.op, &*q.spec, &q.base_env)).collect(),
        listening: &app.listening,
        steered: &app.steered,
        events: [],
        reason: app.reason.as_ref().map(|reason| reason.text(&app.name)),
    }
}

fn worker<'a>(app: &App, worker: &'a Worker) -> OldWorker<'a> {
    OldWorker {
        id: &worker.id,
        instance: worker.instance,
        revision: worker.revision,
        pid: worker.pid,
        started: worker.started,
        state: &worker.state,
        condemned: condemned(app, worker),
        memory: worker.memory,
        over_limit: worker.over_limit,
        reason: worker.doubt.as_ref().map(ToString::to_string),
    }
}

/// A worker of another revision than the wanted one was condemned when the action began.
fn condemned(app: &App, worker: &Worker) -> Option<String> {
    if let Some(why) = &worker.retiring {
        return Some(match why {
            Retire::OutOfReach => super::old::OUT_OF_REACH.to_owned(),
            Retire::Liveness { failure } => format!("{}{failure}", super::old::LIVENESS_FAILED),
            Retire::ReleaseFailed { revision } => format!("revision {revision} failed"),
            Retire::ScaledDown => super::old::SCALED_DOWN.to_owned(),
            Retire::Replaced => super::old::REPLACED.to_owned(),
            Retire::Stopped => super::old::STOPPED.to_owned(),
            Retire::Memory { .. }
            | Retire::TooSlow { .. }
            | Retire::Deaf
            | Retire::PortTest
            | Retire::Told(_) => why.to_string(),
        });
    }
    let rollout = app.rollout.as_ref();
    let Some(rollout) = rollout.filter(|_| worker.revision != app.current) else {
        // One that leaves had a reason, or its release had.
        return (!worker.active()).then(|| super::old::REPLACED.to_owned());
    };
    Some(match (&rollout.phase, rollout.kind) {
        (Phase::Progress { .. }, OperationKind::Reload) => {
            super::old::REPLACED_BY_RELOAD.to_owned()
        }
        (Phase::Progress { .. }, OperationKind::Restart) => super::old::RESTARTED.to_owned(),
        (Phase::RollBack { .. }, _) => format!("revision {} failed", worker.revision),
        (
            Phase::Progress { .. },
            OperationKind::Start
            | OperationKind::Stop
            | OperationKind::Scale
            | OperationKind::Delete,
        )
        | (Phase::Finish { .. }, _) => super::old::REPLACED.to_owned(),
    })
}

/// Version 1 has one count of restarts for all revisions: that of the wanted one.
fn seat(app: &App, number: u16) -> Seat {
    let wanted = app.sets.get(&app.current);
    let instance = wanted.and_then(|set| set.instances.get(&number));
    let lost = app.sets.iter().find(|(revision, set)| {
        let instance = set.instances.get(&number);
        **revision != app.current && instance.is_some_and(|instance| instance.lost)
    });
    let trial = app.rollout.as_ref().is_some_and(Rollout::is_trial);
    let bereft_of = lost.map(|(revision, _)| *revision).filter(|_| trial);
    let Some(instance) = instance else {
        return Seat {
            bereft_of,
            ..Seat::default()
        };
    };
    let Instance {
        restarts,
        unstable,
        streak,
        state,
        last_slot,
        lost: _,
        reason,
        exit,
    } = instance;
    Seat {
        restarts: *restarts,
        unstable: *unstable,
        streak: *streak,
        hold: state.clone(),
        last_slot: *last_slot,
        bereft_of,
        reason: reason.as_ref().map(ToString::to_string),
        exit: *exit,
    }
}

fn operation(app: &App, rollout: &Rollout) -> Operation {
    let before = |before: Before| OldBefore {
        target: before.revision,
        instances: before.instances,
    };
    Operation {
        kind: rollout.kind,
        since: rollout.since,
        op: rollout.op,
        before: rollout.from.map(before),
        course: match &rollout.phase {
            Phase::Progress { deadline } => Course::Forward {
                deadline: *deadline,
            },
            Phase::Finish { generation } => Course::Ending {
                generation: *generation,
            },
            Phase::RollBack { deadline, error } => Course::Back {
                deadline: *deadline,
                error: OpError::new(&app.name, rollout.kind, error),
            },
        },
    }
}

impl OpError {
    pub fn new(app: &AppName, kind: OperationKind, error: &ActionError) -> Self {
        let code = match error.code() {
            code @ (FailureCode::UnknownApp
            | FailureCode::UnknownWorker
            | FailureCode::AlreadyRunning
            | FailureCode::Busy
            | FailureCode::Listen
            | FailureCode::Spawn
            | FailureCode::NotReady
            | FailureCode::Superseded
            | FailureCode::BadRequest
            | FailureCode::Internal) => code,
            FailureCode::Stopped | FailureCode::Ending | FailureCode::UnknownAction => {
                FailureCode::Internal
            }
        };
        Self {
            code,
            message: error.message(app),
            hint: error.hint(app, kind),
            worker: error.worker().cloned(),
        }
    }
}
