//! Reads log files as they grow, across rotation.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use memchr::memchr_iter;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::place::{self, Place};
use super::{Stream, compress, lines, resume, rotate};

/// Bytes that are read of one file before the others have their turn.
const BLOCK: usize = 256 << 10;
/// How often a folder is checked, in milliseconds, while it can't be watched (it doesn't exist yet,
/// or the user's share of watches is used up).
const BLIND_MS: u16 = 500;
/// A file is recognised by this many of the bytes that were read last: one that was truncated may
/// have grown past them again.
const REMEMBERED: usize = 256;
/// Rotated files among which the one that was being read is searched for.
const MOST_SUCCESSORS: usize = 1000;

/// Follows the log files of an app: first their last lines, then each new one, once, whatever is
/// rotated, truncated or replaced meanwhile. It only reads files, so it never holds up the pump.
#[derive(Debug)]
pub struct Follower {
    logs: Vec<Log>,
    inotify: Inotify,
    watched: HashSet<PathBuf>,
    /// Lines that the next call returns at once.
    ready: Vec<(Stream, Vec<u8>)>,
    block: Vec<u8>,
}

#[derive(Debug)]
struct Log {
    stream: Stream,
    path: PathBuf,
    /// The user of its app.
    user: Option<u32>,
    /// The file being read, and those that come after it, the current one last.
    files: VecDeque<Source>,
    partial: lines::Line,
}

#[derive(Debug)]
struct Source {
    input: Input,
    identity: (u64, u64),
    /// Bytes read of a plain file.
    offset: u64,
    /// The last of them, [`REMEMBERED`] at the most.
    last: Vec<u8>,
    /// It replaced the file before it, which is not found any more: it may be a copy of that.
    in_place: bool,
}

#[derive(Debug)]
enum Input {
    Plain(File),
    Packed(Box<MultiGzDecoder<File>>),
}

impl Follower {
    /// Follows the logs at these paths, of an app that runs as `user`, beginning with their last `last` lines
    /// (in all, in order of time where the lines have one). A file that doesn't exist yet is waited for.
    ///
    /// # Errors
    /// When a file that is there can't be read, or the process or user has no inotify instance left.
    pub fn new(
        paths: impl IntoIterator<Item = (Stream, PathBuf)>,
        user: Option<u32>,
        last: usize,
    ) -> io::Result<Follower> {
        let mut follower = Follower {
            logs: Vec::new(),
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            watched: HashSet::new(),
            ready: Vec::new(),
            block: vec![0; BLOCK],
        };
        for (stream, path) in paths {
            if follower.logs.iter().any(|log| log.path == path) {
                continue;
            }
            follower.logs.push(Log {
                stream,
                path,
                user,
                files: VecDeque::new(),
                partial: lines::Line::default(),
            });
        }
        follower.watch(); // before the first look: what is written after it is noticed
        for log in &mut follower.logs {
            let place = place(&log.path, user)?;
            let current = match &place {
                Some(place) => Source::open(place, place.name())?,
                None => None,
            };
            let (file, end) = match &current {
                Some(Source {
                    input: Input::Plain(file),
                    ..
                }) => (Some(file), file.metadata()?.len()),
                _ => (None, 0),
            };
            let before = match &place {
                Some(place) => lines::before(place, file, end, last)?.lines,
                None => Vec::new(),
            };
            follower
                .ready
                .extend(before.into_iter().map(|line| (log.stream, line)));
            if let Some(mut source) = current {
                source.skip_to(end)?;
                log.files.push_back(source);
            }
        }
        in_order_of_time(&mut follower.ready);
        follower
            .ready
            .drain(..follower.ready.len().saturating_sub(last));
        Ok(follower)
    }

