//! Where rsup keeps its files, and who may touch them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::config::accounts::User;
use crate::lock;

/// The longest path of a unix socket that Linux takes (`sun_path` with its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// What to do where a folder cannot be made or written to.
pub const ELSEWHERE: &str = "set RSUP_HOME to a folder that can be written to; in a container for example -e RSUP_HOME=/tmp/rsup, \
     with --tmpfs /tmp where its root is read-only";

/// The folders of one daemon. Two daemons with different folders know nothing of each other.
///
/// Which folders these are depends on the user and on `RSUP_HOME`, and on no other variable: a shell, cron,
/// su(1) and a service of the same user mean the same daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Sockets and the live state. A daemon makes it again when it is gone.
    pub runtime: PathBuf,
    /// Locks, saved state and logs: kept.
    pub state: PathBuf,
    /// Where daemons of this user had their files in earlier versions.
    pub former: Former,
}

/// Folders that depended on the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Former {
    pub runtimes: Vec<PathBuf>,
    pub state: Option<PathBuf>,
}

impl Paths {
    /// `RSUP_HOME` if set; the system's folders for root; else `.local/state/rsup` in the user's home, as
    /// passwd(5) names it.
    ///
    /// # Errors
    /// When there is no place, or its path is too long for a socket.
    pub fn from_env() -> Result<Self, String> {
        let uid = nix::unistd::geteuid().as_raw();
        Self::choose(
            uid,
            || home_of(uid).filter(|home| is_usable(home)),
            |name| std::env::var_os(name).filter(|value| !value.is_empty()),
        )
    }

