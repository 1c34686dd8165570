//! The table of states and inputs: what each input makes of a worker in each state. `.`: it stays as it is;
//! `+1`: another worker is started for it, `-1`: another one stops.

use std::cmp::Ordering;

use super::*;

/// How the inputs are called in the table. `deadline` is a tick at the worker's next deadline.
const INPUTS: [&str; 18] = [
    "spawned",
    "spawn failed",
    "exited",
    "exited, tree lives",
    "tree gone",
    "readiness passes",
    "readiness fails",
    "liveness passes",
    "liveness fails",
    "probe not made",
    "notified",
    "drained",
    "above max_memory",
    "deadline",
    "force stop",
    "stop",
    "reload",
    "restart",
];

/// Each with the inputs that lead to it.
const STATES: [(&str, &[&str]); 8] = [
    ("spawning", &[]),
    ("starting", &["spawned"]),
    ("ready", &["spawned", "readiness passes"]),
    (
        "unready",
        &["spawned", "readiness passes", "readiness fails"],
    ),
    ("draining", &["spawned", "readiness passes", "stop"]),
    (
        "stopping",
        &["spawned", "readiness passes", "stop", "drained"],
    ),
    (
        "killing",
        &["spawned", "readiness passes", "stop", "drained", "deadline"],
    ),
    (
        "sweeping",
        &["spawned", "readiness passes", "exited, tree lives"],
    ),
];

/// A supervisor with one app that has one worker.
struct One {
    core: Supervisor,
    now: Time,
    app: AppName,
    worker: Option<WorkerId>,
}

impl One {
    /// Its worker is in this state.
    fn at((state, path): (&str, &[&str])) -> Self {
        let spec = spec();
        let mut one = Self {
            core: Supervisor::new(1),
            now: Time(ms(1_000_000)),
            app: spec.name.clone(),
            worker: None,
        };
        one.ask(start(&spec));
        for input in path {
            one.handle_named(input);
        }
        assert_eq!(one.phase(), Some(state));
        one
    }

