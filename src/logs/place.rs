//! The place of a log file: its folder, held open, and its name in it. All calls name files relative
//! to that folder, follow no link, and use only files that can be nothing else than a log.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::walk::{self, Found, Hold, Users};

/// Permissions of a new log file, before the umask.
const MODE: Mode = Mode::from_bits_truncate(0o640);

/// A name in a folder that is held open.
#[derive(Debug)]
pub(super) struct Place {
    found: Found,
    users: Users,
}

/// A file and its status.
#[derive(Debug)]
pub(super) struct Checked {
    pub file: File,
    pub status: FileStat,
    /// Made by rsup, or in a folder where no other user can have put it.
    pub own: bool,
}

/// Identifies a file as long as it exists, whatever its name: device and inode.
pub(super) fn identity(status: &FileStat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

pub(super) fn is_regular(status: &FileStat) -> bool {
    status.st_mode & nix::libc::S_IFMT == nix::libc::S_IFREG
}

/// The size in bytes.
pub(super) fn size(status: &FileStat) -> u64 {
    u64::try_from(status.st_size).unwrap_or(0)
}

impl Place {
    /// Finds the place of a log of an app whose user is `app`. With `make`, its folders are made.
    ///
    /// # Errors
    /// As [`walk::find`].
    pub fn find(path: &Path, app: Option<u32>, make: bool) -> io::Result<Place> {
        let users = Users::new(app);
        let found = walk::find(path, &users, make)?;
        Ok(Place { found, users })
    }

    /// The name of the file.
    pub fn name(&self) -> &OsStr {
        &self.found.name
    }

    /// Whether the file is an entry of a folder, which can be renamed, not an open file of this
    /// process.
    pub fn has_name(&self) -> bool {
        !self.found.magic
    }

    /// Opens the file to append to it, and makes it if it does not exist.
    ///
    /// # Errors
    /// As openat(2). `PermissionDenied` for what is no log file.
    pub fn append(&self) -> io::Result<Checked> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND;
        if self.found.magic {
            return self.magic(flags);
        }
        let create = flags | OFlag::O_CREAT | OFlag::O_EXCL;
        // Another process may make or remove it between the two attempts.
        for _ in 0..8 {
            match self.open(self.name(), flags) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => return other,
            }
            match self.open_unchecked(self.name(), create) {
                Ok(file) => {
                    let status = fstat(&file)?;
                    let own = true;
                    return Ok(Checked { file, status, own });
                }
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// Opens the file, or a rotated one, for reading. `None` if it does not exist, and for a device, a pipe
    /// or a terminal: their content cannot be read again.
    ///
    /// # Errors
    /// As openat(2). `PermissionDenied` for what is no log file.
    pub fn read(&self, name: &OsStr) -> io::Result<Option<Checked>> {
        let opened = if self.found.magic && name == self.name() {
            self.magic(OFlag::O_RDONLY)
        } else {
            self.open(name, OFlag::O_RDONLY)
        };
        match opened {
            Ok(checked) => Ok(is_regular(&checked.status).then_some(checked)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a new file.
    ///
    /// # Errors
    /// As openat(2), if there is something of this name in particular.
    pub fn create(&self, name: &OsStr, mode: Mode) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | ALWAYS;
        Ok(openat(&self.found.folder.fd, name, flags, mode)?.into())
    }

    /// The status of an entry, of a link itself. `None` if it does not exist.
    ///
    /// # Errors
    /// As fstatat(2).
    pub fn status(&self, name: &OsStr) -> io::Result<Option<FileStat>> {
        match fstatat(&self.found.folder.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Renames an entry within the folder.
    ///
    /// # Errors
    /// As renameat(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let folder = &self.found.folder.fd;
        Ok(renameat(folder, from, folder, to)?)
    }

    /// Removes an entry of the folder.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        let folder = &self.found.folder.fd;
        Ok(unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Calls `each` with the names in the folder that begin with that of the file.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn names(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut folder = Dir::openat(&self.found.folder.fd, ".", flags, Mode::empty())?;
        for entry in folder.iter() {
            let entry = entry?;
            if let Some(rest) = entry
                .file_name()
                .to_bytes()
                .strip_prefix(self.name().as_encoded_bytes())
            {
                each(rest);
            }
        }
        Ok(())
    }

    fn magic(&self, flags: OFlag) -> io::Result<Checked> {
        let flags = (flags | ALWAYS) & !OFlag::O_NOFOLLOW;
        let file: File = openat(&self.found.folder.fd, self.name(), flags, Mode::empty())?.into();
        let status = fstat(&file)?;
        let own = true;
        Ok(Checked { file, status, own })
    }

    fn open_unchecked(&self, name: &OsStr, flags: OFlag) -> Result<File, Errno> {
        Ok(openat(&self.found.folder.fd, name, flags | ALWAYS, MODE)?.into())
    }

    /// Opens what is there. It is looked at before, since to open a device may have an effect, and
    /// after, since another may have come into its place.
    fn open(&self, name: &OsStr, flags: OFlag) -> io::Result<Checked> {
        let before = self.status(name)?.ok_or(ErrorKind::NotFound)?;
        self.check(name, &before)?;
        let file = self.open_unchecked(name, flags)?;
        let status = fstat(&file)?;
        let own = self.check(name, &status)?;
        Ok(Checked { file, status, own })
    }

    /// Whether it is certainly rsup's own; an error if it may be no log file at all. Where others can
    /// put files, it must be one with no other name, so that it is no file of another folder, and
    /// of a user who may own it.
    fn check(&self, name: &OsStr, status: &FileStat) -> io::Result<bool> {
        let hold = self.users.hold(&self.found.folder, status);
        let kind = status.st_mode & nix::libc::S_IFMT;
        let what = match kind {
            nix::libc::S_IFLNK => "is a link".to_owned(),
            nix::libc::S_IFDIR => return Err(Errno::EISDIR.into()),
            _ if hold == Hold::Firm => return Ok(true),
            nix::libc::S_IFREG if status.st_nlink > 1 => {
                format!("has {} names (hard links)", status.st_nlink)
            }
            nix::libc::S_IFREG if self.users.may_own(status.st_uid) => {
                return Ok(self.users.trusts(status.st_uid));
            }
            nix::libc::S_IFREG => format!("belongs to user {}", status.st_uid),
            nix::libc::S_IFIFO => "is a FIFO".to_owned(),
            nix::libc::S_IFSOCK => "is a socket".to_owned(),
            _ => "is a device".to_owned(),
        };
        let name = name.to_string_lossy();
        Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "{} {what}, and others than rsup's user can change its folder (user {} owns it): rsup does not use it; remove it, or keep the logs in a folder that only rsup's user can change",
                crate::human::one_line(&name),
                self.found.folder.status.st_uid,
            ),
        ))
    }
}

/// Never waits for the other end of a FIFO, never becomes a terminal of this process, is not
/// inherited.
const ALWAYS: OFlag = OFlag::O_NONBLOCK
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// `out.log` → `out.log.3`
pub(super) fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut longer = name.to_owned();
    longer.push(suffix);
    longer
}
