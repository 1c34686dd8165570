//! A simulated world: it carries out effects under virtual time, with faults by script or by
//! chance, and checks after every step what must always hold.

mod checks;
mod deaths;
mod hiding;
mod random;
mod review;
mod scenarios;
mod starts;
mod stillness;
mod storms;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::app::App;
use super::worker::State;
use super::*;
use crate::config::*;
use crate::model::{Cause, Event, What};

pub use crate::exit::SIGKILL;
pub const SIGTERM: i32 = 15;

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What one process will do.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub spawns: bool,
    /// From its start; `None`: never.
    pub ready_after: Option<Duration>,
    /// It ends by itself after this long.
    pub ends_after: Option<(Duration, i32)>,
    /// `None`: the stop signal is ignored.
    pub stops_after: Option<Duration>,
    pub drains_after: Option<Duration>,
    pub descendants: bool,
    pub bytes: u64,
    /// Its readiness and liveness fail from this age on.
    pub unready_after: Option<Duration>,
    pub hangs_after: Option<Duration>,
    pub port_test: PortTest,
}

/// Whether it connects to its port before it binds it, and what it does if its connection is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortTest {
    No,
    Exits,
    BindsAnother,
    /// Again and again.
    Waits,
    /// So rarely that it cannot be told from others.
    WaitsQuietly,
}

impl Behaviour {
    pub fn good() -> Self {
        Self {
            spawns: true,
            ready_after: Some(ms(300)),
            ends_after: None,
            stops_after: Some(ms(200)),
            drains_after: Some(ms(50)),
            descendants: false,
            bytes: 50,
            unready_after: None,
            hangs_after: None,
            port_test: PortTest::No,
        }
    }

    pub fn never_ready() -> Self {
        Self {
            ready_after: None,
            ..Self::good()
        }
    }

    pub fn testing(port_test: PortTest) -> Self {
        Self {
            port_test,
            ..Self::good()
        }
    }

    pub fn crashing() -> Self {
        Self {
            ready_after: None,
            ends_after: Some((ms(100), 1)),
            ..Self::good()
        }
    }
}

/// One simulated process.
#[derive(Clone, Debug)]
pub struct Process {
    pub revision: Arc<Revision>,
    pub behaviour: Behaviour,
    pub started: Time,
    pub pid: u32,
    /// False once it has ended; descendants of it may live on.
    pub alive: bool,
    /// How it has ended, and whether descendants of it are left.
    pub exit: Option<Exit>,
    pub left: bool,
    pub stop_sent: Option<Time>,
}

impl Process {
    fn ended(&mut self, exit: Exit, descendants: bool) {
        self.alive = false;
        self.exit = Some(exit);
        self.left = descendants;
    }
}

type Script = Box<dyn FnMut(&mut fastrand::Rng, u16, &Revision) -> Behaviour>;
type Refuses = Box<dyn FnMut(&mut fastrand::Rng, &[Listen], u16) -> bool>;

pub struct World {
    pub core: Supervisor,
    /// What a file has to which each step appends what it changed.
    pub file: Written,
    saves: u64,
    pub now: Time,
    pub random: fastrand::Rng,
    pub script: Script,
    /// Decides which `Listen` is refused.
    pub refuses: Refuses,
    pub processes: BTreeMap<WorkerId, Process>,
    pub gone: Vec<WorkerId>,
    pub listening: BTreeMap<AppName, Vec<Listen>>,
    pub tables: BTreeMap<AppName, Vec<Steering>>,
    pub relays: BTreeMap<(AppName, u16), bool>,
    /// Apps whose clients are reset if no worker takes them.
    pub refusing: BTreeSet<AppName>,
    pub asked: BTreeMap<OpId, OperationWish>,
    pub finished: BTreeMap<OpId, Result<(), ActionError>>,
    pub removed: Vec<AppName>,
    pub events: Vec<Event>,
    /// Workers whose queue is being emptied.
    pub draining: BTreeSet<WorkerId>,
    pub spawned: u64,
    pub forced: bool,
    /// Restores the state from what was written down, and injects late inputs, now and then.
    pub mischief: bool,
    /// When the daemon is killed.
    pub death: deaths::Death,
    /// A daemon takes up what its predecessor left.
    reviving: bool,
    /// The apps before the step that is being checked.
    before: BTreeMap<AppName, checks::Before>,
    coming: BTreeMap<(Time, u64), Input>,
    sequence: u64,
    /// Tries up to this one ran out of time while everything stood still.
    blind: u64,
    /// Until the next tick, which finds deadlines in the past.
    stood_still: bool,
    next_op: u64,
}

