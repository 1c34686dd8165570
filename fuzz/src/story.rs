//! A supervisor and what happens to it, made of bytes: answers to what it asked for, answers nobody
//! asked for, wishes, and the daemon's deaths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use rsup::config::{self, AppName, AppSpec};
use rsup::core::{
    Change, Effect, Exit, Found, Input, OpId, Purpose, Request, Supervisor, Time, Traces, WorkerId,
    Written,
};
use rsup::model::Cause;

const NAMES: [&str; 2] = ["web", "job"];

/// Apps that differ in everything which decisions depend on; each is a file of its own.
const APPS: [&str; 5] = [
    r#"
listen = [8080]
instances = 2
readiness = { path = "/ready", interval = "100ms" }
liveness = { tcp = true, interval = "1s", failure_threshold = 2 }
listen_timeout = "3s"
kill_timeout = "1s"
max_memory = "100M"
reload = { min_ready = "200ms", auto_rollback = true }
restart = { backoff = "10ms", backoff_max = "100ms" }
"#,
    r#"
listen = [8080, 8081]
instances = 4
readiness = { notify = true }
reload = { max_surge = 2, deadline = "20s" }
"#,
    "",
    r#"
listen = ["unix:/run/x.sock"]
readiness = { exec = ["/bin/true"] }
restart = { policy = "never" }
"#,
    r#"
listen = [8080]
instances = 3
restart = { policy = "on-failure", max_restarts = 0 }
stop = { exit_codes = [1] }
balance = "source-ip"
"#,
];

fn specs() -> Vec<AppSpec> {
    let spec = |keys: &&str| {
        let text = format!("[app.web]\ncommand = [\"/bin/true\"]\n{keys}");
        let loaded = config::parse(&text, "/nowhere/supervisor.toml".as_ref())
            .unwrap_or_else(|errors| panic!("{errors}"));
        loaded.config.apps.into_iter().next().expect("one app")
    };
    APPS.iter().map(spec).collect()
}

/// From a state that was read: by way of `revive` or `reboot`.
pub fn goes_on(mut supervisor: Supervisor, story: &[u8]) {
    let mut bytes = Unstructured::new(story);
    let now = Time(Duration::from_secs(u64::from(
        bytes.arbitrary::<u16>().unwrap_or(1000),
    )));
    let before = supervisor.last_op().map_or(0, |op| op.0);
    shown(&mut supervisor, now);
    if bytes.arbitrary().unwrap_or(true) {
        supervisor.revive(now, &found(&supervisor, &mut bytes));
    } else {
        supervisor.reboot(now, false);
    }
    run(supervisor, now, before, bytes);
}

/// From any supervisor.
pub fn play(supervisor: Supervisor, story: &[u8]) {
    run(
        supervisor,
        Time(Duration::from_secs(1000)),
        0,
        Unstructured::new(story),
    );
}

fn names(supervisor: &Supervisor) -> Vec<AppName> {
    supervisor.names().cloned().collect()
}

fn ids(supervisor: &Supervisor) -> Vec<WorkerId> {
    names(supervisor)
        .iter()
        .flat_map(|name| supervisor.workers(name))
        .map(|worker| worker.id.clone())
        .collect()
}

fn found(supervisor: &Supervisor, bytes: &mut Unstructured<'_>) -> BTreeMap<WorkerId, Found> {
    let mut all = BTreeMap::new();
    for id in ids(supervisor) {
        let found = match bytes.arbitrary::<u8>().unwrap_or(0) % 7 {
            0 => Found::Alive { pid: 7 },
            1 => Found::Gone {
                exit: Exit::Code(1),
                descendants: false,
            },
            2 => Found::Gone {
                exit: Exit::Unknown,
                descendants: true,
            },
            3 => Found::NeverStarted,
            4 => Found::OutOfReach { pid: 7 },
            5 => Found::Deaf { pid: 7 },
            _ => continue,
        };
        all.insert(id, found);
    }
    all
}

/// Everything that `list` and `describe` ask for.
fn shown(supervisor: &mut Supervisor, now: Time) {
    for name in names(supervisor) {
        let view = supervisor.view(&name, now).expect("it is there");
        assert_eq!(view.name, name);
        assert!(supervisor.revision(&name).is_some());
    }
    supervisor.poll_timeout(now);
    supervisor.last_op();
}

/// What was asked for and is not answered yet.
#[derive(Default)]
struct Open {
    asked: Vec<Effect>,
    answered: BTreeSet<OpId>,
    /// The latest action of the state that was read.
    before: u64,
    last_generation: Option<u64>,
}

