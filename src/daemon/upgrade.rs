//! `rsup upgrade`: this process becomes another program, with everything it has.
//!
//! 1. The new program is tried: it must be able to read the state as it is now. One that is too old for this
//!    gets it in version 1.
//! 2. Workers between fork and exec, and connections that rsup itself passes on, are waited for.
//! 3. A *manifest* in a memfd names every descriptor and holds the state; execve(2) leaves them open.
//!    The pid stays the same, so workers stay our children and the keeper notices nothing.
//! 4. A new program that cannot begin executes the old one with the same manifest. One that dies is
//!    replaced by the keeper, which has the old program until the new one is up.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::clients::{Caller, reply};
use super::fdstore::{Backend, FdStore};
use super::fleet::command::{Command, Commands, Failed, c_strings};
use super::fleet::isolation::Confinement;
use super::presence::Handles;
use super::start::Inheritance;
use super::store::{self, State, Upgrade};
use super::systemd::{self, Received};
use super::{Daemon, Event, Options, log_error, now};
use crate::control::{self, Answer, Failure, FailureCode, HowUpgraded};
use crate::core::{Time, WorkerPhase};
use crate::exit::Exit;
use crate::keeper::link::Link;
use crate::sys::{durable, inherit, process};

/// Names the descriptor of the manifest.
const MANIFEST: &str = "RSUP_MANIFEST_FD";

/// Names the descriptor of the state that a program is to try.
const STATE: &str = "RSUP_STATE_FD";

/// What a program says that can go on.
pub const CAN_GO_ON: &str = "rsup can go on with this state";

/// What it says, with the cause, of a state that it does not read.
const REFUSED: &str = "the state cannot be taken over";

/// How long the new program may take to read the state when it is tried.
const TRIAL: Duration = Duration::from_secs(10);

/// What the client is told first is on its way by then.
const SETTLE: Duration = Duration::from_millis(20);

/// How long connections that rsup passes on may take to end.
const QUIET: Duration = Duration::from_secs(10);

/// All that passes from one program to the next. Fields that are new get `#[serde(default)]`.
#[derive(Serialize, Deserialize)]
struct Manifest {
    /// As in the file, which is not read again: a full disk must not matter.
    state: String,
    options: Options,
    /// By name in the fdstore.
    held: BTreeMap<String, i32>,
    /// The socket to the keeper, if there is one.
    keeper: Option<i32>,
    made_keeper: Option<u32>,
    /// Who is asked for the orphans of adopted workers.
    born_of: Option<u32>,
    lock: i32,
    #[serde(default)]
    former_locks: Vec<i32>,
    control: i32,
    /// Sockets of `.socket` units.
    #[serde(default)]
    given: Vec<i32>,
    /// How to speak to the service manager: for the environment.
    #[serde(default)]
    variables: Vec<(String, String)>,
    /// The program before, to go back to.
    previous: i32,
    /// Why the new program could not begin: then this is the old one again.
    failed: Option<String>,
}

/// The way back to the program before: everything stays open until the new one is up.
pub struct Back {
    manifest: Manifest,
    open: Vec<OwnedFd>,
    previous: OwnedFd,
}

/// An upgrade that waits for the right moment.
pub struct Pending {
    program: PathBuf,
    token: u64,
    force: bool,
    since: Time,
    reads: Reads,
}

/// Which form of the state a program has shown that it reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Current,
    Version1,
}

/// Whether this program was executed in place of another one, which goes on with it.
pub fn takes_over() -> bool {
    std::env::var_os(MANIFEST).is_some()
}

/// What the former program left, if this one was executed by it.
///
/// # Errors
/// When it cannot be understood. Then there is no way back but the keeper's.
pub fn inherited() -> Option<io::Result<(Inheritance, Back)>> {
    Some(inherit::take_named(MANIFEST)?.and_then(take_over))
}

