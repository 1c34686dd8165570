//! Processes: safe references, signals, exits, orphans, limits; and a few facts about the machine.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use super::owner::refused;
use super::procfs;
use super::raw::{self, check, check_long, retry};
use crate::exit::Exit;

/// A descriptor for process `pid`: readable once it has ended, never another process's.
///
/// # Errors
/// `ESRCH` when there is none. A caller that is not the parent checks the start time *after* this
/// ([`procfs::start_time`]) to be sure that it is the process meant.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    pidfd(pid, 0)
}

/// As [`pidfd_open`], for a thread (`PIDFD_THREAD`, Linux 6.9; `EINVAL` before).
pub(super) fn pidfd_open_thread(thread: u32) -> io::Result<OwnedFd> {
    pidfd(thread, libc::PIDFD_THREAD)
}

fn pidfd(pid: u32, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: two integers.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    // SAFETY: the kernel has just made it for us, close-on-exec.
    Ok(unsafe { raw::own(fd as c_int) })
}

/// Sends `signal` to the one process of `pidfd`. Signal 0 only checks whether that is possible.
///
/// Where a sandbox refuses `pidfd_send_signal(2)`, uses kill(2), after a check that the pid is
/// still that process's. Between the two the process may end; its pid is reused only after its
/// parent has waited for it.
///
/// # Errors
/// `ESRCH` when it has been waited for already; `EPERM`; `EINVAL` for an invalid number.
pub fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd();
    // SAFETY: integers and a null pointer, which stands for the information kill(2) would give.
    let sent = check_long(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    });
    match sent {
        Err(error) if refused(&error) => {
            let pid = pid_of(fd)?;
            // SAFETY: two integers; the number is that of one process.
            check(unsafe { libc::kill(pid, signal) })?;
            Ok(())
        }
        result => result.map(|_| ()),
    }
}

/// The pid of a pidfd's process: `Pid:` of proc_pid_fdinfo(5), -1 once it has been waited for. Its
/// start time confirms that it is the same process throughout.
fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    let number = || {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = text
            .lines()
            .find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
        pid.filter(|pid| *pid > 0).ok_or_else(gone)
    };
    let pid = number()?;
    let started = procfs::start_time(pid.unsigned_abs()).map_err(|_| gone())?;
    let same = number()? == pid
        && procfs::start_time(pid.unsigned_abs()).is_ok_and(|again| again == started);
    if same { Ok(pid) } else { Err(gone()) }
}

/// From now on a write past the limit of a file's size (`RLIMIT_FSIZE`) fails with `EFBIG`; by
/// default SIGXFSZ ends the process first (setrlimit(2)). A handler, not `SIG_IGN`, so that
/// programs that this one starts have the default again (execve(2)).
pub fn outlive_file_size_limit() {
    extern "C" fn nothing(_: c_int) {}
    // SAFETY: all zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler does nothing, which is safe at any instant; the old action is not asked for. It
    // cannot fail: the signal exists and may be caught.
    unsafe { libc::sigaction(libc::SIGXFSZ, &raw const action, std::ptr::null_mut()) };
}

/// Sends `signal` to every process of the group of `leader`: a worker and those of its descendants
/// that have not made a group of their own. Works after the leader's death as long as a member
/// lives; for as long, its pid is not reused.
///
/// # Errors
/// `ESRCH` when the group has no member; `InvalidInput` for 0 and 1, which would reach others.
pub fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    let group = i32::try_from(leader).ok().filter(|&group| group > 1);
    let group = group.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: two integers.
    check(unsafe { libc::kill(-group, signal) })?;
    Ok(())
}

/// Whether the child of `pidfd` has ended, and how; never waits. Reaps the zombie.
///
/// # Errors
/// `ECHILD` when it is not a child of this process (any more): for an adopted process there is only
/// [`has_ended`].
pub fn wait(pidfd: impl AsFd) -> io::Result<Option<Exit>> {
    let id = pidfd.as_fd().as_raw_fd() as libc::id_t;
    Ok(waitid(libc::P_PIDFD, id, 0)?.map(|(_, exit)| exit))
}

/// Whether the process of `pidfd` has ended, waited for or not.
///
/// # Errors
/// As `poll(2)`.
pub fn has_ended(pidfd: impl AsFd) -> io::Result<bool> {
    Ok(raw::poll(pidfd, libc::POLLIN, Duration::ZERO)? != 0)
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, flags: c_int) -> io::Result<Option<(u32, Exit)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    retry(|| {
        let flags = libc::WEXITED | libc::WNOHANG | flags;
        // SAFETY: `info` is valid for writes of a siginfo_t.
        check(unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) })
    })?;
    // SAFETY: zeroed at first, filled by the kernel or left so.
    let info = unsafe { info.assume_init() };
    // SAFETY: after waitid(2) the fields of SIGCHLD are those in use; zero when nothing was found.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let exit = match info.si_code {
        _ if pid == 0 => return Ok(None),
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal {
            signal: status,
            core_dumped: code == libc::CLD_DUMPED,
        },
    };
    Ok(Some((pid as u32, exit)))
}

/// The umask of this process. It is read from `/proc` (proc_pid_status(5)), since umask(2) cannot
/// return it without changing it for all threads; without `/proc` the usual 022 is assumed.
#[must_use]
pub fn own_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .unwrap_or(0o022)
}

