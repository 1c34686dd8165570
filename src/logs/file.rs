//! One log file: appends batches of whole lines, rotates, and survives a file that can't be written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::{memchr, memchr_iter, memrchr};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc::UnboundedSender;

use super::compress::Compressor;
use super::format::{Style, own_line};
use super::journal::Journal;
use super::rotate::{self, Names};
use super::{Event, FileStats, Settings, Stats};

/// How long a file that failed is not tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the reader of a pipe or terminal that is given as log file may hold up the pump.
const PATIENCE_MS: u16 = 50;
/// Permissions of a new log file, before the umask.
const MODE: u32 = 0o640;
/// Permissions of a new folder for it.
const FOLDER_MODE: u32 = 0o750;

/// What all files share.
pub(super) struct Common {
    pub stats: Stats,
    pub events: UnboundedSender<Event>,
    pub names: Arc<Names>,
    pub compressor: Compressor,
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
    /// The number of streams that write here.
    pub users: usize,
    open: Option<Open>,
    /// The file whose last write stopped within a line.
    torn: Option<(u64, u64)>,
    trouble: Option<Trouble>,
    /// The next bytes are the rest of a line that is in the file already.
    amid: bool,
    /// Rotating failed: the next attempt comes after this.
    rotate_after: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    size: u64,
    /// It is rotated and watched for replacement; a pipe, a terminal or a device is not.
    regular: bool,
}

/// A failure of the file.
#[derive(Debug)]
struct Trouble {
    lost_bytes: u64,
    lost_lines: u64,
    error: String,
    retry: Instant,
}

impl LogFile {
    pub fn new(path: Arc<Path>, app: Arc<str>, settings: &Settings) -> Self {
        LogFile {
            path,
            app,
            style: settings.into(),
            max_size: settings.max_size,
            keep: settings.keep,
            compress: settings.compress,
            users: 0,
            open: None,
            torn: None,
            trouble: None,
            amid: false,
            rotate_after: None,
        }
    }

    /// Applies these settings to the file from now on.
    pub fn configure(&mut self, settings: &Settings) {
        self.style = settings.into();
        (self.max_size, self.keep, self.compress) =
            (settings.max_size, settings.keep, settings.compress);
    }

    /// Closes the file; the next line opens it again.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Writes a line of rsup itself.
    pub fn note(&mut self, text: &str, now: Instant, common: &mut Common) {
        self.write(&own_line(self.style, &self.app, text), now, common, None);
    }

    /// The next bytes continue the last line in the file.
    pub fn go_on(&mut self) {
        self.amid = true;
    }

    /// Appends whole lines, and records in the journal which batch they are from. Lines that can't
    /// be written are counted as lost.
    pub fn write(
        &mut self,
        lines: &[u8],
        now: Instant,
        common: &mut Common,
        journal: Option<&Journal>,
    ) {
        if self.trouble.as_ref().is_some_and(|t| t.retry <= now) {
            self.retry(now, common);
        }
        let lost = if let Some(trouble) = &mut self.trouble {
            trouble.lose(lines, &mut common.stats);
            lines
        } else if let Err((done, error)) = self.append(lines, now, common, journal) {
            self.fail(&lines[done..], &error, now, common);
            &lines[done..]
        } else {
            return;
        };
        if let Some(journal) = journal {
            journal.wrote(lost.len() as u64);
        }
    }

    /// When [`retry`](Self::retry) is due, so that a file that works again reports its loss
    /// although nothing more is written to it.
    pub fn due(&self) -> Option<Instant> {
        self.trouble.as_ref().map(|t| t.retry)
    }

    /// Tries a failed file again: writes into it what it lacks.
    pub fn retry(&mut self, now: Instant, common: &mut Common) {
        let Some(mut trouble) = self.trouble.take() else {
            return;
        };
        let (bytes, lines) = (trouble.lost_bytes, trouble.lost_lines);
        let text = format!(
            "{bytes} bytes in {lines} lines were lost here: {}",
            trouble.error
        );
        match self.append(&own_line(self.style, &self.app, &text), now, common, None) {
            Ok(()) => {
                let path = self.path.to_path_buf();
                let _ = common.events.send(Event::Recovered {
                    path,
                    lost_bytes: bytes,
                    lost_lines: lines,
                });
            }
            Err((_, error)) => {
                self.close();
                common.stats.errors += 1;
                trouble.error = error.to_string();
                trouble.retry = now + RETRY;
                self.trouble = Some(trouble);
            }
        }
    }

    /// Ends the file: no stream writes to it any more.
    pub fn end(&mut self, common: &mut Common) {
        if let Some(trouble) = self.trouble.take() {
            let path = self.path.to_path_buf();
            let (lost_bytes, lost_lines) = (trouble.lost_bytes, trouble.lost_lines);
            let _ = common.events.send(Event::Closed {
                path,
                lost_bytes,
                lost_lines,
            });
        }
    }

    /// Its state, for the statistics.
    pub fn stats(&self) -> FileStats {
        FileStats {
            path: self.path.to_path_buf(),
            size: self.open.as_ref().map_or(0, |o| o.size),
            lost_bytes: self.trouble.as_ref().map_or(0, |t| t.lost_bytes),
            error: self.trouble.as_ref().map(|t| t.error.clone()),
        }
    }

