//! What an app looks like when it is written down: every revision once, in a table; where the app
//! in memory shares one, its number.
//!
//! What was written once can be read for ever. So a field that is new in the saved structs gets a
//! `#[serde(default)]`, and one that is gone is ignored: unknown fields are no error. Everything
//! else is: a known field that is missing, a state nobody knows, a revision that is not in the table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::app::{App, Listening, Wanted};
use super::hiding::Hiding;
use super::io::Steering;
use super::operation::{Before, Operation, Queue};
use super::reason::{Explains, Reason};
use super::seat::Seat;
use super::types::{Revision, Time};
use super::worker::Worker;
use super::{Settings, Supervisor};
use crate::config::{AppName, Balance, MOST_INSTANCES};

/// Of the written state, which does not hold it: whoever saves it puts it beside, and does not read
/// a state of another version. It changes only when a state can be written that an older rsup must not
/// read; an addition which that one may ignore is none.
pub const STATE_VERSION: u32 = 1;

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
            apps,
            next_generation,
            seed,
            settings,
            out: VecDeque::new(),
            due: None,
        })
    }
}

/// As [`App`].
#[derive(Serialize, Deserialize)]
pub struct SavedApp {
    name: AppName,
    wanted: Wanted,
    #[serde(default)]
    halted: bool,
    revisions: BTreeMap<u64, Arc<Revision>>,
    target: u64,
    last_revision: u64,
    instances: u16,
    slots: Vec<Option<Worker<u64>>>,
    seats: Vec<Seat<u64>>,
    operation: Option<Operation<u64>>,
    queue: Queue,
    listening: Listening,
    steered: Option<(Balance, Vec<Steering>)>,
    events: VecDeque<(Time, String)>,
    reason: Option<String>,
    #[serde(default)]
    hiding: Vec<(Vec<String>, Hiding)>,
    #[serde(default)]
    explains: Explains,
}

impl From<App> for SavedApp {
    fn from(app: App) -> Self {
        let App {
            name,
            wanted,
            halted,
            target,
            last_revision,
            instances,
            slots,
            seats,
            operation,
            queue,
            listening,
            steered,
            events,
            reason,
            hiding,
        } = app;
        let mut revisions = BTreeMap::new();
        let mut number = |revision: Arc<Revision>| {
            let number = revision.number;
            revisions.entry(number).or_insert(revision);
            number
        };
        let target = number(target);
        let slots = slots
            .into_iter()
            .map(|slot| slot.map(|worker| worker.map(&mut number)))
            .collect();
        let seats = seats
            .into_iter()
            .map(|seat| seat.map(&mut number))
            .collect();
        let operation = operation.map(|operation| operation.map(&mut number));
        Self {
            name,
            wanted,
            halted,
            revisions,
            target,
            last_revision,
            instances,
            slots,
            seats,
            operation,
            queue,
            listening,
            steered,
            events,
            explains: reason
                .as_ref()
                .map(|reason| reason.explains)
                .unwrap_or_default(),
            reason: reason.map(|reason| reason.text),
            hiding,
        }
    }
}

impl TryFrom<SavedApp> for App {
    type Error = String;

