//! The pipe between a worker and the pump.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Room for a burst while the pump is busy elsewhere, in bytes: what the kernel lets anybody have.
const CAPACITY: i32 = 1 << 20;

/// Makes a pipe for a worker's output: the pump's end (non-blocking) and the worker's end
/// (blocking). Both are close-on-exec. The pipe holds 1 MiB where the system allows it, and what it
/// gives by default (64 KiB) where the user's share of pipe memory is used up.
///
/// # Errors
/// When the process or the system has no file descriptors left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&read)?;
    let _ = fcntl(&read, FcntlArg::F_SETPIPE_SZ(CAPACITY));
    Ok((read, write))
}

/// Makes reads of `fd` return at once when there is nothing to read.
pub(super) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pumps_end_is_nonblocking() {
        let (read, write) = pipe().expect("pipe");
        let flags = |fd| OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).expect("F_GETFL"));
        assert!(flags(&read).contains(OFlag::O_NONBLOCK));
        assert!(!flags(&write).contains(OFlag::O_NONBLOCK));
    }
}
