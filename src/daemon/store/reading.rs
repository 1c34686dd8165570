//! Reading a state, also from outside the daemon.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::record::{State, decode};
use crate::config::AppName;
use crate::paths::Paths;
use crate::sys::{process, procfs};

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("there is none")]
    None,
    #[error("{0}")]
    Io(io::Error),
    #[error(
        "it was written by rsup {rsup} in a form (version {version}) that this rsup does not know"
    )]
    Version { version: u32, rsup: String },
    #[error("it cannot be understood: {0}")]
    Broken(String),
}

/// Reads a state file.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path) -> Result<State, ReadError> {
    match fs::read(path) {
        Ok(bytes) => decode(&bytes),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Err(ReadError::None),
        Err(why) => Err(ReadError::Io(why)),
    }
}

/// How many workers of a dead daemon live; `None` if none has died, or one is at work again.
#[must_use]
pub fn left_behind(paths: &Paths) -> Option<usize> {
    if paths.is_locked() {
        return None;
    }
    let state = read(&paths.live_state()).ok()?;
    let ours = process::boot_id().is_ok_and(|boot| boot == state.boot);
    ours.then(|| {
        state
            .daemon
            .processes
            .values()
            .filter(|p| procfs::is_alive(p.pid, p.started))
            .count()
    })
}

/// The apps that the next daemon will know, where none runs.
pub fn known_from_before(paths: &Paths) -> Vec<AppName> {
    let state = read(&paths.saved_state()).ok();
    state.map_or_else(Vec::new, |state| {
        state.supervisor.names().cloned().collect()
    })
}

/// Whether another process starts the next daemon, by what the live state says.
pub fn is_of_foreground(path: &Path) -> bool {
    read(path).is_ok_and(|state| state.daemon.foreground)
}

/// A state in memory, for who holds descriptors for the next daemon.
///
/// # Errors
/// When there is no memory or descriptor left.
pub fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"rsup-state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Reads a state that is in memory.
///
/// # Errors
/// See [`ReadError`].
pub fn read_memory(fd: OwnedFd) -> Result<State, ReadError> {
    let mut file = File::from(fd);
    let mut bytes = Vec::new();
    // Its writer left the position, which all copies share, at its end.
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(ReadError::Io)?;
    decode(&bytes)
}
