//! Makes the process: directly in its cgroup where the kernel can, which is far cheaper than moving
//! it there, and leaves no moment outside.

use std::ffi::c_int;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::child::NO_TABLE;
use super::{SpawnError, Step};
use crate::sys::{fdpass, process, raw};

/// linux/sched.h; Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` up to its field `cgroup` (clone(2)).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// How long a child may take to get its own table of descriptors: it has only to be scheduled.
const TABLE: Duration = Duration::from_secs(5);

/// As fork(2), with -1 and `errno` on failure; also returns whether the child is in the cgroup
/// already. With `shared` it has the same table of descriptors as this process.
///
/// # Safety
/// As after fork(2) in a process with threads, the child may make async-signal-safe calls only.
pub(super) unsafe fn fork(cgroup: Option<RawFd>, shared: bool) -> (c_int, bool) {
    let files = if shared { libc::CLONE_FILES } else { 0 };
    if let Some(folder) = cgroup {
        let args = CloneArgs {
            flags: CLONE_INTO_CGROUP | files as u64,
            exit_signal: libc::SIGCHLD as u64,
            cgroup: folder as u64,
            ..CloneArgs::default()
        };
        // SAFETY: without CLONE_VM the child has memory of its own, as after fork; `args` is read
        // before this returns. What fork(2) of libc does beyond this is for its locks and caches,
        // which the child does not use.
        let pid =
            unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        // SAFETY: the address of this thread's errno is always valid.
        let full = pid < 0
            && matches!(
                unsafe { *libc::__errno_location() },
                libc::EAGAIN | libc::ENOMEM
            );
        if pid >= 0 || full {
            return (pid as c_int, true);
        }
        // An old kernel, or a sandbox that cannot inspect the arguments: the child moves itself.
    }
    if shared {
        let flags = libc::c_long::from(files | libc::SIGCHLD);
        // SAFETY: as above; clone(2) without a stack goes on with that of this thread, copied.
        // x86-64 and arm64 differ in the order of the last two arguments only, both null here.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        return (pid as c_int, false);
    }
    // SAFETY: passed on to the caller.
    (unsafe { libc::fork() }, false)
}

/// Waits until the child has a table of descriptors of its own, or is dead, which its pidfd
/// tells. False: it could not get one, and is gone.
///
/// # Errors
/// When it does nothing (it may be frozen): then it is killed.
pub(super) fn await_own_table(report: &Socket, pidfd: &OwnedFd) -> Result<bool, SpawnError> {
    let since = Instant::now();
    loop {
        let mut word = [0];
        match fdpass::receive(report, &mut word) {
            Ok((1, None)) if word == NO_TABLE => {
                let _ = process::wait(pidfd);
                return Ok(false);
            }
            Ok(_) => return Ok(true),
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Ok(true),
        }
        if process::has_ended(pidfd).unwrap_or(true) {
            return Ok(true);
        }
        if since.elapsed() > TABLE {
            let _ = process::signal(pidfd, libc::SIGKILL);
            let _ = process::wait(pidfd);
            let late = io::Error::new(io::ErrorKind::TimedOut, "the new process does not run");
            return Err(SpawnError::system(Step::Fork, &late));
        }
        // Its death in between is noticed by the next look.
        let _ = raw::poll(report, libc::POLLIN, Duration::from_millis(50));
    }
}
