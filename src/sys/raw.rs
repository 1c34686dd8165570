//! Thin checked wrappers around C calls that several modules of this folder share.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Turns the C convention (-1 and `errno`) into a `Result`.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The same for raw system calls, which return a `long`.
pub(super) fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Puts the failed call in front of the system's error, and keeps its kind.
pub(super) fn context(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Takes ownership of a descriptor number that a system call has just returned.
///
/// # Safety
/// `fd` must be open and have no other owner.
pub(super) unsafe fn own(fd: c_int) -> OwnedFd {
    // SAFETY: passed on to the caller of this function.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Types that are valid for any bytes the kernel writes, zeroes included.
///
/// # Safety
/// Every bit pattern must be a valid value.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: any bytes are an integer.
unsafe impl Plain for c_int {}
// SAFETY: integers only.
unsafe impl Plain for libc::tcp_info {}
// SAFETY: integers only.
unsafe impl Plain for libc::ucred {}

/// `getsockopt(2)` for a fixed-size option. A shorter answer of an older kernel leaves the rest 0.
pub(super) fn getsockopt<T: Plain>(fd: impl AsFd, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of `len` bytes, and `len` lives as long as the call.
    check(unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    // SAFETY: zeroed at first, overwritten in part or whole since; `Plain` allows any bytes.
    Ok(unsafe { value.assume_init() })
}

/// `setsockopt(2)` with an integer.
pub(super) fn setsockopt_int(
    fd: impl AsFd,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    // SAFETY: the pointer is to a c_int that lives as long as the call, and the length is its own.
    check(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// `F_GETFL`: access mode and status flags of the open file description.
pub(super) fn status_flags(fd: impl AsFd) -> io::Result<c_int> {
    // SAFETY: F_GETFL takes no pointer, and the descriptor is borrowed for the call.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) })
}

/// Duplicates to the lowest free number not below `least`, close-on-exec.
pub(super) fn dup_from(fd: impl AsFd, least: c_int) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer; the descriptor is borrowed for the call.
    let new = check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) })?;
    // SAFETY: just made by the kernel for us.
    Ok(unsafe { own(new) })
}

/// Waits up to `timeout` (rounded up to a millisecond) for `events`; returns what was seen,
/// 0 when nothing was.
pub(super) fn poll(fd: impl AsFd, events: i16, timeout: Duration) -> io::Result<i16> {
    let mut entry = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events,
        revents: 0,
    };
    let millis = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as c_int;
    // SAFETY: one entry, alive for the call.
    retry(|| check(unsafe { libc::poll(&raw mut entry, 1, millis) }))?;
    Ok(entry.revents)
}

/// Whether an error carries this `errno`.
pub(super) fn is_errno(error: &io::Error, errno: c_int) -> bool {
    error.raw_os_error() == Some(errno)
}
