//! What a state file says. Its first line is its head; each further line is one save: the parts of the
//! state that changed. The state is the fold of the lines. Versions 1 and 2 were one document each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::reading::ReadError;
use crate::config::AppName;
use crate::control::ActionId;
use crate::core::{Change, OLDEST_STATE, OpId, STATE_VERSION, Supervisor, Written};
use crate::daemon::clients::remembered::{Begun, Results};
use crate::model::ActionError;
use crate::sys::procfs::StartTime;

/// What was read.
#[derive(Debug, Deserialize)]
pub struct State {
    /// The kernel's name of the boot in which it was written.
    pub boot: String,
    pub daemon: DaemonState,
    pub supervisor: Supervisor,
}

/// What the daemon knows beside the supervisor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonState {
    /// Every app is being stopped, and then the daemon ends.
    pub ending: Option<Ending>,
    /// The daemon runs in the foreground: its caller starts the next one.
    pub foreground: bool,
    /// Processes of workers, by generation.
    pub processes: BTreeMap<u64, Process>,
    /// How the latest actions ended: who waited for one may have lost the daemon before its answer.
    pub results: Results,
    /// The latest actions, by the ids that their clients gave them.
    pub actions: VecDeque<Begun>,
    /// The latest.
    pub upgrade: Option<Upgrade>,
    /// How often the live state was written: of two, the one with more is the later one.
    pub written: u64,
}

/// An upgrade, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// By which the client knows it.
    pub token: u64,
    pub program: PathBuf,
    /// The version that runs now, or why it was not done. None while it is under way.
    pub result: Option<Result<String, String>>,
}

/// Why a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The user wants everything to be down (`rsup kill`): apps are known to the next daemon, and stay down.
    Kill,
    /// The machine or another supervisor ends it: apps come back with the next one.
    Signal,
}

/// A worker's process, named for good: a number alone may be another's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub started: StartTime,
}

/// The first line. Its version is looked at first: the rest may mean something else in another one.
#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    rsup: String,
    #[serde(default)]
    boot: String,
}

/// Each other line. What is absent is the same as before; unknown fields are ignored, and fields that are
/// new get a default.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    daemon: DaemonChange,
    supervisor: Change,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct DaemonChange {
    written: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<Maybe<Ending>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    foreground: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upgrade: Option<Maybe<Upgrade>>,
    /// None: gone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    processes: BTreeMap<u64, Option<Process>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    forgotten_results: Vec<OpId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    results: Vec<(OpId, Result<(), ActionError>)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    forgotten_actions: Vec<ActionId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    actions: Vec<Begun>,
}

/// An optional value that was set: in a list, so that «none» differs from a field that is absent.
type Maybe<T> = Vec<T>;

/// What may have changed since a save.
#[derive(Debug, Default)]
pub struct Touched {
    pub apps: BTreeSet<AppName>,
    /// Whose processes.
    pub generations: BTreeSet<u64>,
}

/// The state that a file has: the fold of its lines.
#[derive(Debug, Default)]
pub struct OnFile {
    daemon: DaemonState,
    supervisor: Written,
}

impl OnFile {
    /// The line that makes this state the one that is now.
    pub fn line(&self, daemon: &DaemonState, supervisor: &Supervisor, touched: &Touched) -> Line {
        Line {
            daemon: self.daemon_change(daemon, &touched.generations),
            supervisor: self.supervisor.change(supervisor, &touched.apps),
        }
    }

    fn daemon_change(&self, now: &DaemonState, generations: &BTreeSet<u64>) -> DaemonChange {
        let was = &self.daemon;
        // Every field is named: a new one must not be forgotten here.
        let DaemonState {
            ending,
            foreground,
            processes,
            results,
            actions,
            upgrade,
            written,
        } = now;
        let process = |generation: &u64| {
            let (was, now) = (was.processes.get(generation), processes.get(generation));
            (was != now).then(|| (*generation, now.copied()))
        };
        let (forgotten_results, new_results) = list_change(&was.results, results, |(op, _)| *op);
        let (forgotten_actions, new_actions) = list_change(&was.actions, actions, |begun| begun.id);
        DaemonChange {
            written: *written,
            ending: (was.ending != *ending).then(|| ending.iter().copied().collect()),
            foreground: (was.foreground != *foreground).then_some(*foreground),
            upgrade: (was.upgrade != *upgrade).then(|| upgrade.iter().cloned().collect()),
            processes: generations.iter().filter_map(process).collect(),
            forgotten_results,
            results: new_results,
            forgotten_actions,
            actions: new_actions,
        }
    }

