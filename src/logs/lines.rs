//! The last lines of a log file, rotated ones included. A worker may have a hand in these files: what
//! is held in memory, and what is unpacked, has bounds whatever is in them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use memchr::{memchr, memrchr_iter};

use super::place::{self, Place};
use super::rotate;

const BLOCK: usize = 64 << 10;
/// Bytes that are shown of a line. rsup itself writes shorter ones.
pub(super) const LONGEST: usize = 512 << 10;
/// Bytes of lines that are held of one log.
const HELD: usize = 64 << 20;
/// What a line takes beside its bytes.
const OVERHEAD: usize = 64;
/// Bytes that are read or unpacked of one log in search of its last lines.
const SEARCHED: u64 = 4 << 30;
/// Rotated files that are searched.
const MOST_FILES: usize = 1000;

/// The last lines of a log.
#[derive(Debug, Default)]
pub struct Last {
    /// Oldest first, without their newlines.
    pub lines: Vec<Vec<u8>>,
    /// Why there are no older ones among them, where that has another reason than the end of the log.
    pub note: Option<String>,
}

/// The last `count` lines of the log at `path`, of an app that runs as `user`. Where the current file has
/// fewer, continues in the rotated ones, compressed or not. Reads no more of plain files than needed. A
/// log that doesn't exist has no lines.
///
/// # Errors
/// When the file is there and can't be read.
pub fn last_lines(path: &Path, user: Option<u32>, count: usize) -> io::Result<Last> {
    let place = match Place::find(path, user, false) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Last::default()),
        other => other?,
    };
    let current = place.read(place.name())?;
    let end = current.as_ref().map_or(0, |it| place::size(&it.status));
    before(&place, current.as_ref().map(|it| &it.file), end, count)
}

/// The last `count` lines that end before the byte `end` of the open `current` file of the log.
pub(super) fn before(
    place: &Place,
    current: Option<&File>,
    end: u64,
    count: usize,
) -> io::Result<Last> {
    let mut window = Window {
        lines: VecDeque::new(),
        count,
        held: 0,
        searched: 0,
    };
    let mut seen = Vec::new();
    if let Some(file) = current {
        seen.push(place::identity(&nix::sys::stat::fstat(file)?));
        if let Err(Full(note)) = window.read_back(file, end)? {
            return Ok(window.last(Some(format!("{}: {note}", name(place.name())))));
        }
    }
    if window.has_all() {
        return Ok(window.last(None));
    }
    let segments = match rotate::segments(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(window.last(None)),
        other => other?,
    };
    for segment in segments.into_iter().take(MOST_FILES) {
        if window.has_all() {
            break;
        }
        // A file that is rotated away during the search is either gone or met again. Something else
        // in its place is passed over.
        let Ok(Some(opened)) = place.read(&segment.name) else {
            continue;
        };
        let identity = place::identity(&opened.status);
        if seen.contains(&identity) {
            continue;
        }
        seen.push(identity);
        let searched = if segment.gzipped {
            window.unpack(MultiGzDecoder::new(opened.file))
        } else {
            let end = place::size(&opened.status);
            window.read_back(&opened.file, end)
        };
        let note = match searched {
            Ok(Ok(())) => continue,
            Ok(Err(Full(note))) => note,
            Err(error) => format!("it cannot be read: {error}; it and older lines are left out"),
        };
        return Ok(window.last(Some(format!("{}: {note}", name(&segment.name)))));
    }
    Ok(window.last(None))
}

fn name(name: &std::ffi::OsStr) -> String {
    crate::human::one_line(&name.to_string_lossy()).into_owned()
}

/// The lines found so far, and how much was done for them.
struct Window {
    lines: VecDeque<Vec<u8>>,
    /// So many are wanted.
    count: usize,
    held: usize,
    searched: u64,
}

/// A bound is reached.
struct Full(String);

fn full() -> Full {
    let held = crate::human::size(HELD as u64);
    Full(format!(
        "more lines than fit into {held} of memory are asked for; older ones are left out"
    ))
}

impl Window {
    fn last(self, note: Option<String>) -> Last {
        Last {
            lines: self.lines.into(),
            note,
        }
    }

    fn has_all(&self) -> bool {
        self.lines.len() >= self.count
    }

    /// Adds a line before the others.
    fn add(&mut self, line: Vec<u8>) -> Result<(), Full> {
        self.held += line.len() + OVERHEAD;
        self.lines.push_front(line);
        if self.held > HELD {
            if let Some(line) = self.lines.pop_front() {
                self.held -= line.len() + OVERHEAD;
            }
            return Err(full());
        }
        Ok(())
    }