    fn try_from(saved: SavedApp) -> Result<Self, String> {
        let SavedApp {
            name,
            wanted,
            halted,
            revisions,
            target,
            last_revision,
            instances,
            slots,
            seats,
            operation,
            queue,
            listening,
            steered,
            events,
            reason,
            hiding,
            explains,
        } = saved;
        let held = listening
            .held
            .iter()
            .chain(&listening.pending)
            .map(|held| usize::from(held.slots));
        let before = operation
            .iter()
            .filter_map(|o| o.before.as_ref())
            .map(|b| b.instances);
        if before
            .chain([instances])
            .any(|n| !(1..=MOST_INSTANCES).contains(&n))
            || seats.len() > usize::from(MOST_INSTANCES)
            || held.chain([slots.len()]).any(|n| n > MOST_SLOTS)
        {
            return Err(format!("`{name}` is larger than any app can be"));
        }
        if last_revision > MOST_COUNTED {
            return Err(format!(
                "revision {last_revision} of `{name}` was never counted to"
            ));
        }
        let specs = revisions
            .values()
            .map(|r| &r.spec)
            .chain(queue.iter().map(|(_, spec, _)| &**spec));
        for spec in specs {
            spec.validate()?;
            if spec.name != name {
                return Err(format!("a revision of `{name}` is one of `{}`", spec.name));
            }
        }
        for (at, worker) in slots
            .iter()
            .enumerate()
            .filter_map(|(at, slot)| Some((at, slot.as_ref()?)))
        {
            if worker.id.app != name || usize::from(worker.id.slot) != at {
                return Err(format!(
                    "slot {at} of `{name}` is said to hold {}",
                    worker.id
                ));
            }
        }
        let used = slots.iter().flatten().map(|w| w.revision);
        let used = used.chain(seats.iter().filter_map(|s| s.bereft_of));
        let used = used.chain(
            operation
                .iter()
                .filter_map(|o| o.before.as_ref())
                .map(|b| b.target),
        );
        for number in used.chain([target]) {
            if revisions.get(&number).is_none_or(|r| r.number != number) {
                return Err(format!("revision {number} of `{name}` is missing"));
            }
        }
        let revision = |number: u64| revisions[&number].clone();
        Ok(Self {
            target: revision(target),
            slots: slots
                .into_iter()
                .map(|slot| slot.map(|worker| worker.map(revision)))
                .collect(),
            seats: seats.into_iter().map(|seat| seat.map(revision)).collect(),
            operation: operation.map(|operation| operation.map(revision)),
            name,
            wanted,
            halted,
            last_revision,
            instances,
            queue,
            listening,
            steered,
            events,
            reason: reason.map(|text| Reason { text, explains }),
            hiding,
        })
    }
}

impl<R> Worker<R> {
    fn map<S>(self, f: impl FnOnce(R) -> S) -> Worker<S> {
        let Self {
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
        } = self;
        Worker {
            id,
            instance,
            revision: f(revision),
            pid,
            started,
            state,
            condemned,
            memory,
            over_limit,
            reason,
            port,
        }
    }
}

impl<R> Seat<R> {
    fn map<S>(self, f: impl FnOnce(R) -> S) -> Seat<S> {
        let Self {
            restarts,
            unstable,
            streak,
            hold,
            last_slot,
            bereft_of,
            reason,
            exit,
        } = self;
        Seat {
            restarts,
            unstable,
            streak,
            hold,
            last_slot,
            bereft_of: bereft_of.map(f),
            reason,
            exit,
        }
    }
}

