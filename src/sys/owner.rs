//! Inspects processes of another user without `CAP_SYS_PTRACE`.
//!
//! Most of `/proc/PID` is readable for threads that may trace the process (ptrace(2), «access mode
//! checking»): those that have the process's user and group and at least its capabilities, or that
//! have `CAP_SYS_PTRACE`. Containers give root every capability but that one. But those files check
//! the user and group *for file access* (`PTRACE_MODE_FSCREDS`), and root can take another's by
//! setfsuid(2) for the duration of one open(2).
//!
//! No other process gains by it: the real, effective and saved users of this process stay as they
//! are, and those decide which processes may signal or trace it. No other process is needed, so
//! there is none that a worker could signal, trace or deceive. The user taken is always that of the
//! inspected process, which that user's processes may inspect anyway.

use std::ffi::{c_int, c_long};
use std::io;
use std::sync::{Mutex, PoisonError};

use super::capability;

/// One at a time: the threads of a process share the «dumpable» attribute.
static TURN: Mutex<()> = Mutex::new(());

/// Whether a system call was refused, by the errors of the kernel and of sandboxes.
pub(super) fn refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS)
    )
}

/// Calls `what`, and if it is refused and this process is root, once more with the user and group
/// of thread `thread` for file access. `what` opens or reads files of `/proc/THREAD`, never waits,
/// and does nothing else.
///
/// # Errors
/// Those of `what`.
pub(super) fn with_access<T>(
    thread: u32,
    mut what: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let error = match what() {
        Err(error) if refused(&error) => error,
        result => return result,
    };
    // SAFETY: no arguments, no failure.
    let root = unsafe { libc::geteuid() } == 0;
    let Some((uid, gid)) = root
        .then(|| owner(thread))
        .flatten()
        .filter(|owner| *owner != (0, 0))
    else {
        return Err(error);
    };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Lent::to(uid, gid) {
        Some(_lent) => what(),
        None => Err(error),
    }
}

/// The user of a process, if its real, effective and saved ones are equal.
pub(super) fn real_user(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    only(&status, "Uid:")
}

/// The one id of this kind in the file `status`.
fn only(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let mut ids = line.split_ascii_whitespace().map(str::parse::<u32>);
    let (real, effective, saved) = (ids.next()?.ok()?, ids.next()?.ok()?, ids.next()?.ok()?);
    (real == effective && effective == saved).then_some(real)
}

/// User and group of a thread, if its real, effective and saved ones are equal: ptrace(2) requires
/// that as well.
fn owner(thread: u32) -> Option<(u32, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    Some((only(&status, "Uid:")?, only(&status, "Gid:")?))
}

/// This thread has the user and group of another for file access, until this is dropped.
struct Lent {
    dumpable: c_int,
    capabilities: Option<u64>,
}

impl Lent {
    fn to(uid: u32, gid: u32) -> Option<Lent> {
        // SAFETY: integers.
        let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
        let lent = Lent {
            dumpable,
            capabilities: capability::effective().ok(),
        };
        // The raw calls change this thread alone (as those of libc do), and tell of no failure: -1 is no
        // user, and changes nothing, but the answer is the one in force.
        // SAFETY: integers.
        let (group, user) = unsafe {
            libc::syscall(libc::SYS_setfsgid, gid);
            libc::syscall(libc::SYS_setfsuid, uid);
            (
                libc::syscall(libc::SYS_setfsgid, -1),
                libc::syscall(libc::SYS_setfsuid, -1),
            )
        };
        if (group, user) != (c_long::from(gid), c_long::from(uid)) {
            return None;
        }
        lent.keep_capabilities();
        Some(lent)
    }

    /// A change of this user drops capabilities that concern files, or restores them
    /// (capabilities(7)). The inspected process may have some.
    fn keep_capabilities(&self) {
        // A failure shows as a file that stays unreadable.
        let _ = self.capabilities.map(capability::put_in_force);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: integers. The effective user and group can always be had back.
        unsafe {
            libc::syscall(libc::SYS_setfsuid, libc::geteuid());
            libc::syscall(libc::SYS_setfsgid, libc::getegid());
        }
        self.keep_capabilities();
        // SAFETY: integers.
        unsafe {
            // Any change of these makes a process one that only root with CAP_SYS_PTRACE may
            // inspect (kernel/cred.c, commit_creds); this process gets its former attribute back.
            if self.dumpable == 1 {
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_as_before() {
        let status = || {
            let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let of = |name: &str| {
                text.lines()
                    .find(|line| line.starts_with(name))
                    .unwrap()
                    .to_owned()
            };
            (of("Uid:"), of("Gid:"), of("CapEff:"))
        };
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can lend itself another user");
            return;
        }
        let before = status();
        // SAFETY: integers.
        let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
        assert_eq!(dumpable(), 1);
        let lent = Lent::to(65534, 65533).unwrap();
        let during = status();
        drop(lent);
        assert!(
            during.0.ends_with("\t0\t0\t0\t65534") && during.1.ends_with("\t0\t0\t0\t65533"),
            "{during:?}"
        );
        assert_eq!(status(), before);
        assert_eq!(dumpable(), 1);
    }
}