impl Open {
    fn take(&mut self, supervisor: &mut Supervisor) {
        while let Some(effect) = supervisor.poll_effect() {
            match &effect {
                // A written state may name two actions alike; nobody waits for either any more.
                Effect::Finished { op, .. } if op.0 <= self.before => {}
                Effect::Finished { op, .. } => {
                    assert!(self.answered.insert(*op), "{op:?} is answered twice")
                }
                Effect::Spawn {
                    worker, revision, ..
                } => {
                    assert!(
                        self.last_generation
                            .is_none_or(|last| worker.generation > last),
                        "{worker} is not new"
                    );
                    self.last_generation = Some(worker.generation);
                    assert!(!revision.spec.command.is_empty());
                    self.asked.push(effect);
                }
                // A start that waited for it has made another one of that name.
                Effect::Removed { app } => assert!(
                    supervisor
                        .revision(app)
                        .is_none_or(|revision| revision.number == 1)
                ),
                Effect::Listen { .. }
                | Effect::Probe { .. }
                | Effect::LookForTraces { .. }
                | Effect::Drain { .. }
                | Effect::Signal { .. } => {
                    self.asked.push(effect);
                }
                Effect::Steer { tables, .. } => {
                    assert!(
                        tables.iter().all(|table| table.address.tcp().is_some()),
                        "only TCP is steered"
                    );
                }
                Effect::Refuse { .. } => {}
                Effect::Unlisten { .. }
                | Effect::Relay { .. }
                | Effect::Forget { .. }
                | Effect::Progress(_)
                | Effect::KeepOn { .. }
                | Effect::Record(_) => {}
            }
        }
    }
}

/// `before`: the latest action of the state that was read.
/// The whole state as one change.
pub fn put_down(supervisor: &Supervisor) -> String {
    let change = Written::default().change(supervisor, supervisor.names());
    serde_json::to_string(&change).expect("a state can be written")
}

fn read_back(written: &str) -> Supervisor {
    let mut fold = Written::default();
    let change = serde_json::from_str(written).unwrap_or_else(|why| panic!("{why}: {written}"));
    let read = fold.apply(change).and_then(|()| fold.finish());
    read.unwrap_or_else(|why| panic!("{why}: {written}"))
}

/// Appends what has changed to a file, whose fold is the state at any time.
fn save(supervisor: &mut Supervisor, file: &mut Written) {
    let names = supervisor.take_changed();
    let change = file.change(supervisor, &names);
    file.apply(change).expect("what was written can be read");
    let names: Vec<AppName> = supervisor.names().chain(file.names()).cloned().collect();
    let rest = file.change(supervisor, &names);
    assert_eq!(rest, Change::default(), "not in the file");
}

fn run(mut supervisor: Supervisor, mut now: Time, before: u64, mut bytes: Unstructured<'_>) {
    static SPECS: std::sync::LazyLock<Vec<AppSpec>> = std::sync::LazyLock::new(specs);
    let mut open = Open {
        before,
        ..Open::default()
    };
    let mut next_op = before;
    let mut file = Written::default();
    save(&mut supervisor, &mut file);
    open.take(&mut supervisor);
    while !bytes.is_empty() {
        let Ok(true) = step(
            &mut supervisor,
            &mut now,
            &mut next_op,
            &mut open,
            &SPECS,
            &mut bytes,
        ) else {
            break;
        };
        save(&mut supervisor, &mut file);
        open.take(&mut supervisor);
        save(&mut supervisor, &mut file);
        shown(&mut supervisor, now);
    }
    let written = put_down(&supervisor);
    let again = read_back(&written);
    assert_eq!(put_down(&again), written, "nothing is lost in it");
}

fn step(
    supervisor: &mut Supervisor,
    now: &mut Time,
    next_op: &mut u64,
    open: &mut Open,
    specs: &[AppSpec],
    bytes: &mut Unstructured<'_>,
) -> Result<bool> {
    let input = match bytes.int_in_range(0..=15u8)? {
        0..=3 => {
            // Time goes on, up to whatever is due or by a jump.
            *now = match bytes.arbitrary::<u8>()? {
                0 => *now + Duration::from_secs(u64::from(bytes.arbitrary::<u32>()?)),
                n @ 1..=99 => *now + Duration::from_millis(10 * u64::from(n)),
                _ => supervisor
                    .poll_timeout(*now)
                    .map_or(*now, |at| at.max(*now)),
            };
            Input::Tick
        }
        4..=8 if !open.asked.is_empty() => {
            let which = bytes.choose_index(open.asked.len())?;
            let Some(input) = answer(&open.asked.swap_remove(which), bytes)? else {
                return Ok(true);
            };
            input
        }
        9 | 10 => {
            let ids = ids(supervisor);
            if ids.is_empty() {
                return Ok(true);
            }
            about(ids[bytes.choose_index(ids.len())?].clone(), bytes)?
        }
        11 => {
            let app = AppName::new(*bytes.choose(&NAMES)?);
            about(
                WorkerId {
                    app,
                    slot: bytes.arbitrary()?,
                    generation: bytes.arbitrary()?,
                },
                bytes,
            )?
        }
        12 => match bytes.arbitrary::<u8>()? % 4 {
            0 => Input::ForceStop,
            1 => Input::Listening {
                app: AppName::new(*bytes.choose(&NAMES)?),
                result: said(bytes)?,
            },
            2 => {
                *supervisor = read_back(&put_down(supervisor));
                open.asked.clear();
                let found = found(supervisor, bytes);
                supervisor.revive(*now, &found);
                return Ok(true);
            }
            _ => {
                *supervisor = read_back(&put_down(supervisor));
                open.asked.clear();
                supervisor.reboot(*now, false);
                Input::Tick
            }
        },
        _ => {
            *next_op += 1;
            let mut known = names(supervisor);
            known.extend(NAMES.map(AppName::new));
            let app = known[bytes.choose_index(known.len())?].clone();
            Input::Request {
                op: OpId(*next_op),
                request: wish(&app, specs, bytes)?,
                app,
                cause: Cause::Command,
            }
        }
    };
    supervisor.handle(*now, input);
    Ok(true)
}

