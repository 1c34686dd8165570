//! Starts a worker: fork and exec by hand, because descriptors must get exact numbers, `LISTEN_PID`
//! must be the child's own id, and the filter of [`super::takeover`] is installed in between.
//!
//! The child gets a session of its own (so that a signal to the group `-pid` reaches the whole
//! tree, and a terminal's Ctrl-C does not), all signals unblocked and at their defaults, only the
//! descriptors of the plan, and its working directory.

use std::ffi::{CString, OsStr, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::process::{self, Limit};
use super::procfs::{self, StartTime};
use super::takeover::{self, Listener};
use super::{fdpass, limits, raw};

mod child;
mod confine;
mod error;
mod fork;
mod resolve;

use child::Prepared;
use confine::Confine;
pub use error::{SpawnError, Step};

/// The exit code of a child whose program could not be run, or whose parent died before it was.
pub const NO_PROGRAM: i32 = 127;

/// A program to start.
#[derive(Debug)]
pub struct Plan {
    /// Program and arguments. Without a slash the program is searched for in the `PATH` of `env`;
    /// with one, relative to `cwd`.
    pub argv: Vec<CString>,
    /// `NAME=value`. Exactly this is the child's environment, except for `LISTEN_PID`, `LISTEN_FDS`
    /// (if missing) and the names of `extra`, which are added; it must not contain the first two as
    /// this process may have inherited them.
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Standard output. Standard input is `/dev/null`.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// Become descriptors 3, 4, … (sd_listen_fds(3)).
    pub listen: Vec<OwnedFd>,
    /// Follow those; each with the variable that holds its number, such as `NODE_CHANNEL_FD`.
    pub extra: Vec<(OwnedFd, String)>,
    /// Whether to install the filter of [`super::takeover`].
    pub takeover: bool,
    /// Whether that filter reports `connect(2)` as well.
    pub trap_connect: bool,
    /// Whether to set `PR_SET_NO_NEW_PRIVS`: see [`takeover::Support::Yes`].
    pub no_new_privs: bool,
    /// Whether the child waits before its exec until [`ExecReport::go`]. If this process dies
    /// first, the child exits without having run anything.
    pub held: bool,
    /// Whether processes of the same user that are not ancestors may inspect it as a tracer may
    /// (`PR_SET_PTRACER_ANY`): the next daemon is none, and where Yama's `ptrace_scope` is 1 it
    /// could neither answer the worker's `bind(2)` nor take its sockets back.
    pub allow_tracer: bool,
    /// Limits of open files, if other than those of this process: see [`process::raise_nofile`].
    pub nofile: Option<Limit>,
    /// The user to become, if not this process's own.
    pub credentials: Option<Credentials>,
    /// Priority, if not that of this process (setpriority(2)).
    pub nice: Option<i8>,
    /// The umask, if not that of this process (umask(2)).
    pub umask: Option<u32>,
    /// The only capabilities that it, and all it executes, can have; a bit for each number.
    pub capabilities: Option<u64>,
    /// The folder of the cgroup to start in.
    pub cgroup: Option<OwnedFd>,
}

impl Plan {
    /// A plan for `argv` in `cwd`, with all else at its default.
    #[must_use]
    pub fn new(argv: Vec<CString>, cwd: PathBuf, stdout: OwnedFd, stderr: OwnedFd) -> Plan {
        Plan {
            argv,
            env: Vec::new(),
            cwd,
            stdout,
            stderr,
            listen: Vec::new(),
            extra: Vec::new(),
            takeover: false,
            trap_connect: false,
            no_new_privs: false,
            held: false,
            allow_tracer: false,
            nofile: None,
            credentials: None,
            nice: None,
            umask: None,
            capabilities: None,
            cgroup: None,
        }
    }
}

/// A user to run as.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, no others.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// The first part of the path that its permission bits close to this user: a folder without
    /// search permission, or the last part itself, folder or program. Links are followed.
    #[must_use]
    pub fn first_closed(&self, path: &Path) -> Option<PathBuf> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut parts: Vec<&Path> = path.ancestors().collect();
        parts.reverse();
        parts
            .into_iter()
            .find(|part| std::fs::metadata(part).is_ok_and(|found| !self.may_execute(&found)))
            .map(Path::to_owned)
    }

    fn may_execute(&self, found: &std::fs::Metadata) -> bool {
        let bit = if self.uid == 0 {
            0o111
        } else if found.uid() == self.uid {
            0o100
        } else if found.gid() == self.gid || self.groups.contains(&found.gid()) {
            0o010
        } else {
            0o001
        };
        found.mode() & bit != 0 || (self.uid == 0 && found.is_dir())
    }

    fn words(&self) -> String {
        format!("user {}", self.uid)
    }
}

