//! Where rsup keeps its files, and who may touch them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The longest path of a unix socket that Linux takes (`sun_path` with its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// What to do where a folder cannot be made or written to.
pub const ELSEWHERE: &str = "set RSUP_HOME to a folder that can be written to; in a container for example -e RSUP_HOME=/tmp/rsup, \
     with --tmpfs /tmp where its root is read-only";

/// The folders of one daemon. Two daemons with different folders know nothing of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Sockets and locks: gone after a reboot.
    pub runtime: PathBuf,
    /// Saved state and logs: kept.
    pub state: PathBuf,
}

impl Paths {
    /// `RSUP_HOME` if set; the system's folders for root; else the user's XDG folders.
    pub fn from_env() -> Result<Self, String> {
        Self::choose(nix::unistd::geteuid().as_raw(), |name| {
            std::env::var_os(name).filter(|value| !value.is_empty())
        })
    }

    fn choose(uid: u32, var: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let absolute = |name: &str| {
            var(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let paths = if let Some(home) = var("RSUP_HOME") {
            let home = std::path::absolute(&home)
                .map_err(|error| format!("RSUP_HOME={}: {error}", home.display()))?;
            return Self::in_home(&home);
        } else if uid == 0 {
            Self {
                runtime: "/run/rsup".into(),
                state: "/var/lib/rsup".into(),
            }
        } else {
            let runtime = match absolute("XDG_RUNTIME_DIR") {
                Some(folder) => folder.join("rsup"),
                None => PathBuf::from(format!("/tmp/rsup-{uid}")),
            };
            let state = absolute("XDG_STATE_HOME")
                .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
                .ok_or_else(|| {
                    format!("HOME is not set, so there is no place for rsup's state\n{ELSEWHERE}")
                })?;
            Self {
                runtime,
                state: state.join("rsup"),
            }
        };
        paths.fits()
    }

    /// Those that `RSUP_HOME` set to `home` means.
    pub fn in_home(home: &Path) -> Result<Self, String> {
        Self {
            runtime: home.join("run"),
            state: home.join("state"),
        }
        .fits()
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

    /// Locked by the one daemon that may run here.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("daemon.lock")
    }

    /// Where the holder of binds listens for daemons.
    pub fn binds(&self) -> PathBuf {
        self.runtime.join("binds.sock")
    }

    /// Locked by the keeper as long as it lives.
    pub fn keeper_lock(&self) -> PathBuf {
        self.runtime.join("keeper.lock")
    }

    /// What a daemon needs to go on from where a killed one was; gone once one has ended on purpose.
    pub fn live_state(&self) -> PathBuf {
        self.runtime.join("state.json")
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

    /// Refuses a runtime folder that somebody else owns or may enter; none at all is fine.
    ///
    /// Whoever connects to the socket checks first: in a shared place like `/tmp` a stranger may
    /// have made the folder, and would be sent the caller's environment.
    pub fn check(&self) -> Result<(), String> {
        check_owner(&self.runtime, 0o077)
    }
}

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
        Paths::choose(uid, |name| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    fn pair(runtime: &str, state: &str) -> Paths {
        Paths {
            runtime: runtime.into(),
            state: state.into(),
        }
    }

    fn inside(folder: &Path) -> Paths {
        Paths {
            runtime: folder.join("run"),
            state: folder.join("state"),
        }
    }

    #[test]
    fn each_kind_of_user_has_a_place() {
        assert_eq!(
            choose(0, &[("XDG_RUNTIME_DIR", "/run/user/0")]),
            Ok(pair("/run/rsup", "/var/lib/rsup"))
        );
        assert_eq!(
            choose(0, &[("RSUP_HOME", "/x")]),
            Ok(pair("/x/run", "/x/state"))
        );
        assert_eq!(
            choose(
                7,
                &[
                    ("XDG_RUNTIME_DIR", "/run/user/7"),
                    ("XDG_STATE_HOME", "/h/s"),
                    ("HOME", "/h")
                ]
            ),
            Ok(pair("/run/user/7/rsup", "/h/s/rsup"))
        );
        assert_eq!(
            choose(7, &[("XDG_RUNTIME_DIR", "no"), ("HOME", "/h")]),
            Ok(pair("/tmp/rsup-7", "/h/.local/state/rsup"))
        );
        assert!(choose(7, &[]).unwrap_err().contains("HOME"));
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
