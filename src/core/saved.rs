//! What an app looks like when it is written down.
//!
//! What was written once can be read for ever. So a field that is new in the saved structs gets a
//! `#[serde(default)]`, and one that is gone is ignored: unknown fields are no error. Everything
//! else is: a known field that is missing, a state that is not known, a revision that is not in the table.
//! Version 1 knew two revisions, the *target* and the one *before*; [`old`] makes releases and sets of it. Versions 1
//! and 2 wrote the whole state as one document; since version 3 it is the fold of [`Change`]s.

mod change;
mod old;
mod version_1;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Deserialize;

use super::agenda::Agenda;
use super::app::{App, Listening, Wanted};
use super::hiding::Hiding;
use super::io::Steering;
use super::release::Releases;
use super::rollout::{Queue, Rollout};
use super::set::Set;
use super::types::Time;
use super::worker::Worker;
use super::{Settings, Supervisor};
use crate::config::{AppName, Balance, MOST_INSTANCES};
pub use change::{Change, Written};
pub use version_1::{OpError, Version1};

/// Of the written state, which does not hold it: its writer puts it beside. It changes only when a state can
/// be written that an older rsup must not read; an addition which that one may ignore is none.
pub const STATE_VERSION: u32 = 3;

/// The oldest version that is read.
pub const OLDEST_STATE: u32 = 1;

/// As [`Supervisor`], not yet looked at as a whole.
#[derive(Deserialize)]
pub struct SavedSupervisor {
    apps: BTreeMap<AppName, App>,
    next_generation: u64,
    seed: u64,
    #[serde(default)]
    settings: Option<Settings>,
}

/// Counters beyond this were not counted. (No rsup starts a million workers a second for a century.)
const MOST_COUNTED: u64 = 1 << 53;

/// More slots than any plan makes.
const MOST_SLOTS: usize = 4 * MOST_INSTANCES as usize;

impl TryFrom<SavedSupervisor> for Supervisor {
    type Error = String;

    fn try_from(saved: SavedSupervisor) -> Result<Self, String> {
        let SavedSupervisor {
            apps,
            next_generation,
            seed,
            settings,
        } = saved;
        if next_generation > MOST_COUNTED {
            return Err(format!("generation {next_generation} was never counted to"));
        }
        let mut generations = BTreeSet::new();
        for (name, app) in &apps {
            if app.name != *name {
                return Err(format!("`{name}` is said to be `{}`", app.name));
            }
            if let Some(op) = app.ops().find(|op| op.0 > MOST_COUNTED) {
                return Err(format!("action {} was never counted to", op.0));
            }
            for worker in app.workers() {
                if worker.id.generation > next_generation
                    || !generations.insert(worker.id.generation)
                {
                    return Err(format!(
                        "{} is not the only one of its generation, or of one to come",
                        worker.id
                    ));
                }
            }
        }
        Ok(Self {
            agenda: Agenda::of(&apps, Time::default()),
            apps: apps.into(),
            next_generation,
            seed,
            settings,
            out: VecDeque::new(),
            ticked: Time::default(),
            due: None,
        })
    }
}

/// As [`App`] was written by versions 1 and 2.
#[derive(Deserialize)]
pub struct SavedApp {
    name: AppName,
    wanted: Wanted,
    #[serde(default)]
    halted: bool,
    revisions: Releases,
    #[serde(alias = "target")]
    current: u64,
    last_revision: u64,
    instances: u16,
    #[serde(default)]
    sets: BTreeMap<u64, Set>,
    slots: Vec<Option<old::AnyWorker>>,
    #[serde(alias = "operation")]
    rollout: Option<Rollout>,
    queue: Queue,
    listening: Listening,
    steered: Option<(Balance, Vec<Steering>)>,
    reason: Option<old::AnyReason>,
    #[serde(default)]
    hiding: Vec<(Vec<String>, Hiding)>,
    #[serde(flatten)]
    old: old::Rest,
}

impl TryFrom<SavedApp> for App {
    type Error = String;