impl<R> Operation<R> {
    fn map<S>(self, f: impl FnOnce(R) -> S) -> Operation<S> {
        let Self {
            kind,
            since,
            op,
            before,
            course,
        } = self;
        let before = before.map(|Before { target, instances }| Before {
            target: f(target),
            instances,
        });
        Operation {
            kind,
            since,
            op,
            before,
            course,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hiding::Port;
    use super::super::io::{Env, OpError};
    use super::super::operation::Course;
    use super::super::seat::Hold;
    use super::super::sim::{ms, web};
    use super::super::worker::{Clock, State};
    use super::super::*;
    use super::*;
    use crate::config::{AppSpec, Listen};

    /// Written by version 1; never to be changed. One worker is in each state.
    const VERSION_1: &str = include_str!("fixtures/state-1.json");

    fn revision(number: u64, spec: &AppSpec) -> Arc<Revision> {
        let base_env: Env = Arc::new([("PATH".to_owned(), "/usr/bin".to_owned())].into());
        Arc::new(Revision {
            number,
            spec: spec.clone(),
            base_env,
        })
    }

    /// What the file of version 1 says.
    fn everything() -> Supervisor {
        let at = |s: u64| Time(ms(1000 * s));
        let mut spec = web(7);
        spec.listen.push(Listen::Unix("/run/web.sock".into()));
        let [old, new] = [1, 2].map(|number| revision(number, &spec));
        let states = [
            State::Spawning { deadline: at(103) },
            State::Starting {
                deadline: at(103),
                readiness: Clock::at(at(101)),
            },
            State::Ready {
                since: at(50),
                unready: true,
                readiness: Clock::at(at(101)),
                liveness: Clock::never(),
            },
            State::Draining { until: at(101) },
            State::Stopping {
                kill_at: at(102),
                told: true,
            },
            State::Killing { since: at(99) },
            State::Sweeping {
                kill_at: at(101),
                killed: false,
            },
        ];
        let worker = |(slot, state): (u16, State)| {
            let revision = if slot < 2 { &new } else { &old };
            Some(Worker {
                id: WorkerId {
                    app: spec.name.clone(),
                    slot,
                    generation: 11 + u64::from(slot),
                },
                instance: slot,
                revision: revision.clone(),
                pid: (slot > 0).then_some(1000 + u32::from(slot)),
                started: at(40),
                state,
                condemned: (slot > 1).then(|| "replaced by a reload".to_owned()),
                memory: Some(1 << 20),
                over_limit: 1,
                reason: None,
                port: Port::default(),
            })
        };
        let holds = [
            Hold::Open,
            Hold::Backoff { until: at(105) },
            Hold::Errored,
            Hold::Exited,
        ];
        let seat = |hold: Hold| Seat {
            restarts: 3,
            unstable: 1,
            streak: 2,
            hold,
            last_slot: Some(1),
            bereft_of: Some(old.clone()),
            reason: Some("exited".into()),
            exit: None,
        };
        let mut app = App::new(new.clone());
        app.slots = (0u16..).zip(states).map(worker).chain([None]).collect();
        app.seats = holds.map(seat).into();
        let before = Some(Before {
            target: old.clone(),
            instances: 4,
        });
        app.operation = Some(Operation {
            kind: OperationKind::Reload,
            since: at(90),
            op: OpId(7),
            before,
            course: Course::Forward {
                deadline: Some(at(150)),
            },
        });
        app.queue
            .push_back((OpId(8), Box::new(spec.clone()), Some(Env::default())));
        app.listening.held = Some(app::Held {
            addresses: spec.listen.iter().cloned().collect(),
            slots: 8,
            file: crate::config::SocketFile::default(),
        });
        app.listening.proven = true;
        app.steered = Some((
            Balance::Random,
            vec![Steering {
                address: spec.listen[0].clone(),
                weights: vec![0, 0, 1],
            }],
        ));
        app.events
            .push_back((at(90), "reload to revision 2".into()));
        app.reason = Some(Reason::new(Explains::Action, "why"));
        let mut supervisor = Supervisor::new(42);
        supervisor.next_generation = 17;
        supervisor.apps.insert(app.name.clone(), app.clone());
        let error = OpError {
            code: FailureCode::NotReady,
            message: "m".into(),
            hint: Some("h".into()),
            worker: Some(app.slots[1].as_ref().unwrap().id.clone()),
        };
        let courses = [
            (
                "back",
                Course::Back {
                    deadline: at(160),
                    error,
                },
            ),
            ("ending", Course::Ending { generation: 12 }),
        ];
        for (name, course) in courses {
            let mut spec = spec.clone();
            spec.name = AppName::new(name);
            let mut other = App::new(revision(1, &spec));
            other.operation = Some(Operation {
                kind: OperationKind::Scale,
                since: at(90),
                op: OpId(9),
                before: None,
                course,
            });
            other.listening.pending = Some(app::Held {
                addresses: [spec.listen[0].clone()].into(),
                slots: 8,
                file: crate::config::SocketFile::default(),
            });
            other.wanted = if name == "back" {
                Wanted::Down
            } else {
                Wanted::Deleted
            };
            supervisor.apps.insert(spec.name, other);
        }
        supervisor
    }

    fn read(text: &str) -> Result<Supervisor, String> {
        serde_json::from_str(text).map_err(|why| why.to_string())
    }

    #[test]
    fn a_state_of_version_1_is_read() {
        let state = read(VERSION_1).unwrap();
        let expected = everything();
        assert!(state.apps == expected.apps, "{:#?}", state.apps);
        assert_eq!(
            (state.seed, state.next_generation),
            (expected.seed, expected.next_generation)
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
    fn a_revision_is_written_once_and_shared_again() {
        let written = serde_json::to_string(&everything()).unwrap();
        assert_eq!(
            written.matches("cwd_resolved").count(),
            2 + 1 + 2,
            "two revisions, one that waits, two of the other apps"
        );
        let state = read(&written).unwrap();
        let app = &state.apps[&AppName::new("web")];
        assert!(Arc::ptr_eq(
            &app.target,
            &app.workers().next().unwrap().revision
        ));
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
        assert!(read(&state.to_string()).unwrap().apps == everything().apps);
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
        // Whoever counts on from these counts too far.
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
