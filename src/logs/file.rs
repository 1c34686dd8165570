//! One log file: appends batches of whole lines, rotates, and survives a file that can't be written
//! or a disk that doesn't answer.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::{memchr, memchr_iter, memrchr};
use tokio::sync::mpsc::UnboundedSender;

use super::compress::{Compressor, Job};
use super::disk::{Answer, Ask, Disk, Shape};
use super::format::{Style, own_line};
use super::hand::{Called, Hands, Late, PATIENCE};
use super::journal::Journal;
use super::rotate::Names;
use super::{Event, FileStats, Settings, Stats};

/// How long a file that failed is not tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A disk that has not answered for this long is reported, even if no line is lost yet.
const SILENCE: Duration = Duration::from_secs(1);
/// Bytes of lines that are kept for a disk that does not answer.
const KEPT: usize = 1 << 20;
/// Rotations within one batch that bring no room; after them it is written all the same.
const VAIN: usize = 3;
/// Attempts to write to a file that is another one each time.
const TRIES: usize = 4;

/// What all files share.
pub(super) struct Common {
    pub stats: Stats,
    pub events: UnboundedSender<Event>,
    pub names: AllNames,
    pub compressor: Compressor,
    pub hands: Hands,
}

/// The locks on the names of rotated files, by log.
#[derive(Debug, Default)]
pub(super) struct AllNames(HashMap<Arc<Path>, Arc<Names>>);

impl AllNames {
    /// The lock of this log: the same as long as it is in use.
    fn of(&mut self, path: &Arc<Path>) -> Arc<Names> {
        self.0.retain(|_, names| Arc::strong_count(names) > 1);
        self.0.entry(path.clone()).or_default().clone()
    }
}

/// A file that lines are appended to, for any number of streams.
#[derive(Debug)]
pub(super) struct LogFile {
    path: Arc<Path>,
    app: Arc<str>,
    style: Style,
    max_size: u64,
    keep: usize,
    compress: bool,
    /// The user of the app.
    user: Option<u32>,
    /// The number of streams that write here.
    pub users: usize,
    names: Arc<Names>,
    /// None while a call for it is late.
    disk: Option<Box<Disk>>,
    /// As it was when it was last looked at or written to. None: it has to be looked at.
    shape: Option<Shape>,
    away: Option<Away>,
    silence: Option<Silence>,
    /// The file whose last write stopped within a line.
    torn: Option<(u64, u64)>,
    trouble: Option<Trouble>,
    /// The next bytes are the rest of a line that is in the file already.
    amid: bool,
    /// Rotating failed: the next attempt comes after this.
    rotate_after: Option<Instant>,
}

/// A call that has not returned yet.
#[derive(Debug)]
struct Away {
    late: Late,
    /// What is to be written, from this position on.
    batch: Arc<Vec<u8>>,
    at: usize,
    /// The call writes from there.
    writes: bool,
}

/// A disk that does not answer, until all that was kept for it is written.
#[derive(Debug)]
struct Silence {
    since: Instant,
    told: bool,
    /// Lines that came meanwhile.
    kept: Vec<u8>,
    /// What came after them is lost.
    lost_bytes: u64,
    lost_lines: u64,
}

/// A failure of the file.
#[derive(Debug)]
struct Trouble {
    lost_bytes: u64,
    lost_lines: u64,
    error: String,
    retry: Instant,
}

/// Why lines were not written.
#[derive(Debug)]
enum Stop {
    /// Those before this position were.
    Failed(usize, io::Error),
    /// They will be when the disk answers.
    Away,
}

/// Why a call has no answer.
enum NoAnswer {
    Late(Late),
    Not(io::Error),
}

impl LogFile {
    pub fn new(path: Arc<Path>, app: Arc<str>, settings: &Settings, common: &mut Common) -> Self {
        LogFile {
            app,
            style: settings.into(),
            max_size: settings.max_size,
            keep: settings.keep,
            compress: settings.compress,
            user: settings.user,
            users: 0,
            names: common.names.of(&path),
            disk: None,
            shape: None,
            away: None,
            silence: None,
            torn: None,
            trouble: None,
            amid: false,
            rotate_after: None,
            path,
        }
    }

