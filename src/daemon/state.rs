//! The state, written down: for the next daemon of this boot, and for the next boot.
//!
//! Two files with the same content. The *live* one, in the runtime folder, is written before effects
//! are carried out, and is gone once a daemon has ended on purpose; it need not survive the machine,
//! so nobody waits for a disk. The *saved* one, in the state folder, is written by a thread of its
//! own, with fsync(2), whenever something changed that a reboot must not forget. Both are replaced
//! by rename(2), mode 0600.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::clients::remembered::{Begun, Results};
use crate::config::AppName;
use crate::core::{OLDEST_STATE, STATE_VERSION, Supervisor};
use crate::paths::Paths;
use crate::sys::process;
use crate::sys::procfs::{self, StartTime};

/// What is written.
#[derive(Serialize)]
struct Writing<'a> {
    version: u32,
    rsup: &'static str,
    boot: &'a str,
    daemon: &'a DaemonState,
    supervisor: &'a Supervisor,
}

/// What was read.
#[derive(Debug, Deserialize)]
pub struct State {
    /// The kernel's name of the boot in which it was written.
    pub boot: String,
    pub daemon: DaemonState,
    pub supervisor: Supervisor,
}

/// What the daemon knows beside the supervisor. Fields that are new get `#[serde(default)]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DaemonState {
    /// Every app is being stopped, and then the daemon ends.
    #[serde(default)]
    pub ending: Option<Ending>,
    /// The daemon runs in the foreground: whoever started it sees to its next start.
    #[serde(default)]
    pub foreground: bool,
    /// Processes of workers, by generation.
    #[serde(default)]
    pub processes: BTreeMap<u64, Process>,
    /// How the latest actions ended: who waited for one may have lost the daemon before its answer.
    #[serde(default)]
    pub results: Results,
    /// The latest actions, by the ids that their clients gave them.
    #[serde(default)]
    pub actions: VecDeque<Begun>,
    /// The latest.
    #[serde(default)]
    pub upgrade: Option<Upgrade>,
    /// How often the live state was written: of two, the one with more is the later one.
    #[serde(default)]
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

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("there is none")]
    None,
    #[error("{0}")]
    Io(io::Error),
    #[error(
        "it was written by rsup {rsup} in a form (version {version}) that this rsup does not know"
    )]
    Version { version: u32, rsup: String },
    #[error("it cannot be understood: {0}")]
    Broken(serde_json::Error),
}

/// The state as it is written.
///
/// # Errors
/// None is known: everything in it can be written as JSON.
pub fn encode(boot: &str, rest: &DaemonState, supervisor: &Supervisor) -> io::Result<Vec<u8>> {
    let state = Writing {
        version: STATE_VERSION,
        rsup: env!("CARGO_PKG_VERSION"),
        boot,
        daemon: rest,
        supervisor,
    };
    Ok(serde_json::to_vec(&state)?)
}

/// Understands what was written.
///
/// # Errors
/// See [`ReadError`].
pub fn decode(bytes: &[u8]) -> Result<State, ReadError> {
    // The version is looked at first: the rest may mean something else in another one.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        #[serde(default)]
        rsup: String,
    }
    let Head { version, rsup } = serde_json::from_slice(bytes).map_err(ReadError::Broken)?;
    if !(OLDEST_STATE..=STATE_VERSION).contains(&version) {
        return Err(ReadError::Version { version, rsup });
    }
    serde_json::from_slice(bytes).map_err(ReadError::Broken)
}

/// Reads a state file.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path) -> Result<State, ReadError> {
    match fs::read(path) {
        Ok(bytes) => decode(&bytes),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Err(ReadError::None),
        Err(why) => Err(ReadError::Io(why)),
    }
}

/// How many workers of a dead daemon live; `None` if none has died, or one is at work again.
#[must_use]
pub fn left_behind(paths: &Paths) -> Option<usize> {
    if paths.is_locked() {
        return None;
    }
    let state = read(&paths.live_state()).ok()?;
    let ours = process::boot_id().is_ok_and(|boot| boot == state.boot);
    ours.then(|| {
        state
            .daemon
            .processes
            .values()
            .filter(|p| procfs::is_alive(p.pid, p.started))
            .count()
    })
}

/// The apps that the next daemon will know, where none runs.
pub fn known_from_before(paths: &Paths) -> Vec<AppName> {
    let state = read(&paths.saved_state()).ok();
    state.map_or_else(Vec::new, |state| {
        state.supervisor.names().cloned().collect()
    })
}

/// Whether the next daemon is somebody else's to start, by what the live state says.
pub fn is_of_foreground(path: &Path) -> bool {
    #[derive(Deserialize)]
    struct Head {
        daemon: Foreground,
    }
    #[derive(Deserialize)]
    struct Foreground {
        #[serde(default)]
        foreground: bool,
    }
    fs::read(path).is_ok_and(|bytes| {
        serde_json::from_slice(&bytes).is_ok_and(|head: Head| head.daemon.foreground)
    })
}

/// The same in memory, for who holds descriptors for the next daemon.
///
/// # Errors
/// When there is no memory or descriptor left.
pub fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"rsup-state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Reads what is [in memory](in_memory).
///
/// # Errors
/// See [`ReadError`].
pub fn read_memory(fd: OwnedFd) -> Result<State, ReadError> {
    let mut file = File::from(fd);
    let mut bytes = Vec::new();
    // Whoever wrote it left the position, which all copies share, at its end.
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(ReadError::Io)?;
    decode(&bytes)
}

