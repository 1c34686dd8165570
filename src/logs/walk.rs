//! The way to a log file, name by name, without trust in folders that others can change.
//!
//! The kernel resolves a path in one go and follows every link on it. Where a process of another
//! user can change one of the folders, such a link could lead rsup, which may be root, anywhere. So
//! each name is opened for itself, relative to the folder before it, and a link is followed only
//! where no other user can have made or moved it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{getegid, geteuid};

/// As many links as the kernel follows in a path (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// Permissions of a new folder, before the umask.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o750);

/// The users whose files and folders a log may consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Users {
    me: u32,
    group: u32,
    /// The user that the app runs as, where it is another one.
    app: Option<u32>,
}

impl Users {
    /// rsup's own user, root, and the user `app`.
    pub fn new(app: Option<u32>) -> Users {
        Users {
            me: geteuid().as_raw(),
            group: getegid().as_raw(),
            app,
        }
    }

    /// Root may do everything anyway.
    pub fn trusts(&self, uid: u32) -> bool {
        uid == 0 || uid == self.me
    }

    /// Whether a log file may belong to this user.
    pub fn may_own(&self, uid: u32) -> bool {
        self.trusts(uid) || self.app == Some(uid)
    }

    /// Who can change an entry of `folder` that has this status, itself or by another one in its
    /// place.
    pub fn hold(&self, folder: &Step, entry: &FileStat) -> Hold {
        if folder.hold == Hold::Firm && self.only(folder, entry, |uid| self.trusts(uid)) {
            Hold::Firm
        } else if folder.hold <= Hold::App && self.only(folder, entry, |uid| self.may_own(uid)) {
            Hold::App
        } else {
            Hold::Open
        }
    }

    fn only(&self, folder: &Step, entry: &FileStat, one_of: impl Fn(u32) -> bool) -> bool {
        let FileStat {
            st_mode,
            st_uid,
            st_gid,
            ..
        } = folder.status;
        // A group of the same number as its user is that user's own, by convention. An access
        // control list shows in the bits of the group.
        let own_group = st_gid == 0 || (st_gid == self.group && self.group == self.me);
        let writers = if own_group { 0o002 } else { 0o022 };
        let closed = st_mode & writers == 0;
        let sticky = st_mode & nix::libc::S_ISVTX != 0;
        one_of(st_uid) && (closed || (sticky && one_of(entry.st_uid)))
    }
}

/// Who can change what a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hold {
    /// Only root and rsup's own user.
    Firm,
    /// The user that the app runs as, too.
    App,
    /// Others.
    Open,
}

/// A folder on the way.
#[derive(Debug)]
pub(super) struct Step {
    /// Opened with `O_PATH`.
    pub fd: OwnedFd,
    pub status: FileStat,
    /// Who can change that the path leads to this folder.
    pub hold: Hold,
}

/// Where a path leads: to an entry of a folder, which need not exist.
#[derive(Debug)]
pub(super) struct Found {
    pub folder: Step,
    pub name: OsString,
    /// An open file of this process, as in `/proc/self/fd`: opened by following this very entry.
    pub magic: bool,
}

/// The folder and name that `path` leads to, links resolved. With `make`, folders that do not exist
/// are made.
///
/// # Errors
/// As openat(2) and mkdirat(2). `PermissionDenied` for a link that another user could have made.
pub(super) fn find(path: &Path, users: &Users, make: bool) -> io::Result<Found> {
    let path = std::path::absolute(path)?;
    let mut walk = Walk {
        steps: vec![root()?],
        here: vec![PathBuf::from("/")],
        users,
        bound: false,
    };
    let mut rest = names(&path);
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            walk.up();
            continue;
        }
        let last = rest.is_empty();
        let entry = match walk.entry(&name) {
            Err(error) if error.kind() == ErrorKind::NotFound && last => {
                return walk.found(name, false);
            }
            Err(error) if error.kind() == ErrorKind::NotFound && make => walk.make(&name)?,
            other => other?,
        };
        match entry.status.st_mode & nix::libc::S_IFMT {
            nix::libc::S_IFLNK => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                if last && walk.is_proc()? && entry.hold == Hold::Firm {
                    return walk.found(name, true);
                }
                let target = walk.follow(&name, &entry, last)?;
                let target = Path::new(&target);
                if target.is_absolute() {
                    walk.start_over();
                }
                let mut longer = names(target);
                longer.append(&mut rest);
                rest = longer;
            }
            _ if last => return walk.found(name, false),
            nix::libc::S_IFDIR => walk.down(&name, entry),
            _ => return Err(Errno::ENOTDIR.into()),
        }
    }
    Err(Errno::EISDIR.into())
}

/// The folders of `path` that belong to another user than root, rsup's own and the user `app`,
/// with the user. A link that is not followed ends the search.
pub fn foreign_folders(path: &Path, app: Option<u32>) -> Vec<(PathBuf, u32)> {
    let users = Users::new(app);
    let mut found = Vec::new();
    let mut folder = path.parent();
    let mut folders = Vec::new();
    while let Some(at) = folder {
        folders.push(at);
        folder = at.parent();
    }
    for at in folders.into_iter().rev() {
        use std::os::unix::fs::MetadataExt;
        let Ok(meta) = std::fs::symlink_metadata(at) else {
            break;
        };
        if !users.may_own(meta.uid()) {
            found.push((at.to_owned(), meta.uid()));
        }
        if !meta.is_dir() {
            break;
        }
    }
    found
}