/// The whole state, as it is written down.
pub fn put_down(core: &Supervisor) -> String {
    let change = Written::default().change(core, core.apps.keys());
    serde_json::to_string(&change).unwrap()
}

pub fn read_back(text: &str) -> Supervisor {
    let mut written = Written::default();
    written.apply(serde_json::from_str(text).unwrap()).unwrap();
    written.finish().unwrap()
}

pub struct OperationWish {
    pub app: AppName,
    pub reload_from: Option<u64>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            core: Supervisor::new(seed),
            file: Written::default(),
            saves: 0,
            now: Time(ms(1_000_000)),
            random: fastrand::Rng::with_seed(seed),
            script: Box::new(|_, _, _| Behaviour::good()),
            refuses: Box::new(|_, _, _| false),
            processes: BTreeMap::new(),
            gone: Vec::new(),
            listening: BTreeMap::new(),
            tables: BTreeMap::new(),
            relays: BTreeMap::new(),
            refusing: BTreeSet::new(),
            asked: BTreeMap::new(),
            finished: BTreeMap::new(),
            removed: Vec::new(),
            events: Vec::new(),
            draining: BTreeSet::new(),
            spawned: 0,
            forced: false,
            mischief: false,
            death: deaths::Death::Never,
            reviving: false,
            before: BTreeMap::new(),
            coming: BTreeMap::new(),
            sequence: 0,
            blind: 0,
            stood_still: false,
            next_op: 0,
        }
    }

    /// Asks for something now; the answer is in `finished` once it is there.
    pub fn ask(&mut self, app: &AppName, request: Request) -> OpId {
        self.next_op += 1;
        let op = OpId(self.next_op);
        let reload = matches!(request, Request::Reload { .. });
        let from = self
            .core
            .apps
            .get(app)
            .filter(|a| reload && a.rollout.is_none() && a.wanted == Wanted::Up)
            .map(|a| a.current);
        self.asked.insert(
            op,
            OperationWish {
                app: app.clone(),
                reload_from: from,
            },
        );
        self.handle(Input::Request {
            op,
            app: app.clone(),
            request,
            cause: Cause::Command,
        });
        op
    }

    /// Asks and runs until it is answered.
    pub fn done(&mut self, app: &AppName, request: Request) -> Result<(), ActionError> {
        let op = self.ask(app, request);
        self.answer(op)
    }

    pub fn answer(&mut self, op: OpId) -> Result<(), ActionError> {
        let until = self.now + Duration::from_secs(1800);
        while !self.finished.contains_key(&op) {
            assert!(
                self.now < until,
                "{op:?} is never answered: {:#?}",
                self.core.apps
            );
            assert!(
                self.step(until),
                "{op:?}: nothing is awaited any more: {:#?}",
                self.core.apps
            );
        }
        self.finished[&op].clone()
    }

    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        // The daemon may have been away for longer.
        self.now = self.now.max(until);
    }

    /// The next thing that happens, if anything does before `until`.
    fn step(&mut self, until: Time) -> bool {
        let event = self.coming.keys().next().copied();
        let tick = self.core.poll_timeout(self.now);
        match (event, tick) {
            (Some(key), tick) if tick.is_none_or(|t| key.0 <= t) => {
                if key.0 > until {
                    return false;
                }
                self.now = self.now.max(key.0);
                match self.coming.remove(&key).unwrap() {
                    Input::Probed {
                        worker, purpose, ..
                    } if key.1 <= self.blind => {
                        let result = Err("no answer in time".into());
                        self.handle(Input::Probed {
                            worker,
                            purpose,
                            result,
                        });
                    }
                    input => self.happen(input),
                }
                true
            }
            (_, Some(tick)) => {
                if tick > until {
                    return false;
                }
                assert!(
                    tick >= self.now || self.stood_still,
                    "a deadline in the past: {tick:?} at {:?}: {:#?}",
                    self.now,
                    self.core.apps
                );
                self.now = self.now.max(tick);
                let effects = self.handle(Input::Tick);
                let next = self.core.poll_timeout(self.now);
                assert!(
                    effects > 0 || next.is_none_or(|t| t > self.now),
                    "busy loop at {tick:?}: {:#?}",
                    self.core.apps
                );
                true
            }
            (_, None) => false,
        }
    }

    pub fn later(&mut self, after: Duration, input: Input) {
        self.sequence += 1;
        self.coming.insert((self.now + after, self.sequence), input);
    }

    /// An event of the world: some are void by now, some have to be made up at the last moment.
    fn happen(&mut self, input: Input) {
        match &input {
            Input::Exited {
                worker,
                exit,
                descendants,
            } => {
                let Some(process) = self.processes.get(worker) else {
                    return;
                };
                if !process.alive {
                    return;
                }
                if self.core.wants_traces(worker) {
                    let traces = self.traces(worker);
                    self.core.handle(
                        self.now,
                        Input::Traces {
                            worker: worker.clone(),
                            traces,
                        },
                    );
                }
                let Some(process) = self.processes.get_mut(worker) else {
                    return;
                };
                process.ended(*exit, *descendants);
            }
            Input::TreeGone { worker } => {
                if let Some(process) = self.processes.get_mut(worker) {
                    process.left = false;
                }
            }
            Input::Spawned { worker, .. }
            | Input::Forked { worker }
            | Input::Notified { worker }
            | Input::Bound { worker, .. }
            | Input::BoundElsewhere { worker }
            | Input::Refused { worker } => {
                if self.processes.get(worker).is_none_or(|p| !p.alive) {
                    return;
                }
            }
            Input::Probed {
                worker, purpose, ..
            } => {
                let result = self.probe(worker, *purpose);
                self.handle(Input::Probed {
                    worker: worker.clone(),
                    purpose: *purpose,
                    result,
                });
                return;
            }
            Input::Memory { worker, .. } => {
                let Some(bytes) = self
                    .processes
                    .get(worker)
                    .filter(|p| p.alive)
                    .map(|p| p.behaviour.bytes)
                else {
                    return;
                };
                self.later(ms(5000), input.clone());
                self.handle(Input::Memory {
                    worker: worker.clone(),
                    bytes,
                });
                return;
            }
            Input::Drained { worker } => {
                if !self.draining.remove(worker) {
                    return;
                }
            }
            Input::Request { .. }
            | Input::Listening { .. }
            | Input::SpawnFailed { .. }
            | Input::NotProbed { .. }
            | Input::Traces { .. }
            | Input::ForceStop
            | Input::Tick => {}
        }
        self.handle(input);
    }

    /// Where an older worker serves, it answers the test.
    fn traces(&self, worker: &WorkerId) -> Traces {
        let traces = self
            .processes
            .get(worker)
            .map(|p| p.behaviour.port_test.traces())
            .unwrap_or_default();
        if self.ready(&worker.app).is_empty() {
            traces
        } else {
            Traces {
                abandoned: 0,
                ..traces
            }
        }
    }

    fn probe(&self, worker: &WorkerId, purpose: Purpose) -> Result<(), String> {
        let process = self
            .processes
            .get(worker)
            .filter(|p| p.alive)
            .ok_or("connection refused")?;
        let age = self.now.since(process.started);
        let before = |limit: Option<Duration>| limit.is_none_or(|l| age < l);
        let b = &process.behaviour;
        let ready = b.ready_after.is_some_and(|r| age >= r) && before(b.hangs_after);
        match purpose {
            Purpose::Readiness if ready && before(b.unready_after) => Ok(()),
            Purpose::Liveness if ready => Ok(()),
            Purpose::Readiness => Err("503".into()),
            Purpose::Liveness => Err("timeout".into()),
        }
    }

    /// Gives an input to the core, carries out what comes of it, and checks; returns the number of effects.
    pub fn handle(&mut self, input: Input) -> usize {
        self.forced |= input == Input::ForceStop;
        self.before = checks::before(&self.core);
        self.core.handle(self.now, input.clone());
        self.stood_still &= input != Input::Tick;
        if self.death.comes(&mut self.random) {
            self.die();
            return 1;
        }
        let effects = self.effects();
        self.save();
        for effect in &effects {
            self.carry_out(effect);
        }
        checks::step(self, &input, &effects);
        if self.mischief && self.random.u8(..) < 6 {
            self.restore();
            self.inject();
        }
        effects.len()
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.core.poll_effect()).collect()
    }

    /// The fold of all that was ever appended is the state; looked at as a whole now and then.
    fn save(&mut self) {
        let names = self.core.take_changed();
        let mut change = self.file.change(&self.core, &names);
        self.saves += 1;
        let looks = self.saves.is_multiple_of(16);
        if looks {
            let line = serde_json::to_string(&change).unwrap();
            change = serde_json::from_str(&line).unwrap();
        }
        self.file.apply(change).unwrap();
        if looks {
            let rest = self.file.change(&self.core, self.core.apps.keys());
            assert_eq!(rest, Change::default(), "it is not in the file");
            assert_eq!(self.file.names().count(), self.core.apps.len());
        }
    }

    /// Everything goes on from what was written down.
    fn restore(&mut self) {
        let written = put_down(&self.core);
        let read = read_back(&written);
        assert!(
            read.apps == self.core.apps,
            "the state does not survive being written down"
        );
        assert_eq!(
            (read.seed, read.next_generation),
            (self.core.seed, self.core.next_generation)
        );
        let ticked = self.core.ticked;
        let agenda = Agenda::of(&read.apps, ticked);
        self.core = Supervisor {
            agenda,
            ticked,
            ..read
        };
        self.file = Written::default();
    }

    /// Late inputs about former workers, and doubled ones about live workers, change nothing.
    fn inject(&mut self) {
        let live: Vec<Worker> = self
            .core
            .apps
            .values()
            .flat_map(App::workers)
            .cloned()
            .collect();
        let input = if let Some(worker) = self.random.choice(&live)
            && self.random.bool()
        {
            doubled(worker)
        } else if let Some(id) = self.random.choice(&self.gone).cloned() {
            let late = late(&id);
            self.random.choice(late)
        } else {
            return;
        };
        let Some(input) = input else { return };
        let before = self.core.apps.clone();
        self.core.handle(self.now, input.clone());
        let effects = self.effects();
        assert!(
            *self.core.apps == before && effects.is_empty(),
            "a late input had an effect: {input:?} {effects:#?} {before:#?} {:#?}",
            self.core.apps
        );
    }

    fn carry_out(&mut self, effect: &Effect) {
        match effect {
            Effect::Listen {
                app,
                addresses,
                slots,
                file: _,
            } => {
                // What is held already, or let go, cannot be refused: not by the next daemon either, which asks again
                // after a death.
                let held = self.listening.get(app);
                let held = held.is_some_and(|held| addresses.iter().all(|a| held.contains(a)));
                let refused = (self.refuses)(&mut self.random, addresses, *slots) && !held;
                let result = if refused {
                    Err("port 80 is taken".to_owned())
                } else {
                    Ok(())
                };
                if result.is_ok() {
                    self.listening.insert(app.clone(), addresses.clone());
                    self.tables.remove(app);
                }
                let after = ms(self.random.u64(..5));
                self.later(
                    after,
                    Input::Listening {
                        app: app.clone(),
                        result,
                    },
                );
            }
            Effect::Unlisten { app } => {
                self.listening.remove(app);
                self.tables.remove(app);
                self.relays.retain(|(name, _), _| name != app);
                assert!(
                    self.processes.keys().all(|id| id.app != *app),
                    "{app} stops listening under its workers"
                );
            }
            Effect::Refuse { app } => {
                self.refusing.insert(app.clone());
            }
            Effect::Steer { app, tables, .. } => {
                let serves = |table: &Steering| table.weights.iter().any(|weight| *weight > 0);
                if tables.iter().any(serves) {
                    self.refusing.remove(app);
                }
                self.tables.insert(app.clone(), tables.clone());
            }
            Effect::Relay { app, slot, on, .. } => {
                self.relays.insert((app.clone(), *slot), *on);
            }
            Effect::Spawn {
                worker,
                instance,
                revision,
                hide_port,
            } => {
                self.refusing.remove(&worker.app);
                self.spawn(worker, *instance, revision, *hide_port);
            }
            Effect::LookForTraces { worker } => {
                let traces = self.traces(worker);
                self.later(
                    ms(1),
                    Input::Traces {
                        worker: worker.clone(),
                        traces,
                    },
                );
            }
            Effect::Probe {
                worker, purpose, ..
            } => {
                let after = ms(self.random.u64(1..40));
                self.later(
                    after,
                    Input::Probed {
                        worker: worker.clone(),
                        purpose: *purpose,
                        result: Ok(()),
                    },
                );
            }
            Effect::Drain { worker } => {
                self.draining.insert(worker.clone());
                if let Some(after) = self.processes[worker].behaviour.drains_after {
                    self.later(
                        after,
                        Input::Drained {
                            worker: worker.clone(),
                        },
                    );
                }
            }
            Effect::Signal {
                worker,
                signal,
                reach,
            } => self.signal(worker, *signal, *reach),
            Effect::Forget { worker } => {
                match self.processes.remove(worker) {
                    Some(process) => assert!(!process.alive, "{worker} is forgotten alive"),
                    None => assert!(self.reviving, "{worker} is forgotten twice"),
                }
                self.gone.push(worker.clone());
            }
            Effect::Finished { op, result } => {
                assert!(self.asked.contains_key(op), "no request for {op:?}");
                let before = self.finished.insert(*op, result.clone());
                assert!(before.is_none(), "{op:?} is answered twice");
            }
            Effect::Removed { app } => self.removed.push(app.clone()),
            Effect::KeepOn { worker } => {
                let stopped = self.processes[worker].stop_sent;
                assert!(
                    stopped.is_none(),
                    "{worker} was told to stop, and is put back"
                );
                self.draining.remove(worker);
            }
            Effect::Record(event) => self.events.push(event.clone()),
            Effect::Progress(_) => {}
        }
    }

    fn spawn(
        &mut self,
        worker: &WorkerId,
        instance: u16,
        revision: &Arc<Revision>,
        hide_port: bool,
    ) {
        let mut behaviour = (self.script)(&mut self.random, instance, revision);
        let tests = behaviour.spawns && behaviour.port_test != PortTest::No;
        if tests && !hide_port {
            behaviour.ready_after = None;
            match behaviour.port_test {
                PortTest::Exits => behaviour.ends_after = Some((ms(60), 1)),
                PortTest::BindsAnother => self.later(
                    ms(60),
                    Input::BoundElsewhere {
                        worker: worker.clone(),
                    },
                ),
                PortTest::No | PortTest::Waits | PortTest::WaitsQuietly => {}
            }
        } else if tests {
            self.later(
                ms(60),
                Input::Refused {
                    worker: worker.clone(),
                },
            );
        }
        if let Some(after) = behaviour.ready_after.filter(|_| behaviour.spawns) {
            let bound = after.mul_f64(0.8).max(ms(61));
            self.later(
                bound,
                Input::Bound {
                    worker: worker.clone(),
                    port: 80,
                },
            );
        }
        checks::spawn(self, worker);
        self.later(
            Duration::ZERO,
            Input::Forked {
                worker: worker.clone(),
            },
        );
        self.spawned += 1;
        let exec = ms(self.random.u64(1..20));
        let pid = 1000 + self.spawned as u32;
        let mut process = Process {
            revision: revision.clone(),
            behaviour: behaviour.clone(),
            started: self.now,
            pid,
            alive: true,
            exit: None,
            left: false,
            stop_sent: None,
        };
        if behaviour.spawns {
            self.later(
                exec,
                Input::Spawned {
                    worker: worker.clone(),
                    pid,
                },
            );
            self.later(
                ms(5000),
                Input::Memory {
                    worker: worker.clone(),
                    bytes: 0,
                },
            );
            if let Some(after) = behaviour.ready_after
                && revision.spec.readiness.check == Check::Notify
            {
                self.later(
                    after,
                    Input::Notified {
                        worker: worker.clone(),
                    },
                );
            }
            if let Some((after, code)) = behaviour.ends_after {
                let exited = Input::Exited {
                    worker: worker.clone(),
                    exit: Exit::Code(code),
                    descendants: behaviour.descendants,
                };
                self.later(after.max(exec), exited);
            }
        } else {
            process.alive = false;
            self.later(
                exec,
                Input::SpawnFailed {
                    worker: worker.clone(),
                    reason: "no such file".into(),
                },
            );
        }
        self.processes.insert(worker.clone(), process);
    }

    fn signal(&mut self, worker: &WorkerId, signal: i32, reach: Reach) {
        checks::signal(self, worker, signal, reach);
        let delay = ms(self.random.u64(1..20));
        let process = self.processes.get_mut(worker).unwrap();
        if !process.alive {
            // Its descendants end at SIGKILL, or by their own will.
            if signal == SIGKILL || process.behaviour.stops_after.is_some() {
                let after = if signal == SIGKILL {
                    delay
                } else {
                    process.behaviour.stops_after.unwrap_or_default()
                };
                self.later(
                    after,
                    Input::TreeGone {
                        worker: worker.clone(),
                    },
                );
            }
            return;
        }
        let (after, exit) = match (signal, process.behaviour.stops_after) {
            (SIGKILL, _) => (
                delay,
                Exit::Signal {
                    signal,
                    core_dumped: false,
                },
            ),
            (_, Some(after)) => (after, Exit::Code(0)),
            (_, None) => return,
        };
        let descendants = process.behaviour.descendants && process.behaviour.spawns;
        self.later(
            after,
            Input::Exited {
                worker: worker.clone(),
                exit,
                descendants,
            },
        );
    }

    /// A worker is killed from outside.
    pub fn crash(&mut self, worker: &WorkerId) {
        self.happen(Input::Exited {
            worker: worker.clone(),
            exit: Exit::Signal {
                signal: SIGKILL,
                core_dumped: false,
            },
            descendants: false,
        });
    }

    // ---- what a test looks at ----

    pub fn app(&self, name: &AppName) -> &App {
        &self.core.apps[name]
    }

    pub fn ready(&self, name: &AppName) -> Vec<WorkerId> {
        self.core
            .workers(name)
            .filter(|w| matches!(w.state, State::Ready { .. }))
            .map(|w| w.id.clone())
            .collect()
    }

    /// Slots that take traffic at every address.
    pub fn steered(&self, name: &AppName) -> BTreeSet<u16> {
        let takes = |t: &Steering| {
            (0u16..)
                .zip(&t.weights)
                .filter(|(_, w)| **w > 0)
                .map(|(s, _)| s)
                .collect::<BTreeSet<u16>>()
        };
        self.tables
            .get(name)
            .into_iter()
            .flatten()
            .map(takes)
            .reduce(|a, b| &a & &b)
            .unwrap_or_default()
    }

    pub fn view(&self, name: &AppName) -> AppView {
        self.core.view(name, self.now).unwrap()
    }
}