/// Moves a state that cannot be used out of the way, so that nothing overwrites it; where to.
pub fn put_aside(path: &Path) -> Option<PathBuf> {
    let aside = (0..100)
        .map(|n| path.with_extension(format!("json.unread{n}")))
        .find(|p| !p.exists())?;
    fs::rename(path, &aside).ok().map(|()| aside)
}

/// Replaces a file as a whole, for its owner alone. `durable`: it is on the disk when this returns.
///
/// # Errors
/// As for writing; the file is then as it was.
pub fn write(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // tempfile makes files of mode 0600, and removes them if anything fails.
    let mut file = tempfile::Builder::new()
        .prefix(".state")
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    if durable {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|why| why.error)?;
    if durable {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Writes the saved state in a thread of its own: a disk may take its time. Of what comes while it
/// writes only the latest is written.
pub struct Saver {
    states: mpsc::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Write(Vec<u8>),
    Finish(mpsc::Sender<()>),
}

impl Saver {
    /// `told` hears after each write how it went.
    ///
    /// # Errors
    /// When there are no threads left.
    pub fn start(
        path: PathBuf,
        told: impl Fn(io::Result<()>) + Send + 'static,
    ) -> io::Result<Self> {
        let (states, queue) = mpsc::channel::<Order>();
        let write_all = move || {
            while let Ok(first) = queue.recv() {
                let (mut latest, mut waiting) = (None, Vec::new());
                for order in std::iter::once(first).chain(queue.try_iter()) {
                    match order {
                        Order::Write(state) => latest = Some(state),
                        Order::Finish(done) => waiting.push(done),
                    }
                }
                if let Some(state) = latest {
                    told(write(&path, &state, true));
                }
                waiting
                    .into_iter()
                    .for_each(|done| done.send(()).unwrap_or_default());
            }
        };
        let thread = std::thread::Builder::new()
            .name("rsup-state".into())
            .spawn(write_all)?;
        Ok(Self {
            states,
            thread: Some(thread),
        })
    }

    /// Fails only if the thread has died, which a panic alone could bring about.
    pub fn save(&self, bytes: Vec<u8>) {
        let _ = self.states.send(Order::Write(bytes));
    }

    /// Waits until the latest state is written.
    pub fn finish(&self) {
        let (done, written) = mpsc::channel();
        if self.states.send(Order::Finish(done)).is_ok() {
            let _ = written.recv();
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.finish();
        // Ends the thread.
        self.states = mpsc::channel().0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::core::OpId;

    /// Written by version 1; never to be changed.
    const VERSION_1: &[u8] = include_bytes!("fixtures/state-1.json");

    #[test]
    fn a_state_of_version_1_is_read() {
        let state = decode(VERSION_1).unwrap();
        assert_eq!(state.boot, "11111111-2222-3333-4444-555555555555");
        assert_eq!(state.daemon.ending, Some(Ending::Signal));
        assert_eq!(
            state.daemon.processes[&7],
            Process {
                pid: 4711,
                started: StartTime(99)
            }
        );
        assert_eq!(
            state
                .supervisor
                .names()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["back", "ending", "web"]
        );
    }

    #[test]
    fn what_is_written_is_read_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert!(matches!(read(&path), Err(ReadError::None)));
        let rest = DaemonState {
            ending: None,
            foreground: true,
            processes: [(
                3,
                Process {
                    pid: 5,
                    started: StartTime(6),
                },
            )]
            .into(),
            results: [(OpId(9), Ok(()))].into(),
            actions: VecDeque::new(),
            upgrade: None,
            written: 9,
        };
        for durable in [false, true] {
            write(
                &path,
                &encode("boot", &rest, &Supervisor::new(1)).unwrap(),
                durable,
            )
            .unwrap();
            let state = read(&path).unwrap();
            assert_eq!((state.boot.as_str(), &state.daemon), ("boot", &rest));
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing is left over"
        );
    }

    #[test]
    fn another_version_and_nonsense_are_told_apart_and_kept() {
        let future = decode(br#"{"version": 99, "rsup": "7.0", "what": ["ever"]}"#)
            .unwrap_err()
            .to_string();
        assert!(
            future.contains("rsup 7.0") && future.contains("version 99"),
            "{future}"
        );
        for broken in [
            &b""[..],
            b"{",
            b"[]",
            b"{\"version\": 1}",
            &VERSION_1[..VERSION_1.len() - 9],
        ] {
            assert!(matches!(decode(broken), Err(ReadError::Broken(_))));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        for n in 0..3 {
            fs::write(&path, format!("{n}")).unwrap();
            let aside = put_aside(&path).unwrap();
            assert_eq!(fs::read_to_string(aside).unwrap(), format!("{n}"));
        }
    }

    #[test]
    fn a_saver_writes_the_latest_and_tells_of_failures() {
        let folder = tempfile::tempdir().unwrap();
        let (told, hears) = mpsc::channel();
        let path = folder.path().join("state.json");
        let tell = told.clone();
        let saver = Saver::start(path.clone(), move |how| {
            tell.send(how.is_ok()).unwrap_or_default()
        })
        .unwrap();
        (0..50).for_each(|n| saver.save(format!("{n}").into_bytes()));
        drop(saver);
        assert_eq!(fs::read_to_string(&path).unwrap(), "49");
        let saver = Saver::start(folder.path().join("no/such/folder"), move |how| {
            told.send(how.is_ok()).unwrap_or_default()
        })
        .unwrap();
        saver.save(Vec::new());
        drop(saver);
        let all: Vec<bool> = hears.iter().collect();
        assert!(
            all.len() >= 2 && all[..all.len() - 1].iter().all(|ok| *ok) && !all[all.len() - 1],
            "{all:?}"
        );
    }
}