    fn search(&mut self, bytes: usize) -> Result<(), Full> {
        self.searched += bytes as u64;
        if self.searched > SEARCHED {
            let searched = crate::human::size(SEARCHED);
            return Err(Full(format!(
                "there are no {} lines in {searched}; it and older lines are left out",
                self.count
            )));
        }
        Ok(())
    }

    /// Adds the last lines of `file[..end]`, as many as are missing.
    fn read_back(&mut self, file: &File, end: u64) -> io::Result<Result<(), Full>> {
        let mut block = vec![0; BLOCK];
        let mut at = end;
        let mut line = Backwards::default();
        let mut begun = false; // past the newline at the end of the file, if there is one
        while at > 0 && !self.has_all() {
            let size = at.min(BLOCK as u64);
            at -= size;
            let block = &mut block[..usize::try_from(size).unwrap_or(BLOCK)];
            file.read_exact_at(block, at)?;
            if let Err(full) = self.search(block.len()) {
                return Ok(Err(full));
            }
            let mut rest: &[u8] = block;
            if !begun {
                rest = rest.strip_suffix(b"\n").unwrap_or(rest);
                begun = true;
            }
            let mut stop = rest.len();
            for newline in memrchr_iter(b'\n', rest) {
                line.add(&rest[newline + 1..stop]);
                if let Err(full) = self.add(line.take()) {
                    return Ok(Err(full));
                }
                stop = newline;
                if self.has_all() {
                    return Ok(Ok(()));
                }
            }
            line.add(&rest[..stop]);
        }
        Ok(match begun && at == 0 && !self.has_all() {
            true => self.add(line.take()),
            false => Ok(()),
        })
    }

    /// The same for a reader that can only be read from its beginning.
    fn unpack(&mut self, reader: impl io::Read) -> io::Result<Result<(), Full>> {
        let mut reader = BufReader::with_capacity(BLOCK, reader);
        let wanted = self.count - self.lines.len();
        let room = HELD.saturating_sub(self.held);
        let mut found: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut held, mut dropped) = (0, false);
        let mut line = Line::default();
        let mut keep = |line: Vec<u8>| {
            held += line.len() + OVERHEAD;
            found.push_back(line);
            while found.len() > wanted || held > room {
                dropped |= found.len() <= wanted;
                let Some(old) = found.pop_front() else { break };
                held -= old.len() + OVERHEAD;
            }
        };
        loop {
            let block = match reader.fill_buf() {
                Ok([]) => break,
                Ok(block) => block,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let used = match memchr(b'\n', block) {
                Some(end) => {
                    line.add(&block[..end]);
                    keep(line.take());
                    end + 1
                }
                None => {
                    line.add(block);
                    block.len()
                }
            };
            reader.consume(used);
            if let Err(full) = self.search(used) {
                return Ok(Err(full));
            }
        }
        if !line.is_empty() {
            keep(line.take());
        }
        while let Some(line) = found.pop_back() {
            self.held += line.len() + OVERHEAD;
            self.lines.push_front(line);
        }
        Ok(match dropped {
            true => Err(full()),
            false => Ok(()),
        })
    }
}

/// A line whose parts are found in order; no more than [`LONGEST`] bytes of it are kept.
#[derive(Debug, Default)]
pub(super) struct Line {
    bytes: Vec<u8>,
    more: u64,
}

impl Line {
    pub fn add(&mut self, bytes: &[u8]) {
        let room = LONGEST.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        self.more += (bytes.len() - room) as u64;
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.more = 0;
    }

    /// The line; the next one begins.
    pub fn take(&mut self) -> Vec<u8> {
        let more = std::mem::take(&mut self.more);
        cut(std::mem::take(&mut self.bytes), more)
    }
}

/// The same for parts that are found from the last one on.
#[derive(Default)]
struct Backwards {
    /// The last one first.
    parts: VecDeque<Vec<u8>>,
    held: usize,
    more: u64,
}

