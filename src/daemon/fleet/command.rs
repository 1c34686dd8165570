//! Commands that run beside the workers: exec probes, the trial of another program, a client of
//! rsup itself.
//!
//! Each has a time limit, the user, the limits and the cgroup of its [`Confinement`], and its
//! output is read line by line. The task that runs it takes its exit status; [`Commands`] keeps the
//! daemon from reaping it.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::unix::pipe;

use super::isolation::{self, Confinement};
use super::limit::{Overrun, within};
use crate::exit::Exit;
use crate::sys::process;
use crate::sys::readiness::readable;
use crate::sys::spawn::{self, Child, ExecReport, Plan, SpawnError};
use crate::sys::takeover;

/// Bytes of a line beyond these are dropped.
const LINE: usize = 4096;

/// A command to run.
pub struct Command {
    /// Program and arguments, as in [`Plan::argv`].
    pub argv: Vec<CString>,
    /// Exactly this is its environment: see [`c_environment`].
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: PathBuf,
    /// The user and the limits that it runs with.
    pub confinement: Confinement,
    /// Descriptors for it beside its output, as in [`Plan::extra`].
    pub extra: Vec<(OwnedFd, String)>,
    /// A command that takes longer is killed, with what is left of its process group.
    pub limit: Duration,
}

/// Why a command has no exit status.
#[derive(Debug, PartialEq, Eq)]
pub enum Failed {
    /// It could not be run; holds why.
    NotRun(String),
    /// Its time limit passed.
    TookTooLong,
    /// rsup lacked the time or the resources to run it; holds which.
    Own(String),
}

/// The commands under way: children of the daemon that are not workers.
#[derive(Clone, Default)]
pub struct Commands(Arc<Mutex<HashSet<u32>>>);

/// An entry of [`Commands`], removed when dropped.
struct Registered {
    commands: Commands,
    pid: u32,
}

