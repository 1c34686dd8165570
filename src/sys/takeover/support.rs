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
        None => error.to_string(),
        Some(_) => format!("a trial of seccomp notification failed: {error}"),
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

/// Takeover reads the arguments of a call and takes a copy of the app's socket. Both are asked for what
/// is not there: the error says whether asking is allowed.
fn may_look_into(pid: u32) -> io::Result<()> {
    let forbidden = |call: &str, error: io::Error| {
        io::Error::other(format!("the container or sandbox forbids {call}, by which rsup looks at the app's bind ({error})"))
    };
    let pidfd = process::pidfd_open(pid)?;
    // SAFETY: integers.
    match raw::check_long(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), c_int::MAX, 0) }) {
        Err(error) if !raw::is_errno(&error, libc::EBADF) => return Err(forbidden("pidfd_getfd", error)),
        Err(_) | Ok(_) => {}
    }
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    // SAFETY: one byte of ours may be written; the other process is only read, at an address that it lacks.
    let got = unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0) };
    match raw::check_long(got as libc::c_long) {
        Err(error) if !raw::is_errno(&error, libc::EFAULT) => Err(forbidden("process_vm_readv", error)),
        Err(_) | Ok(_) => Ok(()),
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
    let allowed = may_look_into(call.pid);
    listener.respond(call.id, -SIGN, 0)?;
    allowed?;
    if let Err(error) = known
        && !raw::is_errno(&error, libc::EBADF)
    {
        return Err(error);
    }
    ours.recv(&mut errno)?;
    if c_int::from_ne_bytes(errno) == SIGN { Ok(()) } else { Err(io::Error::other("the answer did not arrive")) }
}
