//! The file of rsup's own messages: `daemon.log`, which the daemon and its keeper append to, each with a
//! descriptor of its own for it. At [`MOST`] bytes it becomes `daemon.log.1`, and so on.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::fstat;

use super::place;

/// Bytes of the file, at which the next one begins.
const MOST: u64 = 10_000_000;
/// How many former ones are kept.
const KEPT: usize = 3;

/// Opens the file to append to it, and makes it if it does not exist.
///
/// # Errors
/// As open(2).
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

/// What `out` has to be replaced by before `more` bytes are written to it: the present file, where `out` is a
/// former one, which another process has renamed, or a new one, where `out` is full. `None` where it
/// stays, because it has room or is no such file at all.
///
/// No line is lost: the path always leads to a file that is written to, and a process that has not noticed a
/// change yet writes to the former one.
///
/// # Errors
/// When a file cannot be made or renamed: `out` is still the right one.
pub(super) fn next(path: &Path, out: BorrowedFd<'_>, more: usize) -> io::Result<Option<File>> {
    let ours = fstat(out)?;
    if !place::is_regular(&ours) {
        return Ok(None);
    }
    let is_ours = |meta: &Metadata| (meta.dev(), meta.ino()) == place::identity(&ours);
    let Ok(present) = fs::metadata(path) else {
        return Ok(None); // it was removed, which is found out elsewhere
    };
    if !is_ours(&present) {
        let mut former = (1..=KEPT).filter_map(|number| fs::metadata(numbered(path, number)).ok());
        return match former.any(|meta| is_ours(&meta)) {
            true => open(path).map(Some),
            false => Ok(None),
        };
    }
    if present.len() + more as u64 <= MOST {
        return Ok(None);
    }
    // The daemon and the keeper may share one open file, so that a lock on that would keep neither out.
    let lock = Flock::lock(File::open(path)?, FlockArg::LockExclusive).map_err(|(_, why)| why)?;
    if !lock.metadata().is_ok_and(|meta| is_ours(&meta))
        || !fs::metadata(path).is_ok_and(|meta| is_ours(&meta))
    {
        return open(path).map(Some); // the other one was first
    }
    rotate(path).map(Some)
}

fn rotate(path: &Path) -> io::Result<File> {
    for number in (1..KEPT).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let begun = suffixed(path, ".new");
    match fs::remove_file(&begun) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = open(&begun)?;
    // A second name first, then the new file in its place: the path leads to one of them at any moment.
    if fs::hard_link(path, numbered(path, 1)).is_err() {
        fs::rename(path, numbered(path, 1))?;
    }
    fs::rename(&begun, path)?;
    Ok(file)
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    suffixed(path, &format!(".{number}"))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    /// Two processes, of which each sees late what the other has done.
    #[test]
    fn two_writers_lose_no_line() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("daemon.log");
        let filler = vec![b'.'; 999_990];
        let writer = |name: char, count: usize| {
            let (path, filler) = (&path, &filler);
            move || {
                let mut file = open(path).expect("open");
                for number in 0..count {
                    let line = [format!("{name}{number:06} ").as_bytes(), filler, b"\n"].concat();
                    if let Some(new) = next(path, file.as_fd(), line.len()).expect("next") {
                        file = new;
                    }
                    file.write_all(&line).expect("write");
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(writer('a', 16));
            scope.spawn(writer('b', 16));
        });
        let files: Vec<_> = fs::read_dir(dir.path())
            .expect("read_dir")
            .flatten()
            .collect();
        // With one line more than fits in each, three take all.
        assert!((3..=4).contains(&files.len()), "{files:?}");
        let mut lines = 0;
        for file in files {
            let text = fs::read_to_string(file.path()).expect("read");
            // A writer that has just looked may add one more.
            assert!(text.len() as u64 <= MOST + 1_000_000);
            lines += text.lines().count();
            assert!(text.lines().all(|line| line.len() == filler.len() + 8));
        }
        assert_eq!(lines, 32);
    }

    #[test]
    fn the_oldest_goes_and_another_file_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("daemon.log");
        let mut file = open(&path).expect("open");
        for number in 0..6 {
            file.set_len(MOST - 8).expect("set_len");
            assert!(next(&path, file.as_fd(), 8).expect("next").is_none());
            let new = next(&path, file.as_fd(), 9).expect("next");
            file = new.expect("another file");
            writeln!(file, "{number}").expect("write");
        }
        assert_eq!(fs::read_to_string(&path).expect("read"), "5\n");
        let count = fs::read_dir(dir.path()).expect("read_dir").count();
        assert_eq!(count, 1 + KEPT);
        let other = tempfile::tempfile().expect("tempfile");
        other.set_len(2 * MOST).expect("set_len");
        assert!(next(&path, other.as_fd(), 1).expect("next").is_none());
        // One that is a step behind.
        let former = File::options()
            .append(true)
            .open(dir.path().join("daemon.log.2"));
        let now = next(&path, former.expect("open").as_fd(), 1).expect("next");
        let now = now
            .expect("the present one")
            .metadata()
            .expect("metadata")
            .ino();
        assert_eq!(now, fs::metadata(&path).expect("metadata").ino());
    }
}
