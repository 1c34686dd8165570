//! The last lines of a log file, rotated ones included.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use memchr::memrchr_iter;
use nix::fcntl::OFlag;

use super::rotate;

const BLOCK: usize = 64 << 10;

/// The last `count` lines of the log at `path`, oldest first, without their newlines. Where the
/// current file has fewer, continues in the rotated ones, compressed or not. Reads no more of plain
/// files than needed. A log that doesn't exist has no lines.
///
/// # Errors
/// When a file that is there can't be read.
pub fn last_lines(path: &Path, count: usize) -> io::Result<Vec<Vec<u8>>> {
    let current = open(path)?;
    let end = match &current {
        Some(file) => file.metadata()?.len(),
        None => 0,
    };
    before(path, current.as_ref(), end, count)
}

/// Opens a log file for reading. `None` if it doesn't exist, and for a device, a pipe or a
/// terminal: their content cannot be read again.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    // Non-blocking, since opening a FIFO would wait for a writer.
    match OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
    {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The last `count` lines that end before the byte `end` of the open `current` file of the log.
pub(super) fn before(
    path: &Path,
    current: Option<&File>,
    end: u64,
    count: usize,
) -> io::Result<Vec<Vec<u8>>> {
    let mut lines = VecDeque::new();
    let mut seen = Vec::new();
    if let Some(file) = current {
        seen.push(rotate::identity(&file.metadata()?));
        from_end(file, end, count, &mut lines)?;
    }
    if lines.len() >= count {
        return Ok(lines.into());
    }
    let segments = match rotate::segments(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(lines.into()),
        other => other?,
    };
    for segment in segments {
        if lines.len() >= count {
            break;
        }
        // A file that is rotated away during the search is either gone or met again.
        let Some(file) = open(&segment.path)? else {
            continue;
        };
        let meta = file.metadata()?;
        if seen.contains(&rotate::identity(&meta)) {
            continue;
        }
        seen.push(rotate::identity(&meta));
        let wanted = count - lines.len();
        let mut older = VecDeque::new();
        if segment.gzipped {
            last_of(MultiGzDecoder::new(file), wanted, &mut older)?;
        } else {
            from_end(&file, meta.len(), wanted, &mut older)?;
        }
        older.append(&mut lines);
        lines = older;
    }
    Ok(lines.into())
}

/// Puts the last lines of `file[..end]`, at most `count`, into `lines`, which is empty.
fn from_end(file: &File, end: u64, count: usize, lines: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut at = end;
    // The blocks of the line under way, last block first.
    let mut line: Vec<Vec<u8>> = Vec::new();
    let mut begun = false; // past the newline at the end of the file, if there is one
    while at > 0 && lines.len() < count {
        let size = at.min(BLOCK as u64);
        at -= size;
        let block = &mut block[..usize::try_from(size).unwrap_or(BLOCK)];
        file.read_exact_at(block, at)?;
        let mut rest: &[u8] = block;
        if !begun {
            rest = rest.strip_suffix(b"\n").unwrap_or(rest);
            begun = true;
        }
        let mut stop = rest.len();
        for newline in memrchr_iter(b'\n', rest) {
            line.push(rest[newline + 1..stop].to_vec());
            lines.push_front(joined(&mut line));
            stop = newline;
            if lines.len() == count {
                return Ok(());
            }
        }
        line.push(rest[..stop].to_vec());
    }
    if begun && at == 0 && lines.len() < count {
        lines.push_front(joined(&mut line));
    }
    Ok(())
}

fn joined(blocks: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let line = blocks.iter().rev().flatten().copied().collect();
    blocks.clear();
    line
}

/// The same for a reader that can only be read from its beginning.
fn last_of(reader: impl io::Read, count: usize, lines: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(BLOCK, reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if lines.len() == count {
            lines.pop_front();
        }
        lines.push_back(std::mem::take(&mut line));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::fs;
    use std::io::Write;

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
        fs::write(rotate::gzipped(&path, 2), gz.finish().expect("gzip")).expect("write");
        fs::write(rotate::plain(&path, 1), text(30_000..60_000)).expect("write");
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
}
