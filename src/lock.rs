//! Locks that say who is at work: held as long as the file is open anywhere, also in the next program
//! of the same process, and never given up by hand (`F_OFD_SETLK`, fcntl_locking(2)). Whether one is
//! held can be asked without taking it.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};

/// Takes the lock; `None` if somebody else has it.
///
/// # Errors
/// When the file cannot be opened or made.
pub fn take(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    Ok(fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file()))
        .is_ok()
        .then_some(file))
}

/// Whether somebody has it.
pub fn is_taken(path: &Path) -> bool {
    let Ok(file) = File::options().write(true).open(path) else {
        return false;
    };
    let mut lock = whole_file();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok()
        && i32::from(lock.l_type) != libc::F_UNLCK
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_lives_as_long_as_any_copy_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!is_taken(&path));
        let lock = take(&path).unwrap().expect("free");
        assert!(is_taken(&path) && take(&path).unwrap().is_none());
        let copy = lock.try_clone().unwrap();
        drop(lock);
        assert!(is_taken(&path));
        drop(copy);
        assert!(!is_taken(&path) && take(&path).unwrap().is_some());
    }
}