    /// The state of the worker, while it is there.
    fn phase(&self) -> Option<&'static str> {
        let worker = self.core.worker(self.worker.as_ref()?)?;
        Some(match worker.state {
            State::Sweeping { .. } => "sweeping",
            _ => worker.phase().as_str(),
        })
    }

    fn ask(&mut self, request: Request) {
        let input = Input::Request {
            op: OpId(self.now.0.as_millis() as u64),
            app: self.app.clone(),
            request,
            cause: Cause::Command,
        };
        self.handle(input);
    }

    /// Hands it in, confirms sockets, and takes the first worker for the one that is meant.
    fn handle(&mut self, input: Input) {
        self.core.handle(self.now, input);
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Listen { app, .. } => {
                    let result = Ok(());
                    self.core.handle(self.now, Input::Listening { app, result });
                }
                Effect::Spawn { worker, .. } => {
                    self.worker.get_or_insert(worker);
                }
                _ => {}
            }
        }
    }

    /// Lets time pass until the check is under way, as long as the worker stays as it is.
    fn until_probed(&mut self, purpose: Purpose) {
        let before = self.phase();
        let under_way = |one: &Self| {
            let worker = one.core.worker(one.worker.as_ref()?)?;
            let next = match (&worker.state, purpose) {
                (
                    State::Starting { readiness, .. } | State::Ready { readiness, .. },
                    Purpose::Readiness,
                ) => readiness.next,
                (State::Ready { liveness, .. }, Purpose::Liveness) => liveness.next,
                _ => return None,
            };
            Some(next == super::super::worker::Next::UnderWay)
        };
        while under_way(self) == Some(false) && self.phase() == before {
            let Some(at) = self.core.poll_timeout(self.now) else {
                return;
            };
            self.now = at;
            self.handle(Input::Tick);
        }
    }

    fn handle_named(&mut self, input: &str) {
        let worker = self.worker.clone().expect("it was asked for");
        let probed = |purpose, passes: bool| Input::Probed {
            worker: worker.clone(),
            purpose,
            result: if passes { Ok(()) } else { Err("503".into()) },
        };
        let exited = |descendants| Input::Exited {
            worker: worker.clone(),
            exit: Exit::Code(1),
            descendants,
        };
        let input = match input {
            "spawned" => Input::Spawned { worker, pid: 7 },
            "spawn failed" => {
                let reason = "no memory".into();
                Input::SpawnFailed { worker, reason }
            }
            "exited" => exited(false),
            "exited, tree lives" => exited(true),
            "tree gone" => Input::TreeGone { worker },
            "readiness passes" | "readiness fails" => {
                self.until_probed(Purpose::Readiness);
                probed(Purpose::Readiness, input == "readiness passes")
            }
            "liveness passes" | "liveness fails" => {
                self.until_probed(Purpose::Liveness);
                probed(Purpose::Liveness, input == "liveness passes")
            }
            "probe not made" => {
                self.until_probed(Purpose::Readiness);
                let reason = "no descriptor".into();
                let purpose = Purpose::Readiness;
                Input::NotProbed {
                    worker,
                    purpose,
                    reason,
                }
            }
            "notified" => Input::Notified { worker },
            "drained" => Input::Drained { worker },
            "above max_memory" => {
                // One reading is no leak.
                let bytes = u64::MAX;
                let reading = Input::Memory { worker, bytes };
                self.handle(reading.clone());
                reading
            }
            "deadline" => {
                let due = self.core.worker(&worker).map(|w| match &w.state {
                    State::Spawning { deadline } | State::Starting { deadline, .. } => *deadline,
                    State::Draining { until, .. } => *until,
                    State::Stopping { kill_at, .. } | State::Sweeping { kill_at, .. } => *kill_at,
                    State::Ready { .. } | State::Killing { .. } => self.now + ms(10),
                });
                // In steps, as a daemon does: a leap would be taken for a standstill.
                let due = due.unwrap_or(self.now);
                while self.now < due {
                    self.now = self
                        .core
                        .poll_timeout(self.now)
                        .map_or(due, |at| at.min(due));
                    self.handle(Input::Tick);
                }
                Input::Tick
            }
            "force stop" => Input::ForceStop,
            "stop" => return self.ask(Request::Stop),
            "reload" => return self.ask(reload(&spec())),
            "restart" => {
                let spec = Box::new(spec());
                let base_env = None;
                return self.ask(Request::Restart { spec, base_env });
            }
            other => panic!("{other} is no input"),
        };
        self.handle(input);
    }

    /// Other workers that are to serve.
    fn others(&self) -> usize {
        let others = self.core.workers(&self.app);
        let others = others.filter(|w| Some(&w.id) != self.worker.as_ref());
        others.filter(|w| w.active()).count()
    }
}

/// One failure of a check is enough, so that one input shows what it does.
fn spec() -> AppSpec {
    let mut spec = web(1);
    spec.readiness.failure_threshold = 1;
    spec.liveness = Some(Probe {
        failure_threshold: 1,
        ..spec.readiness.clone()
    });
    spec.max_memory = Some(1 << 20);
    spec
}

#[test]
fn the_table_of_states_and_inputs() {
    let mut table = format!("{:<20}", "");
    for (state, _) in STATES {
        table += &format!("{state:<13}");
    }
    for input in INPUTS {
        table += &format!("\n{input:<20}");
        for state in STATES {
            let mut one = One::at(state);
            let before = one.others();
            one.handle_named(input);
            let becomes = match one.phase() {
                // What stays as it is does not catch the eye.
                Some(same) if same == state.0 => ".",
                Some(other) => other,
                None => "gone",
            };
            let others = match one.others().cmp(&before) {
                Ordering::Greater => " +1",
                Ordering::Equal => "",
                Ordering::Less => " -1",
            };
            table += &format!("{:<13}", format!("{becomes}{others}"));
        }
    }
    let table: Vec<&str> = table.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(table.join("\n"));
}