    /// Applies these settings to the file from now on.
    pub fn configure(&mut self, settings: &Settings) {
        self.style = settings.into();
        (self.max_size, self.keep, self.compress) =
            (settings.max_size, settings.keep, settings.compress);
        self.user = settings.user;
    }

    /// Closes the file; the next line opens it again.
    pub fn close(&mut self, common: &mut Common) {
        self.shape = None;
        if let Some(disk) = self.disk.take() {
            common.hands.close(disk);
        }
    }

    /// Writes a line of rsup itself.
    pub fn note(&mut self, text: &str, now: Instant, common: &mut Common) {
        let mut line = own_line(self.style, &self.app, text);
        self.write(&mut line, 0, now, common, None);
    }

    /// The next bytes continue the last line in the file.
    pub fn go_on(&mut self) {
        self.amid = true;
    }

    /// Appends whole lines, those of `lines` after the first `from` bytes, and records in the journal which
    /// batch they are from. Lines that can't be written are counted as lost.
    pub fn write(
        &mut self,
        lines: &mut Vec<u8>,
        from: usize,
        now: Instant,
        common: &mut Common,
        journal: Option<&Journal>,
    ) {
        self.collect(now, common);
        if self.trouble.as_ref().is_some_and(|t| t.retry <= now) {
            self.retry(now, common);
        }
        let done_with = |count: usize| {
            if let Some(journal) = journal {
                journal.wrote(count as u64);
            }
        };
        if self.away.is_some() {
            self.keep(&lines[from..], common);
            return done_with(lines.len() - from);
        }
        if let Some(trouble) = &mut self.trouble {
            trouble.lose(&lines[from..], &mut common.stats);
            return done_with(lines.len() - from);
        }
        let batch = Arc::new(std::mem::take(lines));
        match self.append(&batch, from, now, common, journal) {
            Ok(()) => {}
            Err(Stop::Failed(at, error)) => {
                self.fail(&batch[at..], &error, now, common);
                done_with(batch.len() - at);
            }
            Err(Stop::Away) => {
                done_with(batch.len() - self.away.as_ref().map_or(batch.len(), |away| away.at));
            }
        }
        // The buffer is used again.
        if let Ok(buffer) = Arc::try_unwrap(batch) {
            *lines = buffer;
        }
    }

    /// When [`tend`](Self::tend) is due, so that a file that works again reports its loss although nothing
    /// more is written to it.
    pub fn due(&self) -> Option<Instant> {
        let untold = self.silence.as_ref().filter(|silence| !silence.told);
        let silent = untold.map(|silence| silence.since + SILENCE);
        let retry = self.trouble.as_ref().map(|trouble| trouble.retry);
        [silent, retry].into_iter().flatten().min()
    }

    /// Reports a disk that does not answer, and tries a failed file again.
    pub fn tend(&mut self, now: Instant, common: &mut Common) {
        self.collect(now, common);
        if let Some(silence) = &mut self.silence
            && silence.since + SILENCE <= now
        {
            silence.tell(&self.path, common);
        }
        if self.trouble.as_ref().is_some_and(|t| t.retry <= now) {
            self.retry(now, common);
        }
    }

    /// Tries a failed file again: writes into it what it lacks.
    pub fn retry(&mut self, now: Instant, common: &mut Common) {
        if self.away.is_some() {
            return;
        }
        let Some(mut trouble) = self.trouble.take() else {
            return;
        };
        let (bytes, lines) = (trouble.lost_bytes, trouble.lost_lines);
        let text = format!(
            "{bytes} bytes in {lines} lines were lost here: {}",
            trouble.error
        );
        let note = Arc::new(own_line(self.style, &self.app, &text));
        match self.append(&note, 0, now, common, None) {
            // It is on its way.
            Ok(()) | Err(Stop::Away) => {
                let path = self.path.to_path_buf();
                let _ = common.events.send(Event::Recovered {
                    path,
                    lost_bytes: bytes,
                    lost_lines: lines,
                });
            }
            Err(Stop::Failed(_, error)) => {
                self.close(common);
                common.stats.errors += 1;
                trouble.error = error.to_string();
                trouble.retry = now + RETRY;
                self.trouble = Some(trouble);
            }
        }
    }