    /// The next lines, without their newlines; waits until there are some. Lines of different files
    /// come in the order in which they are found.
    ///
    /// # Errors
    /// When a file can't be read.
    #[expect(
        clippy::should_implement_trait,
        reason = "it ends with an error only, and may be called again after one"
    )]
    pub fn next(&mut self) -> io::Result<Vec<(Stream, Vec<u8>)>> {
        loop {
            for log in &mut self.logs {
                log.read(&mut self.block, &mut self.ready)?;
            }
            if !self.ready.is_empty() {
                return Ok(std::mem::take(&mut self.ready));
            }
            self.wait()?;
        }
    }

    /// Waits until an event concerns one of the files.
    fn wait(&mut self) -> io::Result<()> {
        loop {
            let before = self.watched.len();
            let all_watched = self.watch();
            if self.watched.len() > before {
                return Ok(()); // what happened before the watch was set is seen by looking
            }
            let timeout = if all_watched {
                PollTimeout::NONE
            } else {
                PollTimeout::from(BLIND_MS)
            };
            let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut concerned = false;
            for event in events {
                if event.mask.intersects(AddWatchFlags::IN_IGNORED) {
                    self.watched.clear(); // a folder is gone: watch it again when it is back
                    concerned = true;
                }
                // An event without a name is about the folder, or means that events were dropped.
                concerned |= event
                    .name
                    .is_none_or(|name| self.logs.iter().any(|log| log.is_called(&name)));
            }
            if concerned {
                return Ok(());
            }
        }
    }

    /// Watches the folders. Watching one twice does no harm. False if one cannot be watched.
    fn watch(&mut self) -> bool {
        let mask = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let mut all = true;
        for log in &self.logs {
            let folder = rotate::folder(&log.path);
            if !self.watched.contains(folder) {
                match self.inotify.add_watch(folder, mask) {
                    Ok(_) => {
                        self.watched.insert(folder.to_owned());
                    }
                    Err(_) => all = false,
                }
            }
        }
        all
    }
}

impl Log {
    fn is_called(&self, name: &OsString) -> bool {
        self.path.file_name() == Some(name.as_os_str())
    }

    /// Reads some more, and continues with the next file where one ends.
    fn read(&mut self, block: &mut [u8], found: &mut Vec<(Stream, Vec<u8>)>) -> io::Result<()> {
        if self.files.is_empty()
            && let Some(place) = place(&self.path, self.user)?
        {
            self.files.extend(Source::open(&place, place.name())?);
        }
        let before = found.len();
        while let Some(source) = self.files.front_mut() {
            if source.was_truncated()? {
                source.skip_to(0)?;
                self.partial.clear();
            }
            let mut count = source.read(block)?;
            if count == 0 && self.files.len() == 1 {
                // The file at its end is the current one, or was. In the latter case its successor
                // is known now, and no more lines are added to it than before it was renamed.
                let Some(source) = self.files.front_mut() else {
                    break;
                };
                let newer = successors(&self.path, self.user, source.identity)?;
                if newer.is_empty() {
                    break;
                }
                count = source.read(block)?;
                self.files.extend(newer);
            }
            if count == 0 {
                let ended = self.files.pop_front();
                if let (Some(ended), Some(next)) = (ended, self.files.front_mut())
                    && next.in_place
                {
                    next.skip_copied(&ended)?;
                }
                if !self.partial.is_empty() {
                    found.push((self.stream, self.partial.take()));
                }
                continue;
            }
            self.split(&block[..count], found);
            if found.len() > before {
                break;
            }
        }
        Ok(())
    }

    fn split(&mut self, data: &[u8], found: &mut Vec<(Stream, Vec<u8>)>) {
        let mut start = 0;
        for end in memchr_iter(b'\n', data) {
            self.partial.add(&data[start..end]);
            found.push((self.stream, self.partial.take()));
            start = end + 1;
        }
        self.partial.add(&data[start..]);
    }
}

impl Source {
    fn open(place: &Place, name: &OsStr) -> io::Result<Option<Source>> {
        let Some(opened) = place.read(name)? else {
            return Ok(None);
        };
        Ok(Some(Source {
            input: Input::Plain(opened.file),
            identity: place::identity(&opened.status),
            offset: 0,
            last: Vec::new(),
            in_place: false,
        }))
    }

