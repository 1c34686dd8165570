//! The names of rotated files, and their moves: `out.log` → `out.log.1` → `out.log.2.gz` → …

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held while rotated files change their names, by the pump (it shifts them) and by the compressor
/// (it puts a finished file in place of the plain one, wherever that is by then).
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<()>);

impl Names {
    pub fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `out.log` → `out.log.3`
pub(super) fn plain(path: &Path, number: usize) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

/// `out.log` → `out.log.3.gz`
pub(super) fn gzipped(path: &Path, number: usize) -> PathBuf {
    with_suffix(path, &format!(".{number}.gz"))
}

/// The name under which a file is compressed, until it is complete.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    with_suffix(path, ".gz.tmp")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Makes `path` free for a new file: moves it to number 1, and those in its way one up. Those past
/// `keep` are deleted. The caller holds the lock on the names.
///
/// # Errors
/// When a file can't be renamed or deleted, for example in a folder that can't be written. Nothing
/// is lost then: a failed step leaves its file where it was, and the next attempt continues from
/// there.
pub(super) fn shift(path: &Path, keep: usize) -> io::Result<()> {
    if keep == 0 {
        return absent_is_fine(fs::remove_file(path));
    }
    let mut free = 1;
    while free <= keep && exists(path, free) {
        free += 1;
    }
    if free > keep {
        free = keep;
        let mut number = keep; // and what an earlier, larger `keep` left behind
        while exists(path, number) {
            absent_is_fine(fs::remove_file(plain(path, number)))?;
            absent_is_fine(fs::remove_file(gzipped(path, number)))?;
            number += 1;
        }
    }
    for number in (1..free).rev() {
        // A crash may have left both: then the plain one is whole, and is compressed again.
        let (from, to) = if plain(path, number).exists() {
            absent_is_fine(fs::remove_file(gzipped(path, number)))?;
            (plain(path, number), plain(path, number + 1))
        } else {
            (gzipped(path, number), gzipped(path, number + 1))
        };
        absent_is_fine(fs::rename(from, to))?;
    }
    absent_is_fine(fs::rename(path, plain(path, 1)))
}

fn exists(path: &Path, number: usize) -> bool {
    plain(path, number).exists() || gzipped(path, number).exists()
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A rotated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// 1 is the newest.
    pub number: usize,
    pub path: PathBuf,
    pub gzipped: bool,
}

/// The rotated files of `path`, newest first. Gaps in the numbering are skipped.
///
/// # Errors
/// When the folder can't be read.
pub(super) fn segments(path: &Path) -> io::Result<Vec<Segment>> {
    let folder = folder(path);
    let Some(name) = path.file_name() else {
        return Ok(Vec::new());
    };
    let mut found: Vec<Segment> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let entry_name = entry.file_name();
        let Some(rest) = entry_name
            .as_encoded_bytes()
            .strip_prefix(name.as_encoded_bytes())
        else {
            continue;
        };
        let Some(rest) = std::str::from_utf8(rest)
            .ok()
            .and_then(|r| r.strip_prefix('.'))
        else {
            continue;
        };
        let (digits, gzipped) = match rest.strip_suffix(".gz") {
            Some(digits) => (digits, true),
            None => (rest, false),
        };
        // Only names that `plain` and `gzipped` make: no sign, no leading zero.
        if digits.starts_with(['0', '+']) {
            continue;
        }
        if let Ok(number) = digits.parse() {
            found.push(Segment {
                number,
                path: entry.path(),
                gzipped,
            });
        }
    }
    found.sort_by_key(|s| (s.number, s.gzipped));
    found.dedup_by_key(|s| s.number); // the plain one stands for both
    Ok(found)
}

/// The folder that `path` is in.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Identifies a file as long as it exists, whatever its name: device and inode.
pub(super) fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifting_moves_one_up_fills_holes_and_drops_the_oldest() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        let put = |name: &str| fs::write(dir.path().join(name), name).expect("write");
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        for name in [
            "out.log",
            "out.log.1",
            "out.log.2.gz",
            "out.log.4",
            "out.log.old",
            "out.log.01",
        ] {
            put(name);
        }
        shift(&path, 4).expect("shift");
        assert_eq!(text("out.log"), None);
        assert_eq!(text("out.log.1").as_deref(), Some("out.log"));
        assert_eq!(text("out.log.2").as_deref(), Some("out.log.1"));
        assert_eq!(text("out.log.3.gz").as_deref(), Some("out.log.2.gz"));
        assert_eq!(text("out.log.4").as_deref(), Some("out.log.4"));
        let names = |path: &Path| -> Vec<(usize, bool)> {
            segments(path)
                .expect("segments")
                .into_iter()
                .map(|s| (s.number, s.gzipped))
                .collect()
        };
        assert_eq!(
            names(&path),
            [(1, false), (2, false), (3, true), (4, false)]
        );

        put("out.log");
        put("out.log.2.gz"); // as after a crash
        shift(&path, 2).expect("shift");
        assert_eq!(names(&path), [(1, false), (2, false)]);
        assert_eq!(text("out.log.2").as_deref(), Some("out.log"));
    }
}
