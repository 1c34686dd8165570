//! What workers print, from their pipes into files.
//!
//! One thread, the [`Pump`], reads the pipes of all workers and appends whole lines to the `out`
//! and `err` file of each app. Nothing else reads those pipes, and no worker waits for anything but
//! the pump: followers of the logs read the *files* ([`Follower`]), so a stuck reader holds up no
//! worker, and a file that can't be written costs lines (counted, and reported in the file later),
//! never a worker.
//!
//! * A line that doesn't end is written in parts: after [`MAX_LINE`] bytes, or once it has been
//!   quiet for [`QUIET`]. In text a part that is continued ends with `…` and its continuation
//!   begins with `…`; in JSON it has `"partial": true`.
//! * The pump's process may be killed at any instant: what it has taken from the pipes and not yet
//!   written is in a [`Journal`], with which the next pump continues.
//! * Lines of different workers share a file but never mix within a line.
//! * Where rsup runs in the foreground the same lines also go to a [`Console`], from which they are
//!   written to rsup's own output; a stuck reader costs lines there, and nothing else.
//! * A full file becomes `NAME.1`; the former `NAME.1` becomes `NAME.2` and is compressed to
//!   `NAME.2.gz` in the background. `NAME.1` stays plain for readers that still have it open.

// A new state must be handled everywhere.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod compress;
mod console;
mod disk;
mod engine;
mod file;
mod follow;
mod format;
mod frame;
mod hand;
mod journal;
#[cfg(test)]
mod killed_tests;
mod lines;
mod own_log;
mod pipe;
mod place;
mod pump;
mod resume;
mod rotate;
pub mod sink;
pub mod stderr;
mod tail;
#[cfg(test)]
mod tests;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use console::{Chunk, Console, Loss, Reader, Teller};
pub use engine::QUIET;
pub use follow::Follower;
pub use frame::{MAX_LINE, Unfinished};
pub use journal::Journal;
pub use lines::{Last, last_lines};
pub use pipe::pipe;
pub use pump::{Detached, Pump};
pub use walk::foreign_folders;

/// Where and how the lines of one app are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// File of what workers write to stdout. May equal `err`.
    pub out: PathBuf,
    /// File of what workers write to stderr.
    pub err: PathBuf,
    /// How a line looks in the file.
    pub format: Format,
    /// Whether each line carries the time at which it was read (RFC 3339, UTC, milliseconds).
    pub timestamps: bool,
    /// A file is rotated before it grows past this many bytes; 0 means never.
    pub max_size: u64,
    /// How many rotated files are kept beside the current one. With 0 a full file is deleted.
    pub keep: usize,
    /// Whether rotated files, from the second on, are compressed with gzip.
    pub compress: bool,
    /// The user that the app runs as, if it is not rsup's: files may be its own too.
    #[serde(default)]
    pub user: Option<u32>,
}

impl Settings {
    /// The defaults for an app whose lines go to `out` and `err`.
    pub fn new(out: impl Into<PathBuf>, err: impl Into<PathBuf>) -> Self {
        Settings {
            out: out.into(),
            err: err.into(),
            format: Format::Text,
            timestamps: true,
            max_size: 50 << 20,
            keep: 10,
            compress: true,
            user: None,
        }
    }

    /// The file of one stream.
    pub fn path(&self, stream: Stream) -> &Path {
        match stream {
            Stream::Out => &self.out,
            Stream::Err => &self.err,
        }
    }
}

/// How a line looks in a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `2024-06-01T12:00:00.000Z the line`; every byte of the worker's line survives.
    Text,
    /// `{"time":…,"app":…,"instance":…,"stream":…,"line":…}`; what is not UTF-8 becomes U+FFFD.
    Json,
}

/// Which of a worker's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// `"out"` or `"err"`.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Out => "out",
            Stream::Err => "err",
        }
    }
}

/// The worker that a stream belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Name of the app.
    pub app: Arc<str>,
    /// Instance number within the app.
    pub instance: u32,
    /// Identifies this one process: never reused for another worker of this supervisor.
    pub key: u64,
}

/// One of the last lines of a worker, see [`Pump::tail`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailLine {
    /// Where the worker wrote it.
    pub stream: Stream,
    /// The line without its end; cut, and with U+FFFD for what is not UTF-8.
    pub text: String,
}

/// What the pump has done since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Lines (and parts of overlong lines) written or lost.
    pub lines: u64,
    /// Bytes read from workers.
    pub bytes: u64,
    /// Formatted bytes that could not be written.
    pub lost_bytes: u64,
    /// Lines that could not be written.
    pub lost_lines: u64,
    /// How often a full file was rotated.
    pub rotations: u64,
    /// How often opening, writing or rotating a file failed.
    pub errors: u64,
    /// Pipes that are open.
    pub pipes: usize,
    /// The files that are in use.
    pub files: Vec<FileStats>,
}

/// State of one log file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStats {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes when it was last written to.
    pub size: u64,
    /// Bytes lost in the trouble that lasts now; 0 when all is well.
    pub lost_bytes: u64,
    /// Why it can't be written to at the moment.
    pub error: Option<String>,
}

/// What the pump reports to the supervisor on its own. Sent when a state changes, not per line: a
/// failing file yields at most one event a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file can't be written; its lines are being dropped and counted.
    Failed {
        /// The log file.
        path: PathBuf,
        /// What was attempted, and the system's reason.
        error: String,
    },
    /// A file can't be rotated or compressed. No line is lost, but it takes more room.
    Untidy {
        /// The log file.
        path: PathBuf,
        /// What was attempted, and the system's reason.
        error: String,
    },
    /// The file can be written again.
    Recovered {
        /// The log file.
        path: PathBuf,
        /// Formatted bytes that are missing from it.
        lost_bytes: u64,
        /// Lines that are missing from it.
        lost_lines: u64,
    },
    /// The file could not be written to the end, and nothing writes to it any more.
    Closed {
        /// The log file.
        path: PathBuf,
        /// Formatted bytes that are missing from it.
        lost_bytes: u64,
        /// Lines that are missing from it.
        lost_lines: u64,
    },
    /// A pipe could not be watched or read; it was closed.
    BadPipe {
        /// The worker at its other end.
        source: Source,
        /// Which stream.
        stream: Stream,
        /// The system's reason.
        error: String,
    },
}
