//! The parts of version 1 of the state that releases and sets have replaced.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::super::app::App;
use super::super::hiding::Port;
use super::super::reason::{Explains, Reason};
use super::super::restart::{Instance, RestartState};
use super::super::types::{Time, WorkerId};
use super::super::view::Exit;
use super::super::worker::{State, Worker};
use super::MOST_INSTANCES;
use crate::model::{Because, Doubt, Retire};

/// Why a worker was to go, in the words of version 1.
pub const REPLACED_BY_RELOAD: &str = "replaced by a reload";
pub const RESTARTED: &str = "restarted";
pub const SCALED_DOWN: &str = "scaled down";
pub const STOPPED: &str = "stopped";
pub const REPLACED: &str = "replaced";
pub const LIVENESS_FAILED: &str = "liveness failed: ";
pub const OUT_OF_REACH: &str =
    "rsup was killed together with its keeper, and may not take the worker's sockets back";

/// Fields that later versions lack.
#[derive(Deserialize)]
pub struct Rest {
    /// Restart policy by instance, for all revisions together.
    #[serde(default)]
    seats: Option<Vec<Seat>>,
    #[serde(default)]
    explains: Explains,
}

#[derive(Deserialize)]
struct Seat {
    restarts: u32,
    unstable: u32,
    streak: u32,
    hold: RestartState,
    last_slot: Option<u16>,
    /// The revision of an old worker that ended by itself while a reload tried its replacement.
    bereft_of: Option<u64>,
    reason: Option<String>,
    #[serde(default)]
    exit: Option<Exit>,
}

/// A worker in either form.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum AnyWorker {
    Then(OldWorker),
    Now(Worker),
}

#[derive(Deserialize)]
pub struct OldWorker {
    id: WorkerId,
    instance: u16,
    revision: u64,
    pid: Option<u32>,
    started: Time,
    state: State,
    /// Why it was to be replaced, as a sentence. The presence of the field identifies version 1.
    #[serde(deserialize_with = "Option::deserialize")]
    condemned: Option<String>,
    memory: Option<u64>,
    over_limit: u8,
    reason: Option<String>,
    #[serde(default)]
    port: Port,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub enum AnyReason {
    Now(Reason),
    Then(String),
}

impl From<AnyWorker> for Worker {
    fn from(worker: AnyWorker) -> Self {
        let OldWorker {
            id,
            instance,
            revision,
            pid,
            started,
            state,
            condemned,
            memory,
            over_limit,
            reason,
            port,
        } = match worker {
            AnyWorker::Now(worker) => return worker,
            AnyWorker::Then(worker) => worker,
        };
        Self {
            id,
            instance,
            revision,
            pid,
            started,
            state,
            retiring: condemned.as_deref().and_then(retiring),
            memory,
            over_limit,
            doubt: reason.map(Doubt::Told),
            port,
        }
    }
}

/// A retirement for a change of release follows from the release; only the worker's own faults are
/// kept.
fn retiring(sentence: &str) -> Option<Retire> {
    match sentence {
        REPLACED_BY_RELOAD | RESTARTED | SCALED_DOWN | STOPPED | REPLACED => None,
        OUT_OF_REACH => Some(Retire::OutOfReach),
        other => {
            let failed = other.strip_prefix("revision ");
            let failed = failed.and_then(|rest| rest.strip_suffix(" failed")?.parse().ok());
            let hangs = other.strip_prefix(LIVENESS_FAILED);
            Some(match (failed, hangs) {
                (Some(revision), _) => Retire::ReleaseFailed { revision },
                (None, Some(failure)) => Retire::Liveness {
                    failure: failure.to_owned(),
                },
                (None, None) => Retire::Told(other.to_owned()),
            })
        }
    }
}

impl Rest {
    pub fn reason(&self, reason: AnyReason) -> Reason {
        match reason {
            AnyReason::Now(reason) => reason,
            AnyReason::Then(text) => Reason::Told {
                explains: self.explains,
                text,
            },
        }
    }

    /// Makes a set for each revision that has workers.
    pub fn make_sets(self, app: &mut App) -> Result<(), String> {
        let Some(seats) = self.seats else {
            return Ok(());
        };
        if seats.len() > usize::from(MOST_INSTANCES) {
            return Err(format!("`{}` is larger than any app can be", app.name));
        }
        // Without an action under way, leaving workers are not kept.
        let acts = app.rollout.is_some();
        let of = |revision: u64| -> BTreeSet<u16> {
            let workers = app.workers().filter(|w| w.revision == revision);
            let there = workers.filter(|w| acts || (w.active() && w.stays()));
            there.map(|w| w.instance).collect()
        };
        let lost = |revision: u64| -> BTreeSet<u16> {
            (0..)
                .zip(&seats)
                .filter(|(_, seat)| seat.bereft_of == Some(revision))
                .map(|(number, _)| number)
                .collect()
        };
        let revisions: BTreeSet<u64> = app
            .workers()
            .map(|w| w.revision)
            .chain(
                app.rollout
                    .iter()
                    .filter_map(|r| r.from)
                    .map(|b| b.revision),
            )
            .chain(seats.iter().filter_map(|seat| seat.bereft_of))
            .filter(|revision| app.releases.get(*revision).is_some())
            .collect();
        let others: Vec<(u64, BTreeSet<u16>, BTreeSet<u16>)> = revisions
            .into_iter()
            .filter(|revision| *revision != app.current)
            .map(|revision| {
                let lost = lost(revision);
                (revision, &of(revision) | &lost, lost)
            })
            .collect();
        let mut kept = BTreeSet::new();
        for (revision, numbers, lost) in others {
            let set = app.sets.entry(revision).or_default();
            for number in numbers {
                let instance = set.instances.entry(number).or_default();
                instance.lost = lost.contains(&number);
            }
            set.replicas = set.size();
            if app.rollout.is_none() {
                kept.extend(set.instances.keys().copied());
            }
        }
        let instances = app.instances;
        let target = app.set();
        target.resize(instances);
        for (number, seat) in (0..).zip(seats) {
            if let Some(instance) = target.instances.get_mut(&number) {
                *instance = Instance::from(seat);
            }
        }
        target.instances.retain(|number, _| !kept.contains(number));
        target.replicas = target.size();
        Ok(())
    }
}

impl From<Seat> for Instance {
    fn from(seat: Seat) -> Self {
        let Seat {
            restarts,
            unstable,
            streak,
            hold,
            last_slot,
            bereft_of: _,
            reason,
            exit,
        } = seat;
        Self {
            restarts,
            unstable,
            streak,
            state: hold,
            last_slot,
            lost: false,
            reason: reason.map(Because::Told),
            exit,
        }
    }
}