fn root() -> io::Result<Step> {
    let fd = openat(
        AT_FDCWD,
        "/",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let status = fstat(&fd)?;
    Ok(Step {
        fd,
        status,
        hold: Hold::Firm,
    })
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

struct Walk<'a> {
    steps: Vec<Step>,
    /// Their names, for messages.
    here: Vec<PathBuf>,
    users: &'a Users,
    /// A link of the app's user was followed: from there on only what this user could reach itself,
    /// and what belongs to it.
    bound: bool,
}

impl Walk<'_> {
    fn top(&self) -> io::Result<&Step> {
        self.steps.last().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn at(&self, name: &OsStr) -> PathBuf {
        let here = self.here.last().map_or(Path::new("/"), PathBuf::as_path);
        here.join(name)
    }

    fn up(&mut self) {
        if self.steps.len() > 1 {
            self.steps.pop();
            self.here.pop();
        }
    }

    fn start_over(&mut self) {
        self.steps.truncate(1);
        self.here.truncate(1);
    }

    fn down(&mut self, name: &OsStr, entry: Step) {
        self.here.push(self.at(name));
        self.steps.push(entry);
    }

    /// Opens an entry of the folder, a link as such.
    fn entry(&self, name: &OsStr) -> io::Result<Step> {
        let folder = self.top()?;
        self.may_search(folder)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = |flags| openat(&folder.fd, name, flags, Mode::empty());
        // A folder that is mounted when it is used is mounted with this flag only.
        let fd = match open(flags | OFlag::O_DIRECTORY) {
            Err(Errno::ENOTDIR) => open(flags)?,
            other => other?,
        };
        let status = fstat(&fd)?;
        let hold = self.users.hold(folder, &status);
        Ok(Step { fd, status, hold })
    }

    /// Behind a link of the app's user: as if this user looked.
    fn may_search(&self, folder: &Step) -> io::Result<()> {
        let FileStat {
            st_mode, st_uid, ..
        } = folder.status;
        let bit = if self.users.app == Some(st_uid) {
            0o100
        } else {
            0o001
        };
        if self.bound && st_mode & bit == 0 {
            return Err(self.astray("is closed to this user"));
        }
        Ok(())
    }

    fn make(&self, name: &OsStr) -> io::Result<Step> {
        if self.bound {
            return Err(Errno::ENOENT.into());
        }
        match mkdirat(&self.top()?.fd, name, FOLDER_MODE) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.entry(name)
    }

    fn is_proc(&self) -> io::Result<bool> {
        Ok(fstatfs(&self.top()?.fd)?.filesystem_type() == PROC_SUPER_MAGIC)
    }

    fn follow(&mut self, name: &OsStr, link: &Step, last: bool) -> io::Result<OsString> {
        match link.hold {
            Hold::Firm => {}
            Hold::App if !last => self.bound = true,
            Hold::App | Hold::Open => {
                let shown = self.at(name);
                let shown = crate::human::one_line(&shown.display().to_string()).into_owned();
                let folder = self.top()?.status.st_uid;
                let place = if last { "file" } else { "folder" };
                return Err(io::Error::new(
                    ErrorKind::PermissionDenied,
                    format!(
                        "{shown} is a link that another user can change (it is of user {}, in a folder of user {folder}), and could lead anywhere: rsup does not follow it; give the log's path without it, or put a {place} in its place",
                        link.status.st_uid
                    ),
                ));
            }
        }
        Ok(readlinkat(link.fd.as_fd(), "")?)
    }

    /// A link of the app's user led to where this user has no business.
    fn astray(&self, why: &str) -> io::Error {
        let here = self.here.last().map_or(Path::new("/"), PathBuf::as_path);
        let here = here.display().to_string();
        let why = format!(
            "a link of the app's user leads to {}, which {why}: rsup does not follow it; give the log's path without the link",
            crate::human::one_line(&here)
        );
        io::Error::new(ErrorKind::PermissionDenied, why)
    }

    fn found(mut self, name: OsString, magic: bool) -> io::Result<Found> {
        let folder = self.steps.pop().ok_or(ErrorKind::NotFound)?;
        self.may_search(&folder)?;
        if self.bound && self.users.app != Some(folder.status.st_uid) {
            return Err(self.astray("is not this user's"));
        }
        if name.as_bytes().is_empty() {
            return Err(Errno::EISDIR.into());
        }
        Ok(Found {
            folder,
            name,
            magic,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const OTHER: u32 = 65534;
    const THIRD: u32 = 65533;

    fn owned_by(path: &Path, uid: u32) {
        fs::create_dir(path).expect("mkdir");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        chown(path, Some(uid), Some(uid)).expect("chown");
    }

    fn scene() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        dir
    }

    fn leads_to(path: &Path, app: Option<u32>) -> io::Result<PathBuf> {
        use std::os::fd::AsRawFd;
        let found = find(path, &Users::new(app), false)?;
        let folder = fs::read_link(format!("/proc/self/fd/{}", found.folder.fd.as_raw_fd()))?;
        Ok(folder.join(found.name))
    }

    #[test]
    fn links_of_rsups_own_user_are_followed() {
        let dir = scene();
        let real = dir.path().join("real");
        fs::create_dir(&real).expect("mkdir");
        symlink("real/../real", dir.path().join("link")).expect("symlink");
        symlink(dir.path().join("link/b"), real.join("a")).expect("symlink");
        let expected = real.canonicalize().expect("canonicalize").join("b");
        let path = dir.path().join("link/./a");
        assert_eq!(leads_to(&path, None).expect("found"), expected);
        symlink("loop", dir.path().join("loop")).expect("symlink");
        let error = leads_to(&dir.path().join("loop"), None).expect_err("loop");
        assert_eq!(error.raw_os_error(), Some(nix::libc::ELOOP));
    }

    #[test]
    fn the_output_of_this_process_is_found() {
        let found = find(Path::new("/dev/stdout"), &Users::new(None), false).expect("found");
        // In a sandbox it may be something else than a link into /proc.
        assert_eq!(found.magic, fs::read_link("/dev/stdout").is_ok());
    }

    #[test]
    fn folders_are_made_on_the_way() {
        let dir = scene();
        let path = dir.path().join("a/b/c.log");
        assert!(find(&path, &Users::new(None), false).is_err());
        find(&path, &Users::new(None), true).expect("made");
        let mode = fs::metadata(dir.path().join("a/b"))
            .expect("made")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777 & !0o750, 0);
    }

    /// Only root can give folders to others.
    #[test]
    fn links_of_other_users_are_not_followed() {
        if !geteuid().is_root() {
            return;
        }
        let dir = scene();
        let theirs = dir.path().join("theirs");
        owned_by(&theirs, OTHER);
        owned_by(&theirs.join("logs"), OTHER);
        owned_by(&dir.path().join("closed"), 0);
        let link = theirs.join("link");
        symlink("logs", &link).expect("symlink");
        // Another user's, by whatever link.
        for app in [None, Some(THIRD)] {
            let error = leads_to(&link.join("x.log"), app).expect_err("refused");
            assert!(
                error
                    .to_string()
                    .contains("is a link that another user can change")
            );
        }
        // The app's own user: what is its own, only.
        let expected = theirs
            .canonicalize()
            .expect("canonicalize")
            .join("logs/x.log");
        assert_eq!(
            leads_to(&link.join("x.log"), Some(OTHER)).expect("found"),
            expected
        );
        for target in ["../closed", "/root", "/etc", "/proc/self/cwd"] {
            fs::remove_file(&link).expect("remove");
            symlink(target, &link).expect("symlink");
            let error = leads_to(&link.join("x.log"), Some(OTHER)).expect_err(target);
            assert_eq!(
                error.kind(),
                ErrorKind::PermissionDenied,
                "{target}: {error}"
            );
        }
        // A folder of that user where it cannot get to by itself.
        let hidden = dir.path().join("hidden");
        owned_by(&hidden, 0);
        owned_by(&hidden.join("backup"), OTHER);
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).expect("chmod");
        fs::remove_file(&link).expect("remove");
        symlink("../hidden/backup", &link).expect("symlink");
        let error = leads_to(&link.join("x.log"), Some(OTHER)).expect_err("hidden");
        assert!(
            error.to_string().contains("is closed to this user"),
            "{error}"
        );
        // In place of the file.
        symlink("/etc/passwd", theirs.join("y.log")).expect("symlink");
        leads_to(&theirs.join("y.log"), Some(OTHER)).expect_err("refused");
        // A folder below theirs, although root's own: they can put another in its place.
        owned_by(&theirs.join("of-root"), 0);
        symlink("..", theirs.join("of-root/link")).expect("symlink");
        leads_to(&theirs.join("of-root/link/x.log"), None).expect_err("refused");
    }

    #[test]
    fn in_a_sticky_folder_ones_own_links_are_firm() {
        let dir = scene();
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).expect("mkdir");
        symlink("..", shared.join("link")).expect("symlink");
        for (mode, follows) in [(0o755, true), (0o1777, true), (0o777, false)] {
            fs::set_permissions(&shared, fs::Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(
                leads_to(&shared.join("link/x"), None).is_ok(),
                follows,
                "{mode:o}"
            );
        }
    }

    #[test]
    fn folders_of_others_are_named() {
        if !geteuid().is_root() {
            return;
        }
        let dir = scene();
        let theirs = dir.path().join("theirs");
        owned_by(&theirs, OTHER);
        let path = theirs.join("x.log");
        assert_eq!(foreign_folders(&path, None), [(theirs.clone(), OTHER)]);
        assert_eq!(foreign_folders(&path, Some(OTHER)), []);
    }
}
