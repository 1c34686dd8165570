//! A copy of the listener in the worker itself, so that the filter is never without one.
//!
//! When the last descriptor of a listener is closed, the kernel answers every trapped call, then
//! and from then on, with `ENOSYS` (kernel/seccomp.c, `seccomp_notify_detach`); the listener cannot
//! be opened again. So a worker holds its own copy: while no rsup is there its calls wait, and the
//! next rsup takes the descriptor back by `pidfd_getfd(2)` and answers them.
//!
//! * The program is started with the copy at a number of at least [`NUMBER`], not close-on-exec: a shell or
//!   npm in front of the app passes it on.
//! * With the first call of each process ([`Listener::leave_with`]) the copy becomes close-on-exec
//!   there, and is put back where the program has closed all its descriptors. So what an app
//!   executes does not have it.
//! * Only workers of an ordinary user's rsup get one, which run as that user and under
//!   `PR_SET_NO_NEW_PRIVS`. The holder of a listener can answer the calls of all processes under
//!   the filter, and put descriptors into them: with a setuid program among those, that would be a
//!   way to its privileges (which is why seccomp(2) requires that bit or `CAP_SYS_ADMIN`). It can
//!   also take a call away from [`Listener::receive`], which then waits for the next one: a process
//!   of the same user may stop rsup by a signal anyway. A worker of root may become another user,
//!   and its descriptors go with it. What remains is that a worker can harm itself.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::seccomp_notif_addfd;

use super::{Listener, Waiting, gone};
use crate::sys::{owner, raw, rescue};

/// A number that programs do not use: scripts write single digits, 200 and 255, and loops that
/// close everything stop at 256 or do not stop.
const NUMBER: c_int = 731;

/// What `/proc/PID/fd` calls a listener (kernel/seccomp.c, `init_listener`).
const LINK: &str = "anon_inode:seccomp notify";

/// Duplicates the listener for the program to execute, as high as the limit of open files allows;
/// without room there is no copy. Async-signal-safe.
pub(in crate::sys) fn keep(listener: c_int) {
    for least in [NUMBER, NUMBER / 4, 16] {
        // SAFETY: integers; the new descriptor is the program's.
        if unsafe { libc::fcntl(listener, libc::F_DUPFD, least) } >= 0 {
            return;
        }
    }
}

/// Whether a program that this process starts may have the listener of its filter. `another`: it
/// runs as another user. Async-signal-safe.
pub(in crate::sys) fn may_be_given(no_new_privs: bool, another: bool) -> bool {
    no_new_privs && !another && own_user() != 0
}

/// The same for a running process (proc_pid_status(5)).
#[must_use]
pub fn may_hold(process: u32) -> bool {
    let own = own_user();
    let Ok(status) = fs::read_to_string(format!("/proc/{process}/status")) else {
        return false;
    };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let is_ours = |ids: &str| ids.split_ascii_whitespace().all(|id| id.parse() == Ok(own));
    own != 0
        && field("Uid:").is_some_and(is_ours)
        && field("NoNewPrivs:").map(str::trim) == Some("1")
}

fn own_user() -> u32 {
    // SAFETY: no arguments, no failure.
    unsafe { libc::geteuid() }
}

/// The numbers of the listeners that the process has open. Under a filter with a listener the
/// kernel allows no second one, so a worker has at most copies of its own.
fn numbers(process: u32) -> io::Result<Vec<c_int>> {
    owner::with_access(process, || {
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("/proc/{process}/fd"))?.flatten() {
            let is_one = match fs::read_link(entry.path()) {
                Ok(link) => link.as_os_str() == LINK,
                Err(error) if owner::refused(&error) => return Err(error),
                Err(_) => false,
            };
            let number = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<c_int>().ok());
            found.extend(number.filter(|_| is_one));
        }
        Ok(found)
    })
}

/// Takes back the listener from a worker's process that holds a copy, if one does.
///
/// # Errors
/// As for [`rescue::listening_sockets`].
pub fn take_back(pidfd: impl AsFd, process: u32) -> io::Result<Option<OwnedFd>> {
    if !may_hold(process) {
        return Ok(None);
    }
    for number in numbers(process)? {
        match rescue::getfd(&pidfd, number) {
            Ok(fd) => return Ok(Some(fd)),
            // Closed meanwhile.
            Err(error) if raw::is_errno(&error, libc::EBADF) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

impl Listener {
    /// Makes the process of a waiting call hold the listener, close-on-exec. False where it may not
    /// have it.
    ///
    /// # Errors
    /// When the process cannot be inspected, or the kernel has no room.
    pub fn leave_with(&self, call: &impl Waiting) -> io::Result<bool> {
        let process = call.process();
        if !may_hold(process) {
            return Ok(false);
        }
        let has = numbers(process)?;
        let number = match has.first() {
            Some(&number) => {
                let flags =
                    owner::with_access(process, || super::look::descriptor_flags(process, number))?;
                if flags & libc::O_CLOEXEC != 0 {
                    return Ok(true);
                }
                Some(number)
            }
            None => None,
        };
        // A free number may be the app's a moment later: only its own copy is replaced, and for a
        // new one the kernel chooses.
        let exchange = seccomp_notif_addfd {
            id: call.id(),
            flags: number.map_or(0, |_| libc::SECCOMP_ADDFD_FLAG_SETFD as u32),
            srcfd: self.as_raw_fd() as u32,
            newfd: number.unwrap_or(0) as u32,
            newfd_flags: libc::O_CLOEXEC as u32,
        };
        let done = raw::retry(|| {
            let (fd, request) = (self.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _);
            // SAFETY: `exchange` is what this ioctl reads, and the listener is open.
            raw::check(unsafe { libc::ioctl(fd, request, &raw const exchange) })
        });
        match done {
            Ok(_) => Ok(true),
            Err(error) if gone(&error) => Ok(true),
            Err(error) => Err(raw::context("SECCOMP_IOCTL_NOTIF_ADDFD", &error)),
        }
    }
}
