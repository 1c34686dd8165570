//! Makes the process: directly in its cgroup where the kernel can, which is far cheaper than moving
//! it there, and leaves no moment outside.

use std::ffi::c_int;
use std::os::fd::RawFd;

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

/// As fork(2), with -1 and `errno` on failure; also returns whether the child is in the cgroup
/// already.
///
/// # Safety
/// As after fork(2) in a process with threads, the child may make async-signal-safe calls only.
pub(super) unsafe fn fork(cgroup: Option<RawFd>) -> (c_int, bool) {
    if let Some(folder) = cgroup {
        let args = CloneArgs {
            flags: CLONE_INTO_CGROUP,
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
    // SAFETY: passed on to the caller.
    (unsafe { libc::fork() }, false)
}
