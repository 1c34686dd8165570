//! Listening on a path.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, fchownat, geteuid};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{BACKLOG, ListenError};
use crate::sys::{holder, raw};

/// Owner, group and mode of a unix socket file. (connect(2) needs the permission to write.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Opens a stream socket that listens on `path`. The file has no permissions at all until it has
/// its owner and group, so no client can connect before it has its mode. (The umask, which all
/// threads of a process share, plays no part.)
///
/// A socket file without a listener (left by a process that was killed) is removed first. A
/// symbolic link at `path` is not followed: to bind(2) it is a file that exists.
///
/// # Errors
/// [`ListenError::PathInUse`] when a process listens there, [`ListenError::Path`] for anything else
/// in the way.
pub fn open_unix(path: &Path, want: Ownership) -> Result<OwnedFd, ListenError> {
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
    // unix_bind_bsd).
    // SAFETY: no pointer; the descriptor is open.
    raw::check(unsafe { libc::fchmod(socket.as_raw_fd(), 0) }).map_err(fail)?;
    match socket.bind(&addr) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, &addr)?;
            socket.bind(&addr).map_err(fail)?;
        }
        result => result.map_err(fail)?,
    }
    let ready = own_unix(path, want).and_then(|()| socket.listen(BACKLOG).map_err(fail));
    if let Err(error) = ready {
        // No client has it yet. A file that is not a socket is another one.
        if path
            .symlink_metadata()
            .is_ok_and(|found| found.file_type().is_socket())
        {
            let _ = std::fs::remove_file(path);
        }
        return Err(error);
    }
    Ok(socket.into())
}

/// Gives the file of one of rsup's listening sockets its owner, group and mode, where they differ.
/// The socket stays the same, so that no connection is lost; in between, only users who may connect
/// before or after may connect.
///
/// A file that was removed is ignored.
///
/// # Errors
/// [`ListenError::Path`] when the system refuses, or when something else is at `path`.
pub fn own_unix(path: &Path, want: Ownership) -> Result<(), ListenError> {
    let broken = |reason: String| ListenError::Path {
        path: path.to_owned(),
        reason,
    };
    // The file itself, whatever happens to its name: links are not followed, and it cannot be
    // replaced from here on. open(2), O_PATH: neither read nor write permission is needed.
    let file = match File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(broken(error.to_string())),
    };
    let found = file.metadata().map_err(|error| broken(error.to_string()))?;
    let mode = found.permissions().mode() & 0o7777;
    if (mode, found.uid(), found.gid()) == (want.mode, want.uid, want.gid) {
        return Ok(());
    }
    // A hard link could be the socket of another program, whose owner must not change.
    if !found.file_type().is_socket() || found.nlink() != 1 {
        return Err(broken(
            "what is there is not the socket that rsup made".to_owned(),
        ));
    }
    // fchmod(2) does not take an O_PATH descriptor, and chmod(2) through /proc does (proc_pid_fd(5)).
    let chmod = |mode: u32| {
        std::fs::set_permissions(
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            Permissions::from_mode(mode),
        )
    };
    let refused = |what: String, error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied if !geteuid().is_root() => broken(format!(
            "only a root rsup can give it {what}; leave that out of `[app.NAME.socket]`, or use `sudo rsup start`"
        )),
        _ => broken(format!("cannot give it {what}: {error}")),
    };
    let chown = || {
        let (uid, gid) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
        fchownat(&file, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
            .map_err(|error| refused(format!("to user {uid}, group {gid}"), error.into()))
    };
    let chmod =
        |mode: u32| chmod(mode).map_err(|error| refused(format!("the mode {mode:04o}"), error));
    if (found.uid(), found.gid()) == (want.uid, want.gid) {
        return chmod(want.mode);
    }
    let to_all = |mode: u32| mode & 0o002 != 0;
    match (to_all(mode), to_all(want.mode)) {
        // If every user may connect before or after, one of the two orders excludes no user in
        // between who may connect both before and after. A new socket has neither permissions nor
        // clients.
        (false, true) if mode != 0 => chmod(want.mode).and_then(|()| chown()),
        (true, false) => chown().and_then(|()| chmod(want.mode)),
        (false, _) | (true, true) => {
            if mode & want.mode != mode {
                chmod(mode & want.mode)?;
            }
            chown()?;
            chmod(want.mode)
        }
    }
}

/// Removes a socket file without a listener. A connection attempt decides: it is refused then and
/// only then.
fn remove_stale(path: &Path, addr: &SockAddr) -> Result<(), ListenError> {
    let broken = |reason: String| ListenError::Path {
        path: path.to_owned(),
        reason,
    };
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
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(broken(format!(
                    "a stale socket that cannot be removed: {error}"
                ))),
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(broken("another user's socket is there".to_owned()))
        }
        // Connected, or the queue of its listener is full (EAGAIN).
        _ => Err(ListenError::PathInUse {
            path: path.to_owned(),
            holder: holder::of_unix(path)
                .ok()
                .and_then(|found| found.into_iter().next()),
        }),
    }
}