    /// Continues where a late call has ended.
    pub fn collect(&mut self, now: Instant, common: &mut Common) {
        if let Some(away) = &self.away {
            match away.late.poll() {
                Ok(None) => {}
                Ok(Some((disk, answer))) => self.returned(Some(disk), answer, now, common),
                Err(()) => self.returned(None, gone(), now, common),
            }
        }
    }

    /// Whether a call for it is late.
    pub fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// Gives a late call some more time, before the pump ends.
    pub fn wait(&mut self, deadline: Instant, common: &mut Common) {
        while let Some(away) = &self.away {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            match away.late.wait(left) {
                Ok(Some((disk, answer))) => self.returned(Some(disk), answer, now, common),
                Err(()) => self.returned(None, gone(), now, common),
                Ok(None) => return,
            }
        }
    }

    /// Ends the file: no stream writes to it any more.
    pub fn end(mut self, common: &mut Common) {
        let mut lost = (0, 0);
        let mut lose = |bytes: u64, lines: u64| lost = (lost.0 + bytes, lost.1 + lines);
        let mut unhappy = false;
        if let Some(trouble) = self.trouble.take() {
            unhappy = true;
            lose(trouble.lost_bytes, trouble.lost_lines);
        }
        if let Some(away) = self.away.take() {
            unhappy = true;
            let rest = &away.batch[away.at..];
            count(rest, &mut common.stats);
            lose(rest.len() as u64, newlines(rest));
        }
        if let Some(silence) = self.silence.take() {
            unhappy = true;
            count(&silence.kept, &mut common.stats);
            lose(silence.kept.len() as u64, newlines(&silence.kept));
            lose(silence.lost_bytes, silence.lost_lines);
        }
        if unhappy {
            let _ = common.events.send(Event::Closed {
                path: self.path.to_path_buf(),
                lost_bytes: lost.0,
                lost_lines: lost.1,
            });
        }
        self.close(common);
    }

    /// Its state, for the statistics.
    pub fn stats(&self) -> FileStats {
        let silence = self.silence.as_ref();
        FileStats {
            path: self.path.to_path_buf(),
            size: self.shape.map_or(0, |shape| shape.size),
            lost_bytes: self.trouble.as_ref().map_or(0, |t| t.lost_bytes)
                + silence.map_or(0, |silence| silence.lost_bytes),
            error: self.trouble.as_ref().map(|t| t.error.clone()).or_else(|| {
                silence
                    .filter(|silence| silence.told)
                    .map(|_| SILENT.into())
            }),
        }
    }

    /// The size of the file of this identity, rotated or not, as far as that is known in time.
    pub fn size_of(&mut self, identity: (u64, u64), common: &mut Common) -> Option<u64> {
        match self.call(Ask::Size { identity }, common) {
            Ok(Answer::Size(size)) => size,
            Ok(_) | Err(NoAnswer::Not(_)) => None,
            Err(NoAnswer::Late(late)) => {
                self.leave(late, Arc::default(), 0, false);
                None
            }
        }
    }

    /// Has a call made for the file.
    fn call(&mut self, ask: Ask, common: &mut Common) -> Result<Answer, NoAnswer> {
        let mut disk = self.disk.take().unwrap_or_else(|| {
            Box::new(Disk::new(self.path.clone(), self.user, self.names.clone()))
        });
        disk.set_app(self.user);
        match common.hands.call(disk, ask) {
            Called::Done(disk, answer) => {
                self.disk = Some(disk);
                Ok(answer)
            }
            Called::Late(late) => Err(NoAnswer::Late(late)),
            Called::Not(disk, error) => {
                self.disk = Some(disk);
                Err(NoAnswer::Not(error))
            }
        }
    }

    /// Leaves what is to be written until the late call has returned.
    fn leave(&mut self, late: Late, batch: Arc<Vec<u8>>, at: usize, writes: bool) {
        self.away = Some(Away {
            late,
            batch,
            at,
            writes,
        });
        self.silence.get_or_insert_with(|| Silence {
            since: Instant::now() - PATIENCE,
            told: false,
            kept: Vec::new(),
            lost_bytes: 0,
            lost_lines: 0,
        });
    }

