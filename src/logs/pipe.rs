//! The pipe between a worker and the pump.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Bytes of room for a burst while the pump is busy: what the kernel allows every user.
const CAPACITY: i32 = 1 << 20;

/// Makes a pipe for a worker's output: the pump's end (non-blocking) and the worker's end
/// (blocking). Both are close-on-exec. The pipe holds 1 MiB where the system allows it, and what it
/// gives by default (64 KiB) where the user's share of pipe memory is used up.
///
/// The worker's end is open for reading too, as a terminal would be, though no process reads from
/// it: so a worker never gets SIGPIPE, even when every process of rsup is dead, and its output
/// waits in the pipe for the next one. The pump still sees the end when the last writer is gone
/// (pipe(7): end of file is when no *writer* is left).
///
/// # Errors
/// When the process or the system has no file descriptors left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&read)?;
    let _ = fcntl(&read, FcntlArg::F_SETPIPE_SZ(CAPACITY));
    let both = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", write.as_raw_fd()));
    Ok((read, both.map_or(write, OwnedFd::from)))
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

    #[test]
    fn a_writer_outlives_its_reader_and_the_next_reader_finds_all() {
        use std::io::{Read, Write};
        let (read, write) = pipe().expect("pipe");
        drop(read);
        let mut write = File::from(write);
        // Rust ignores SIGPIPE; this would be EPIPE.
        write
            .write_all(b"while no reader listens")
            .expect("no SIGPIPE");
        let mut next = File::open(format!("/proc/self/fd/{}", write.as_raw_fd())).expect("open");
        drop(write);
        let mut text = String::new();
        next.read_to_string(&mut text).expect("read to the end");
        assert_eq!(text, "while no reader listens");
    }
}
