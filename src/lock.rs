//! Locks that say which process is at work. A lock is held as long as its file is open anywhere,
//! also in the next program of the same process, and is never released explicitly (`F_OFD_SETLK`,
//! fcntl_locking(2)). Whether one is held can be tested without taking it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::sys::procfs;

/// Takes the lock and writes the pid of this process into the file; `None` if another process has
/// it. The file of a process that has died and keeps it open all the same is replaced.
///
/// # Errors
/// When the file cannot be opened or made, or its file system has no locks.
pub fn take(path: &Path) -> io::Result<Option<File>> {
    if let Some(file) = try_take(path)? {
        return Ok(Some(file));
    }
    if !is_of_dead(path) {
        return Ok(None);
    }
    // One at a time: the file of a live process that has just replaced it stays.
    let mut turn = path.as_os_str().to_owned();
    turn.push(".turn");
    let Some(turn) = try_take(Path::new(&turn))? else {
        return Ok(None);
    };
    if is_of_dead(path) && is_locked(path) {
        std::fs::remove_file(path)?;
    }
    let taken = try_take(path);
    drop(turn);
    taken
}

/// Whether the process that took the lock has died and cannot end, by the pid that it wrote.
fn is_of_dead(path: &Path) -> bool {
    holder(path).is_some_and(procfs::cannot_end)
}

fn try_take(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
        Ok(_) => {
            // The pid only serves error messages; on a full disk there is no room for it.
            let _ = file.set_len(0).and_then(|()| {
                file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
            });
            Ok(Some(file))
        }
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(why) => Err(io::Error::new(
            io::Error::from(why).kind(),
            format!(
                "its file system has no locks ({why}); set RSUP_HOME to a folder on a local disk"
            ),
        )),
    }
}

/// The process that took the lock, by the pid that it wrote.
#[must_use]
pub fn holder(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether `path` is still the file that was locked: another process may have removed or replaced
/// it.
#[must_use]
pub fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => identity(ours) == identity(there),
        _ => false,
    }
}

/// Whether a process holds the lock that has not died.
pub fn is_taken(path: &Path) -> bool {
    is_locked(path) && !is_of_dead(path)
}

fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::options().write(true).open(path) else {
        return false;
    };
    let mut lock = whole_file();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok()
        && i32::from(lock.l_type) != libc::F_UNLCK
}

/// The process of this user that still has the file open that was removed from `path`: what
/// `/proc/PID/fd` calls `… (deleted)` (proc_pid_fd(5)). Looks at every process.
#[must_use]
pub fn holder_of_removed(path: &Path) -> Option<u32> {
    // The path as the kernel reports it: without links. Parent folders may be gone as well.
    let there = path.ancestors().skip(1).find(|folder| folder.exists())?;
    let rest = path.strip_prefix(there).ok()?;
    let mut wanted = there.canonicalize().ok()?.join(rest).into_os_string();
    wanted.push(" (deleted)");
    let (me, uid) = (std::process::id(), nix::unistd::geteuid().as_raw());
    let has_it = |pid: u32| {
        let folder = format!("/proc/{pid}");
        std::fs::metadata(&folder).is_ok_and(|found| found.uid() == uid)
            && std::fs::read_dir(folder + "/fd")
                .into_iter()
                .flatten()
                .flatten()
                .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new(&wanted)))
    };
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| *pid != me && has_it(*pid))
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
        assert_eq!(holder(&path), Some(std::process::id()));
        assert!(is_at(&lock, &path) && !is_at(&lock, folder.path()));
        assert!(is_taken(&path) && take(&path).unwrap().is_none());
        let copy = lock.try_clone().unwrap();
        drop(lock);
        assert!(is_taken(&path));
        drop(copy);
        assert!(!is_taken(&path) && take(&path).unwrap().is_some());
    }
}
