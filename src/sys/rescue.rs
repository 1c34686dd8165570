//! What a living worker still holds of rsup's descriptors when no other process does: its copies of
//! listening sockets, and the pipe of its output.

use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{owner, raw};

/// Duplicates of the listening sockets of process `pid`, whose pidfd is `pidfd`.
///
/// # Errors
/// `EPERM` where the kernel forbids `pidfd_getfd(2)`: it needs the same right as ptrace(2), so it
/// is refused for a process of another user (without `CAP_SYS_PTRACE`) or, where Yama's
/// `ptrace_scope` is 1, for one that is no descendant and has not allowed it; and for every process
/// where a sandbox refuses the call, as Docker's default profile does. There is no other way to a
/// socket.
pub fn listening_sockets(pidfd: impl AsFd, pid: u32) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for number in sockets(pid)? {
        match getfd(&pidfd, number) {
            Ok(fd) => {
                // `SO_ACCEPTCONN`, socket(7).
                if raw::getsockopt::<c_int>(&fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)
                    .is_ok_and(|listens| listens != 0)
                {
                    found.push(fd);
                }
            }
            // Closed meanwhile.
            Err(why) if raw::is_errno(&why, libc::EBADF) => {}
            Err(why) => return Err(why),
        }
    }
    Ok(found)
}

/// The numbers of a process's sockets.
fn sockets(pid: u32) -> io::Result<Vec<c_int>> {
    owner::with_access(pid, || {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let is_socket = match fs::read_link(entry.path()) {
                Ok(link) => link.to_string_lossy().starts_with("socket:"),
                Err(error) if owner::refused(&error) => return Err(error),
                Err(_) => false,
            };
            numbers.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<c_int>().ok())
                    .filter(|_| is_socket),
            );
        }
        Ok(numbers)
    })
}

pub(super) fn getfd(pidfd: impl AsFd, number: c_int) -> io::Result<OwnedFd> {
    // SAFETY: three integers.
    let fd = raw::check_long(unsafe {
        libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_fd().as_raw_fd(), number, 0)
    })?;
    // SAFETY: the kernel has just made it for us, close-on-exec.
    Ok(unsafe { raw::own(fd as c_int) })
}

/// The path that a listening unix socket is bound to.
#[must_use]
pub fn unix_path(fd: impl AsFd) -> Option<PathBuf> {
    socket2::SockRef::from(&fd)
        .local_addr()
        .ok()?
        .as_pathname()
        .map(Path::to_path_buf)
}

/// The read end of the pipe that is a process's standard output (1) or error (2).
///
/// # Errors
/// `InvalidInput` when it is no pipe; `EACCES` for a process that this one may not inspect. (Yama
/// does not matter here: this is reading in the sense of ptrace(2), not attaching.)
pub fn output_pipe(pid: u32, number: u32) -> io::Result<OwnedFd> {
    let path = format!("/proc/{pid}/fd/{number}");
    owner::with_access(pid, || {
        if !fs::metadata(&path)?.file_type().is_fifo() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)?
            .into())
    })
}
