//! Listening on a path.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::{BACKLOG, ListenError};
use crate::sys::{holder, raw};

/// Opens a stream socket that listens on `path`, with mode 0666 less the umask: who may connect is
/// for the directory to say.
///
/// A socket file that nobody listens on (left by a process that was killed) is removed first.
///
/// # Errors
/// [`ListenError::PathInUse`] when somebody listens there, [`ListenError::Path`] for anything else
/// in the way.
pub fn open_unix(path: &Path) -> Result<OwnedFd, ListenError> {
    let fail = |error: io::Error| ListenError::Path {
        path: path.to_owned(),
        reason: match error.kind() {
            io::ErrorKind::NotFound => "its directory does not exist".to_owned(),
            io::ErrorKind::PermissionDenied => "no permission to make a socket there".to_owned(),
            _ => error.to_string(),
        },
    };
    let addr = SockAddr::unix(path).map_err(|_| ListenError::Path {
        path: path.to_owned(),
        reason: "the path of a unix socket may have 107 bytes at most".to_owned(),
    })?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(fail)?;
    // The file gets the mode of the socket's own inode, less the umask (net/unix/af_unix.c,
    // unix_bind_bsd): no moment between bind and chmod.
    // SAFETY: no pointer; the descriptor is open.
    raw::check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o666) }).map_err(fail)?;
    match socket.bind(&addr) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, &addr)?;
            socket.bind(&addr).map_err(fail)?;
        }
        result => result.map_err(fail)?,
    }
    socket.listen(BACKLOG).map_err(fail)?;
    Ok(socket.into())
}

/// Removes a socket file that nobody listens on. A connection attempt tells: it is refused then
/// and only then.
fn remove_stale(path: &Path, addr: &SockAddr) -> Result<(), ListenError> {
    let broken = |reason: String| ListenError::Path { path: path.to_owned(), reason };
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(broken("it exists and is no socket".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(broken(error.to_string())),
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)
        .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        .map_err(|error| broken(error.to_string()))?;
    match probe.connect(addr) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(broken(format!("a stale socket that cannot be removed: {error}")))
            }
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(broken("another user's socket is there".to_owned())),
        // Connected, or the queue of its listener is full (EAGAIN).
        _ => Err(ListenError::PathInUse {
            path: path.to_owned(),
            holder: holder::of_unix(path).ok().and_then(|found| found.into_iter().next()),
        }),
    }
}