    /// A rotated file. Something else in its place, which rsup does not read, is passed over.
    fn open_rotated(place: &Place, number: usize) -> io::Result<Option<Source>> {
        let open = |name: OsString| match Source::open(place, &name) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
            other => other,
        };
        if let Some(source) = open(rotate::plain(place.name(), number))? {
            return Ok(Some(source));
        }
        let packed = open(rotate::gzipped(place.name(), number))?;
        Ok(packed.map(|source| match source.input {
            Input::Plain(file) => Source {
                input: Input::Packed(Box::new(MultiGzDecoder::new(file))),
                ..source
            },
            Input::Packed(_) => source,
        }))
    }

    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.input {
                Input::Plain(file) => file.read(block),
                Input::Packed(decoder) => decoder.read(block),
            };
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(n) => {
                    self.offset += n as u64;
                    let surplus = (self.last.len() + n).saturating_sub(REMEMBERED);
                    self.last.drain(..surplus.min(self.last.len()));
                    self.last
                        .extend_from_slice(&block[n.saturating_sub(REMEMBERED)..n]);
                    return Ok(n);
                }
            }
        }
    }

    fn was_truncated(&self) -> io::Result<bool> {
        let Input::Plain(file) = &self.input else {
            return Ok(false);
        };
        if file.metadata()?.len() < self.offset {
            return Ok(true);
        }
        let mut now = vec![0; self.last.len()];
        match file.read_exact_at(&mut now, self.offset - self.last.len() as u64) {
            Ok(()) => Ok(now != self.last),
            // Truncated just now.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        if let Input::Plain(file) = &mut self.input {
            io::Seek::seek(file, io::SeekFrom::Start(offset))?;
            self.offset = offset;
            let count = offset.min(REMEMBERED as u64);
            self.last = vec![0; count as usize];
            match file.read_exact_at(&mut self.last, offset - count) {
                // Truncated just now, as its length shows.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => self.last.clear(),
                other => other?,
            }
        }
        Ok(())
    }

    /// Skips what was already read of `old`, where this is a copy of it.
    fn skip_copied(&mut self, old: &Source) -> io::Result<()> {
        if let (Input::Plain(new), Input::Plain(file)) = (&self.input, &old.input) {
            let place = resume::place(file, old.offset, new)?;
            self.skip_to(place)?;
        }
        Ok(())
    }

    /// Whether this is the file with that identity, or was compressed from it.
    fn is(&self, identity: (u64, u64)) -> bool {
        match &self.input {
            Input::Plain(_) => self.identity == identity,
            Input::Packed(decoder) => {
                compress::made_of(decoder.header().and_then(|h| h.extra()), identity)
            }
        }
    }
}

/// The files with the lines after those of the file `ours`, oldest first, the current one last.
/// Empty if `ours` is the current one, or if there is no current one yet. If `ours` is not found,
/// its position is unknown: then the result is the current file alone, which may hold lines of
/// `ours`.
///
/// Files move to higher numbers during the search, so they are opened from the newest on: one may
/// be met twice, but none is missed.
fn successors(path: &Path, user: Option<u32>, ours: (u64, u64)) -> io::Result<Vec<Source>> {
    match fs::metadata(path) {
        Ok(meta) if (meta.dev(), meta.ino()) != ours => {}
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => return Ok(Vec::new()),
    }
    let Some(place) = place(path, user)? else {
        return Ok(Vec::new());
    };
    let Some(current) = Source::open(&place, place.name())? else {
        return Ok(Vec::new());
    };
    if current.is(ours) {
        return Ok(Vec::new());
    }
    let mut newer = vec![current];
    let mut known = false;
    let highest = rotate::segments(&place)?.last().map_or(0, |s| s.number);
    // A worker may have made files of any number.
    for number in 1..=highest.saturating_add(1).min(MOST_SUCCESSORS) {
        let Some(source) = Source::open_rotated(&place, number)? else {
            continue;
        };
        if source.is(ours) {
            known = true;
            break;
        }
        if !newer
            .iter()
            .any(|n| n.identity == source.identity || source.is(n.identity))
        {
            newer.push(source);
        }
    }
    if !known {
        newer.truncate(1);
        newer[0].in_place = true;
    }
    newer.reverse();
    Ok(newer)
}

