//! Whether this kernel, and the container around, allow takeover: found by a trial, as the user
//! that it is for.

use std::ffi::{CString, c_int};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Call, Listener, filter, install, look};
use crate::sys::owner::refused;
use crate::sys::spawn::{self, Credentials, Plan, SpawnError, Step};
use crate::sys::{capability, fdpass, process, raw};

/// The result of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// Takeover works.
    Yes {
        /// The child must set `PR_SET_NO_NEW_PRIVS` first, because this process lacks
        /// `CAP_SYS_ADMIN`: setuid programs below the worker (sudo, ping) then have no effect.
        needs_no_new_privs: bool,
    },
    /// It does not.
    No {
        /// The reason, for the user.
        why: String,
    },
}

/// Why there was no trial: no process could be made, or it did not run in time. That shows nothing
/// about takeover, and may change a moment later.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct Untried(String);

impl Untried {
    /// The error when no thread is available to wait for a trial.
    #[must_use]
    pub fn no_thread(error: &io::Error) -> Untried {
        untried(Step::Fork)(io::Error::from_raw_os_error(
            error.raw_os_error().unwrap_or(libc::EAGAIN),
        ))
    }
}

/// The time limit of a whole trial; it takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// The verb of rsup that is [`run_trial`]: what [`probe_support_as`] executes.
pub const TRIAL: &str = "takeover-trial";

/// The answer that proves the round trip: no bind returns this by itself.
const SIGN: c_int = libc::EXFULL;

/// The address that the trial asks for. It is never bound.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0x5253);

/// Tries takeover in a child made for it, of this process's own user: installs the filter, traps a
/// bind, reads it as an app's, and answers it.
///
/// # Errors
/// [`Untried`].
pub fn probe_support() -> Result<Support, Untried> {
    let Some(filter) = filter(false) else {
        return Ok(Support::No {
            why: "rsup does not know this processor's system calls".to_owned(),
        });
    };
    let needs_no_new_privs = match attempt(&filter, false)? {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => true,
        found => return Ok(support(found, false)),
    };
    Ok(support(
        attempt(&filter, needs_no_new_privs)?,
        needs_no_new_privs,
    ))
}

/// As [`probe_support`], which must have succeeded, for `user`: with a program started as a worker
/// is.
///
/// Root may be unable to inspect such a worker: where it lacks `CAP_SYS_PTRACE`.
///
/// # Errors
/// [`Untried`].
pub fn probe_support_as(
    user: &Credentials,
    capabilities: Option<u64>,
    needs_no_new_privs: bool,
) -> Result<Support, Untried> {
    let null = || {
        fs::File::options()
            .write(true)
            .open("/dev/null")
            .map_err(|error| Untried(format!("/dev/null: {error}")))
    };
    let program = ["/proc/self/exe", TRIAL]
        .into_iter()
        .filter_map(|word| CString::new(word).ok())
        .collect();
    let (said, says) = io::pipe().map_err(untried(Step::Files))?;
    let mut plan = Plan::new(program, "/".into(), says.into(), null()?.into());
    plan.takeover = true;
    plan.no_new_privs = needs_no_new_privs;
    plan.allow_tracer = !capability::may_trace_all();
    plan.credentials = Some(user.clone());
    plan.capabilities = capabilities;
    let mut child = spawn::spawn(plan).map_err(|error| Untried(error.to_string()))?;
    let found = answer_program(&mut child, &said);
    end(&child.pidfd);
    Ok(support(found?, needs_no_new_privs))
}

/// The program of [`probe_support_as`]; returns its exit code.
#[must_use]
pub fn run_trial() -> u8 {
    let errno = bind_once();
    // If this fails its reader is gone.
    let _ = io::stdout().write_all(&errno.to_ne_bytes());
    let _ = io::stdout().flush();
    0
}

fn support(found: io::Result<()>, needs_no_new_privs: bool) -> Support {
    match found {
        Ok(()) => Support::Yes { needs_no_new_privs },
        Err(error) => Support::No { why: words(&error) },
    }
}

fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another program (an outer rsup, a sandbox, the container's engine) answers system calls of \
             this process by seccomp notification already, and the kernel allows one"
            .into(),
        Some(libc::EPERM) => "the container or sandbox forbids seccomp filters".into(),
        Some(libc::ENOSYS | libc::EINVAL) => "this kernel cannot notify by seccomp (Linux 5.9 or later can)".into(),
        None => error.to_string(),
        Some(_) => format!("a trial of seccomp notification failed: {error}"),
    }
}