impl PortTest {
    fn traces(self) -> Traces {
        match self {
            Self::No => Traces::default(),
            Self::Exits | Self::BindsAnother => Traces {
                abandoned: 1,
                others: true,
            },
            Self::Waits => Traces {
                abandoned: 1000,
                others: true,
            },
            Self::WaitsQuietly => Traces {
                abandoned: 2,
                others: true,
            },
        }
    }
}

fn late(worker: &WorkerId) -> Vec<Input> {
    let worker = worker.clone();
    vec![
        Input::Forked {
            worker: worker.clone(),
        },
        Input::Spawned {
            worker: worker.clone(),
            pid: 7,
        },
        Input::SpawnFailed {
            worker: worker.clone(),
            reason: "late".into(),
        },
        Input::Exited {
            worker: worker.clone(),
            exit: Exit::Code(1),
            descendants: true,
        },
        Input::Exited {
            worker: worker.clone(),
            exit: Exit::Code(1),
            descendants: false,
        },
        Input::TreeGone {
            worker: worker.clone(),
        },
        Input::Probed {
            worker: worker.clone(),
            purpose: Purpose::Readiness,
            result: Ok(()),
        },
        Input::Probed {
            worker: worker.clone(),
            purpose: Purpose::Liveness,
            result: Err("late".into()),
        },
        Input::Notified {
            worker: worker.clone(),
        },
        Input::Bound {
            worker: worker.clone(),
            port: 80,
        },
        Input::BoundElsewhere {
            worker: worker.clone(),
        },
        Input::Refused {
            worker: worker.clone(),
        },
        Input::Traces {
            worker: worker.clone(),
            traces: Traces {
                abandoned: 100,
                others: true,
            },
        },
        Input::Drained {
            worker: worker.clone(),
        },
        Input::Memory {
            worker,
            bytes: u64::MAX,
        },
    ]
}