    /// Keeps lines for a disk that does not answer, as long as there is room.
    fn keep(&mut self, lines: &[u8], common: &mut Common) {
        let (Some(away), Some(silence)) = (&self.away, &mut self.silence) else {
            return;
        };
        let fits = if silence.lost_bytes > 0 {
            0
        } else {
            let held = away.batch.len() - away.at + silence.kept.len();
            fitting(lines, held as u64, KEPT as u64)
        };
        let (kept, lost) = lines.split_at(fits);
        silence.kept.extend_from_slice(kept);
        if !lost.is_empty() {
            count(lost, &mut common.stats);
            silence.lost_bytes += lost.len() as u64;
            silence.lost_lines += newlines(lost);
            silence.tell(&self.path, common);
        }
    }

    /// Continues with what a late call has left.
    fn returned(
        &mut self,
        disk: Option<Box<Disk>>,
        answer: Answer,
        now: Instant,
        common: &mut Common,
    ) {
        let Some(Away {
            batch,
            mut at,
            writes,
            ..
        }) = self.away.take()
        else {
            return;
        };
        self.disk = disk;
        match answer {
            Answer::Is(shape) => self.shape = Some(shape),
            Answer::Wrote(count, error) => {
                if writes {
                    self.wrote(&batch[at..at + count]);
                    at += count;
                } else if count > 0 {
                    self.torn = None; // that was the end of the torn line
                }
                if let Some(error) = error {
                    return self.fail(&batch[at..], &error, now, common);
                }
            }
            Answer::Rotated => self.rotated(common),
            Answer::NotRotated(error) => self.not_rotated(&error, now, common),
            Answer::Size(_) | Answer::Closed => {}
            Answer::Failed(error) => return self.fail(&batch[at..], &error, now, common),
        }
        match self.append(&batch, at, now, common, None) {
            Ok(()) => {}
            Err(Stop::Failed(at, error)) => return self.fail(&batch[at..], &error, now, common),
            Err(Stop::Away) => return,
        }
        let kept = self
            .silence
            .as_mut()
            .map(|silence| std::mem::take(&mut silence.kept));
        let kept = Arc::new(kept.unwrap_or_default());
        match self.append(&kept, 0, now, common, None) {
            Ok(()) => {}
            Err(Stop::Failed(at, error)) => return self.fail(&kept[at..], &error, now, common),
            Err(Stop::Away) => return,
        }
        let Some(silence) = self.silence.take() else {
            return;
        };
        if silence.lost_bytes > 0 {
            // The rest is as after any other failure.
            self.trouble = Some(Trouble {
                lost_bytes: silence.lost_bytes,
                lost_lines: silence.lost_lines,
                error: SILENT.into(),
                retry: now,
            });
            self.retry(now, common);
        } else if silence.told {
            let _ = common.events.send(Event::Recovered {
                path: self.path.to_path_buf(),
                lost_bytes: 0,
                lost_lines: 0,
            });
        }
    }

    fn fail(&mut self, lost: &[u8], error: &io::Error, now: Instant, common: &mut Common) {
        self.close(common);
        common.stats.errors += 1;
        let error = error.to_string();
        let _ = common.events.send(Event::Failed {
            path: self.path.to_path_buf(),
            error: error.clone(),
        });
        let mut trouble = Trouble {
            lost_bytes: 0,
            lost_lines: 0,
            error,
            retry: now + RETRY,
        };
        trouble.lose(lost, &mut common.stats);
        if let Some(silence) = self.silence.take() {
            trouble.lose(&silence.kept, &mut common.stats);
            trouble.lost_bytes += silence.lost_bytes;
            trouble.lost_lines += silence.lost_lines;
        }
        self.trouble = Some(trouble);
    }