/// The place of a log. `None` if its folder does not exist.
fn place(path: &Path, user: Option<u32>) -> io::Result<Option<Place>> {
    match Place::find(path, user, false) {
        Ok(place) => Ok(Some(place)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sorts lines of several files by their timestamps. A line without one stays behind the line
/// before it.
fn in_order_of_time(lines: &mut Vec<(Stream, Vec<u8>)>) {
    let mut time = Vec::new();
    let mut stream = None;
    let mut keyed: Vec<_> = lines
        .drain(..)
        .map(|(of, line)| {
            if stream != Some(of) {
                time.clear();
                stream = Some(of);
            }
            if let Some(own) = time_of(&line) {
                time = own.to_vec();
            }
            (time.clone(), of, line)
        })
        .collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0)); // stable
    lines.extend(keyed.into_iter().map(|(_, of, line)| (of, line)));
}

/// The timestamp of a line, if it begins with one in the pump's format, which sorts as text.
pub(super) fn time_of(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_prefix(b"{\"time\":\"").unwrap_or(line);
    let time = line.get(..24)?;
    (time[4] == b'-' && time[10] == b'T' && time[19] == b'.' && time[23] == b'Z').then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn shift(path: &Path) {
        let place = Place::find(path, None, false).expect("place");
        rotate::shift(&place, 5).expect("shift");
    }

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("open");
        file.write_all(text.as_bytes()).expect("write");
    }

    fn next(follower: &mut Follower) -> Vec<String> {
        let lines = follower.next().expect("next");
        lines
            .into_iter()
            .map(|(_, line)| String::from_utf8(line).expect("UTF-8"))
            .collect()
    }

    #[test]
    fn last_lines_come_first_merged_by_time() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (out, err) = (dir.path().join("out"), dir.path().join("err"));
        let at = |second: u32, text: &str| format!("2024-01-01T00:00:{second:02}.000Z {text}\n");
        append(
            &out,
            &(at(1, "a") + &at(3, "c") + "still c\n" + &at(5, "e")),
        );
        append(&err, &(at(2, "b") + &at(4, "d")));
        let paths = [(Stream::Out, out), (Stream::Err, err)];
        let mut follower = Follower::new(paths, None, 4).expect("follower");
        let lines: Vec<String> = next(&mut follower)
            .iter()
            .map(|l| l[l.len() - 1..].to_owned())
            .collect();
        assert_eq!(lines, ["c", "c", "d", "e"]);
    }

    #[test]
    fn follows_growth_rotation_and_truncation() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("sub/out.log");
        let mut follower =
            Follower::new([(Stream::Out, path.clone())], None, 10).expect("follower");
        fs::create_dir(dir.path().join("sub")).expect("create_dir");
        append(&path, "one\ntw");
        assert_eq!(next(&mut follower), ["one"]);
        append(&path, "o\n");
        assert_eq!(next(&mut follower), ["two"]);
        // Two rotations between two reads.
        append(&path, "three\n");
        shift(&path);
        append(&path, "four\n");
        shift(&path);
        append(&path, "five\n");
        let mut seen = Vec::new();
        while seen.len() < 3 {
            seen.extend(next(&mut follower));
        }
        assert_eq!(seen, ["three", "four", "five"]);
        fs::write(&path, "6\n").expect("write");
        assert_eq!(next(&mut follower), ["6"]);
    }

    /// Lines as the pump writes them, with their times.
    fn stamped(numbers: std::ops::Range<u32>) -> String {
        numbers
            .map(|n| format!("2024-01-01T00:00:00.{n:03}Z line {n}\n"))
            .collect()
    }

    /// As an app without timestamps writes them.
    fn plain(numbers: std::ops::Range<u32>) -> String {
        numbers.map(|n| format!("line {n}\n")).collect()
    }

    /// Follows a log of the lines 0 to 2, adds 3 and 4, rotates, adds 5 and 6; returns the lines
    /// from 3 on that are seen.
    fn seen_across(lines: fn(std::ops::Range<u32>) -> String, rotate: impl Fn(&Path)) -> Vec<u32> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        append(&path, &lines(0..3));
        let mut follower = Follower::new([(Stream::Out, path.clone())], None, 0).expect("follower");
        append(&path, &lines(3..5));
        let number = |line: &String| line.rsplit(' ').next().and_then(|n| n.parse().ok());
        let mut seen: Vec<u32> = next(&mut follower).iter().filter_map(number).collect();
        rotate(&path);
        append(&path, &lines(5..7));
        while !seen.contains(&6) {
            seen.extend(next(&mut follower).iter().filter_map(number));
        }
        seen
    }

    fn beside(path: &Path, name: &str) -> PathBuf {
        path.with_file_name(name)
    }

    /// The file system's times are those of the last tick of the kernel.
    fn a_tick_later() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    #[test]
    fn no_line_comes_twice_or_is_missed_whatever_rotates_the_file() {
        let rename = |path: &Path| fs::rename(path, beside(path, "out.log-2024")).expect("rename");
        let delete = |path: &Path| fs::remove_file(path).expect("remove");
        let copy_over = |path: &Path| {
            fs::copy(path, beside(path, "copy")).expect("copy");
            a_tick_later();
            fs::rename(beside(path, "copy"), path).expect("rename");
        };
        let copy_truncate = |path: &Path| {
            fs::copy(path, beside(path, "out.log.1")).expect("copy");
            File::options()
                .write(true)
                .truncate(true)
                .open(path)
                .map(drop)
                .expect("truncate");
        };
        for lines in [stamped, plain] {
            for seen in [
                seen_across(lines, rename),
                seen_across(lines, delete),
                seen_across(lines, copy_over),
                seen_across(lines, copy_truncate),
            ] {
                assert_eq!(seen, [3, 4, 5, 6]);
            }
        }
    }

    #[test]
    fn a_file_that_holds_some_of_the_old_lines_goes_on_after_them() {
        // Lines written after the copy are not in it, but were read from the file before.
        let too_early = |path: &Path| {
            fs::copy(path, beside(path, "copy")).expect("copy");
            append(path, &stamped(100..101));
            a_tick_later();
            fs::rename(beside(path, "copy"), path).expect("rename");
        };
        assert_eq!(seen_across(stamped, too_early), [3, 4, 100, 5, 6]);
        // Only the last lines are kept.
        let shortened = |path: &Path| {
            fs::write(beside(path, "short"), stamped(4..5)).expect("write");
            fs::rename(beside(path, "short"), path).expect("rename");
        };
        assert_eq!(seen_across(stamped, shortened), [3, 4, 5, 6]);
        // The copy takes the place of what was renamed.
        let back = |path: &Path| {
            fs::rename(path, beside(path, "old")).expect("rename");
            fs::copy(beside(path, "old"), path).expect("copy");
        };
        assert_eq!(seen_across(stamped, back), [3, 4, 5, 6]);
    }

    #[test]
    fn a_new_file_that_begins_as_the_old_one_did_is_read_from_its_beginning() {
        let lines = |numbers: std::ops::Range<u32>| match numbers.start {
            5 => plain(0..5) + "line 6\n",
            _ => plain(numbers),
        };
        let rename = |path: &Path| fs::rename(path, beside(path, "old")).expect("rename");
        let delete = |path: &Path| fs::remove_file(path).expect("remove");
        assert_eq!(seen_across(lines, rename), [3, 4, 0, 1, 2, 3, 4, 6]);
        assert_eq!(seen_across(lines, delete), [3, 4, 0, 1, 2, 3, 4, 6]);
    }

    #[test]
    fn a_truncated_file_that_has_grown_past_the_place_is_read_from_its_beginning() {
        let truncate = |path: &Path| {
            fs::write(path, stamped(10..30)).expect("write");
        };
        let expected: Vec<u32> = [3, 4].into_iter().chain(10..30).chain([5, 6]).collect();
        assert_eq!(seen_across(stamped, truncate), expected);
    }

    #[test]
    fn wakes_up_for_another_threads_line() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        append(&path, "old\n");
        let mut follower = Follower::new([(Stream::Err, path.clone())], None, 0).expect("follower");
        let writer = std::thread::spawn(move || append(&path, "new\n"));
        assert_eq!(
            follower.next().expect("next"),
            [(Stream::Err, b"new".to_vec())]
        );
        writer.join().expect("writer");
    }
}
