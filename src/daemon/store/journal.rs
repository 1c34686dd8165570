//! A file that grows by one line for each save, and is written anew as a whole now and then.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A journal is written anew when it has grown to twice its size and this much more, so that all the writing
/// anew costs no more than the appending.
const ROOM: u64 = 64 * 1024;

/// One save, in the format of a journal.
#[derive(Debug)]
pub enum Lines {
    /// To be appended.
    More(Vec<u8>),
    /// The whole state.
    Whole(Vec<u8>),
}

/// The writing end of a journal. It appends to no file but its own: what another process has left is replaced.
pub struct Journal {
    path: PathBuf,
    /// What was written is on the disk when a call returns.
    durable: bool,
    open: Option<Open>,
}

struct Open {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    /// The end of the last line that is complete.
    length: u64,
}

impl Journal {
    pub fn new(path: PathBuf, durable: bool) -> Self {
        Self {
            path,
            durable,
            open: None,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file can be appended to: it is open, and what its path names is it, as this journal left it.
    pub fn is_in_place(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            fs::symlink_metadata(&self.path).is_ok_and(|found| {
                (found.dev(), found.ino()) == open.identity && found.len() == open.length
            })
        })
    }

    /// Appends complete lines by one write(2). After an error the file is as before, or has to be
    /// [replaced](Self::replace), and is not appended to until then.
    ///
    /// # Errors
    /// As for writing.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some(mut open) = self.open.take() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut how = open.file.write_all(lines);
        if self.durable {
            how = how.and_then(|()| open.file.sync_data());
        }
        if let Err(why) = how {
            // A reader would ignore the rest of a line, but only as the last one.
            let _ = open.file.set_len(open.length);
            return Err(why);
        }
        open.length += lines.len() as u64;
        self.open = Some(open);
        Ok(())
    }

    /// Makes these lines the whole file.
    ///
    /// # Errors
    /// As for writing; the file at the path is then as it was.
    pub fn replace(&mut self, lines: &[u8]) -> io::Result<()> {
        self.open = None;
        let file = write(&self.path, lines, self.durable)?;
        let found = file.metadata()?;
        self.open = Some(Open {
            file,
            identity: (found.dev(), found.ino()),
            length: lines.len() as u64,
        });
        Ok(())
    }
}

impl Journal {
    /// # Errors
    /// As [`Self::append`] and [`Self::replace`].
    pub fn take(&mut self, lines: &Lines) -> io::Result<()> {
        match lines {
            Lines::More(lines) => self.append(lines),
            Lines::Whole(lines) => self.replace(lines),
        }
    }
}

/// How large a journal is.
#[derive(Debug, Default)]
pub struct Growth {
    whole: u64,
    length: u64,
}

impl Growth {
    pub fn replaced(&mut self, bytes: &[u8]) {
        self.whole = bytes.len() as u64;
        self.length = self.whole;
    }

    pub fn appended(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
    }

    /// Whether it is time to write the whole state anew.
    pub fn is_due(&self) -> bool {
        self.length > 2 * self.whole + ROOM
    }
}

/// Replaces a file as a whole by rename(2), for its owner alone; the file, to be appended to. `durable`: it is on
/// the disk when this returns.
///
/// # Errors
/// As for writing; the file at the path is then as it was.
pub fn write(path: &Path, bytes: &[u8], durable: bool) -> io::Result<File> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // tempfile makes files of mode 0600, and removes them if anything fails.
    let mut file = tempfile::Builder::new()
        .prefix(".state")
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    if durable {
        file.as_file().sync_all()?;
    }
    let file = file.persist(path).map_err(|why| why.error)?;
    if durable {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// Moves a state that cannot be used out of the way, so that nothing overwrites it; where to.
pub fn put_aside(path: &Path) -> Option<PathBuf> {
    let aside = (0..100)
        .map(|n| path.with_extension(format!("json.unread{n}")))
        .find(|p| !p.exists())?;
    fs::rename(path, &aside).ok().map(|()| aside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn journal(durable: bool) -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(folder.path().join("state.json"), durable);
        (folder, journal)
    }

    #[test]
    fn lines_are_appended_to_a_file_of_its_own() {
        for durable in [false, true] {
            let (folder, mut journal) = journal(durable);
            fs::write(journal.path(), "of another process\n").unwrap();
            assert!(!journal.is_in_place());
            assert!(journal.append(b"no\n").is_err());
            journal.replace(b"one\n").unwrap();
            journal.append(b"two\n").unwrap();
            assert!(journal.is_in_place());
            assert_eq!(fs::read(journal.path()).unwrap(), b"one\ntwo\n");
            let mode = fs::metadata(journal.path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "of this user alone");
            assert_eq!(
                fs::read_dir(folder.path()).unwrap().count(),
                1,
                "nothing is left over"
            );
        }
    }

    #[test]
    fn a_file_that_was_removed_replaced_or_changed_is_noticed() {
        let (folder, mut journal) = journal(false);
        let path = journal.path().to_owned();
        let (elsewhere, folder) = (folder.path().join("elsewhere"), folder.path());
        let changes: [&dyn Fn(); 4] = [
            &|| fs::remove_file(&path).unwrap(),
            &|| fs::rename(&path, &elsewhere).unwrap(),
            &|| {
                fs::write(&elsewhere, b"one\n").unwrap();
                fs::rename(&elsewhere, &path).unwrap();
            },
            &|| fs::write(&path, b"").unwrap(),
        ];
        for change in changes {
            journal.replace(b"one\n").unwrap();
            assert!(journal.is_in_place());
            change();
            assert!(!journal.is_in_place());
        }
        fs::remove_dir_all(folder).unwrap();
        assert!(journal.replace(b"one\n").is_err());
        assert!(!journal.is_in_place());
    }

    #[test]
    fn what_cannot_be_appended_leaves_the_lines_before() {
        let (_folder, mut journal) = journal(false);
        journal.replace(b"one\n").unwrap();
        // A descriptor that cannot be written to stands for a disk that is full.
        journal.open.as_mut().unwrap().file = File::open(journal.path()).unwrap();
        assert!(journal.append(b"two\n").is_err());
        assert_eq!(fs::read(journal.path()).unwrap(), b"one\n");
        assert!(!journal.is_in_place());
        journal.replace(b"one\ntwo\n").unwrap();
        journal.append(b"three\n").unwrap();
        assert_eq!(fs::read(journal.path()).unwrap(), b"one\ntwo\nthree\n");
    }

    #[test]
    fn what_is_put_aside_is_kept() {
        let (_folder, journal) = journal(false);
        for n in 0..3 {
            fs::write(journal.path(), format!("{n}")).unwrap();
            let aside = put_aside(journal.path()).unwrap();
            assert_eq!(fs::read_to_string(aside).unwrap(), format!("{n}"));
        }
    }
}