    /// Appends the lines of `batch` from a position on, rotating between two of them where the file
    /// gets full.
    fn append(
        &mut self,
        batch: &Arc<Vec<u8>>,
        mut at: usize,
        now: Instant,
        common: &mut Common,
        journal: Option<&Journal>,
    ) -> Result<(), Stop> {
        if at == batch.len() {
            return Ok(());
        }
        if std::mem::take(&mut self.amid) {
            let end = memchr(b'\n', &batch[at..]).map_or(batch.len(), |end| at + end + 1);
            self.put(batch, &mut at, end, common, journal)?;
        }
        if let Some(torn) = self.torn
            && self.looked(batch, at, common)?.identity == torn
        {
            let end = Arc::new(b"\n".to_vec());
            self.put(&end, &mut 0, 1, common, None)
                .map_err(|stop| match stop {
                    Stop::Failed(_, error) => Stop::Failed(at, error),
                    Stop::Away => {
                        if let Some(away) = &mut self.away {
                            (away.batch, away.at, away.writes) = (batch.clone(), at, false);
                        }
                        Stop::Away
                    }
                })?;
        }
        let (mut vain, mut tries) = (0, 0);
        while at < batch.len() {
            let shape = self.looked(batch, at, common)?;
            let rotates = shape.regular
                && self.max_size > 0
                && vain < VAIN
                && self.rotate_after.is_none_or(|t| t <= now);
            let fits = if rotates {
                match fitting(&batch[at..], shape.size, self.max_size) {
                    0 => {
                        vain += 1;
                        self.rotate(batch, at, now, common)?;
                        continue;
                    }
                    fits => fits,
                }
            } else {
                batch.len() - at
            };
            let end = at + fits;
            let before = at;
            self.put_once(batch, &mut at, end, &mut tries, common, journal)?;
            if at > before {
                vain = 0;
            }
        }
        Ok(())
    }

    /// The shape of the file, which is opened if it is not.
    fn looked(
        &mut self,
        batch: &Arc<Vec<u8>>,
        at: usize,
        common: &mut Common,
    ) -> Result<Shape, Stop> {
        if let Some(shape) = self.shape {
            return Ok(shape);
        }
        match self.call(Ask::Look, common) {
            Ok(Answer::Is(shape)) => {
                self.shape = Some(shape);
                Ok(shape)
            }
            Ok(Answer::Failed(error)) | Err(NoAnswer::Not(error)) => Err(Stop::Failed(at, error)),
            Ok(_) => Err(Stop::Failed(at, ErrorKind::Other.into())),
            Err(NoAnswer::Late(late)) => {
                self.leave(late, batch.clone(), at, false);
                Err(Stop::Away)
            }
        }
    }

    /// Writes `batch[at..end]`; `at` grows with what was written.
    fn put(
        &mut self,
        batch: &Arc<Vec<u8>>,
        at: &mut usize,
        end: usize,
        common: &mut Common,
        journal: Option<&Journal>,
    ) -> Result<(), Stop> {
        let mut tries = 0;
        while *at < end {
            self.put_once(batch, at, end, &mut tries, common, journal)?;
        }
        Ok(())
    }

    /// Writes once. Nothing, if the file was another one than expected, or, at the first try, of another size.
    fn put_once(
        &mut self,
        batch: &Arc<Vec<u8>>,
        at: &mut usize,
        end: usize,
        tries: &mut usize,
        common: &mut Common,
        journal: Option<&Journal>,
    ) -> Result<(), Stop> {
        let expected = self.looked(batch, *at, common)?;
        if let Some(journal) = journal {
            let identity = if expected.regular {
                expected.identity
            } else {
                (0, 0)
            };
            journal.intend(identity, expected.size, end - *at);
        }
        let range: Range<usize> = *at..end;
        let ask = Ask::Write {
            data: batch.clone(),
            range,
            expected,
            // Another process may append to it all the time.
            exact: *tries == 0,
        };
        match self.call(ask, common) {
            Ok(Answer::Wrote(count, error)) => {
                if let Some(journal) = journal {
                    journal.wrote(count as u64);
                }
                self.wrote(&batch[*at..*at + count]);
                *at += count;
                *tries = 0;
                match error {
                    Some(error) => Err(Stop::Failed(*at, error)),
                    None => Ok(()),
                }
            }
            Ok(Answer::Is(shape)) => {
                self.shape = Some(shape);
                *tries += 1;
                if *tries > TRIES {
                    let why = "another process replaces it all the time";
                    return Err(Stop::Failed(*at, io::Error::other(why)));
                }
                Ok(())
            }
            Ok(Answer::Failed(error)) | Err(NoAnswer::Not(error)) => Err(Stop::Failed(*at, error)),
            Ok(_) => Err(Stop::Failed(*at, ErrorKind::Other.into())),
            Err(NoAnswer::Late(late)) => {
                self.leave(late, batch.clone(), *at, true);
                Err(Stop::Away)
            }
        }
    }

