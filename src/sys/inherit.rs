//! Descriptors that pass from one program to the next through `execve(2)`.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::raw;

/// Takes over descriptor `number`, which whoever started this program left open for it. It is
/// close-on-exec from now on.
///
/// # Errors
/// `EBADF` when it is not open; `InvalidInput` for standard input, output and error.
///
/// Each number may be taken once only: two owners would close it twice.
pub fn take(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_SETFD takes an integer, and fails for a number that is not open.
    raw::check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and it was left for us: nothing else in this program owns it.
    Ok(unsafe { raw::own(number) })
}

/// As [`take`], of the number that an environment variable says; `None` if there is no such variable.
/// It is removed, if no other thread runs that could read it at this moment: children would take it
/// for theirs.
pub fn take_named(variable: &str) -> Option<io::Result<OwnedFd>> {
    let text = std::env::var(variable).ok()?;
    forget(&[variable]);
    Some(
        text.parse()
            .map_err(|_| io::ErrorKind::InvalidInput.into())
            .and_then(take),
    )
}

/// The number that an environment variable says, for who has to know before [`take_named`].
#[must_use]
pub fn named(variable: &str) -> Option<c_int> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Removes variables that were meant for this process alone, if no other thread could read them.
#[expect(clippy::disallowed_methods, reason = "this is the place that may")]
pub(super) fn forget(variables: &[&str]) {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1) {
        for name in variables {
            // SAFETY: this is the only thread of the process, as was just seen.
            unsafe { std::env::remove_var(name) };
        }
    }
}

/// Leaves a descriptor open for the next program, under its present number, which is returned.
///
/// # Errors
/// As `fcntl(2)`.
pub fn leave_open(fd: impl AsFd) -> io::Result<c_int> {
    set_flags(&fd, 0)?;
    Ok(fd.as_fd().as_raw_fd())
}

/// Takes [`leave_open`] back.
///
/// # Errors
/// As `fcntl(2)`.
pub fn close_on_exec(fd: impl AsFd) -> io::Result<()> {
    set_flags(&fd, libc::FD_CLOEXEC)
}

fn set_flags(fd: &impl AsFd, flags: c_int) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer; the descriptor is borrowed for the call.
    raw::check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFD, flags) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_open_is_refused() {
        for number in [-1, 0, 2, 1 << 20] {
            assert!(take(number).is_err(), "{number}");
        }
    }

    #[test]
    fn a_descriptor_is_left_open_and_taken_back() {
        use nix::fcntl::{FcntlArg, fcntl};
        let file = std::fs::File::open("/dev/null").unwrap();
        let flags = || fcntl(&file, FcntlArg::F_GETFD).unwrap();
        assert_eq!(leave_open(&file).unwrap(), file.as_raw_fd());
        assert_eq!(flags(), 0);
        close_on_exec(&file).unwrap();
        assert_eq!(flags(), libc::FD_CLOEXEC);
    }
}
