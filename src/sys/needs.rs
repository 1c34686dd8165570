//! The system calls that rsup cannot do without: each is tried once, harmlessly, before anything
//! depends on it. A container or sandbox (seccomp) that refuses one is then reported at once, not
//! by a worker's failure later.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::owner::refused;
use super::raw::{self, check};
use super::{limits, process};

/// Whether an error means that a system call is refused or missing.
#[must_use]
pub fn is_refused(error: &io::Error) -> bool {
    refused(error)
}

/// The remedy for a system call that a seccomp profile refuses.
pub const ALLOW: &str = "allow it in the seccomp profile (Docker's own profile does since 20.10)";

/// Tries them all.
///
/// # Errors
/// A message about the first one that is refused.
pub fn check_all() -> Result<(), String> {
    let (pair, other) = tried("socketpair(2)", "talk to its parts", pair())?;
    tried(
        "getsockopt(2)",
        "see who speaks to it",
        process::peer_credentials(&pair).map(|_| ()),
    )?;
    drop(other);
    let pidfd = tried(
        "pidfd_open(2)",
        "hold on to processes",
        process::pidfd_open(std::process::id()),
    )?;
    tried(
        "waitid(2) by pidfd",
        "learn how a process ended",
        may_wait(&pidfd),
    )?;
    let event = tried(
        "eventfd2(2)",
        "wake its threads",
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(io::Error::from),
    )?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from);
    let epoll = tried("epoll_create1(2)", "wait for anything", epoll)?;
    let added = epoll
        .add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 0))
        .map_err(io::Error::from);
    tried("epoll_ctl(2)", "wait for anything", added)?;
    let waited = epoll
        .wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)
        .map_err(io::Error::from);
    tried("epoll_wait(2)", "wait for anything", waited)?;
    let signals =
        SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_CLOEXEC).map_err(io::Error::from);
    tried("signalfd4(2)", "hear signals", signals)?;
    thread()
}

fn tried<T>(call: &str, purpose: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|error| match refused(&error) {
        true => format!("the container or sandbox refuses {call}, without which rsup cannot {purpose} ({error})\n{ALLOW}"),
        false => format!("cannot {purpose}: {call}: {error}"),
    })
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// An allowed call reports that this process is not its own child.
fn may_wait(pidfd: &OwnedFd) -> io::Result<()> {
    match process::wait(pidfd) {
        Err(error) if raw::is_errno(&error, libc::ECHILD) => Ok(()),
        result => result.map(|_| ()),
    }
}

fn thread() -> Result<(), String> {
    match std::thread::Builder::new().spawn(|| ()) {
        Ok(thread) => {
            let _ = thread.join();
            Ok(())
        }
        Err(error) => Err(words("cannot start a thread", &error)),
    }
}

/// The message for a failure of `what`, which makes a thread or a process.
#[must_use]
pub fn words(what: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => format!("{what}: {}", limits::processes(None)),
        // The C library falls back to clone(2) after ENOSYS only (glibc 2.34, clone3(2)).
        Some(libc::EPERM) => format!(
            "{what}: the container or sandbox refuses clone3(2) or clone(2) ({error})\n\
             its seccomp profile is older than the C library: take a newer container runtime (Docker 20.10.10 or later), \
             or let the profile answer clone3 with ENOSYS"
        ),
        _ => format!("{what}: {error}"),
    }
}

/// Whether IPv6 sockets are available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum V6 {
    /// They are.
    There,
    /// The kernel has no IPv6, or has it switched off.
    Absent,
    /// A sandbox refuses `socket(AF_INET6)`.
    Refused,
}

/// Checks whether IPv6 sockets are available.
#[must_use]
pub fn ipv6() -> V6 {
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        return V6::Absent;
    }
    // SAFETY: integers.
    match check(unsafe { libc::socket(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
    {
        Ok(fd) => {
            // SAFETY: just made by the kernel for us.
            drop(unsafe { raw::own(fd) });
            V6::There
        }
        Err(error) if refused(&error) || raw::is_errno(&error, libc::EAFNOSUPPORT) => V6::Refused,
        // No descriptors left: opening the actual socket reports that.
        Err(_) => V6::There,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn here_nothing_is_refused() {
        assert_eq!(check_all(), Ok(()));
    }

    #[test]
    fn the_call_and_the_way_out_are_named() {
        let why = tried::<()>(
            "x(2)",
            "do y",
            Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        )
        .unwrap_err();
        assert!(
            why.lines()
                .next()
                .is_some_and(|line| line.contains("refuses x(2)"))
                && why.contains("seccomp"),
            "{why}"
        );
        let why = words(
            "cannot start a thread",
            &io::Error::from_raw_os_error(libc::EAGAIN),
        );
        assert!(why.contains("limit of processes"), "{why}");
    }
}
