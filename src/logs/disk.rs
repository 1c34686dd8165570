//! The calls for one log file: each of them may wait for a disk for ever, so that the pump has them
//! made by a [hand](super::hand).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::place::{self, Place, is_regular};
use super::rotate::{self, Names};

/// How long the reader of a pipe or terminal that is given as log file may hold up the pump.
const PATIENCE_MS: u16 = 50;

/// A log file on disk.
#[derive(Debug)]
pub(super) struct Disk {
    path: Arc<Path>,
    /// The user of its app.
    app: Option<u32>,
    names: Arc<Names>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    place: Place,
    file: File,
    shape: Shape,
}

/// What the open file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub identity: (u64, u64),
    pub size: u64,
    /// It is rotated and watched for replacement; a pipe, a terminal or a device is not.
    pub regular: bool,
}

/// What is to be done with the file.
#[derive(Debug)]
pub(super) enum Ask {
    /// Open it, again if it was moved, replaced or deleted.
    Look,
    /// Append these bytes, if it is still this file, and (`exact`) of this size; otherwise tell its shape.
    Write {
        data: Arc<Vec<u8>>,
        range: Range<usize>,
        expected: Shape,
        exact: bool,
    },
    /// Move it to number 1.
    Rotate { keep: usize },
    /// Find the size of the file of this identity, rotated or not.
    Size { identity: (u64, u64) },
    /// Close it.
    Close,
}

/// The answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is open, and of this shape.
    Is(Shape),
    /// So many bytes were written, and why no more. Of a pipe or a device fewer without an error.
    Wrote(usize, Option<io::Error>),
    Rotated,
    NotRotated(io::Error),
    Size(Option<u64>),
    Closed,
    /// It cannot be opened.
    Failed(io::Error),
}

impl Shape {
    fn is(&self, other: &Shape, exact: bool) -> bool {
        self.identity == other.identity && (!exact || self.size == other.size)
    }
}

impl Disk {
    pub fn new(path: Arc<Path>, app: Option<u32>, names: Arc<Names>) -> Disk {
        Disk {
            path,
            app,
            names,
            open: None,
        }
    }

    /// Who the app's user is from now on.
    pub fn set_app(&mut self, app: Option<u32>) {
        self.app = app;
    }

    /// Makes the calls.
    pub fn obey(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::Look => match self.opened() {
                Ok(open) => Answer::Is(open.shape),
                Err(error) => Answer::Failed(error),
            },
            Ask::Write {
                data,
                range,
                expected,
                exact,
            } => match self.opened() {
                Ok(open) if open.shape.is(&expected, exact) => {
                    let (count, error) = open.write(data.get(range).unwrap_or_default());
                    Answer::Wrote(count, error)
                }
                Ok(open) => Answer::Is(open.shape),
                Err(error) => Answer::Failed(error),
            },
            Ask::Rotate { keep } => match self.rotate(keep) {
                Ok(()) => Answer::Rotated,
                Err(error) => Answer::NotRotated(error),
            },
            Ask::Size { identity } => Answer::Size(self.size_of(identity)),
            Ask::Close => {
                self.open = None;
                Answer::Closed
            }
        }
    }

    /// The file at the path. It is opened again if it was moved, replaced or deleted.
    fn opened(&mut self) -> io::Result<&mut Open> {
        if let Some(open) = &mut self.open
            && open.shape.regular
        {
            // Links are followed here: wherever they lead, it is the open file, or another one is looked for.
            match fs::metadata(&self.path) {
                Ok(meta) if (meta.dev(), meta.ino()) == open.shape.identity => {
                    open.shape.size = meta.len();
                }
                _ => self.open = None,
            }
        }
        match &mut self.open {
            Some(open) => Ok(open),
            none => {
                let place = Place::find(&self.path, self.app, true)?;
                let opened = place.append()?;
                let shape = Shape {
                    identity: place::identity(&opened.status),
                    size: place::size(&opened.status),
                    regular: is_regular(&opened.status) && place.has_name(),
                };
                Ok(none.insert(Open {
                    place,
                    file: opened.file,
                    shape,
                }))
            }
        }
    }

    /// Without effect on a file that another one has replaced.
    fn rotate(&mut self, keep: usize) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            let found = open.place.status(open.place.name())?;
            if found.is_some_and(|it| place::identity(&it) == open.shape.identity) {
                let shifted = {
                    let _guard = self.names.lock();
                    rotate::shift(&open.place, keep)
                };
                if shifted.is_err() {
                    self.open = Some(open);
                }
                return shifted;
            }
        }
        Ok(())
    }

    fn size_of(&self, identity: (u64, u64)) -> Option<u64> {
        let place = Place::find(&self.path, self.app, false).ok()?;
        let size = |name: &std::ffi::OsStr| {
            let status = place.status(name).ok().flatten()?;
            (place::identity(&status) == identity).then(|| place::size(&status))
        };
        // Another process may have rotated it meanwhile, to the name that rsup uses too.
        size(place.name()).or_else(|| {
            let segments = rotate::segments(&place).ok()?;
            segments.iter().find_map(|segment| size(&segment.name))
        })
    }
}

impl Open {
    fn write(&mut self, data: &[u8]) -> (usize, Option<io::Error>) {
        let mut done = 0;
        let mut patient = true;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return (done, Some(ErrorKind::WriteZero.into())),
                Ok(count) => {
                    done += count;
                    self.shape.size += count as u64;
                    if !self.shape.regular {
                        break; // its size does not show how much that was
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && patient => {
                    patient = false;
                    let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, PollTimeout::from(PATIENCE_MS));
                }
                Err(error) => return (done, Some(error)),
            }
        }
        (done, None)
    }
}
