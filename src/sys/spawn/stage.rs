//! Low descriptor numbers, reserved for what children get.
//!
//! fork(2) copies this process's table of descriptors, and exec(2) closes the copies: with ten
//! thousand open files that takes longer than all the rest. So a child of a process with that many
//! shares the table (`CLONE_FILES`) until close_range(2) with `CLOSE_RANGE_UNSHARE` gives it one of
//! its own, with what is below a number alone. All that it needs is put below that number first.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::sys::raw;

/// Beyond this number of open files a table of its own is worth the wait for the child to have it.
const MANY: RawFd = 512;
/// The places have higher numbers than every target, so that dup2(2) never overwrites one.
const LEAST: RawFd = 128;
/// Enough for a worker with fifty addresses.
const PLACES: usize = 64;

static STAGE: Mutex<Option<Stage>> = Mutex::new(None);
/// Set where a sandbox refuses close_range(2).
static IMPOSSIBLE: AtomicBool = AtomicBool::new(false);

struct Stage {
    null: File,
    places: Vec<OwnedFd>,
}

/// Reserves the numbers: at the start of a daemon, while low ones are free. One that may open `limit`
/// files, and so never has many, needs none.
///
/// # Errors
/// As `open(2)` and `fcntl(2)`. Workers are forked in the ordinary way then.
pub fn reserve(limit: u64) -> io::Result<()> {
    if limit < 4 * MANY as u64 {
        return Ok(());
    }
    let null = File::open("/dev/null")?;
    let places = (0..PLACES).map(|_| raw::dup_from(&null, LEAST));
    let places = places.collect::<io::Result<_>>()?;
    *STAGE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Stage { null, places });
    Ok(())
}

/// Never shares a table again: the kernel, or a sandbox, gives the child none of its own.
pub(super) fn give_up() {
    IMPOSSIBLE.store(true, Ordering::Relaxed);
}

/// The places in use for one child; dropped, they are free again. The child must have a table of
/// its own by then.
pub(super) struct Staged {
    stage: MutexGuard<'static, Option<Stage>>,
    used: usize,
}

impl Staged {
    /// `None` if this process has few files (`newest` is the number of one just opened), or the
    /// places do not suffice.
    pub fn begin(newest: RawFd, needed: usize) -> Option<Staged> {
        if newest < MANY || IMPOSSIBLE.load(Ordering::Relaxed) {
            return None;
        }
        let stage = match STAGE.try_lock() {
            Ok(stage) => stage,
            Err(TryLockError::Poisoned(stage)) => stage.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let enough = stage.as_ref().is_some_and(|s| s.places.len() >= needed);
        (enough && needed <= LEAST as usize).then_some(Staged { stage, used: 0 })
    }

    /// Puts a copy of the descriptor into the next place.
    ///
    /// # Errors
    /// As `dup3(2)`, and `EMFILE` when all places are taken.
    pub fn put(&mut self, fd: BorrowedFd<'_>) -> io::Result<RawFd> {
        let places = self.stage.iter().flat_map(|stage| &stage.places);
        let place = places
            .skip(self.used)
            .map(AsRawFd::as_raw_fd)
            .next()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
        replace(fd.as_raw_fd(), place)?;
        self.used += 1;
        Ok(place)
    }

    /// The first number that the child needs nothing at or above.
    pub fn end(&self) -> libc::c_uint {
        let places = self.stage.iter().flat_map(|stage| &stage.places);
        let highest = places.map(AsRawFd::as_raw_fd).max().unwrap_or(0);
        highest as libc::c_uint + 1
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let Some(stage) = self.stage.as_ref() else {
            return;
        };
        for place in stage.places.iter().take(self.used) {
            // What stays in a place is only kept open for longer.
            let _ = replace(stage.null.as_raw_fd(), place.as_raw_fd());
        }
    }
}

/// Lets the number `place`, which is open, refer to another file.
fn replace(fd: RawFd, place: RawFd) -> io::Result<()> {
    // SAFETY: integers; `place` is a number that the stage owns, and its former file has no other
    // user.
    raw::check(unsafe { libc::dup3(fd, place, libc::O_CLOEXEC) }).map(drop)
}