    /// These bytes were written.
    fn wrote(&mut self, bytes: &[u8]) {
        if let (Some(shape), Some(last)) = (&mut self.shape, bytes.last()) {
            shape.size += bytes.len() as u64;
            self.torn = (*last != b'\n').then_some(shape.identity);
        }
    }

    fn rotate(
        &mut self,
        batch: &Arc<Vec<u8>>,
        at: usize,
        now: Instant,
        common: &mut Common,
    ) -> Result<(), Stop> {
        self.rotate_after = None;
        match self.call(Ask::Rotate { keep: self.keep }, common) {
            Ok(Answer::Rotated) => self.rotated(common),
            Ok(Answer::NotRotated(error)) | Err(NoAnswer::Not(error)) => {
                self.not_rotated(&error, now, common);
            }
            Ok(_) => self.shape = None,
            Err(NoAnswer::Late(late)) => {
                self.leave(late, batch.clone(), at, false);
                return Err(Stop::Away);
            }
        }
        Ok(())
    }

    fn rotated(&mut self, common: &mut Common) {
        self.shape = None;
        common.stats.rotations += 1;
        if self.compress {
            common.compressor.rotated(Job {
                path: self.path.clone(),
                app: self.user,
                names: self.names.clone(),
            });
        }
    }

    /// A file that is too large is better than lost lines.
    fn not_rotated(&mut self, error: &io::Error, now: Instant, common: &mut Common) {
        self.rotate_after = Some(now + RETRY);
        common.stats.errors += 1;
        let error = format!("rotating: {error}");
        let _ = common.events.send(Event::Untidy {
            path: self.path.to_path_buf(),
            error,
        });
    }
}

/// The reason for lines that a disk that does not answer has cost.
const SILENT: &str = "its disk or folder does not answer";

/// The thread of a late call has ended without an answer.
fn gone() -> Answer {
    Answer::Failed(io::Error::other("the thread for files has ended"))
}

impl Silence {
    fn tell(&mut self, path: &Path, common: &mut Common) {
        if !std::mem::replace(&mut self.told, true) {
            common.stats.errors += 1;
            let _ = common.events.send(Event::Failed {
                path: path.to_owned(),
                error: SILENT.into(),
            });
        }
    }
}

impl Trouble {
    fn lose(&mut self, lines: &[u8], stats: &mut Stats) {
        count(lines, stats);
        self.lost_bytes += lines.len() as u64;
        self.lost_lines += newlines(lines);
    }
}

fn newlines(lines: &[u8]) -> u64 {
    memchr_iter(b'\n', lines).count() as u64
}

/// Counts lost lines.
fn count(lost: &[u8], stats: &mut Stats) {
    stats.lost_bytes += lost.len() as u64;
    stats.lost_lines += newlines(lost);
}

