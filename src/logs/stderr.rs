//! A stderr that never blocks and whose failure never ends a process: for the messages of the
//! daemon and the keeper.
//!
//! stderr may be a file on a full disk, a pipe whose reader is gone, or one whose reader does not
//! read. A thread writes to it; in front of that is a bounded [`Console`], which counts lost lines
//! and reports them at their place.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::console::{Console, Loss, Teller};
use super::{Format, own_log, sink};

/// How long a process waits at its end for its last messages to be written.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

/// Bytes of unwritten messages that are kept for the process that started this one.
const MOST_WORDS: usize = 64 << 10;

/// The console of this process.
static CONSOLE: OnceLock<Console> = OnceLock::new();

/// The file of rsup's messages, which has a bound.
static LOG: OnceLock<PathBuf> = OnceLock::new();

/// Gets the lines that stderr does not take, while another process waits for the start of this one.
static WITNESS: Mutex<Option<Witness>> = Mutex::new(None);

struct Witness {
    file: File,
    left: usize,
}

/// Starts the thread that writes this process's messages to stderr. `teller` makes the lines that
/// report lost ones. A second call changes nothing.
///
/// # Errors
/// When there are no threads left.
pub fn begin(teller: Teller) -> io::Result<Console> {
    if let Some(console) = CONSOLE.get() {
        return Ok(console.clone());
    }
    let (console, reader) = Console::with_teller(Format::Text, teller);
    let write = move || {
        let before = |more| drop(keep_to_log(more));
        sink::write_all_after(reader, &io::stderr(), before, |lines, _, _| testify(lines));
    };
    thread::Builder::new()
        .name("rsup-stderr".into())
        .spawn(write)?;
    Ok(CONSOLE.get_or_init(|| console).clone())
}

/// Writes whole lines, and waits a bounded time for them. Without [`begin`] it writes them
/// directly, as a command does for its user.
pub fn text(text: &str) {
    match CONSOLE.get() {
        Some(console) => {
            console.whole(text.as_bytes());
            console.flush(LAST_WORDS);
        }
        // A failure cannot be reported anywhere.
        None => drop(io::stderr().lock().write_all(text.as_bytes())),
    }
}

/// From now on, where stderr is the file at `path`, it is rotated when it is full.
pub fn rotates(path: PathBuf) {
    // A second call in the same process (tests) keeps the first.
    let _ = LOG.set(path);
}

/// Makes stderr the present file of messages, where it is a former or a full one. If that fails, it stays what it
/// is.
///
/// # Errors
/// As open(2), rename(2) and dup2(2).
pub fn keep_to_log(more: usize) -> io::Result<()> {
    let Some(path) = LOG.get() else {
        return Ok(());
    };
    let stderr = io::stderr();
    match own_log::next(path, std::os::fd::AsFd::as_fd(&stderr), more)? {
        Some(file) => Ok(nix::unistd::dup2_stderr(file)?),
        None => Ok(()),
    }
}

/// Lines of this process that have been lost.
pub fn lost() -> Loss {
    CONSOLE.get().map(Console::lost).unwrap_or_default()
}

/// Waits a bounded time until everything is written.
pub fn flush() {
    if let Some(console) = CONSOLE.get() {
        console.flush(LAST_WORDS);
    }
}

/// Sets the descriptor where the process that started this one reads what stderr did not take.
pub fn set_witness(fd: OwnedFd) {
    *witness() = Some(Witness {
        file: fd.into(),
        left: MOST_WORDS,
    });
}

/// Drops the witness once the start is over.
pub fn dismiss_witness() {
    *witness() = None;
}

fn witness() -> std::sync::MutexGuard<'static, Option<Witness>> {
    WITNESS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn testify(lines: &[u8]) {
    if let Some(Witness { file, left }) = &mut *witness() {
        let lines = &lines[..lines.len().min(*left)];
        *left -= lines.len();
        // It is a memfd; if memory is full too, there is no other place.
        drop(file.write_all(lines));
    }
}
/// Continues in a new file at `path` if stderr is a file that was removed.
///
/// # Errors
/// As open(2) and dup2(2).
pub fn begin_again(path: &Path) -> io::Result<()> {
    let Ok(found) = nix::sys::stat::fstat(io::stderr()) else {
        return Ok(());
    };
    let is_file = found.st_mode & nix::libc::S_IFMT == nix::libc::S_IFREG;
    if !is_file || found.st_nlink > 0 {
        return Ok(());
    }
    Ok(nix::unistd::dup2_stderr(own_log::open(path)?)?)
}
