//! What is written is read, whatever was cut off, and costs what changed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::{AppName, AppSpec, Script};
use crate::core::{Input, Request, Time};
use crate::daemon::clients::remembered::Begun;
use crate::model::Cause;
use crate::sys::procfs::StartTime;

/// Written by version 1, and by version 2; never to be changed.
const VERSION_1: &[u8] = include_bytes!("../fixtures/state-1.json");
const VERSION_2: &[u8] = include_bytes!("../fixtures/state-2.json");

fn names(state: &State) -> Vec<String> {
    state.supervisor.names().map(ToString::to_string).collect()
}

fn process(pid: u32) -> Process {
    Process {
        pid,
        started: StartTime(6),
    }
}

fn spec(name: &str, more: usize) -> AppSpec {
    let mut spec = crate::config::from_script(&Script {
        name: Some(name.to_owned()),
        command: vec!["true".into()],
        ..Script::default()
    })
    .unwrap();
    spec.env = BTreeMap::from([("MORE".into(), "x".repeat(more))]);
    spec
}

/// A daemon's state, and the file that it grows.
struct Daemon {
    track: Track,
    state: DaemonState,
    supervisor: Supervisor,
    now: u64,
    file: Vec<u8>,
    /// Bytes that the latest save appended; None: it was one of the whole state.
    appended: Option<usize>,
}

impl Daemon {
    fn new() -> Self {
        Self {
            track: Track::default(),
            state: DaemonState::default(),
            supervisor: Supervisor::new(1),
            now: 1_000_000,
            file: Vec::new(),
            appended: None,
        }
    }

    fn save(&mut self) {
        self.state.written += 1;
        let touched = &mut self.track.touched;
        touched.apps.extend(self.supervisor.take_changed());
        touched.generations.extend(0..100);
        match self.track.next("boot", &self.state, &self.supervisor) {
            Ok(Lines::Whole(lines)) => {
                self.appended = None;
                self.file = lines;
            }
            Ok(Lines::More(lines)) => {
                self.appended = Some(lines.len());
                self.file.extend(lines);
            }
            Err(why) => panic!("{why}"),
        }
    }

    fn handle(&mut self, input: Input) {
        self.now += 1;
        let now = Time(Duration::from_millis(self.now));
        self.supervisor.handle(now, input);
        while self.supervisor.poll_effect().is_some() {}
        self.save();
    }

    fn ask(&mut self, app: &str, request: Request) {
        let (app, op) = (AppName::new(app), OpId(self.now));
        let cause = Cause::Command;
        self.handle(Input::Request {
            op,
            app,
            request,
            cause,
        });
    }

    /// It has its sockets, if it wants any.
    fn listen(&mut self, app: &str) {
        let (app, result) = (AppName::new(app), Ok(()));
        self.handle(Input::Listening { app, result });
    }

    fn start(&mut self, name: &str, more: usize) {
        let base_env = Arc::new(BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]));
        let spec = Box::new(spec(name, more));
        self.ask(name, Request::Start { spec, base_env });
        self.listen(name);
    }

    /// All workers end.
    fn end(&mut self, app: &str) {
        let app = AppName::new(app);
        let workers = self.supervisor.workers(&app);
        for worker in workers.map(|w| w.id.clone()).collect::<Vec<_>>() {
            self.handle(Input::Exited {
                worker,
                exit: crate::exit::Exit::Code(0),
                descendants: false,
            });
        }
    }

    /// Stops it and starts it again.
    fn turn(&mut self, app: &str) {
        self.ask(app, Request::Stop);
        self.end(app);
        self.ask(app, Request::StartStopped);
        self.listen(app);
        assert_eq!(self.supervisor.workers(&AppName::new(app)).count(), 1);
    }

    /// The fold of the file is the state.
    fn check(&self) {
        let read = decode(&self.file).unwrap();
        assert_eq!(read.boot, "boot");
        assert_eq!(read.daemon, self.state);
        assert_eq!(whole(&read.supervisor), whole(&self.supervisor));
    }
}