fn said(bytes: &mut Unstructured<'_>) -> Result<std::result::Result<(), String>> {
    Ok(if bytes.ratio(3u8, 4u8)? {
        Ok(())
    } else {
        Err("it did not work".into())
    })
}

fn exit(bytes: &mut Unstructured<'_>) -> Result<Exit> {
    Ok(match bytes.arbitrary::<u8>()? % 4 {
        0 => Exit::Code(0),
        1 => Exit::Code(1),
        2 => Exit::Signal {
            signal: bytes.arbitrary()?,
            core_dumped: false,
        },
        _ => Exit::Unknown,
    })
}

/// What the daemon would say to it, or nothing.
fn answer(effect: &Effect, bytes: &mut Unstructured<'_>) -> Result<Option<Input>> {
    Ok(Some(match effect {
        Effect::Listen { app, .. } => Input::Listening {
            app: app.clone(),
            result: said(bytes)?,
        },
        Effect::Spawn { worker, .. } if bytes.ratio(7u8, 8u8)? => Input::Spawned {
            worker: worker.clone(),
            pid: 7,
        },
        Effect::Spawn { worker, .. } => Input::SpawnFailed {
            worker: worker.clone(),
            reason: "EAGAIN".into(),
        },
        Effect::Probe {
            worker, purpose, ..
        } => Input::Probed {
            worker: worker.clone(),
            purpose: *purpose,
            result: said(bytes)?,
        },
        Effect::LookForTraces { worker } => traces(worker.clone(), bytes)?,
        Effect::Drain { worker } => Input::Drained {
            worker: worker.clone(),
        },
        Effect::Signal { worker, .. } => Input::Exited {
            worker: worker.clone(),
            exit: exit(bytes)?,
            descendants: bytes.arbitrary()?,
        },
        _ => return Ok(None),
    }))
}

fn traces(worker: WorkerId, bytes: &mut Unstructured<'_>) -> Result<Input> {
    Ok(Input::Traces {
        worker,
        traces: Traces {
            abandoned: bytes.int_in_range(0..=40)?,
            others: bytes.arbitrary()?,
        },
    })
}

/// Anything at all about a worker.
fn about(worker: WorkerId, bytes: &mut Unstructured<'_>) -> Result<Input> {
    Ok(match bytes.arbitrary::<u8>()? % 14 {
        10 => Input::Bound { worker, port: 80 },
        11 => Input::BoundElsewhere { worker },
        12 => Input::Refused { worker },
        13 => traces(worker, bytes)?,
        9 => Input::NotProbed {
            worker,
            purpose: if bytes.arbitrary()? {
                Purpose::Readiness
            } else {
                Purpose::Liveness
            },
            reason: "no descriptors".into(),
        },
        0 => Input::Spawned {
            worker,
            pid: bytes.arbitrary()?,
        },
        1 => Input::SpawnFailed {
            worker,
            reason: "no".into(),
        },
        2 | 3 => Input::Exited {
            worker,
            exit: exit(bytes)?,
            descendants: bytes.arbitrary()?,
        },
        4 => Input::TreeGone { worker },
        5 => Input::Probed {
            worker,
            purpose: if bytes.arbitrary()? {
                Purpose::Readiness
            } else {
                Purpose::Liveness
            },
            result: said(bytes)?,
        },
        6 => Input::Notified { worker },
        7 => Input::Drained { worker },
        _ => Input::Memory {
            worker,
            bytes: bytes.arbitrary()?,
        },
    })
}

fn wish(app: &AppName, specs: &[AppSpec], bytes: &mut Unstructured<'_>) -> Result<Request> {
    let mut spec = Box::new(bytes.choose(specs)?.clone());
    spec.name = app.clone();
    let base_env = if bytes.arbitrary()? {
        Some(Arc::new(BTreeMap::new()))
    } else {
        None
    };
    Ok(match bytes.arbitrary::<u8>()? % 8 {
        0 | 1 => Request::Start {
            spec,
            base_env: base_env.unwrap_or_default(),
        },
        2 => Request::StartStopped,
        3 => Request::Stop,
        4 => Request::Delete,
        5 => Request::Restart { spec, base_env },
        6 => Request::Reload {
            spec,
            base_env,
            queue: bytes.arbitrary()?,
        },
        _ => Request::Scale {
            instances: bytes.int_in_range(0..=8u16)?,
        },
    })
}
