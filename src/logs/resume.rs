//! Where a reader continues in a file that replaced the one it was reading: a tool that rotates,
//! shortens or edits a log may put a copy there, which begins with lines that have been read
//! already.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use jiff::Timestamp;
use memchr::{memchr, memmem, memrchr};

use super::follow::time_of;

const BLOCK: usize = 64 << 10;

/// Bytes of the last lines read that are searched for.
const TAIL: usize = 4 << 10;

/// The position in `new` behind what was read of `old`: its first `read` bytes. 0 if `new` is no
/// copy of it.
///
/// Lines of two files may be equal by coincidence: the first lines of an app, or requests of health
/// checks. They count as copied if they have a time, or if `new` existed before `old` lost its
/// name.
///
/// # Errors
/// When one of them cannot be read.
pub(super) fn place(old: &File, read: u64, new: &File) -> io::Result<u64> {
    let length = new.metadata()?.len();
    if read == 0 || length == 0 {
        return Ok(0);
    }
    let moved_in = was_there_before(&new.metadata()?, &old.metadata()?);
    let is_proof = |lines: &[u8]| moved_in || time_of(lines).is_some();
    // As many of the last lines as it holds: a file that was shortened has the last ones left.
    let tail = last_lines(old, read)?;
    let mut wanted = &tail[..];
    while !wanted.is_empty() && is_proof(wanted) {
        if let Some(end) = end_of_last(new, length, wanted)? {
            return Ok(end);
        }
        let last = memrchr(b'\n', &wanted[..wanted.len() - 1]).map_or(0, |at| at + 1);
        let half = wanted.len() / 2;
        let next = memchr(b'\n', &wanted[half..]).map_or(last, |at| last.min(half + at + 1));
        if next == 0 {
            break;
        }
        wanted = &wanted[next..];
    }
    // A copy from before the last lines were written.
    let mut first = [0; 64];
    let count = read_at(old, &mut first, 0, read)?;
    if !is_proof(&first[..count]) {
        return Ok(0);
    }
    same_lines(old, read, new, length)
}

/// Whether `new` was made before `old` lost its last name: then it was moved over it. Within one
/// tick of the kernel's clock the order is unknown. (A clock that is set back between the two makes
/// it seem so: then equal lines are not shown twice.)
fn was_there_before(new: &Metadata, old: &Metadata) -> bool {
    let made = new.created().ok();
    let made = made.and_then(|at| Timestamp::try_from(at).ok());
    let nanoseconds = i32::try_from(old.ctime_nsec()).ok();
    let lost = nanoseconds.and_then(|part| Timestamp::new(old.ctime(), part).ok());
    old.nlink() == 0 && made.zip(lost).is_some_and(|(made, lost)| made < lost)
}

/// The whole lines at the end of `file[..end]`; the end of one where it is longer than [`TAIL`].
fn last_lines(file: &File, end: u64) -> io::Result<Vec<u8>> {
    let begin = end.saturating_sub(TAIL as u64);
    let mut tail = vec![0; TAIL];
    let count = read_at(file, &mut tail, begin, end)?;
    tail.truncate(count);
    if begin > 0
        && let Some(newline) = memchr(b'\n', &tail)
        && newline + 1 < tail.len()
    {
        tail.drain(..=newline);
    }
    Ok(tail)
}

/// Where the last occurrence of `wanted` in the file ends.
fn end_of_last(file: &File, length: u64, wanted: &[u8]) -> io::Result<Option<u64>> {
    let finder = memmem::FinderRev::new(wanted);
    let mut window = vec![0; BLOCK + wanted.len()];
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(window.len() as u64);
        let count = read_at(file, &mut window, begin, end)?;
        let mut window = &window[..count];
        while let Some(at) = finder.rfind(window) {
            // A line that only ends with the same text is another one.
            let place = begin + at as u64;
            if place == 0 || begins_line(file, place)? {
                return Ok(Some(place + wanted.len() as u64));
            }
            window = &window[..at + wanted.len() - 1];
        }
        if begin == 0 {
            break;
        }
        end = begin + wanted.len() as u64 - 1;
    }
    Ok(None)
}

fn begins_line(file: &File, place: u64) -> io::Result<bool> {
    let mut before = [0];
    file.read_exact_at(&mut before, place - 1)?;
    Ok(before == *b"\n")
}

/// The number of bytes that both begin with, in whole lines.
fn same_lines(old: &File, read: u64, new: &File, length: u64) -> io::Result<u64> {
    let (mut a, mut b) = (vec![0; BLOCK], vec![0; BLOCK]);
    let (mut at, mut lines) = (0, 0);
    loop {
        let count = read_at(old, &mut a, at, read)?.min(read_at(new, &mut b, at, length)?);
        let differs = a[..count].iter().zip(&b[..count]).position(|(a, b)| a != b);
        let same = differs.unwrap_or(count);
        if let Some(newline) = memrchr(b'\n', &a[..same]) {
            lines = at + newline as u64 + 1;
        }
        if same < BLOCK {
            return Ok(lines);
        }
        at += same as u64;
    }
}

/// Reads `file[at..end]`, as far as the buffer has room.
fn read_at(file: &File, buffer: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
    let room = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
    let room = room.min(buffer.len());
    let mut count = 0;
    while count < room {
        match file.read_at(&mut buffer[count..room], at + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> File {
        let file = tempfile::tempfile().expect("tempfile");
        file.write_all_at(text, 0).expect("write");
        file
    }

    /// Lines of a length that puts their ends at any position of a block.
    fn lines(count: usize) -> Vec<u8> {
        let line = |n: usize| format!("2024-01-01T00:00:00.000Z {n} {}\n", "x".repeat(n % 97));
        (0..count).map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn a_copy_is_gone_on_with_after_what_was_read() {
        let all = lines(5000);
        for read in [30, 70, 5000, BLOCK, BLOCK + TAIL, all.len()] {
            let old = file(&all[..read]);
            let place = place(&old, read as u64, &file(&all)).expect("place");
            assert_eq!(place, read as u64);
        }
    }

    #[test]
    fn a_copy_of_less_is_gone_on_with_at_its_end() {
        let all = lines(5000);
        let old = file(&all);
        for count in [1, 2, 700, 4999] {
            let length = lines(count).len();
            let new = file(&[&all[..length], b"2024-01-02T00:00:00.000Z new\n"].concat());
            let place = place(&old, all.len() as u64, &new).expect("place");
            assert_eq!(place, length as u64);
        }
    }

    #[test]
    fn what_only_ends_as_the_last_line_did_is_another_line() {
        let old = file(&[lines(100), vec![b'y'; TAIL * 2], b"\nend\n".to_vec()].concat());
        let read = old.metadata().expect("metadata").len();
        let new = file(&[b"no ".repeat(1000), b"end\n".to_vec()].concat());
        assert_eq!(place(&old, read, &new).expect("place"), 0);
    }

    #[test]
    fn lines_without_a_time_are_the_same_by_coincidence() {
        let old = tempfile::NamedTempFile::new().expect("tempfile"); // it keeps its name
        old.as_file()
            .write_all_at(b"listening\n", 0)
            .expect("write");
        let new = file(b"listening\nmore\n");
        assert_eq!(place(old.as_file(), 10, &new).expect("place"), 0);
    }
}