    fn choose(
        uid: u32,
        home: impl FnOnce() -> Option<PathBuf>,
        var: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, String> {
        let absolute = |name: &str| {
            var(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        if let Some(home) = var("RSUP_HOME") {
            let home = std::path::absolute(&home)
                .map_err(|error| format!("RSUP_HOME={}: {error}", home.display()))?;
            return Self::in_home(&home);
        }
        if uid == 0 {
            return Ok(Self {
                runtime: "/run/rsup".into(),
                state: "/var/lib/rsup".into(),
                former: Former::default(),
            });
        }
        let state = |home: PathBuf| home.join(STATE_IN_HOME);
        let by_environment = absolute("XDG_STATE_HOME")
            .map(|folder| folder.join("rsup"))
            .or_else(|| absolute("HOME").map(state));
        // A user without a home in passwd(5), as in many containers, is left with the variable.
        let state = home()
            .or_else(|| absolute("HOME"))
            .map(state)
            .or_else(|| by_environment.clone())
            .ok_or_else(|| {
                format!("HOME is not set, so there is no place for rsup's state\n{ELSEWHERE}")
            })?;
        let in_tmp = PathBuf::from(format!("/tmp/rsup-{uid}"));
        let mut runtimes: Vec<PathBuf> = absolute("XDG_RUNTIME_DIR")
            .into_iter()
            .chain([PathBuf::from(format!("/run/user/{uid}"))])
            .map(|folder| folder.join("rsup"))
            .chain([in_tmp.clone()])
            .collect();
        runtimes.dedup();
        let paths = Self {
            runtime: state.join("run"),
            former: Former {
                runtimes,
                state: by_environment.filter(|former| *former != state),
            },
            state,
        };
        // With a very long path of the home there is no room for the name of a socket.
        match paths.clone().fits() {
            Ok(paths) => Ok(paths),
            Err(_) => Ok(Self {
                runtime: in_tmp,
                ..paths
            }),
        }
    }

    /// Those that `RSUP_HOME` set to `home` means.
    ///
    /// # Errors
    /// When the path is too long for a socket.
    pub fn in_home(home: &Path) -> Result<Self, String> {
        Self {
            runtime: home.join("run"),
            state: home.join("state"),
            former: Former::default(),
        }
        .fits()
    }

    /// The same with the files of a daemon of an earlier version in `runtime`.
    fn of_former(&self, runtime: &Path) -> Self {
        Self {
            runtime: runtime.to_owned(),
            state: self
                .former
                .state
                .clone()
                .unwrap_or_else(|| self.state.clone()),
            former: Former::default(),
        }
    }

    /// Those of the daemon that is at work, or that has left workers behind: these, unless it is one of an
    /// earlier version.
    #[must_use]
    pub fn at_work(&self) -> Self {
        let is_here = |paths: &Self| {
            paths.is_locked() || paths.keeper_is_here() || paths.live_state().exists()
        };
        if self.former.runtimes.is_empty() || is_here(self) {
            return self.clone();
        }
        // In a shared place like /tmp the folder may be a stranger's.
        let former = self.former_folders().find(is_here);
        former.unwrap_or_else(|| self.clone())
    }

    /// The folders of this user that daemons of earlier versions have made, on this machine as it is.
    pub fn former_folders(&self) -> impl Iterator<Item = Self> {
        let runtimes = self.former.runtimes.iter();
        runtimes
            .filter(|runtime| **runtime != self.runtime && runtime.exists())
            .map(|runtime| self.of_former(runtime))
            .filter(|paths| paths.check().is_ok())
    }

    fn fits(self) -> Result<Self, String> {
        let socket = self.socket();
        let length = socket.as_os_str().as_bytes().len();
        if length > MAX_SOCKET_PATH {
            return Err(format!(
                "the path of the control socket has {length} bytes, and Linux allows {MAX_SOCKET_PATH}: {}\nset RSUP_HOME to a shorter path",
                socket.display()
            ));
        }
        Ok(self)
    }

    /// Where the daemon listens for the command line.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// Locked by the one daemon that may run here. It lives with the state.
    pub fn lock(&self) -> PathBuf {
        self.state.join("daemon.lock")
    }

    /// What earlier versions lock, which do not have [`Self::lock`]. Locked as well, so that neither version starts a daemon beside
    /// the other's.
    pub fn former_lock(&self) -> PathBuf {
        self.runtime.join("daemon.lock")
    }

    /// Whether a daemon holds a lock here.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.locked().is_some()
    }

    /// The lock that a daemon holds here.
    #[must_use]
    pub fn locked(&self) -> Option<PathBuf> {
        [self.lock(), self.former_lock()]
            .into_iter()
            .find(|path| lock::is_taken(path))
    }

    /// The process of a daemon whose lock was removed under it; it is about to make another, which it may have begun.
    #[must_use]
    pub fn removed_from(&self) -> Option<u32> {
        let lock = self.lock();
        if lock::is_taken(&lock) {
            return None;
        }
        lock::holder_of_removed(&lock)
    }

    /// Whether a daemon is at work here, be it that its lock was removed under it.
    #[must_use]
    pub fn has_daemon(&self) -> bool {
        // It takes the new lock before it gives up the removed one: the last look sees what the first came too early for.
        self.is_locked() || self.removed_from().is_some() || self.is_locked()
    }

    /// Where the holder of binds listens for daemons.
    pub fn binds(&self) -> PathBuf {
        self.runtime.join("binds.sock")
    }

    /// Locked by the keeper as long as it lives.
    pub fn keeper_lock(&self) -> PathBuf {
        self.state.join("keeper.lock")
    }

    /// Whether a keeper is at work here: a daemon that does not answer will then be back soon.
    #[must_use]
    pub fn keeper_is_at_work(&self) -> bool {
        // That of a daemon which was upgraded still has the lock of its own version.
        self.keeper_is_here() || self.former_folders().any(|former| former.keeper_is_here())
    }

    fn keeper_is_here(&self) -> bool {
        lock::is_taken(&self.keeper_lock()) || lock::is_taken(&self.runtime.join("keeper.lock"))
    }

    /// What a daemon needs to go on from where a killed one was; gone once one has ended on purpose.
    pub fn live_state(&self) -> PathBuf {
        self.runtime.join("state.json")
    }

    /// What happened, one event a line.
    pub fn events(&self) -> PathBuf {
        self.state.join("events.jsonl")
    }

    /// What is started again after a reboot.
    pub fn saved_state(&self) -> PathBuf {
        self.state.join("state.json")
    }

    /// Where one worker says that it is ready (sd_notify(3)).
    pub fn notify(&self, generation: u64) -> PathBuf {
        self.runtime.join(format!("notify.{generation}"))
    }

    /// The folder for the same of workers that run as another user. They cannot enter the runtime
    /// folder, so it is beside it; each socket in it is open to its worker's user alone.
    pub fn notify_of_others(&self) -> PathBuf {
        let mut name = self.runtime.clone().into_os_string();
        name.push(".notify");
        name.into()
    }

    /// Makes that folder, which anybody may pass and nobody list, and checks one that exists.
    pub fn create_notify_of_others(&self) -> Result<PathBuf, String> {
        let folder = self.notify_of_others();
        let failed = |error| format!("cannot make the folder {}: {error}", folder.display());
        match DirBuilder::new().mode(0o711).create(&folder) {
            // The umask may have closed it.
            Ok(()) => {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).map_err(failed)?
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => check_owner(&folder, 0o022)?,
            Err(error) => return Err(failed(error)),
        }
        Ok(folder)
    }

    /// What the daemon says of itself.
    pub fn daemon_log(&self) -> PathBuf {
        self.state.join("daemon.log")
    }

    /// Default folder of the apps' logs.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Makes the folders, for this user alone, and checks those that exist.
    pub fn create(&self) -> Result<(), String> {
        for folder in [&self.runtime, &self.state, &self.logs()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|error| {
                    format!(
                        "cannot make the folder {}: {error}\n{ELSEWHERE}",
                        folder.display()
                    )
                })?;
        }
        self.check()?;
        check_owner(&self.state, 0o022)?;
        // One that is there already may be on a file system that is read-only.
        for folder in [&self.runtime, &self.state] {
            nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).map_err(|error| {
                format!(
                    "cannot write to the folder {}: {}\n{ELSEWHERE}",
                    folder.display(),
                    error.desc()
                )
            })?;
        }
        Ok(())
    }