/// What has been said of the worker once already.
fn doubled(worker: &Worker) -> Option<Input> {
    let id = worker.id.clone();
    match &worker.state {
        State::Spawning { .. } => Some(Input::TreeGone { worker: id }),
        State::Starting { .. } => Some(Input::Spawned {
            worker: id,
            pid: worker.pid?,
        }),
        State::Ready { liveness, .. } if liveness.wakes().is_some() => Some(Input::Probed {
            worker: id,
            purpose: Purpose::Liveness,
            result: Err("late".into()),
        }),
        State::Ready { .. } => Some(Input::Notified { worker: id }),
        State::Draining { .. } => Some(Input::Probed {
            worker: id,
            purpose: Purpose::Readiness,
            result: Ok(()),
        }),
        State::Stopping { .. } | State::Killing { .. } => Some(Input::Drained { worker: id }),
        State::Sweeping { .. } => Some(Input::Exited {
            worker: id,
            exit: Exit::Code(1),
            descendants: true,
        }),
    }
}

/// A web app with quick timeouts.
pub fn web(instances: u16) -> AppSpec {
    AppSpec {
        name: AppName::new("web"),
        source: None,
        command: vec!["web".into()],
        cwd: "/".into(),
        cwd_resolved: "/".into(),
        folder: None,
        source_resolved: None,
        instances,
        listen: vec![port(80)],
        socket_activation: false,
        hide_port: HidePort::Auto,
        env: BTreeMap::new(),
        readiness: probe(Check::Http {
            path: "/".into(),
            host: None,
            headers: BTreeMap::new(),
            expect_status: vec![200..=399],
        }),
        liveness: None,
        listen_timeout: ms(3000),
        drain_timeout: ms(1000),
        hold_timeout: ms(60_000),
        kill_timeout: ms(2000),
        max_memory: None,
        balance: Balance::Random,
        stop: Stop {
            signal: SIGTERM,
            exit_codes: BTreeSet::new(),
        },
        restart: Restart {
            policy: RestartPolicy::Always,
            max_restarts: 3,
            min_uptime: ms(1000),
            backoff: ms(100),
            backoff_max: ms(2000),
            reset_after: ms(10_000),
        },
        reload: Reload {
            max_surge: Surge::Workers(1),
            min_ready: ms(0),
            deadline: ms(60_000),
            auto_rollback: true,
        },
        log: Log {
            out: None,
            err: None,
            format: LogFormat::Text,
            timestamps: false,
            max_size: 0,
            keep: 0,
            compress: false,
        },
        run_as: None,
        umask: None,
        limits: Limits::default(),
        socket: SocketSpec::default(),
    }
}

pub fn port(port: u16) -> Listen {
    Listen::Tcp {
        addr: ([127, 0, 0, 1], port).into(),
        v6only: false,
    }
}

pub fn probe(check: Check) -> Probe {
    Probe {
        check,
        interval: ms(200),
        timeout: ms(100),
        initial_delay: ms(0),
        success_threshold: 1,
        failure_threshold: 3,
    }
}

pub fn start(spec: &AppSpec) -> Request {
    Request::Start {
        spec: Box::new(spec.clone()),
        base_env: Env::default(),
    }
}

pub fn reload(spec: &AppSpec) -> Request {
    Request::Reload {
        spec: Box::new(spec.clone()),
        base_env: None,
        queue: false,
    }
}