/// Why a process may not be inspected; Yama's ptrace_scope (its documentation:
/// `admin-guide/LSM/Yama.rst`) where that is the cause.
fn closed(error: &io::Error, yama: Option<u32>, may_trace_all: bool) -> String {
    match yama {
        Some(3) => "Yama forbids every process to look into another (kernel.yama.ptrace_scope is 3, which only a reboot \
             can change), so rsup cannot read the app's bind"
            .into(),
        Some(2) if !may_trace_all => "Yama lets only processes with CAP_SYS_PTRACE look into others \
             (kernel.yama.ptrace_scope is 2), so rsup cannot read the app's bind: set it to 1, or run rsup as root with \
             that capability"
            .into(),
        _ => format!(
            "the container or sandbox lets rsup not look at the app's bind ({error}): give it CAP_SYS_PTRACE \
             (docker run --cap-add SYS_PTRACE)"
        ),
    }
}

fn yama() -> Option<u32> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// For errors of a temporary shortage.
fn untried(step: Step) -> impl Fn(io::Error) -> Untried {
    move |error| Untried(SpawnError::system(step, &error).to_string())
}

fn attempt(filter: &[libc::sock_filter], no_new_privs: bool) -> Result<io::Result<()>, Untried> {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().map_err(untried(Step::Files))?;
    let signals = process::block_signals().map_err(untried(Step::Fork))?;
    // SAFETY: the child makes only async-signal-safe calls and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        trial(filter, no_new_privs, theirs.as_raw_fd());
    }
    let forked = raw::check(pid);
    drop(signals);
    let pid = forked.map_err(untried(Step::Fork))? as u32;
    drop(theirs);
    // A child that is gone, and was reaped by another thread, needs no end.
    let pidfd = process::pidfd_open(pid).map_err(untried(Step::Identify));
    let result = answer(&ours);
    end(&pidfd?);
    in_time(result)
}

/// Ends a child that may have ended, and may have been waited for.
fn end(pidfd: &OwnedFd) {
    let _ = process::signal(pidfd, libc::SIGKILL);
    let _ = raw::poll(pidfd, libc::POLLIN, PATIENCE);
    let _ = process::wait(pidfd);
}

fn in_time(result: io::Result<()>) -> Result<io::Result<()>, Untried> {
    match result {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
            ) =>
        {
            Err(Untried(format!(
                "a trial of takeover was not done within {} s",
                PATIENCE.as_secs()
            )))
        }
        other => Ok(other),
    }
}

/// Runs in the child.
fn trial(filter: &[libc::sock_filter], no_new_privs: bool, report: c_int) -> ! {
    // SAFETY: system calls with integers, and with pointers to locals that outlive them.
    unsafe {
        if no_new_privs {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
        let fd = install(filter);
        if fd < 0 {
            fdpass::send(report, &(-fd).to_ne_bytes(), None);
            libc::_exit(0)
        }
        fdpass::send(report, &0i32.to_ne_bytes(), Some(fd));
        let errno = bind_once();
        fdpass::send(report, &errno.to_ne_bytes(), None);
        libc::_exit(0)
    }
}

/// Makes a socket, asks for [`ADDRESS`], and returns the `errno`. Async-signal-safe.
///
fn bind_once() -> c_int {
    let ip = [127, 0, 0, 1];
    let addr = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: ADDRESS.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(ip),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: integers, and a pointer to a local with its length.
    unsafe {
        let fd = libc::socket(
            libc::AF_INET,
            libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            0,
        );
        let bound = libc::bind(
            fd,
            (&raw const addr).cast(),
            size_of_val(&addr) as libc::socklen_t,
        );
        if bound == 0 {
            0
        } else {
            *libc::__errno_location()
        }
    }
}

/// Reads and answers the one bind of a trial.
fn answer_bind(listener: &Listener) -> io::Result<()> {
    if raw::poll(listener, libc::POLLIN, PATIENCE)? & libc::POLLIN == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    // SAFETY: integers only, for which zero is a value.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: `call` is what this ioctl fills in.
    raw::check(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV as _,
            &raw mut call,
        )
    })?;
    // A number that cannot exist: EBADF means that the kernel knows the request, EINVAL that it
    // does not.
    let exchange = libc::seccomp_notif_addfd {
        id: call.id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: u32::MAX,
        newfd: 0,
        newfd_flags: 0,
    };
    // SAFETY: `exchange` is what this ioctl reads.
    let known = raw::check(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ADDFD as _,
            &raw const exchange,
        )
    });
    let looked = look(&call);
    listener.respond(call.id, -SIGN, 0)?;
    match looked {
        Ok(Some(Call::Bind(bind)))
            if bind.addr == ADDRESS
                && bind.socket.is_stream
                && bind.socket.nonblocking
                && bind.socket.cloexec => {}
        Ok(other) => {
            return Err(io::Error::other(format!(
                "a trial of takeover saw another bind than was made: {other:?}"
            )));
        }
        Err(error) if refused(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(io::Error::other(closed(
                &error,
                yama(),
                capability::may_trace_all(),
            )));
        }
        Err(error) => {
            return Err(io::Error::other(format!(
                "rsup cannot look at the app's bind: {error}"
            )));
        }
    }
    match known {
        Err(error) if !raw::is_errno(&error, libc::EBADF) => Err(error),
        Err(_) | Ok(_) => Ok(()),
    }
}