    /// Whether there is room for what a new daemon writes: a disk that is full would be told of by warnings alone, and
    /// nothing it does would outlive a reboot.
    ///
    /// # Errors
    /// In words, with the folder and what is free there, when a file of [`ROOM`] bytes cannot be written.
    pub fn has_room(&self) -> Result<(), String> {
        let trial = |folder: &Path| -> std::io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".room")
                .tempfile_in(folder)?;
            file.write_all(&vec![0; ROOM])?;
            // Some network file systems find room no earlier.
            file.as_file().sync_data()
        };
        for folder in [&self.state, &self.runtime] {
            let why = match trial(folder).map_err(|error| error.kind()) {
                Err(ErrorKind::StorageFull) => Errno::ENOSPC,
                Err(ErrorKind::QuotaExceeded) => Errno::EDQUOT,
                // Whatever else is wrong is met where it matters.
                Ok(()) | Err(_) => continue,
            };
            let free = nix::sys::statvfs::statvfs(folder).map_or_else(
                |_| String::new(),
                |found| {
                    let bytes = found.blocks_available() * found.fragment_size();
                    format!(
                        " ({} KiB free; {} more files)",
                        bytes >> 10,
                        found.files_available()
                    )
                },
            );
            return Err(format!(
                "there is no room for rsup's files in {}: {}{free}\nmake room there, or {ELSEWHERE}",
                folder.display(),
                why.desc(),
            ));
        }
        Ok(())
    }

    /// Refuses a runtime folder that somebody else owns or may enter; none at all is fine.
    ///
    /// Whoever connects to the socket checks first: in a shared place like `/tmp` a stranger may
    /// have made the folder, and would be sent the caller's environment.
    pub fn check(&self) -> Result<(), String> {
        check_owner(&self.runtime, 0o077)
    }
}

