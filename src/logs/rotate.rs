//! The names of rotated files, and their moves: `out.log` → `out.log.1` → `out.log.2.gz` → …

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::place::{Place, is_regular, with_suffix};

/// Numbers that something else than a file may have, so that they are passed over.
const MOST_TAKEN: usize = 1000;

/// Held while the rotated files of one log change their names, by the pump (it shifts them) and by
/// the compressor (it puts a finished file in place of the plain one, wherever that is by then). No
/// file is opened meanwhile, and no other log waits for it.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<()>);

impl Names {
    pub fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `out.log` → `out.log.3`
pub(super) fn plain(name: &OsStr, number: usize) -> OsString {
    with_suffix(name, &format!(".{number}"))
}

/// `out.log` → `out.log.3.gz`
pub(super) fn gzipped(name: &OsStr, number: usize) -> OsString {
    with_suffix(name, &format!(".{number}.gz"))
}

/// The name under which a file is compressed, until it is complete.
pub(super) fn unfinished(name: &OsStr) -> OsString {
    with_suffix(name, ".gz.tmp")
}

/// What there is of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Nothing.
    Free,
    /// A file, compressed or not.
    File { plain: bool },
    /// Something that is no file, such as a folder: it stays where it is.
    Else,
}

fn taken(place: &Place, number: usize) -> io::Result<Taken> {
    let plain = place.status(&plain(place.name(), number))?;
    let gzipped = place.status(&gzipped(place.name(), number))?;
    if [&plain, &gzipped]
        .into_iter()
        .flatten()
        .any(|it| !is_regular(it))
    {
        return Ok(Taken::Else);
    }
    Ok(match (plain, gzipped) {
        (None, None) => Taken::Free,
        (plain, _) => Taken::File {
            plain: plain.is_some(),
        },
    })
}

/// Makes the place free for a new file: moves it to number 1, and those in its way one up. Those
/// past `keep` are deleted. Numbers that something else than a file has do not count. The caller
/// holds the lock on the names.
///
/// # Errors
/// When a file can't be renamed or deleted, for example in a folder that can't be written. Nothing
/// is lost then: a failed step leaves its file where it was, and the next attempt continues from
/// there.
pub(super) fn shift(place: &Place, keep: usize) -> io::Result<()> {
    let name = place.name();
    if keep == 0 {
        return absent_is_fine(place.remove(name));
    }
    let mut numbers = Numbers::of(place);
    // The numbers of files from the newest on, the last of them free, if it is within `keep`.
    let mut chain = Vec::new();
    let mut free = None;
    while chain.len() < keep {
        let (number, taken) = numbers.next()?;
        if taken == Taken::Free {
            free = Some(number);
            break;
        }
        chain.push(number);
    }
    let mut to = match (free, chain.pop()) {
        (Some(free), last) => {
            chain.extend(last);
            free
        }
        (None, Some(oldest)) => {
            // And what an earlier, larger `keep` left behind.
            let mut number = oldest;
            loop {
                absent_is_fine(place.remove(&plain(name, number)))?;
                absent_is_fine(place.remove(&gzipped(name, number)))?;
                let (next, taken) = numbers.next()?;
                if taken == Taken::Free {
                    break;
                }
                number = next;
            }
            oldest
        }
        (None, None) => return Err(ErrorKind::InvalidInput.into()),
    };
    while let Some(from) = chain.pop() {
        // A crash may have left both: then the plain one is whole, and is compressed again.
        let (old, new) = match taken(place, from)? {
            Taken::File { plain: true } => {
                absent_is_fine(place.remove(&gzipped(name, from)))?;
                (plain(name, from), plain(name, to))
            }
            Taken::File { plain: false } => (gzipped(name, from), gzipped(name, to)),
            Taken::Free | Taken::Else => continue,
        };
        absent_is_fine(place.rename(&old, &new))?;
        to = from;
    }
    absent_is_fine(place.rename(name, &plain(name, to)))
}

/// The numbers that files have or can have, from 1 on.
struct Numbers<'a> {
    place: &'a Place,
    next: usize,
    passed: usize,
}

impl Numbers<'_> {
    fn of(place: &Place) -> Numbers<'_> {
        Numbers {
            place,
            next: 1,
            passed: 0,
        }
    }

    fn next(&mut self) -> io::Result<(usize, Taken)> {
        while self.passed < MOST_TAKEN {
            let number = self.next;
            self.next += 1;
            match taken(self.place, number)? {
                Taken::Else => self.passed += 1,
                other @ (Taken::Free | Taken::File { .. }) => return Ok((number, other)),
            }
        }
        let why = format!(
            "{MOST_TAKEN} folders, links or pipes have the names of rotated files; remove them"
        );
        Err(io::Error::new(ErrorKind::AlreadyExists, why))
    }
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
    pub name: OsString,
    pub gzipped: bool,
}

/// The names of rotated files in the folder, newest first. Gaps in the numbering are skipped. What has such
/// a name need not be a file.
///
/// # Errors
/// When the folder can't be read.
pub(super) fn segments(place: &Place) -> io::Result<Vec<Segment>> {
    let mut found: Vec<Segment> = Vec::new();
    place.names(|rest| {
        let Some(rest) = std::str::from_utf8(rest)
            .ok()
            .and_then(|r| r.strip_prefix('.'))
        else {
            return;
        };
        let (digits, gzipped) = match rest.strip_suffix(".gz") {
            Some(digits) => (digits, true),
            None => (rest, false),
        };
        // Only names that `plain` and `gzipped` make: no sign, no leading zero.
        if digits.starts_with(['0', '+']) {
            return;
        }
        if let Ok(number) = digits.parse() {
            found.push(Segment {
                number,
                name: with_suffix(place.name(), &format!(".{rest}")),
                gzipped,
            });
        }
    })?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
        let place = Place::find(&path, None, false).expect("place");
        shift(&place, 4).expect("shift");
        assert_eq!(text("out.log"), None);
        assert_eq!(text("out.log.1").as_deref(), Some("out.log"));
        assert_eq!(text("out.log.2").as_deref(), Some("out.log.1"));
        assert_eq!(text("out.log.3.gz").as_deref(), Some("out.log.2.gz"));
        assert_eq!(text("out.log.4").as_deref(), Some("out.log.4"));
        let names = || -> Vec<(usize, bool)> {
            segments(&place)
                .expect("segments")
                .into_iter()
                .map(|s| (s.number, s.gzipped))
                .collect()
        };
        assert_eq!(names(), [(1, false), (2, false), (3, true), (4, false)]);

        put("out.log");
        put("out.log.2.gz"); // as after a crash
        shift(&place, 2).expect("shift");
        assert_eq!(names(), [(1, false), (2, false)]);
        assert_eq!(text("out.log.2").as_deref(), Some("out.log"));
    }

    #[test]
    fn what_is_no_file_is_passed_over() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        fs::create_dir_all(dir.path().join("out.log.1/in it")).expect("mkdir");
        let fifo = dir.path().join("out.log.3.gz");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out.log.4")).expect("symlink");
        let place = Place::find(&path, None, false).expect("place");
        for round in 1..=5 {
            fs::write(&path, format!("{round}")).expect("write");
            shift(&place, 3).expect("shift");
        }
        assert_eq!(text("out.log.2").as_deref(), Some("5"));
        assert_eq!(text("out.log.5").as_deref(), Some("4"));
        assert_eq!(text("out.log.6").as_deref(), Some("3"));
        assert_eq!(text("out.log.7"), None);
        assert!(dir.path().join("out.log.1/in it").exists() && fifo.exists());
    }
}