impl Backwards {
    fn add(&mut self, part: &[u8]) {
        self.held += part.len();
        self.parts.push_back(part.to_vec());
        while self.held > LONGEST {
            let surplus = self.held - LONGEST;
            let Some(last) = self.parts.front_mut() else {
                break;
            };
            let cut = surplus.min(last.len());
            last.truncate(last.len() - cut);
            (self.held, self.more) = (self.held - cut, self.more + cut as u64);
            if last.is_empty() {
                self.parts.pop_front();
            }
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let line = self.parts.iter().rev().flatten().copied().collect();
        let more = self.more;
        *self = Backwards::default();
        cut(line, more)
    }
}

fn cut(mut line: Vec<u8>, more: u64) -> Vec<u8> {
    if more > 0 {
        line.extend_from_slice(format!("… ({more} more bytes)").as_bytes());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::fs;
    use std::io::Write;

    fn last_lines(path: &Path, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let last = super::last_lines(path, None, count)?;
        assert_eq!(last.note, None);
        Ok(last.lines)
    }

    fn numbers(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
        range.map(|n| format!("line {n}").into_bytes()).collect()
    }

    fn text(range: std::ops::Range<usize>) -> Vec<u8> {
        numbers(range)
            .into_iter()
            .flat_map(|mut l| {
                l.push(b'\n');
                l
            })
            .collect()
    }

    #[test]
    fn across_the_current_a_plain_and_a_compressed_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        assert!(last_lines(&path, 5).expect("no file").is_empty());
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(&text(0..30_000)).expect("gzip");
        fs::write(dir.path().join("out.log.2.gz"), gz.finish().expect("gzip")).expect("write");
        fs::write(dir.path().join("out.log.1"), text(30_000..60_000)).expect("write");
        fs::write(&path, text(60_000..90_000)).expect("write");
        for count in [
            0, 1, 10, 29_999, 30_000, 30_001, 60_000, 60_001, 80_000, 90_000,
        ] {
            assert!(
                last_lines(&path, count).expect("lines") == numbers(90_000 - count..90_000),
                "{count}"
            );
        }
        assert_eq!(last_lines(&path, 100_000).expect("lines").len(), 90_000);
    }

    #[test]
    fn devices_and_fifos_have_no_lines() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        assert!(last_lines(&path, 10).expect("lines").is_empty());
        assert!(
            last_lines(Path::new("/dev/zero"), 10)
                .expect("lines")
                .is_empty()
        );
    }

    #[test]
    fn odd_files() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        let long = vec![b'x'; 3 * BLOCK];
        for (content, lines) in [
            (&b""[..], vec![]),
            (b"\n", vec![&b""[..]]),
            (b"\n\n", vec![b"", b""]),
            (b"a", vec![b"a"]),
            (b"a\nb", vec![b"a", b"b"]),
            (b"\na\n", vec![b"", b"a"]),
            (&long, vec![&long]),
        ] {
            fs::write(&path, content).expect("write");
            assert!(last_lines(&path, 10).expect("lines") == lines);
        }
    }

    /// Zeros, packed: `blocks` of 1 MiB, then what follows.
    fn bomb(blocks: usize, then: &[u8]) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        let block = vec![b'0'; 1 << 20];
        for _ in 0..blocks {
            gz.write_all(&block).expect("gzip");
        }
        gz.write_all(then).expect("gzip");
        gz.finish().expect("gzip")
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        fs::write(dir.path().join("out.log.2.gz"), bomb(3, b"\nlast\n")).expect("write");
        let zeros = File::create(&path).expect("create");
        zeros.set_len(2 << 20).expect("a hole");
        let lines = last_lines(&path, 3).expect("lines");
        let mark = |more: usize| format!("… ({more} more bytes)").into_bytes();
        assert!(lines[0] == [vec![b'0'; LONGEST], mark((3 << 20) - LONGEST)].concat());
        assert!(lines[1] == b"last");
        assert!(lines[2] == [vec![0; LONGEST], mark((2 << 20) - LONGEST)].concat());
    }

    #[test]
    fn memory_has_a_bound() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        let lines = [&[b'x'; 1023][..], b"\n"].concat().repeat(80 << 10);
        fs::write(&path, &lines).expect("write");
        let last = super::last_lines(&path, None, usize::MAX).expect("lines");
        let held: usize = last.lines.iter().map(Vec::len).sum();
        assert!(
            held <= HELD && held > HELD / 2 && last.note.is_some(),
            "{held}"
        );
        fs::remove_file(&path).expect("remove");
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(&lines).expect("gzip");
        gz.write_all(b"newest\n").expect("gzip");
        fs::write(dir.path().join("out.log.2.gz"), gz.finish().expect("gzip")).expect("write");
        let last = super::last_lines(&path, None, usize::MAX).expect("lines");
        let held: usize = last.lines.iter().map(Vec::len).sum();
        assert!(
            held <= HELD && held > HELD / 2 && last.note.is_some(),
            "{held}"
        );
        assert!(last.lines.last().expect("a line") == b"newest");
    }

    #[test]
    fn what_cannot_be_unpacked_hides_no_newer_line() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        fs::write(&path, "new\n").expect("write");
        fs::write(dir.path().join("out.log.2.gz"), "not gzip").expect("write");
        let last = super::last_lines(&path, None, 10).expect("lines");
        assert_eq!(last.lines, [b"new"]);
        assert!(
            last.note
                .expect("a note")
                .starts_with("out.log.2.gz: it cannot be read")
        );
    }
}
