//! What the command line needs of the log files.
//!
//! Stands in for what has the same names in [`crate::logs`]; once that is there, this file is
//! `pub use crate::logs::{Follower, Stream, last_lines};`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

/// Which of a worker's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Out,
    Err,
}

/// The last `count` lines of a file, without their ends.
pub fn last_lines(path: &Path, count: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut lines = read(path)?;
    Ok(lines.split_off(lines.len().saturating_sub(count)))
}

fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let text = std::fs::read(path)?;
    let mut lines: Vec<_> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    lines.pop();
    Ok(lines)
}

/// The last lines of an app's files, then each new one.
pub struct Follower {
    files: Vec<(Stream, PathBuf, usize)>,
}

impl Follower {
    pub fn new(paths: impl IntoIterator<Item = (Stream, PathBuf)>, last: usize) -> io::Result<Self> {
        let seen = |path: &Path| read(path).map_or(0, |lines| lines.len().saturating_sub(last));
        Ok(Self { files: paths.into_iter().map(|(stream, path)| (stream, path.clone(), seen(&path))).collect() })
    }

    /// Waits for the next lines.
    pub fn next(&mut self) -> io::Result<Vec<(Stream, Vec<u8>)>> {
        loop {
            let mut found = Vec::new();
            for (stream, path, seen) in &mut self.files {
                let lines = read(path).unwrap_or_default();
                let count = lines.len();
                found.extend(lines.into_iter().skip(*seen).map(|line| (*stream, line)));
                *seen = count;
            }
            if !found.is_empty() {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