/// The home of this user: that of passwd(5), whatever `HOME` says, which only stands in for it.
#[must_use]
pub fn home() -> Option<PathBuf> {
    let by_environment = || std::env::var_os("HOME").map(PathBuf::from);
    home_of(nix::unistd::geteuid().as_raw())
        .filter(|home| home.is_dir())
        .or_else(by_environment)
        .filter(|home| home.is_absolute())
}

fn home_of(uid: u32) -> Option<PathBuf> {
    Some(User::by_uid(uid).ok().flatten()?.home)
}

/// Where a user's state is, from the home.
const STATE_IN_HOME: &str = ".local/state/rsup";

/// Whether a home that passwd(5) names can hold the state: accounts of services often name one that is not
/// there, that is not theirs, or the root folder.
fn is_usable(home: &Path) -> bool {
    let may_write =
        |folder: &Path| nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_ok();
    home.is_absolute()
        && home != Path::new("/")
        && (home.join(STATE_IN_HOME).is_dir() || may_write(home))
}

/// What has to be free for a new daemon: its state and the first lines of its log.
const ROOM: usize = 64 << 10;

/// This program, even if its file has been replaced meanwhile.
pub fn program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into())
}

/// Refuses a folder that is not this user's, or that has one of the `forbidden` permission bits.
fn check_owner(folder: &Path, forbidden: u32) -> Result<(), String> {
    let shown = folder.display();
    let found = match fs::symlink_metadata(folder) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot look at {shown}: {error}")),
    };
    let uid = nix::unistd::geteuid().as_raw();
    if !found.is_dir() {
        return Err(format!(
            "{shown} is not a folder\nmove it away, or set RSUP_HOME to another place"
        ));
    }
    if found.uid() != uid {
        return Err(format!(
            "{shown} belongs to user {}, not to user {uid}\nset RSUP_HOME to a folder of your own",
            found.uid()
        ));
    }
    if found.mode() & forbidden != 0 {
        return Err(format!(
            "{shown} is open to others (mode {:o})\nclose it: chmod 700 {shown}",
            found.mode() & 0o777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn choose(uid: u32, vars: &[(&str, &str)]) -> Result<Paths, String> {
        with_home(uid, None, vars)
    }

    fn with_home(uid: u32, home: Option<&str>, vars: &[(&str, &str)]) -> Result<Paths, String> {
        Paths::choose(
            uid,
            || home.map(PathBuf::from),
            |name| {
                vars.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| OsString::from(value))
            },
        )
    }

    fn pair(runtime: &str, state: &str) -> (PathBuf, PathBuf) {
        (runtime.into(), state.into())
    }

    fn folders(paths: Result<Paths, String>) -> (PathBuf, PathBuf) {
        let paths = paths.unwrap();
        (paths.runtime, paths.state)
    }

    fn inside(folder: &Path) -> Paths {
        Paths::in_home(folder).unwrap()
    }

    #[test]
    fn each_kind_of_user_has_a_place() {
        let root = choose(0, &[("XDG_RUNTIME_DIR", "/run/user/0"), ("HOME", "/h")]);
        assert_eq!(folders(root), pair("/run/rsup", "/var/lib/rsup"));
        let given = choose(0, &[("RSUP_HOME", "/x")]);
        assert_eq!(folders(given), pair("/x/run", "/x/state"));
        // As in a container whose user has no entry in passwd(5).
        assert_eq!(
            folders(choose(7, &[("HOME", "/h")])),
            pair("/h/.local/state/rsup/run", "/h/.local/state/rsup")
        );
        assert!(choose(7, &[]).unwrap_err().contains("HOME"));
    }

    #[test]
    fn no_variable_but_rsup_home_says_who_the_daemon_is() {
        let environments: [&[(&str, &str)]; 6] = [
            &[],
            &[("HOME", "/h")],
            &[("HOME", "/root")],
            &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/7")],
            &[("XDG_RUNTIME_DIR", "/elsewhere"), ("XDG_STATE_HOME", "/s")],
            &[
                ("TMPDIR", "/var/tmp"),
                ("USER", "other"),
                ("LOGNAME", "other"),
            ],
        ];
        for vars in environments {
            assert_eq!(
                folders(with_home(7, Some("/h"), vars)),
                pair("/h/.local/state/rsup/run", "/h/.local/state/rsup"),
                "{vars:?}"
            );
        }
    }

    #[test]
    fn a_home_with_a_very_long_path_has_its_sockets_elsewhere() {
        let long = format!("/{}", "x".repeat(100));
        let paths = folders(with_home(7, Some(&long), &[]));
        assert_eq!(
            paths,
            pair("/tmp/rsup-7", &format!("{long}/.local/state/rsup"))
        );
    }

    #[test]
    fn a_daemon_of_an_earlier_version_is_found_whatever_the_environment() {
        let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let former = folder.path().join("rsup");
        let paths = Paths {
            former: Former {
                runtimes: vec![folder.path().join("none"), former.clone()],
                state: None,
            },
            ..inside(home.path())
        };
        assert_eq!(paths.at_work(), paths);
        DirBuilder::new().mode(0o700).create(&former).unwrap();
        assert_eq!(paths.at_work(), paths, "a folder alone is no daemon");
        let held = lock::take(&former.join("daemon.lock")).unwrap().unwrap();
        assert_eq!(paths.at_work().runtime, former);
        assert_eq!(paths.at_work().state, paths.state);
        // Somebody else could have made it.
        fs::set_permissions(&former, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(paths.at_work(), paths);
        fs::set_permissions(&former, fs::Permissions::from_mode(0o700)).unwrap();
        paths.create().unwrap();
        let new = lock::take(&paths.lock()).unwrap().unwrap();
        assert_eq!(paths.at_work(), paths, "one of this version comes first");
        assert!(!paths.keeper_is_at_work());
        let keeper = lock::take(&former.join("keeper.lock")).unwrap().unwrap();
        assert!(
            paths.keeper_is_at_work(),
            "it was upgraded, its keeper was not"
        );
        assert_eq!(paths.at_work(), paths);
        drop((held, new, keeper));
    }

    #[test]
    fn a_socket_path_that_is_too_long_is_refused_with_both_numbers() {
        let fits = MAX_SOCKET_PATH - "/run/control.sock".len();
        assert!(choose(7, &[("RSUP_HOME", &format!("/{}", "x".repeat(fits - 1)))]).is_ok());
        let error = choose(7, &[("RSUP_HOME", &format!("/{}", "x".repeat(fits)))]).unwrap_err();
        assert!(
            error.contains("108 bytes") && error.contains("107"),
            "{error}"
        );
    }

    #[test]
    fn folders_are_made_for_this_user_alone() {
        let home = tempfile::tempdir().unwrap();
        let paths = inside(home.path());
        paths.check().unwrap();
        paths.create().unwrap();
        paths.create().unwrap();
        for folder in [&paths.runtime, &paths.state, &paths.logs()] {
            assert_eq!(
                fs::metadata(folder).unwrap().mode() & 0o777,
                0o700,
                "{}",
                folder.display()
            );
        }
    }

    #[test]
    fn an_open_runtime_folder_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let paths = inside(home.path());
        paths.create().unwrap();
        fs::set_permissions(&paths.runtime, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(
            paths
                .check()
                .unwrap_err()
                .contains("open to others (mode 750)")
        );
        assert!(paths.create().is_err());
    }

    #[test]
    fn a_link_or_a_file_in_place_of_the_runtime_folder_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let paths = inside(home.path());
        symlink(elsewhere.path(), &paths.runtime).unwrap();
        assert!(paths.create().unwrap_err().contains("not a folder"));
        fs::remove_file(&paths.runtime).unwrap();
        fs::write(&paths.runtime, "").unwrap();
        assert!(paths.create().is_err());
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can give a folder away
        }
        let home = tempfile::tempdir().unwrap();
        let paths = inside(home.path());
        paths.create().unwrap();
        std::os::unix::fs::chown(&paths.runtime, Some(12345), None).unwrap();
        assert!(paths.check().unwrap_err().contains("belongs to user 12345"));
    }
}