fn whole(supervisor: &Supervisor) -> Vec<u8> {
    let state = DaemonState::default();
    match Track::default().next("", &state, supervisor) {
        Ok(Lines::Whole(lines) | Lines::More(lines)) => lines,
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn a_state_of_version_1_is_read() {
    let state = decode(VERSION_1).unwrap();
    assert_eq!(state.boot, "11111111-2222-3333-4444-555555555555");
    assert_eq!(state.daemon.ending, Some(Ending::Signal));
    let started = StartTime(99);
    assert_eq!(state.daemon.processes[&7], Process { pid: 4711, started });
    assert_eq!(names(&state), ["back", "ending", "web"]);
}

#[test]
fn a_state_of_version_2_is_read() {
    let state = decode(VERSION_2).unwrap();
    assert_eq!(state.boot, "11111111-2222-3333-4444-555555555555");
    assert_eq!(names(&state), ["bad", "web"]);
    assert_eq!(state.daemon.processes.len(), 5);
    assert_eq!(state.daemon.actions.len(), 3);
    assert_eq!(state.supervisor.under_way().count(), 2);
    let web = AppName::new("web");
    let revisions = state.supervisor.workers(&web).map(|w| w.revision);
    assert_eq!(revisions.collect::<Vec<_>>(), [1, 1, 2]);
}

#[test]
fn every_part_of_the_state_is_in_the_file() {
    let mut daemon = Daemon::new();
    daemon.start("web", 10);
    daemon.check();
    daemon.state.processes = (0..9).map(|n| (n, process(1))).collect();
    daemon.state.foreground = true;
    daemon.state.ending = Some(Ending::Kill);
    daemon.state.upgrade = Some(Upgrade {
        token: 1,
        program: "/rsup".into(),
        result: None,
    });
    daemon.state.results = (0..5).map(|n| (OpId(n), Ok(()))).collect();
    let begun = |id| Begun {
        id: ActionId(id),
        kill: false,
        parts: Vec::new(),
    };
    daemon.state.actions = (0..5).map(begun).collect();
    daemon.save();
    daemon.check();
    daemon.state.processes.remove(&4);
    daemon.state.processes.insert(5, process(2));
    daemon.state.ending = None;
    daemon.state.results.retain(|(op, _)| op.0 % 2 == 1);
    daemon.state.results.push_back((OpId(9), Ok(())));
    daemon.state.actions.pop_front();
    daemon.state.actions.push_back(begun(7));
    daemon.supervisor.settings = Some(crate::core::Settings {
        source: "/supervisor.toml".into(),
        spec: Default::default(),
    });
    daemon.save();
    daemon.check();
    daemon.state.upgrade = None;
    daemon.state.results = VecDeque::new();
    daemon.supervisor.settings = None;
    daemon.save();
    daemon.check();
    daemon.ask("web", Request::Delete);
    daemon.check();
    daemon.end("web");
    daemon.check();
    assert_eq!(decode(&daemon.file).unwrap().supervisor.names().count(), 0);
    // Another app of that name has a first revision too.
    daemon.start("web", 20);
    daemon.check();
    assert!(daemon.appended.is_some(), "all in one file");
}

/// Wherever the writing of a line was cut off, the lines before are the state.
#[test]
fn a_line_that_is_not_complete_counts_for_nothing() {
    let mut daemon = Daemon::new();
    daemon.start("web", 10);
    daemon.ask("web", Request::Stop);
    let file = &daemon.file;
    let ends = (1..=file.len()).filter(|end| file[end - 1] == b'\n');
    // Behind the head.
    let ends: Vec<usize> = ends.skip(1).collect();
    assert_eq!(ends.len(), 3);
    for length in 0..=file.len() {
        let read = decode(&file[..length]);
        let complete = ends.iter().rposition(|end| *end <= length);
        match (read, complete) {
            (Err(ReadError::Broken(_)), None) => {}
            (Ok(read), Some(lines)) => assert_eq!(read.daemon.written, lines as u64 + 1),
            (read, complete) => panic!("{length}: {read:?} {complete:?}"),
        }
    }
    // What a file system may make of a line that it lost: the last one, and no other, may be anything.
    let with = |at: usize, byte: u8| {
        let mut file = file.clone();
        file[at] = byte;
        decode(&file)
    };
    for byte in [0, b'{', 0xff] {
        assert_eq!(with(ends[1] + 9, byte).unwrap().daemon.written, 2);
        let why = with(ends[0] + 9, byte).unwrap_err().to_string();
        assert!(why.contains("line 3"), "{why}");
    }
    // A line that says what no rsup writes is none that was cut off.
    let mut strange = file.clone();
    strange.extend(b"{\"supervisor\":{\"apps\":{\"web\":{\"instances\":\"many\"}}}}\n");
    assert!(matches!(decode(&strange), Err(ReadError::Broken(_))));
    let mut strange = file.clone();
    strange.extend(b"{\"supervisor\":{\"apps\":{\"web\":{\"slots\":{\"9999\":null}}}}}\n");
    assert!(matches!(decode(&strange), Err(ReadError::Broken(_))));
}

#[test]
fn a_save_costs_what_changed() {
    // The bytes of one request on an app, beside so many others, each with an environment of this size.
    let cost = |others: usize, more: usize, history: usize| {
        let mut daemon = Daemon::new();
        daemon.start("web", 10);
        for n in 0..others {
            daemon.start(&format!("other-{n}"), more);
        }
        for _ in 0..history {
            daemon.turn("web");
        }
        daemon.track.growth.replaced(&daemon.file);
        daemon.ask("web", Request::Stop);
        daemon.check();
        daemon.appended.unwrap()
    };
    let least = cost(0, 0, 0);
    assert!(least < 1000, "{least}");
    // Numbers of saves and actions may have more digits.
    for (others, more, history) in [(200, 0, 0), (3, 100_000, 0), (0, 0, 300)] {
        let cost = cost(others, more, history);
        assert!(
            cost < least + 100,
            "{cost} {least}: {others} {more} {history}"
        );
    }
}

#[test]
fn a_revision_is_written_once() {
    let mut daemon = Daemon::new();
    daemon.start("web", 10_000);
    for n in 1..=5 {
        daemon.turn("web");
        let file = String::from_utf8_lossy(&daemon.file).into_owned();
        assert_eq!(file.matches("cwd_resolved").count(), 1, "{n}");
    }
}

/// However long the story is, the file stays within a few times what the state takes.
#[test]
fn a_file_is_written_anew_when_it_has_grown() {
    let mut daemon = Daemon::new();
    daemon.start("web", 10_000);
    let mut wholes = 0;
    for _ in 0..2000 {
        daemon.turn("web");
        wholes += u32::from(daemon.appended.is_none());
        assert!(
            daemon.file.len() < 3 * 15_000 + 64 * 1024,
            "{}",
            daemon.file.len()
        );
    }
    assert!((5..100).contains(&wholes), "{wholes}");
    daemon.check();
}

#[test]
fn unknown_fields_are_ignored() {
    let mut daemon = Daemon::new();
    daemon.start("web", 10);
    let file = String::from_utf8(daemon.file.clone()).unwrap();
    let more = [
        "{\"version\":3,",
        "\"supervisor\":{",
        "\"web\":{",
        "\"daemon\":{",
    ];
    let mut strange = file.clone();
    for place in more {
        assert!(strange.contains(place), "{place}: {strange}");
        strange = strange.replacen(place, &format!("{place}\"of_a_later_version\":[1],"), 1);
    }
    let read = decode(strange.as_bytes()).unwrap();
    assert_eq!(whole(&read.supervisor), whole(&daemon.supervisor));
}

#[test]
fn another_version_and_nonsense_are_told_apart() {
    for future in [
        &br#"{"version": 99, "rsup": "7.0", "what": ["ever"]}"#[..],
        b"{\"version\":99,\"rsup\":\"7.0\"}\nwhat ever\n",
    ] {
        let future = decode(future).unwrap_err().to_string();
        assert!(
            future.contains("rsup 7.0") && future.contains("version 99"),
            "{future}"
        );
    }
    for broken in [
        &b""[..],
        b"{",
        b"[]",
        b"{\"version\": 1}",
        b"{\"version\": 3}",
        b"{\"version\": 3}\n",
        b"{\"version\": 3}\n\n",
        &VERSION_1[..VERSION_1.len() - 9],
    ] {
        assert!(matches!(decode(broken), Err(ReadError::Broken(_))));
    }
}

#[test]
fn what_is_left_for_an_older_program_is_read() {
    let mut state = decode(VERSION_2).unwrap();
    // An action that failed, with its reason.
    let failed = state.daemon.results[0].0;
    state.daemon.results[0] = (failed, Err(ActionError::UnknownApp));
    let results = state.daemon.results.clone();
    let old = version_1::encode("boot", &state.daemon, &state.supervisor).unwrap();
    let read = decode(&old).unwrap();
    assert_eq!(read.daemon.processes, state.daemon.processes);
    assert_eq!(read.daemon.actions, state.daemon.actions);
    let codes = |results: &crate::daemon::clients::remembered::Results| -> Vec<_> {
        let code = |result: &Result<(), ActionError>| result.as_ref().err().map(ActionError::code);
        results
            .iter()
            .map(|(op, result)| (*op, code(result)))
            .collect()
    };
    assert_eq!(codes(&read.daemon.results), codes(&results));
    let workers = |state: &State| -> Vec<(u64, Option<u32>)> {
        let all = state.supervisor.names();
        let all = all.flat_map(|name| state.supervisor.workers(name));
        all.map(|w| (w.revision, w.pid)).collect()
    };
    assert_eq!(workers(&read), workers(&state));
    assert_eq!(read.supervisor.under_way().count(), 2);
}