impl Commands {
    fn with<T>(&self, act: impl FnOnce(&mut HashSet<u32>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the process is a command whose end a task waits for.
    pub fn contains(&self, pid: u32) -> bool {
        self.with(|all| all.contains(&pid))
    }

    fn register(&self, pid: u32) -> Registered {
        self.with(|all| all.insert(pid));
        Registered {
            commands: self.clone(),
            pid,
        }
    }

    /// Runs a command to its end, and passes each line of its output to `line`, without its line
    /// end. Output of descendants that outlive the command is not waited for.
    ///
    /// # Errors
    /// See [`Failed`].
    pub async fn run(&self, command: Command, mut line: impl FnMut(&str)) -> Result<Exit, Failed> {
        let (output, plan) = plan(command.argv, command.env, command.cwd, &command.confinement)?;
        let plan = Plan {
            extra: command.extra,
            ..plan
        };
        let Child {
            pid, pidfd, exec, ..
        } = spawn::spawn(plan).map_err(|why| {
            let is_own = matches!(why, SpawnError::ProcessLimit { .. } | SpawnError::FileLimit);
            (if is_own { Failed::Own } else { Failed::NotRun })(why.to_string())
        })?;
        // Before any wait: the daemon must not reap it.
        let _registered = self.register(pid);
        let mut lines = Lines::new(output);
        let mut end = std::pin::pin!(end_of(pid, pidfd, command.limit));
        let exit = loop {
            tokio::select! {
                biased;
                exit = &mut end => break exit,
                true = lines.read() => lines.take(&mut line),
            }
        };
        lines.rest(&mut line);
        if exit.is_ok() {
            executed(exec).await.map_err(Failed::NotRun)?;
        }
        exit
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.commands.with(|all| all.remove(&self.pid));
    }
}

/// The plan of its start, and the end where its output arrives.
fn plan(
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: PathBuf,
    confinement: &Confinement,
) -> Result<(pipe::Receiver, Plan), Failed> {
    let no_pipe = |why: io::Error| {
        let why = crate::sys::limits::or_files(&why);
        Failed::Own(format!("no pipe for the output of a command: {why}"))
    };
    let (ours, theirs) = io::pipe().map_err(no_pipe)?;
    let theirs = OwnedFd::from(theirs);
    if let Some(owner) = confinement.owner() {
        isolation::give(&theirs, owner).map_err(no_pipe)?;
    }
    let output = pipe::Receiver::from_owned_fd(ours.into()).map_err(no_pipe)?;
    let mut plan = Plan::new(argv, cwd, theirs.try_clone().map_err(no_pipe)?, theirs);
    plan.env = env;
    confinement.apply(&mut plan).map_err(Failed::NotRun)?;
    Ok((output, plan))
}

/// Waits for the end of a command; one that takes too long is killed first.
async fn end_of(pid: u32, pidfd: OwnedFd, limit: Duration) -> Result<Exit, Failed> {
    let pidfd = Arc::new(pidfd);
    match within(limit, ended(&pidfd)).await {
        Ok(exit) => Ok(exit),
        Err(overrun) => {
            // An empty group needs no signal.
            let _ = process::signal_group(pid, nix::libc::SIGKILL);
            ended(&pidfd).await;
            Err(match overrun {
                Overrun::Late => Failed::TookTooLong,
                Overrun::Unknown => Failed::Own("it is too busy itself".into()),
            })
        }
    }
}

/// The output of a command, cut into lines.
struct Lines {
    output: pipe::Receiver,
    /// The unfinished line.
    begun: Vec<u8>,
    complete: Vec<Vec<u8>>,
}

impl Lines {
    fn new(output: pipe::Receiver) -> Self {
        Self {
            output,
            begun: Vec::new(),
            complete: Vec::new(),
        }
    }

    /// Waits for more output. False at its end.
    async fn read(&mut self) -> bool {
        loop {
            if self.output.readable().await.is_err() {
                return false;
            }
            match self.read_now() {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }

    fn read_now(&mut self) -> io::Result<usize> {
        let mut buffer = [0; LINE];
        let read = self.output.try_read(&mut buffer)?;
        for byte in &buffer[..read] {
            if *byte == b'\n' {
                self.complete.push(std::mem::take(&mut self.begun));
            } else if self.begun.len() < LINE {
                self.begun.push(*byte);
            }
        }
        Ok(read)
    }

    fn take(&mut self, line: &mut impl FnMut(&str)) {
        for bytes in self.complete.drain(..) {
            line(String::from_utf8_lossy(&bytes).trim_end_matches('\r'));
        }
    }

    /// Emits what is there already, and the unfinished last line.
    fn rest(mut self, line: &mut impl FnMut(&str)) {
        // A descendant that keeps writing must not keep it busy: a pipe's worth is enough.
        for _ in 0..64 {
            if !matches!(self.read_now(), Ok(1..)) {
                break;
            }
        }
        if !self.begun.is_empty() {
            self.complete.push(std::mem::take(&mut self.begun));
        }
        self.take(line);
    }
}

/// The result of the program's start, once known: the listener of its filter, if it has one.
///
/// # Errors
/// A message why the program does not run.
pub async fn executed(exec: ExecReport) -> Result<Option<takeover::Listener>, String> {
    let system = |why: io::Error| format!("its start cannot be watched: {why}");
    let mut report = readable(exec).map_err(system)?;
    loop {
        let mut guard = report.readable_mut().await.map_err(system)?;
        match guard.get_inner_mut().read().map_err(system)? {
            Some(Ok(started)) => return Ok(started.notify),
            Some(Err(why)) => return Err(why.to_string()),
            None => guard.clear_ready(),
        }
    }
}

/// Waits for the end of a child, and reaps it.
pub async fn ended(pidfd: &Arc<OwnedFd>) -> Exit {
    let Ok(fd) = readable(pidfd.clone()) else {
        return Exit::Unknown;
    };
    loop {
        let Ok(mut guard) = fd.readable().await else {
            return Exit::Unknown;
        };
        match process::wait(pidfd) {
            Ok(Some(exit)) => return exit,
            Ok(None) => guard.clear_ready(),
            Err(_) => return Exit::Unknown,
        }
    }
}

/// Arguments as execve(2) takes them.
///
/// # Errors
/// Names the one that has a NUL byte; not the value of a variable, since it may be a secret.
pub fn c_strings<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<CString>, String> {
    let convert = |text: &str| {
        let name = text.split(['=', '\0']).next().unwrap_or_default();
        CString::new(text).map_err(|_| {
            format!("{name:?} has a NUL byte in it, which no argument or variable can have")
        })
    };
    texts.into_iter().map(convert).collect()
}

/// An environment as execve(2) takes it.
///
/// # Errors
/// As [`c_strings`].
pub fn c_environment(env: &BTreeMap<String, String>) -> Result<Vec<CString>, String> {
    let entries: Vec<String> = env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    c_strings(entries.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Command {
        Command {
            argv: c_strings(["/bin/sh", "-c", script]).unwrap(),
            env: c_strings(["PATH=/usr/bin:/bin", "COLOR=red"]).unwrap(),
            cwd: "/".into(),
            confinement: Confinement::default(),
            extra: Vec::new(),
            limit,
        }
    }

    fn run(command: Command) -> (Result<Exit, Failed>, Vec<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let commands = Commands::default();
        let mut lines = Vec::new();
        let result = runtime.block_on(commands.run(command, |line| lines.push(line.to_owned())));
        commands.with(|all| assert!(all.is_empty(), "{all:?}"));
        (result, lines)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn both_streams_are_read_in_order_and_the_status_is_told() {
        let script = "echo $COLOR; echo wrong >&2; pwd; printf 'no end'; exit 3";
        let (result, lines) = run(shell(script, LONG));
        assert_eq!(result, Ok(Exit::Code(3)));
        assert_eq!(lines, ["red", "wrong", "/", "no end"]);
    }

    #[test]
    fn a_command_that_writes_much_is_not_held_up_and_long_lines_are_cut() {
        let script = "i=0; while [ $i -lt 3000 ]; do echo 'a line of some length, for a full pipe'; i=$((i+1)); done; \
                      head -c 100000 /dev/zero | tr '\\0' x";
        let (result, lines) = run(shell(script, LONG));
        assert_eq!(result, Ok(Exit::Code(0)));
        assert_eq!((lines.len(), lines[3000].len()), (3001, LINE));
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_what_it_started() {
        let script = "sleep 1000 & echo $!; wait";
        let (result, lines) = run(shell(script, Duration::from_millis(300)));
        assert_eq!(result, Err(Failed::TookTooLong));
        // After SIGKILL it is gone in a moment.
        let path = format!("/proc/{}/stat", lines[0]);
        let lives = || std::fs::read_to_string(&path).is_ok_and(|stat| !stat.contains(") Z "));
        let deadline = std::time::Instant::now() + LONG;
        while lives() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!lives());
    }

    #[test]
    fn a_descendant_that_keeps_the_output_open_is_not_waited_for() {
        let (result, lines) = run(shell("sleep 3 & echo $!", LONG));
        assert_eq!(result, Ok(Exit::Code(0)));
        let pid = nix::unistd::Pid::from_raw(lines[0].parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let command = Command {
            argv: c_strings(["/no/such/program"]).unwrap(),
            ..shell("", LONG)
        };
        let (result, _) = run(command);
        assert!(
            matches!(&result, Err(Failed::NotRun(why)) if why.contains("/no/such/program")),
            "{result:?}"
        );
    }
}