    fn try_from(saved: SavedApp) -> Result<Self, String> {
        let SavedApp {
            name,
            wanted,
            halted,
            revisions,
            current,
            last_revision,
            instances,
            sets,
            slots,
            rollout,
            queue,
            listening,
            steered,
            reason,
            hiding,
            old,
        } = saved;
        let mut app = Self {
            reason: reason.map(|reason| old.reason(reason)),
            name,
            wanted,
            halted,
            releases: revisions,
            current,
            last_revision,
            instances,
            sets,
            slots: slots
                .into_iter()
                .map(|slot| slot.map(Worker::from))
                .collect(),
            rollout,
            queue,
            listening,
            steered,
            hiding,
        };
        check(&app)?;
        old.make_sets(&mut app)?;
        Ok(app)
    }
}

/// Whether any rsup can have written it.
fn check(app: &App) -> Result<(), String> {
    let name = &app.name;
    let held = app.listening.held.iter().chain(&app.listening.pending);
    let held = held.map(|held| usize::from(held.slots));
    let before = app.rollout.iter().filter_map(|rollout| rollout.from);
    let sets = app.sets.values();
    if before
        .clone()
        .map(|before| before.instances)
        .chain([app.instances])
        .any(|n| !(1..=MOST_INSTANCES).contains(&n))
        || sets.clone().any(|set| set.replicas > MOST_INSTANCES)
        || sets
            .flat_map(|set| set.instances.keys())
            .any(|number| *number >= MOST_INSTANCES)
        || held.chain([app.slots.len()]).any(|n| n > MOST_SLOTS)
    {
        return Err(format!("`{name}` is larger than any app can be"));
    }
    if app.last_revision > MOST_COUNTED {
        return Err(format!(
            "revision {} of `{name}` was never counted to",
            app.last_revision
        ));
    }
    let specs = app.releases.iter().map(|r| &r.spec);
    for spec in specs.chain(app.queue.iter().map(|queued| &*queued.spec)) {
        spec.validate()?;
        if spec.name != *name {
            return Err(format!("a revision of `{name}` is one of `{}`", spec.name));
        }
    }
    for (at, worker) in app
        .slots
        .iter()
        .enumerate()
        .filter_map(|(at, slot)| Some((at, slot.as_ref()?)))
    {
        if worker.id.app != *name || usize::from(worker.id.slot) != at {
            return Err(format!(
                "slot {at} of `{name}` is said to hold {}",
                worker.id
            ));
        }
    }
    let used: BTreeSet<u64> = app
        .workers()
        .map(|w| w.revision)
        .chain(before.map(|before| before.revision))
        .chain(app.sets.keys().copied())
        .chain([app.current])
        .collect();
    for number in used {
        if app.releases.get(number).is_none_or(|r| r.number != number) {
            return Err(format!("revision {number} of `{name}` is missing"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::restart::RestartState;
    use super::super::rollout::Phase;
    use super::super::sim::{ms, put_down, read_back};
    use super::super::*;
    use super::*;
    use crate::model::Retire;

    /// Written by version 1; never to be changed. One worker is in each state.
    const VERSION_1: &str = include_str!("fixtures/state-1.json");

    fn read(text: &str) -> Result<Supervisor, String> {
        serde_json::from_str(text).map_err(|why| why.to_string())
    }

    fn app<'a>(state: &'a Supervisor, name: &str) -> &'a App {
        &state.apps[&AppName::new(name)]
    }

    #[test]
    fn releases_and_sets_are_made_of_a_state_of_version_1() {
        let state = read(VERSION_1).unwrap();
        assert_eq!((state.seed, state.next_generation), (42, 17));
        let web = app(&state, "web");
        assert_eq!((web.current, web.last_revision, web.instances), (2, 2, 7));
        let revisions: Vec<u64> = web.workers().map(|w| w.revision).collect();
        assert_eq!(revisions, [2, 2, 1, 1, 1, 1, 1]);
        // That they go because of the reload follows from their release.
        assert!(web.workers().all(Worker::stays));
        let states: Vec<&str> = web.workers().map(|w| w.phase().as_str()).collect();
        assert_eq!(
            states,
            [
                "spawning", "starting", "unready", "draining", "stopping", "killing", "stopping"
            ]
        );
        let rollout = web.rollout.as_ref().unwrap();
        assert_eq!((rollout.kind, rollout.op), (OperationKind::Reload, OpId(7)));
        let before = rollout.from.unwrap();
        assert_eq!((before.revision, before.instances), (1, 4));
        assert!(
            matches!(rollout.phase, Phase::Progress { deadline: Some(at) } if at == Time(ms(150_000)))
        );
        assert_eq!(web.queue.front().unwrap().op, OpId(8));
        let [old, new] = [1, 2].map(|revision| &web.sets[&revision]);
        let lost: Vec<u16> = old
            .instances
            .iter()
            .filter(|(_, i)| i.lost)
            .map(|(number, _)| *number)
            .collect();
        assert_eq!(lost, [0, 1, 2, 3]);
        assert!(
            old.instances.values().all(|i| i.restarts == 0),
            "no count is shared"
        );
        assert_eq!(new.replicas, 7);
        let states: Vec<&RestartState> = new.instances.values().map(|i| &i.state).collect();
        assert!(matches!(
            states[..4],
            [
                RestartState::Open,
                RestartState::Backoff { .. },
                RestartState::Errored,
                RestartState::Exited
            ]
        ));
        let reason = web.reason.as_ref().unwrap();
        assert_eq!(reason.text(&web.name), "why");
        let Phase::RollBack { error, .. } = &app(&state, "back").rollout.as_ref().unwrap().phase
        else {
            panic!("it goes back");
        };
        assert_eq!(
            (error.code(), error.message(&web.name)),
            (FailureCode::NotReady, "m".into())
        );
        assert!(matches!(
            app(&state, "ending").rollout.as_ref().unwrap().phase,
            Phase::Finish { generation: 12 }
        ));
    }

    #[test]
    fn sentences_of_version_1_are_understood() {
        let change = |sentence: &str| {
            let text = VERSION_1.replacen("replaced by a reload", sentence, 1);
            let state = read(&text).unwrap();
            app(&state, "web")
                .workers()
                .find_map(|w| w.retiring.clone())
        };
        assert_eq!(change("scaled down"), None);
        let failed = Retire::ReleaseFailed { revision: 9 };
        assert_eq!(change("revision 9 failed"), Some(failed));
        let failure = "timeout".to_owned();
        let hung = Some(Retire::Liveness { failure });
        assert_eq!(change("liveness failed: timeout"), hung);
        let of_old =
            "rsup was killed together with its keeper, and may not take the worker's sockets back";
        assert_eq!(change(of_old), Some(Retire::OutOfReach));
        let memory = "memory 2 MiB is over max_memory 1 MiB";
        assert_eq!(change(memory), Some(Retire::Told(memory.into())));
    }

    /// A way back that failed too has left workers of the failed release, and no action.
    #[test]
    fn a_failed_release_of_version_1_is_not_kept() {
        let mut state: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
        let web = state.pointer_mut("/apps/web").unwrap();
        web["operation"] = serde_json::Value::Null;
        for seat in web["seats"].as_array_mut().unwrap() {
            seat["bereft_of"] = serde_json::Value::Null;
        }
        for slot in web["slots"].as_array_mut().unwrap() {
            if !slot["condemned"].is_null() {
                slot["condemned"] = "revision 1 failed".into();
            }
        }
        let state = read(&state.to_string()).unwrap();
        let web = app(&state, "web");
        assert_eq!((web.sets[&2].replicas, web.sets[&2].size()), (7, 7));
        assert!(web.sets.get(&1).is_none_or(|set| set.replicas == 0));
        let goes = |w: &Worker| w.retiring == Some(Retire::ReleaseFailed { revision: 1 });
        assert!(web.workers().filter(|w| w.revision == 1).all(goes));
    }

    #[test]
    fn what_was_read_is_written_in_the_new_form_and_read_again() {
        let state = read(VERSION_1).unwrap();
        let written = put_down(&state);
        assert!(!written.contains("condemned") && !written.contains("seats"));
        assert!(read_back(&written).apps == state.apps);
    }

    #[test]
    fn what_is_written_in_version_1_is_read_again() {
        let state = read(VERSION_1).unwrap();
        let written = serde_json::to_value(state.as_version_1().unwrap()).unwrap();
        let first: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
        for place in [
            "web/operation",
            "web/target",
            "web/steered",
            "back/operation",
        ] {
            let place = format!("/apps/{place}");
            assert_eq!(written.pointer(&place), first.pointer(&place), "{place}");
        }
        let condemned = |state: &serde_json::Value| -> Vec<serde_json::Value> {
            let slots = state
                .pointer("/apps/web/slots")
                .unwrap()
                .as_array()
                .unwrap();
            slots.iter().map(|slot| slot["condemned"].clone()).collect()
        };
        assert_eq!(condemned(&written), condemned(&first));
        let again = read(&written.to_string()).unwrap();
        assert!(
            again.apps == state.apps,
            "{:#?} {:#?}",
            again.apps,
            state.apps
        );
    }

    #[test]
    fn a_state_of_version_1_goes_on() {
        let now = Time(ms(100_000));
        for alive in [true, false] {
            let mut state = read(VERSION_1).unwrap();
            let workers: Vec<Worker> = state
                .apps
                .values()
                .flat_map(App::workers)
                .cloned()
                .collect();
            let found = |w: &Worker| {
                if alive {
                    Found::Alive { pid: 7 }
                } else {
                    Found::Gone {
                        exit: Exit::Unknown,
                        descendants: w.id.slot == 2,
                    }
                }
            };
            state.revive(
                now,
                &workers.iter().map(|w| (w.id.clone(), found(w))).collect(),
            );
            assert!(std::iter::from_fn(|| state.poll_effect()).count() > 5);
        }
        let mut state = read(VERSION_1).unwrap();
        state.reboot(now, false);
        let started: Vec<Effect> = std::iter::from_fn(|| state.poll_effect())
            .filter(|e| matches!(e, Effect::Listen { .. }))
            .collect();
        assert_eq!(started.len(), 1, "{started:#?}");
        assert_eq!(
            state.revision(&AppName::new("web")).unwrap().number,
            1,
            "the reload was not done"
        );
    }

    #[test]
    fn a_revision_is_written_once() {
        let written = put_down(&read(VERSION_1).unwrap());
        assert_eq!(
            written.matches("cwd_resolved").count(),
            2 + 1 + 2,
            "two revisions, one that waits, two of the other apps"
        );
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let mut state: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
        let places = [
            "",
            "/apps/web",
            "/apps/web/slots/0",
            "/apps/web/slots/1/state/Starting",
            "/apps/web/seats/0",
            "/apps/web/operation",
        ];
        let more = [
            "/apps/web/operation/before",
            "/apps/web/listening",
            "/apps/web/revisions/1",
            "/apps/web/revisions/1/spec/reload",
        ];
        for place in places.into_iter().chain(more) {
            let object = state
                .pointer_mut(place)
                .and_then(serde_json::Value::as_object_mut);
            object
                .unwrap_or_else(|| panic!("no {place}"))
                .insert("of_a_later_version".into(), 1.into());
        }
        assert!(read(&state.to_string()).unwrap().apps == read(VERSION_1).unwrap().apps);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let refused = |place: &str, value: serde_json::Value| {
            let mut state: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
            *state.pointer_mut(place).unwrap() = value;
            read(&state.to_string()).unwrap_err()
        };
        let missing = refused("/apps/web/slots/0/revision", 9.into());
        assert!(
            missing.contains("revision 9 of `web` is missing"),
            "{missing}"
        );
        let misplaced = refused("/apps/web/slots/0/id/slot", 3.into());
        assert!(
            misplaced.contains("slot 0 of `web` is said to hold web/3#11"),
            "{misplaced}"
        );
        refused("/apps/web/wanted", "Sideways".into());
        // A count that continues from these goes too far.
        refused("/next_generation", u64::MAX.into());
        refused("/apps/web/last_revision", u64::MAX.into());
        refused("/next_generation", 3.into());
        for place in [
            "/apps/web/instances",
            "/apps/web/operation/before/instances",
            "/apps/web/revisions/1/spec/instances",
        ] {
            refused(place, 65535.into());
            refused(place, 0.into());
        }
        refused("/apps/web/listening/held/slots", 65535.into());
        refused("/apps/web/revisions/2/spec/name", "other".into());
        refused("/apps/web/revisions/2/spec/name", "../../etc".into());
        refused(
            "/apps/web/revisions/2/spec/restart/backoff/secs",
            u64::MAX.into(),
        );
        refused(
            "/apps/web/revisions/2/spec/command",
            serde_json::Value::Array(Vec::new()),
        );
        assert!(read(&VERSION_1[..VERSION_1.len() / 2]).is_err());
    }
}