    /// # Errors
    /// When no rsup can have written the line.
    pub fn apply(&mut self, line: Line) -> Result<(), String> {
        let Line { daemon, supervisor } = line;
        let DaemonChange {
            written,
            ending,
            foreground,
            upgrade,
            processes,
            forgotten_results,
            results,
            forgotten_actions,
            actions,
        } = daemon;
        let own = &mut self.daemon;
        own.written = written;
        if let Some(ending) = ending {
            own.ending = ending.into_iter().next();
        }
        if let Some(foreground) = foreground {
            own.foreground = foreground;
        }
        if let Some(upgrade) = upgrade {
            own.upgrade = upgrade.into_iter().next();
        }
        for (generation, process) in processes {
            match process {
                Some(process) => drop(own.processes.insert(generation, process)),
                None => drop(own.processes.remove(&generation)),
            }
        }
        change_list(&mut own.results, &forgotten_results, results, |(op, _)| *op);
        change_list(&mut own.actions, &forgotten_actions, actions, |begun| {
            begun.id
        });
        self.supervisor.apply(supervisor)
    }

    fn finish(self, boot: String) -> Result<State, String> {
        Ok(State {
            boot,
            daemon: self.daemon,
            supervisor: self.supervisor.finish()?,
        })
    }
}

/// Of a list that only loses entries and grows at its end: what it lost, and what is new.
fn list_change<T: Clone, K: PartialEq>(
    was: &VecDeque<T>,
    now: &VecDeque<T>,
    key: impl Fn(&T) -> K,
) -> (Vec<K>, Vec<T>) {
    let mut there = now.iter().peekable();
    let mut lost = Vec::new();
    for entry in was {
        if there.next_if(|next| key(next) == key(entry)).is_none() {
            lost.push(key(entry));
        }
    }
    (lost, there.cloned().collect())
}

fn change_list<T, K: PartialEq>(
    list: &mut VecDeque<T>,
    lost: &[K],
    new: Vec<T>,
    key: impl Fn(&T) -> K,
) {
    let mut lost = lost.iter().peekable();
    list.retain(|entry| lost.next_if(|lost| **lost == key(entry)).is_none());
    list.extend(new);
}

/// The head of a file, with its newline.
///
/// # Errors
/// None is known: everything in it can be written as JSON.
pub fn head(boot: &str) -> serde_json::Result<Vec<u8>> {
    in_one_line(&Head {
        version: STATE_VERSION,
        rsup: env!("CARGO_PKG_VERSION").to_owned(),
        boot: boot.to_owned(),
    })
}

/// A value with the newline that completes it.
///
/// # Errors
/// As [`head`].
pub fn in_one_line(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Understands what was written, by this version or one before it. A kill or a loss of power can leave the last
/// line incomplete: no effect of it was carried out yet, and it counts for nothing.
///
/// # Errors
/// See [`ReadError`].
pub fn decode(bytes: &[u8]) -> Result<State, ReadError> {
    let broken = |why: serde_json::Error| ReadError::Broken(why.to_string());
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter();
    let Head {
        version,
        rsup,
        boot,
    } = values
        .next()
        .ok_or_else(|| ReadError::Broken("it is empty".into()))?
        .map_err(broken)?;
    if !(OLDEST_STATE..=STATE_VERSION).contains(&version) {
        return Err(ReadError::Version { version, rsup });
    }
    if version < STATE_VERSION {
        return serde_json::from_slice(bytes).map_err(broken);
    }
    let end = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let mut lines = bytes[..end].split(|byte| *byte == b'\n').skip(1).peekable();
    let mut state = OnFile::default();
    let mut number = 1;
    while let Some(line) = lines.next() {
        number += 1;
        let read = match serde_json::from_slice(line) {
            Ok(line) => state.apply(line),
            Err(why) if lines.peek().is_none() && number > 2 && !why.is_data() => break,
            Err(why) => Err(why.to_string()),
        };
        read.map_err(|why| ReadError::Broken(format!("line {number}: {why}")))?;
    }
    if number < 2 {
        return Err(ReadError::Broken("it ends after its first line".into()));
    }
    state.finish(boot).map_err(ReadError::Broken)
}