/// The number of bytes of `lines`, in whole lines, that fit into a file of `size` bytes. At least
/// one line goes into an empty file.
fn fitting(lines: &[u8], size: u64, max_size: u64) -> usize {
    let room = usize::try_from(max_size.saturating_sub(size)).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines.len();
    }
    match memrchr(b'\n', &lines[..room]) {
        Some(end) => end + 1,
        None if size == 0 => memchr(b'\n', lines).map_or(lines.len(), |end| end + 1),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_fit() {
        assert_eq!(fitting(b"ab\ncd\n", 0, 100), 6);
        assert_eq!(fitting(b"ab\ncd\n", 95, 100), 3);
        assert_eq!(fitting(b"ab\ncd\n", 98, 100), 0);
        assert_eq!(fitting(b"ab\ncd\n", 200, 100), 0);
        assert_eq!(fitting(b"abcdef\ng\n", 0, 2), 7);
    }

    fn scene() -> (
        tempfile::TempDir,
        LogFile,
        Common,
        tokio::sync::mpsc::UnboundedReceiver<Event>,
    ) {
        let dir = tempfile::tempdir().expect("tempdir");
        let (events, told) = tokio::sync::mpsc::unbounded_channel();
        let wake = nix::sys::eventfd::EventFd::new().expect("eventfd");
        let mut common = Common {
            stats: Stats::default(),
            events: events.clone(),
            names: AllNames::default(),
            compressor: Compressor::start(events).expect("compressor"),
            hands: Hands::start(Arc::new(wake)).expect("a thread"),
        };
        let out = dir.path().join("out.log");
        let settings = Settings {
            timestamps: false,
            max_size: 100,
            compress: false,
            ..Settings::new(&out, &out)
        };
        let file = LogFile::new(out.into(), "app".into(), &settings, &mut common);
        (dir, file, common, told)
    }

    fn write(file: &mut LogFile, line: &str, common: &mut Common) {
        let mut line = format!("{line}\n").into_bytes();
        file.write(&mut line, 0, Instant::now(), common, None);
    }

    /// All that is in the file and its rotated ones, oldest first.
    fn text(dir: &Path) -> String {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let mut text = String::new();
        for number in (1..=10).rev() {
            text += &read(&format!("out.log.{number}"));
        }
        text + &read("out.log")
    }

    fn until_it_is_back(file: &mut LogFile, common: &mut Common) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while file.is_away() {
            assert!(Instant::now() < deadline, "it never came back");
            file.wait(Instant::now() + RETRY, common);
        }
    }

    /// Here a rotation waits for a lock, as it would for a disk.
    #[test]
    fn lines_wait_in_order_for_a_disk_that_is_late() {
        let (dir, mut file, mut common, mut told) = scene();
        write(&mut file, &"x".repeat(98), &mut common);
        let names = file.names.clone();
        let guard = names.lock();
        let began = Instant::now();
        for number in 0..20 {
            write(&mut file, &format!("line {number}"), &mut common);
        }
        assert!(
            file.is_away() && began.elapsed() < 4 * PATIENCE,
            "waited for once"
        );
        assert!(told.try_recv().is_err(), "nothing is lost");
        file.tend(Instant::now() + SILENCE, &mut common);
        assert!(matches!(told.try_recv(), Ok(Event::Failed { .. })));
        drop(guard);
        until_it_is_back(&mut file, &mut common);
        write(&mut file, "line 20", &mut common);
        let lines: String = (0..=20).map(|number| format!("line {number}\n")).collect();
        assert_eq!(text(dir.path()), format!("{}\n{lines}", "x".repeat(98)));
        let event = told.try_recv();
        assert!(
            matches!(event, Ok(Event::Recovered { lost_lines: 0, .. })),
            "{event:?}"
        );
        assert_eq!(common.stats.lost_lines, 0);
    }

    #[test]
    fn what_does_not_fit_into_memory_is_counted_and_reported() {
        let (dir, mut file, mut common, mut told) = scene();
        write(&mut file, &"x".repeat(98), &mut common);
        let names = file.names.clone();
        let guard = names.lock();
        write(&mut file, "first", &mut common);
        file.max_size = 0;
        for _ in 0..20 {
            write(&mut file, &"y".repeat(100_000), &mut common);
        }
        write(&mut file, "lost", &mut common);
        assert!(matches!(told.try_recv(), Ok(Event::Failed { .. })));
        drop(guard);
        until_it_is_back(&mut file, &mut common);
        write(&mut file, "last", &mut common);
        let all = text(dir.path());
        let lines: Vec<_> = all
            .lines()
            .map(|line| &line[..line.len().min(30)])
            .collect();
        assert_eq!(lines[1], "first");
        assert_eq!(lines.len(), 2 + 10 + 2, "{lines:?}");
        assert_eq!(lines[12], "rsup: 1000015 bytes in 11 line");
        assert_eq!(lines[13], "last");
        let lost = common.stats.lost_lines;
        assert!(
            matches!(told.try_recv(), Ok(Event::Recovered { lost_lines, .. }) if lost_lines == lost)
        );
        assert_eq!(lost, 11);
    }

    #[test]
    fn the_end_of_a_file_whose_disk_is_silent_tells_the_loss() {
        let (_dir, mut file, mut common, mut told) = scene();
        write(&mut file, &"x".repeat(98), &mut common);
        let names = file.names.clone();
        let _guard = names.lock();
        write(&mut file, "one", &mut common);
        write(&mut file, "two", &mut common);
        file.wait(Instant::now(), &mut common);
        file.end(&mut common);
        let event = told.try_recv();
        assert!(
            matches!(
                event,
                Ok(Event::Closed {
                    lost_lines: 2,
                    lost_bytes: 8,
                    ..
                })
            ),
            "{event:?}"
        );
    }
}
