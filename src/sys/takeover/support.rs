//! Whether this kernel, and the container around, allow takeover: found out by doing it once.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::{Listener, filter, install};
use crate::sys::{fdpass, process, raw};

/// What [`probe_support`] found.
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
        /// For the user.
        why: String,
    },
}

/// How long the trial may take in all; it takes about a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tries takeover in a child that exists for this alone: installs the filter, traps a bind of an
/// invalid descriptor and answers it.
#[must_use]
pub fn probe_support() -> Support {
    let Some(filter) = filter() else {
        return Support::No { why: "rsup does not know this processor's system calls".to_owned() };
    };
    match attempt(&filter, false) {
        Ok(()) => Support::Yes { needs_no_new_privs: false },
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => match attempt(&filter, true) {
            Ok(()) => Support::Yes { needs_no_new_privs: true },
            Err(error) => Support::No { why: words(&error) },
        },
        Err(error) => Support::No { why: words(&error) },
    }
}

fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another program watches this process by seccomp already, and there can be one".into(),
        Some(libc::EPERM) => "the container or sandbox forbids seccomp filters".into(),
        Some(libc::ENOSYS | libc::EINVAL) => "this kernel cannot notify by seccomp (Linux 5.9 or later can)".into(),
        _ => format!("a trial of seccomp notification failed: {error}"),
    }
}

fn attempt(filter: &[libc::sock_filter], no_new_privs: bool) -> io::Result<()> {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair()?;
    let signals = process::block_signals()?;
    // SAFETY: the child makes only async-signal-safe calls and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        trial(filter, no_new_privs, theirs.as_raw_fd());
    }
    drop(signals);
    let pid = raw::check(pid)?;
    drop(theirs);
    let result = answer(&ours);
    // SAFETY: the child has not been waited for, so the number is still its own.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    result
}

/// The answer that shows the round trip to work: no bind of a bad descriptor returns this.
const SIGN: c_int = libc::EXFULL;

/// In the child.
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
        let addr = [0u8; 16];
        libc::bind(-1, addr.as_ptr().cast(), addr.len() as libc::socklen_t);
        let errno = *libc::__errno_location();
        fdpass::send(report, &errno.to_ne_bytes(), None);
        libc::_exit(0)
    }
}

fn answer(ours: &std::os::unix::net::UnixDatagram) -> io::Result<()> {
    ours.set_read_timeout(Some(PATIENCE))?;
    let mut errno = [0u8; size_of::<c_int>()];
    let listener = match fdpass::receive(ours, &mut errno)? {
        (_, Some(fd)) => Listener::from(fd),
        (_, None) => return Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno))),
    };
    if raw::poll(&listener, libc::POLLIN, PATIENCE)? & libc::POLLIN == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    // SAFETY: integers only, for which zero is a value.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: `call` is what this ioctl fills in.
    raw::check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut call) })?;
    // A number that cannot exist: EBADF says that the kernel knows the request, EINVAL that not.
    let exchange = libc::seccomp_notif_addfd {
        id: call.id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: u32::MAX,
        newfd: 0,
        newfd_flags: 0,
    };
    // SAFETY: `exchange` is what this ioctl reads.
    let known =
        raw::check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw const exchange) });
    listener.respond(call.id, -SIGN, 0)?;
    if let Err(error) = known
        && !raw::is_errno(&error, libc::EBADF)
    {
        return Err(error);
    }
    ours.recv(&mut errno)?;
    if c_int::from_ne_bytes(errno) == SIGN { Ok(()) } else { Err(io::Error::other("the answer did not arrive")) }
}