fn take_over(manifest: OwnedFd) -> io::Result<(Inheritance, Back)> {
    let text = read_memory(manifest)?;
    let manifest: Manifest = serde_json::from_str(&text)?;
    let mut open = Vec::new();
    let mut take = |number: i32| -> io::Result<OwnedFd> {
        let fd = inherit::take(number)?;
        let ours = fd.try_clone()?;
        open.push(fd);
        Ok(ours)
    };
    let held = manifest
        .held
        .iter()
        .map(|(name, fd)| Ok((name.clone(), take(*fd)?)))
        .collect::<io::Result<_>>()?;
    let keeper = manifest.keeper.map(&mut take).transpose()?;
    let sockets = manifest
        .given
        .iter()
        .map(|fd| take(*fd))
        .collect::<io::Result<_>>()?;
    let former_locks = manifest
        .former_locks
        .iter()
        .map(|fd| Ok(take(*fd)?.into()))
        .collect::<io::Result<_>>()?;
    let handles = Handles {
        lock: take(manifest.lock)?.into(),
        former_locks,
        control: take(manifest.control)?,
    };
    let previous = inherit::take(manifest.previous)?;
    let inheritance = Inheritance {
        options: manifest.options.clone(),
        handles,
        held,
        keeper,
        made_keeper: manifest.made_keeper,
        born_of: manifest.born_of,
        state: Some(manifest.state.clone()),
        failed: manifest.failed.clone(),
        received: Received {
            sockets,
            ..Received::default()
        },
    };
    Ok((
        inheritance,
        Back {
            manifest,
            open,
            previous,
        },
    ))
}

impl Inheritance {
    /// The fdstore of the program before.
    pub fn fdstore(&mut self, systemd: Option<Arc<systemd::Link>>) -> FdStore {
        let backend = match self.keeper.take().map(Link::resume) {
            Some(Ok((link, _))) => Backend::Keeper(link),
            Some(Err(why)) => {
                warn!("the keeper cannot be used: {why}");
                Backend::NoKeeper {
                    next: std::time::Instant::now(),
                }
            }
            None => systemd.map_or(Backend::None, Backend::Systemd),
        };
        FdStore::new(backend, std::mem::take(&mut self.held), self.made_keeper)
    }
}

impl Back {
    /// The former program takes everything back. Returns only if it cannot be executed.
    pub fn go(mut self, folder: &Path, why: &str) -> io::Error {
        warn!("this rsup cannot begin: {why}; the former one goes on");
        // From back to back there is no way.
        if self.manifest.failed.is_some() {
            return io::Error::other(why.to_owned());
        }
        self.manifest.failed = Some(why.to_owned());
        let path = format!("/proc/self/fd/{}", self.previous.as_raw_fd());
        let fds: Vec<BorrowedFd<'_>> = self
            .open
            .iter()
            .chain([&self.previous])
            .map(AsFd::as_fd)
            .collect();
        let Err(why) = execute(Path::new(&path), folder, &self.manifest, &fds);
        why
    }
}

/// For `rsup daemon --try-state`: whether this program can go on with a state.
///
/// # Errors
/// Why not, in words.
pub fn try_state() -> Result<(), String> {
    let given = inherit::take_named(STATE).ok_or("no state was given")?;
    let text = given
        .and_then(read_memory)
        .map_err(|why| format!("the state cannot be read: {why}"))?;
    store::decode(text.as_bytes())
        .map(|_| ())
        .map_err(|why| format!("{REFUSED}: {why}"))
}