fn delivered(errno: [u8; 4]) -> io::Result<()> {
    if c_int::from_ne_bytes(errno) == SIGN {
        Ok(())
    } else {
        Err(not_delivered())
    }
}

fn not_delivered() -> io::Error {
    io::Error::other("the answer to a bind did not arrive")
}

fn answer(ours: &std::os::unix::net::UnixDatagram) -> io::Result<()> {
    ours.set_read_timeout(Some(PATIENCE))?;
    let mut errno = [0u8; size_of::<c_int>()];
    let listener = match fdpass::receive(ours, &mut errno)? {
        (_, Some(fd)) => Listener::from(fd),
        (_, None) => return Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno))),
    };
    answer_bind(&listener)?;
    ours.recv(&mut errno)?;
    delivered(errno)
}

fn answer_program(
    child: &mut spawn::Child,
    said: &io::PipeReader,
) -> Result<io::Result<()>, Untried> {
    let late = || {
        Untried(format!(
            "a trial of takeover did not begin within {} s",
            PATIENCE.as_secs()
        ))
    };
    let deadline = Instant::now() + PATIENCE;
    let started = loop {
        match child.exec.read() {
            Ok(Some(Ok(started))) => break started,
            // The file of rsup itself is closed to that user, which shows nothing about takeover:
            // the user's own program is another file.
            Ok(Some(Err(SpawnError::Denied { .. }))) => return Ok(Ok(())),
            Ok(Some(Err(error))) => return Err(Untried(error.to_string())),
            Ok(None) => {}
            Err(error) => return Err(Untried(error.to_string())),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        raw::poll(child.exec.as_fd(), libc::POLLIN, left)
            .map_err(|error| Untried(error.to_string()))?;
    };
    let Some(listener) = started.notify else {
        return Err(Untried("a descriptor did not arrive".into()));
    };
    let ended = answer_bind(&listener).and_then(|()| {
        if raw::poll(said, libc::POLLIN, PATIENCE)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut errno = [0u8; size_of::<c_int>()];
        let mut said = said;
        said.read_exact(&mut errno).map_err(|_| not_delivered())?;
        delivered(errno)
    });
    in_time(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_own_words() {
        let of = |errno| words(&io::Error::from_raw_os_error(errno));
        assert!(of(libc::EBUSY).contains("the kernel allows one"));
        assert!(of(libc::EPERM).contains("forbids seccomp filters"));
        assert!(of(libc::ENOSYS).contains("5.9"));
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        let closed = |yama, all| closed(&refused, yama, all);
        assert!(closed(Some(3), true).contains("ptrace_scope is 3"));
        assert!(closed(Some(2), false).contains("ptrace_scope is 2"));
        for (yama, all) in [
            (Some(2), true),
            (Some(1), false),
            (Some(0), false),
            (None, false),
        ] {
            assert!(
                closed(yama, all).contains("--cap-add SYS_PTRACE"),
                "{yama:?}"
            );
        }
    }

    #[test]
    fn a_lack_of_processes_is_no_lack_of_takeover() {
        let full = untried(Step::Fork)(io::Error::from_raw_os_error(libc::EAGAIN));
        assert!(full.to_string().contains("limit of processes"), "{full}");
        assert!(in_time(Err(io::ErrorKind::TimedOut.into())).is_err());
        assert!(in_time(Err(io::Error::from_raw_os_error(libc::EPERM))).is_ok());
    }
}