/// Makes this process the parent of its descendants' orphans: they can then be found and waited for
/// (`PR_SET_CHILD_SUBREAPER`, prctl(2)). Survives exec, is not inherited by children.
///
/// # Errors
/// As `prctl(2)`.
pub fn set_child_subreaper() -> io::Result<()> {
    // SAFETY: integers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// Reaps the zombies among this process's children that are not `known`, and returns how they
/// ended. Known ones are left for [`wait`]. Never waits; called upon `SIGCHLD`.
///
/// # Errors
/// As `waitid(2)`; not for having no children.
pub fn reap_orphans(known: impl Fn(u32) -> bool) -> io::Result<Vec<(u32, Exit)>> {
    let no_child = |error: &io::Error| raw::is_errno(error, libc::ECHILD);
    let mut reaped = Vec::new();
    loop {
        match waitid(libc::P_ALL, 0, libc::WNOWAIT) {
            Ok(Some((pid, _))) if !known(pid) => {
                reaped.extend(waitid(libc::P_PID, pid, 0)?);
            }
            Ok(Some(_)) => break,
            Ok(None) => return Ok(reaped),
            Err(error) if no_child(&error) => return Ok(reaped),
            Err(error) => return Err(error),
        }
    }
    // A known one comes first and would hide those behind it.
    for pid in procfs::zombie_children(&known) {
        match waitid(libc::P_PID, pid, 0) {
            Ok(found) => reaped.extend(found),
            Err(error) if no_child(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(reaped)
}

/// A limit of a process, as getrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limit {
    /// In force.
    pub soft: u64,
    /// The value up to which the soft limit may be raised.
    pub hard: u64,
}

/// The variable that gives the next rsup program, in this process or in a child, the limit of open
/// files from before the first one [raised](raise_nofile) it.
pub const NOFILE: &str = "RSUP_NOFILE";

/// What [`raise_nofile`] found.
static FOUND: OnceLock<Limit> = OnceLock::new();

/// Raises this process's soft limit of open files to the hard one and returns the former limits,
/// for children: programs that use `select(2)` break beyond 1024, which is why systemd leaves the
/// soft limit low.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn raise_nofile() -> io::Result<Limit> {
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let told = std::env::var(NOFILE)
        .ok()
        .and_then(|text| text.parse().ok());
    let soft = told.unwrap_or(soft).min(hard);
    Ok(*FOUND.get_or_init(|| Limit { soft, hard }))
}

/// The value of [`NOFILE`] for the next program; `None` if this one raised nothing.
#[must_use]
pub fn nofile_found() -> Option<String> {
    FOUND.get().map(|found| found.soft.to_string())
}

/// Releases the pages of program and libraries that only the start needed, for a process that
/// sleeps most of the time. Pages that are needed again come from the page cache.
///
/// Only executable mappings of files: they are never written, so nothing is lost.
pub fn forget_program_pages() {
    for line in std::fs::read_to_string("/proc/self/maps")
        .unwrap_or_default()
        .lines()
    {
        // start-end permissions offset device inode path (proc_pid_maps(5))
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp"), Some(path)) = (fields.next(), fields.next(), fields.nth(3))
        else {
            continue;
        };
        let hex = |text| usize::from_str_radix(text, 16).ok();
        let Some((start, end)) = range
            .split_once('-')
            .and_then(|(start, end)| hex(start).zip(hex(end)))
        else {
            continue;
        };
        if path.starts_with('/') && start < end {
            // SAFETY: the range is a private mapping of a file without permission to write, so its pages
            // are those of the file; after MADV_DONTNEED the next access reads them again (madvise(2)).
            unsafe {
                libc::madvise(
                    std::ptr::without_provenance_mut(start),
                    end - start,
                    libc::MADV_DONTNEED,
                )
            };
        }
    }
}

/// The time since boot without suspended time (`CLOCK_MONOTONIC`): the same for all processes,
/// so it may be kept across a restart of rsup, not across a boot ([`boot_id`]).
#[must_use]
pub fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The kernel's name for the present boot.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The process at the other end of a unix socket, as of connect(2) (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The process that connected; 0 when it is in a pid namespace that is not visible here.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// The peer of a connected unix socket.
///
/// # Errors
/// When `socket` is not a connected unix socket.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Peer> {
    let cred: libc::ucred = raw::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    Ok(Peer {
        pid: cred.pid as u32,
        uid: cred.uid,
        gid: cred.gid,
    })
}

/// Blocks all signals on this thread until dropped: used around a fork, so that the child never
/// runs this process's handlers.
pub(super) struct BlockedSignals(libc::sigset_t);

/// Blocks all signals on the calling thread.
pub(super) fn block_signals() -> io::Result<BlockedSignals> {
    let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are valid for writes; sigfillset initialises `all` before it is read.
    let error = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr())
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: filled by pthread_sigmask; a zeroed sigset_t is valid as well.
    Ok(BlockedSignals(unsafe { old.assume_init() }))
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was in force.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_zero_and_one_are_never_signalled() {
        for leader in [0, 1, u32::MAX] {
            let error = signal_group(leader, 0).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn time_goes_on() {
        let before = now();
        assert!(before > Duration::ZERO && now() >= before);
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn a_peer_is_who_connected() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = peer_credentials(&one).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    }
}