/// In `folder` only where there are no memfds.
fn memory(folder: &Path, text: &[u8]) -> io::Result<File> {
    let mut file = durable::nameless(c"rsup-state", folder)?;
    file.write_all(text)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn read_memory(fd: OwnedFd) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::from(fd);
    // The position is shared with the writer.
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Runs the program to see whether it can. The error says what came of it.
async fn try_out(
    commands: &Commands,
    program: PathBuf,
    state: Vec<u8>,
    folder: &Path,
) -> Result<(), String> {
    let state = memory(folder, &state).map_err(|why| why.to_string())?;
    let command = Command {
        argv: c_strings([program.to_string_lossy().as_ref(), "daemon", "--try-state"])?,
        env: environment(None, &[])?,
        cwd: "/".into(),
        confinement: Confinement::default(),
        extra: vec![(state.into(), STATE.to_owned())],
        limit: TRIAL,
    };
    let (mut can_go_on, mut words) = (false, Vec::new());
    let end = commands.run(command, |line| {
        can_go_on |= line.contains(CAN_GO_ON);
        let line = line.trim();
        if !line.is_empty() && words.len() < 5 {
            words.push(line.to_owned());
        }
    });
    match end.await {
        Ok(Exit::Code(0)) if can_go_on => Ok(()),
        Ok(Exit::Code(0)) => Err("it is no rsup that could go on from this one".into()),
        Ok(exit) if words.is_empty() => Err(exit.to_string()),
        Ok(exit) => Err(format!("{exit}: {}", words.join(" / "))),
        Err(Failed::TookTooLong) => Err(format!("it did not end within {} s", TRIAL.as_secs())),
        Err(Failed::NotRun(why) | Failed::Own(why)) => Err(why),
    }
}

/// This process's own, with the descriptor of a manifest.
pub fn environment(
    manifest: Option<i32>,
    variables: &[(String, String)],
) -> Result<Vec<CString>, String> {
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os()
        .filter(|(name, _)| name != MANIFEST && name != STATE && name != process::NOFILE)
    {
        let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
        env.push(CString::new(entry).map_err(|why| why.to_string())?);
    }
    for (name, value) in variables {
        env.push(CString::new(format!("{name}={value}")).map_err(|why| why.to_string())?);
    }
    if let Some(number) = manifest {
        env.push(CString::new(format!("{MANIFEST}={number}")).map_err(|why| why.to_string())?);
    }
    if let Some(soft) = process::nofile_found() {
        env.push(
            CString::new(format!("{}={soft}", process::NOFILE)).map_err(|why| why.to_string())?,
        );
    }
    Ok(env)
}

/// Becomes the program. Returns only if that fails, and then everything is as before.
fn execute(
    program: &Path,
    folder: &Path,
    manifest: &Manifest,
    fds: &[BorrowedFd<'_>],
) -> io::Result<Infallible> {
    let memory = memory(folder, &serde_json::to_vec(manifest)?)?;
    let number = inherit::leave_open(&memory)?;
    let result = (|| {
        for fd in fds {
            inherit::leave_open(fd)?;
        }
        let path = CString::new(program.as_os_str().as_bytes())?;
        let env = environment(Some(number), &manifest.variables).map_err(io::Error::other)?;
        Ok(nix::unistd::execve(&path, &[c"rsup", c"daemon"], &env)?)
    })();
    for fd in fds {
        let _ = inherit::close_on_exec(fd);
    }
    result
}

impl Daemon {
    /// Tries the new program, and then waits for the right moment.
    pub(super) fn upgrade(&mut self, program: PathBuf, token: u64, force: bool, answer: Caller) {
        let refused = |why: String| {
            Answer::Failed(
                Failure::new(FailureCode::BadRequest, why)
                    .hint("the rsup that runs goes on as it is"),
            )
        };
        if self.upgrading.is_some() || self.ending {
            let what = if self.ending {
                "rsup is about to end"
            } else {
                "another upgrade is under way"
            };
            return drop(answer.send(refused(what.into())));
        }
        let state = match self.store.whole(&self.supervisor) {
            Ok(state) => state,
            Err(why) => {
                return drop(answer.send(refused(format!(
                    "the state cannot be put into words: {why}"
                ))));
            }
        };
        let as_version_1 = self.store.as_version_1(&self.supervisor);
        let events = self.events.clone();
        let folder = self.paths.runtime.clone();
        let commands = self.fleet.commands.clone();
        tokio::spawn(async move {
            let mut reads = Reads::Current;
            let mut tried = try_out(&commands, program.clone(), state, &folder).await;
            if let Err(why) = &tried
                && why.contains(REFUSED)
            {
                let older = match as_version_1 {
                    Ok(state) => try_out(&commands, program.clone(), state, &folder).await,
                    Err(why) => Err(format!("version 1 has no words for the state: {why}")),
                };
                reads = Reads::Version1;
                tried =
                    older.map_err(|older| format!("{why}; nor in version 1 of the state: {older}"));
            }
            match tried {
                Ok(()) => {
                    reply::<control::Upgrade>(&answer, Ok(control::Upgrading));
                    let _ = events.send(Event::Upgrade(Pending {
                        program,
                        token,
                        force,
                        since: now(),
                        reads,
                    }));
                }
                Err(why) => {
                    drop(answer.send(refused(format!("cannot run {}: {why}", program.display()))))
                }
            }
        });
    }

    pub(super) fn on_upgrade(&mut self, pending: Pending) {
        let Pending { program, token, .. } = &pending;
        self.store.upgrade_begins(Upgrade {
            token: *token,
            program: program.clone(),
            result: None,
        });
        self.upgrading = Some(pending);
    }

    /// What became of an upgrade.
    pub(super) fn how_upgraded(&self, token: u64) -> HowUpgraded {
        let upgrade = self.store.upgrade();
        match upgrade.filter(|upgrade| upgrade.token == token) {
            None => HowUpgraded::Unknown,
            Some(Upgrade { result: None, .. }) => HowUpgraded::UnderWay,
            Some(Upgrade {
                result: Some(Ok(version)),
                ..
            }) => HowUpgraded::Done {
                version: version.clone(),
            },
            Some(Upgrade {
                result: Some(Err(why)),
                ..
            }) => HowUpgraded::Failed { why: why.clone() },
        }
    }

    /// When to look again whether an upgrade can be done.
    pub(super) fn upgrade_wakes(&self) -> Option<tokio::time::Instant> {
        self.upgrading
            .as_ref()
            .map(|_| tokio::time::Instant::now() + SETTLE)
    }

    /// Called at every turn of the loop.
    pub(super) fn upgrade_if_due(&mut self) {
        let Some(pending) = &self.upgrading else {
            return;
        };
        let waited = now().since(pending.since);
        if waited < SETTLE {
            return;
        }
        let relayed = self.network.under_way();
        let in_between = self.supervisor.names().any(|app| {
            self.supervisor
                .workers(app)
                .any(|worker| worker.phase() == WorkerPhase::Spawning)
        });
        if (relayed > 0 && !pending.force) || in_between {
            if waited >= QUIET {
                let why = match relayed {
                    0 => "a worker does not come to its start".to_owned(),
                    n => format!(
                        "rsup itself still passes on {n} connection(s), which would break; `--force` breaks them"
                    ),
                };
                self.upgrade_failed(why);
            }
            return;
        }
        let (program, reads) = (pending.program.clone(), pending.reads);
        let Err(why) = self.become_program(&program, reads);
        self.upgrade_failed(format!("cannot run {}: {why}", program.display()));
    }

    fn upgrade_failed(&mut self, why: String) {
        warn!("not upgraded: {why}");
        self.upgrading = None;
        self.store.upgrade_ended(Err(why));
        self.store.unsaved_for_reboot();
    }

    fn become_program(&mut self, program: &Path, reads: Reads) -> io::Result<Infallible> {
        info!("becoming {}", program.display());
        // Written to the disk first: the thread that does so ends with this program.
        self.save_for_upgrade();
        let state = match reads {
            Reads::Current => self.store.whole(&self.supervisor)?,
            Reads::Version1 => {
                let state = self.store.as_version_1(&self.supervisor);
                let state = state.map_err(io::Error::other)?;
                self.store.leave(&state);
                state
            }
        };
        let state = String::from_utf8(state).map_err(io::Error::other)?;
        let previous = File::open("/proc/self/exe")?;
        let (held, keeper) = self.fdstore.descriptors();
        let handles = self.presence.handles();
        let manifest = Manifest {
            state,
            options: self.options.clone(),
            held: held
                .iter()
                .map(|(name, fd)| ((*name).to_owned(), fd.as_raw_fd()))
                .collect(),
            keeper: keeper.map(|fd| fd.as_raw_fd()),
            made_keeper: self.fdstore.made_keeper(),
            born_of: self.keeper,
            lock: handles.lock.as_fd().as_raw_fd(),
            former_locks: handles
                .former_locks
                .iter()
                .map(AsRawFd::as_raw_fd)
                .collect(),
            control: handles.control.as_raw_fd(),
            given: self
                .network
                .given()
                .sockets()
                .map(|fd| fd.as_raw_fd())
                .collect(),
            variables: self
                .systemd
                .variables()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            previous: previous.as_raw_fd(),
            failed: None,
        };
        let own = [
            handles.lock.as_fd(),
            handles.control.as_fd(),
            previous.as_fd(),
        ];
        let fds: Vec<BorrowedFd<'_>> = held
            .into_iter()
            .map(|(_, fd)| fd)
            .chain(keeper)
            .chain(self.network.given().sockets())
            .chain(handles.former_locks.iter().map(AsFd::as_fd))
            .chain(own)
            .collect();
        for console in self.options.console.iter().chain(&self.options.messages) {
            console.flush(SETTLE);
        }
        execute(program, &self.paths.runtime, &manifest, &fds)
    }

    /// Goes on as the new program, or as the old one again.
    pub(super) fn go_on_as(&mut self, state: State, failed: Option<String>) {
        self.adopt(state);
        if let Some(upgrade) = self.store.upgrade() {
            let result = match failed {
                None => Ok(env!("CARGO_PKG_VERSION").to_owned()),
                Some(why) => Err(format!(
                    "{} could not begin: {why}; the former rsup went on",
                    upgrade.program.display()
                )),
            };
            self.store.upgrade_ended(result);
        }
        self.store.unsaved();
    }

    /// A daemon that died in an upgrade was the new program; this is the old one.
    pub(super) fn upgrade_died(&mut self) {
        let upgrade = self.store.upgrade();
        if let Some(upgrade) = upgrade.filter(|upgrade| upgrade.result.is_none()) {
            let why = format!(
                "{} died before it was up; the former rsup went on",
                upgrade.program.display()
            );
            log_error("not upgraded", &why);
            self.store.upgrade_ended(Err(why));
        }
    }
}