    fn fail(&mut self, lost: &[u8], error: &io::Error, now: Instant, common: &mut Common) {
        self.close();
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
        self.trouble = Some(trouble);
    }

    /// Appends `lines`, rotating between two of them where the file gets full. A failure carries
    /// how many bytes were written.
    fn append(
        &mut self,
        lines: &[u8],
        now: Instant,
        common: &mut Common,
        journal: Option<&Journal>,
    ) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        let mut rest = lines;
        if std::mem::take(&mut self.amid) {
            self.opened().map_err(|e| (0, e))?;
            let end = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            self.put(&rest[..end], &mut done, journal)
                .map_err(|e| (done, e))?;
            rest = &rest[end..];
        }
        if let Some(torn) = self.torn
            && self.opened().map_err(|e| (0, e))?.identity == torn
        {
            self.put(b"\n", &mut 0, None).map_err(|e| (0, e))?;
        }
        while !rest.is_empty() {
            let open = self.opened().map_err(|e| (done, e))?;
            let (regular, size) = (open.regular, open.size);
            let fits = if regular && self.max_size > 0 && self.rotate_after.is_none_or(|t| t <= now)
            {
                match fitting(rest, size, self.max_size) {
                    0 => {
                        self.rotate(now, common);
                        continue;
                    }
                    fits => fits,
                }
            } else {
                rest.len()
            };
            self.put(&rest[..fits], &mut done, journal)
                .map_err(|e| (done, e))?;
            rest = &rest[fits..];
        }
        Ok(())
    }

    /// Writes all of `data` to the file that is open; `done` grows with what was written.
    fn put(&mut self, data: &[u8], done: &mut usize, journal: Option<&Journal>) -> io::Result<()> {
        let mut rest = data;
        let mut patient = true;
        while !rest.is_empty() {
            let Some(open) = &mut self.open else {
                return Err(ErrorKind::NotFound.into());
            };
            if let Some(journal) = journal {
                let identity = if open.regular { open.identity } else { (0, 0) };
                journal.intend(identity, open.size, rest.len());
            }
            match open.file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    if let Some(journal) = journal {
                        journal.wrote(n as u64);
                    }
                    open.size += n as u64;
                    *done += n;
                    self.torn = (rest[n - 1] != b'\n').then_some(open.identity);
                    rest = &rest[n..];
                    patient = true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && patient => {
                    patient = false;
                    let mut fds = [PollFd::new(open.file.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, PollTimeout::from(PATIENCE_MS));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The file at the path. It is opened again if it was moved, replaced or deleted.
    fn opened(&mut self) -> io::Result<&mut Open> {
        if let Some(open) = &mut self.open
            && open.regular
        {
            match fs::metadata(&self.path) {
                Ok(meta) if rotate::identity(&meta) == open.identity => open.size = meta.len(),
                _ => self.open = None,
            }
        }
        match &mut self.open {
            Some(open) => Ok(open),
            none => Ok(none.insert(open(&self.path)?)),
        }
    }

    fn rotate(&mut self, now: Instant, common: &mut Common) {
        self.rotate_after = None;
        let shifted = {
            let _guard = common.names.lock();
            rotate::shift(&self.path, self.keep)
        };
        match shifted {
            Ok(()) => {
                self.close();
                common.stats.rotations += 1;
                if self.compress {
                    common.compressor.rotated(&self.path);
                }
            }
            // A file that is too large is better than lost lines.
            Err(error) => {
                self.rotate_after = Some(now + RETRY);
                common.stats.errors += 1;
                let error = format!("rotating: {error}");
                let _ = common.events.send(Event::Untidy {
                    path: self.path.to_path_buf(),
                    error,
                });
            }
        }
    }
}

impl Trouble {
    fn lose(&mut self, lines: &[u8], stats: &mut Stats) {
        let count = memchr_iter(b'\n', lines).count() as u64;
        self.lost_bytes += lines.len() as u64;
        self.lost_lines += count;
        stats.lost_bytes += lines.len() as u64;
        stats.lost_lines += count;
    }
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

fn open(path: &Path) -> io::Result<Open> {
    // Non-blocking, since opening a FIFO would wait for a reader.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let with = |flags: OFlag| {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .custom_flags(flags.bits())
            .open(path)
    };
    let open = || match with(flags | OFlag::O_NOFOLLOW) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            trusted_link(path)?;
            with(flags)
        }
        result => result,
    };
    let file = match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(FOLDER_MODE)
                .create(rotate::folder(path))?;
            open()?
        }
        other => other?,
    };
    let meta = file.metadata()?;
    Ok(Open {
        file,
        identity: rotate::identity(&meta),
        size: meta.len(),
        regular: meta.is_file(),
    })
}

/// A link of another user may lead anywhere: a worker of another user, in a folder of its own,
/// could make rsup write where that user cannot. A link of root, such as `/dev/stdout`, is trusted
/// like rsup's own.
fn trusted_link(path: &Path) -> io::Result<()> {
    let owner = fs::symlink_metadata(path)?.uid();
    if owner == 0 || owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    let why = format!("it is a link of user {owner}, which rsup does not follow");
    Err(io::Error::new(ErrorKind::PermissionDenied, why))
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
}