/// A process that has been forked, and is about to execute its program.
#[derive(Debug)]
pub struct Child {
    /// Its id, also of its session and process group.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// When it was started.
    pub started: StartTime,
    /// How its exec went.
    pub exec: ExecReport,
}

/// The result of a child between fork and exec. Wait until it is readable, then
/// [read](ExecReport::read).
#[derive(Debug)]
pub struct ExecReport {
    socket: OwnedFd,
    notify: Option<Listener>,
    program: PathBuf,
    cwd: PathBuf,
    user: Option<Credentials>,
}

/// The program runs.
#[derive(Debug)]
pub struct Started {
    /// The listener of its `bind(2)` calls, if the plan asks for takeover.
    pub notify: Option<Listener>,
}

impl AsFd for ExecReport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for ExecReport {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl ExecReport {
    /// Lets a [held](Plan::held) child continue.
    ///
    /// # Errors
    /// As `sendmsg(2)`: it is gone already.
    pub fn go(&self) -> io::Result<()> {
        fdpass::send_message(&self.socket, &[1], None)
    }

    /// `None` as long as the child has not reached its exec; never waits. The listener is returned
    /// once.
    ///
    /// A child that is *killed* before its exec looks like one that made it: its pidfd reports its
    /// end all the same. After a failure the child exits by itself (code 127) and must be waited
    /// for.
    ///
    /// # Errors
    /// As `recvmsg(2)`; `EMFILE` shows as a missing listener.
    pub fn read(&mut self) -> io::Result<Option<Result<Started, SpawnError>>> {
        loop {
            let mut message = [0u8; child::MESSAGE];
            match fdpass::receive(&self.socket, &mut message) {
                Ok((0, _)) => {
                    let notify = self.notify.take();
                    return Ok(Some(Ok(Started { notify })));
                }
                Ok((_, Some(fd))) => self.notify = Some(Listener::from(fd)),
                Ok((_, None)) => {
                    let Some((step, errno)) = child::parse(message) else {
                        continue;
                    };
                    let error = SpawnError::in_child(
                        step,
                        errno,
                        &self.program,
                        &self.cwd,
                        self.user.as_ref(),
                    );
                    return Ok(Some(Err(error)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // The child failed before it read the message to continue: that is reported once,
                // and its own report follows.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Starts a child. The descriptors of the plan are closed here in any case.
///
/// Takes only the time of a fork: [`Child::exec`] reports what follows.
///
/// # Errors
/// What is known before the fork (no such program or directory, a limit reached). No child is left
/// then.
pub fn spawn(plan: Plan) -> Result<Child, SpawnError> {
    let program = resolve::program(&plan.argv, &plan.env, &plan.cwd)?;
    let system = |step| move |error: io::Error| SpawnError::system(step, &error);
    let cwd = c_string(plan.cwd.as_os_str(), "working directory")?;
    let program_c = c_string(program.as_os_str(), "program")?;

    // All sources have higher numbers than all targets: dup2 then never overwrites an unused
    // source.
    let count = 3 + plan.listen.len() + plan.extra.len();
    let lift = |fd: BorrowedFd<'_>| raw::dup_from(fd, count as c_int).map_err(system(Step::Files));
    let null = std::fs::File::options()
        .read(true)
        .open("/dev/null")
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => SpawnError::FileLimit,
            _ => SpawnError::system(Step::Files, &raw::context("/dev/null", &error)),
        })?;
    let mut sources = vec![lift(null.as_fd())?, lift(plan.stdout.as_fd())?];
    sources.push(lift(plan.stderr.as_fd())?);
    for fd in plan
        .listen
        .iter()
        .chain(plan.extra.iter().map(|(fd, _)| fd))
    {
        sources.push(lift(fd.as_fd())?);
    }
    let (ours, theirs) = socket2::Socket::pair(
        socket2::Domain::UNIX,
        socket2::Type::from(libc::SOCK_SEQPACKET),
        None,
    )
    .map_err(system(Step::Files))?;
    ours.set_nonblocking(true).map_err(system(Step::Files))?;
    let theirs = lift(theirs.as_fd())?;

    let filter = if plan.takeover {
        takeover::filter(plan.trap_connect)
    } else {
        None
    };
    if plan.takeover && filter.is_none() {
        return Err(SpawnError::system(
            Step::Filter,
            &io::ErrorKind::Unsupported.into(),
        ));
    }
    let env = environment(&plan)?;
    let mut prepared = Prepared::new(
        &program_c,
        &plan.argv,
        env,
        &cwd,
        sources.iter().map(AsRawFd::as_raw_fd).collect(),
        theirs.as_raw_fd(),
        ours.as_raw_fd(),
    );
    prepared.listen = !plan.listen.is_empty();
    prepared.filter = filter;
    prepared.confine = Confine {
        cgroup: None,
        nofile: plan.nofile,
        nice: plan.nice,
        umask: plan.umask,
        no_new_privs: plan.no_new_privs,
        capabilities: plan.capabilities,
        credentials: plan.credentials.as_ref(),
    };
    let cgroup = plan
        .cgroup
        .as_ref()
        .map(|fd| lift(fd.as_fd()))
        .transpose()?;
    let cgroup = cgroup.as_ref().map(AsRawFd::as_raw_fd);
    prepared.held = plan.held;
    prepared.allow_tracer = plan.allow_tracer;

    let signals = process::block_signals().map_err(system(Step::Fork))?;
    // SAFETY: the child calls `run` alone, which makes only async-signal-safe calls on memory
    // prepared above, and ends in exec or _exit; all signals are blocked, so no handler of ours
    // runs in it.
    let (pid, in_cgroup) = unsafe { fork::fork(cgroup) };
    if pid == 0 {
        prepared.confine.cgroup = cgroup.filter(|_| !in_cgroup);
        child::run(&mut prepared);
    }
    let forked = raw::check(pid);
    drop(signals);
    let pid = forked.map_err(|error| match (error.raw_os_error(), &plan.cgroup) {
        (Some(libc::EAGAIN), Some(folder)) => {
            let folder = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok();
            SpawnError::ProcessLimit {
                limit: limits::processes(folder.as_deref()),
            }
        }
        _ => SpawnError::system(Step::Fork, &error),
    })? as u32;
    drop(theirs);
    // Only the owner of the pidfd waits for the child, so the pid stays its own until then.
    let identified = process::pidfd_open(pid)
        .and_then(|pidfd| procfs::start_time(pid).map(|started| (pidfd, started)));
    match identified {
        Ok((pidfd, started)) => {
            let user = plan.credentials;
            let exec = ExecReport {
                socket: ours.into(),
                notify: None,
                program,
                cwd: plan.cwd,
                user,
            };
            Ok(Child {
                pid,
                pidfd,
                started,
                exec,
            })
        }
        Err(error) => {
            // SAFETY: our child, not yet waited for.
            unsafe {
                libc::kill(pid as i32, libc::SIGKILL);
                libc::waitpid(pid as i32, std::ptr::null_mut(), 0);
            }
            Err(SpawnError::system(Step::Identify, &error))
        }
    }
}

/// The environment with the variables that name descriptors.
fn environment(plan: &Plan) -> Result<Vec<CString>, SpawnError> {
    let mut env = plan.env.clone();
    let mut set = |name: &str, value: usize| -> Result<(), SpawnError> {
        env.retain(|entry| value_of(entry.to_bytes(), name.as_bytes()).is_none());
        env.push(c_string(
            OsStr::new(&format!("{name}={value}")),
            "variable",
        )?);
        Ok(())
    };
    let listen = plan.listen.len();
    if listen > 0 {
        set("LISTEN_FDS", listen)?;
    }
    for (index, (_, name)) in plan.extra.iter().enumerate() {
        set(name, 3 + listen + index)?;
    }
    // The child writes its own.
    env.retain(|entry| value_of(entry.to_bytes(), b"LISTEN_PID").is_none());
    Ok(env)
}

fn value_of<'a>(entry: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    entry.strip_prefix(name)?.strip_prefix(b"=")
}

fn c_string(text: &OsStr, what: &'static str) -> Result<CString, SpawnError> {
    CString::new(text.as_bytes()).map_err(|_| SpawnError::ZeroByte { what })
}

/// The path at which `program` would be found from `cwd`.
fn from(cwd: &Path, program: &Path) -> PathBuf {
    cwd.join(program)
}
