//! What this daemon is found by, and what keeps it the only one: its locks, its folders and its
//! control socket. It makes them again when they are removed, and takes over the files of earlier
//! versions.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Daemon, Error, system};
use crate::lock;
use crate::paths::Paths;
use crate::sys::readiness::readable;
use crate::sys::{process, procfs};

/// A dying process may lose its locks this long before its socket.
const DYING: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(10);

/// Pause after a removal: a command that removes the whole folder is done by then, and does not
/// find a new file in it.
const SETTLE: Duration = Duration::from_millis(50);

/// How often missing files are made again in one go.
const TRIES: u32 = 3;

/// Descriptors that every daemon of these folders needs, and passes on when it becomes another
/// program.
pub struct Handles {
    /// [`Paths::lock`]: held by one daemon only.
    pub lock: File,
    /// What daemons of earlier versions lock.
    pub former_locks: Vec<File>,
    /// The control socket.
    pub control: OwnedFd,
}

/// Takes all locks, so that no other daemon, of any version, runs on these folders.
///
/// # Errors
/// [`Error::Running`] when there is another one.
pub fn lock(paths: &Paths) -> Result<(File, Vec<File>), Error> {
    let take = |path: PathBuf| match lock::take(&path) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(Error::Running(path)),
        Err(why) => Err(system(format!("cannot lock {}", path.display()))(why)),
    };
    // A daemon whose folder was removed has not made it again yet.
    if paths.removed_from().is_some() {
        return Err(Error::Running(paths.lock()));
    }
    let ours = take(paths.lock())?;
    let mut former = vec![take(paths.former_lock())?];
    for folder in paths.former_folders() {
        former.push(take(folder.former_lock())?);
    }
    Ok((ours, former))
}

/// Binds the control socket: mode 0600 in a folder that no other user can enter.
///
/// # Errors
/// [`Error::Running`] when a process listens there although this process holds the lock: the lock of
/// a live daemon was removed.
pub fn bind(paths: &Paths) -> Result<OwnedFd, Error> {
    let path = paths.socket();
    let deadline = std::time::Instant::now() + DYING;
    while let Ok(stream) = UnixStream::connect(&path) {
        // The queue of a process that has died, but cannot end, still takes connections.
        let listener = process::peer_credentials(&stream);
        if listener.is_ok_and(|listener| procfs::cannot_end(listener.pid)) {
            break;
        }
        if std::time::Instant::now() >= deadline {
            return Err(Error::Running(path));
        }
        std::thread::sleep(POLL);
    }
    let _ = fs::remove_file(&path);
    let what = || format!("cannot listen on {}", path.display());
    let listener = UnixListener::bind(&path).map_err(system(what()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(system(what()))?;
    listener.set_nonblocking(true).map_err(system(what()))?;
    Ok(listener.into())
}

/// The path at which a control socket was bound.
fn place(control: &OwnedFd) -> Option<PathBuf> {
    let listener = UnixListener::from(control.try_clone().ok()?);
    Some(listener.local_addr().ok()?.as_pathname()?.to_owned())
}

impl Handles {
    /// Completes the handles of a daemon of an earlier version that became this program: it had
    /// fewer locks, and perhaps its socket in another folder. That socket is returned, and served
    /// as well.
    ///
    /// # Errors
    /// When another daemon has one of the locks.
    pub fn complete(&mut self, paths: &Paths) -> Result<Option<OwnedFd>, Error> {
        paths.create().map_err(Error::Start)?;
        if !lock::is_at(&self.lock, &paths.lock()) {
            let path = paths.lock();
            let ours = match lock::take(&path) {
                Ok(Some(ours)) => ours,
                Ok(None) => return Err(Error::Running(path)),
                Err(why) => return Err(system(format!("cannot lock {}", path.display()))(why)),
            };
            self.former_locks
                .push(std::mem::replace(&mut self.lock, ours));
        }
        let former = paths.former_lock();
        if !self
            .former_locks
            .iter()
            .any(|held| lock::is_at(held, &former))
        {
            // Without it this daemon is still the only one of its version.
            self.former_locks.extend(lock::take(&former).ok().flatten());
        }
        if place(&self.control).is_none_or(|place| place == paths.socket()) {
            return Ok(None);
        }
        let control = bind(paths)?;
        Ok(Some(std::mem::replace(&mut self.control, control)))
    }
}

/// Takes over the files that a daemon of an earlier version has left in its folders: the live state
/// is moved, and the saved one is copied where there is none. The former path of the socket becomes
/// a link to this daemon's.
pub fn move_in(paths: &Paths) {
    for former in paths.former_folders() {
        let (from, to) = (former.live_state(), paths.live_state());
        if let Ok(state) = fs::read(&from) {
            info!("going on from {}", from.display());
            let moved = if to.exists() {
                Ok(())
            } else {
                super::store::write(&to, &state, false).map(drop)
            };
            if let Err(why) = moved.and_then(|()| fs::remove_file(&from)) {
                warn!("cannot move {} to {}: {why}", from.display(), to.display());
            }
        }
        leave_a_link(&former.socket(), &paths.socket());
    }
    if let Some(from) = paths
        .former
        .state
        .as_ref()
        .map(|folder| folder.join("state.json"))
        && !paths.saved_state().exists()
        && let Ok(state) = fs::read(&from)
    {
        match super::store::write(&paths.saved_state(), &state, true) {
            Ok(_) => info!("the saved state is that of {}", from.display()),
            Err(why) => warn!("cannot copy {}: {why}", from.display()),
        }
    }
}

fn leave_a_link(from: &Path, to: &Path) {
    let _ = fs::remove_file(from);
    if let Err(why) = symlink(to, from) {
        warn!(
            "clients of an earlier version will not find rsup at {}: {why}",
            from.display()
        );
    }
}

/// Removes the links of [`move_in`].
pub fn move_out(paths: &Paths) {
    for former in paths.former_folders() {
        let link = former.socket();
        if fs::read_link(&link).is_ok_and(|to| to == paths.socket()) {
            let _ = fs::remove_file(link);
        }
    }
}

/// Watches this daemon's files, and makes those again that were removed or moved.
pub struct Presence {
    /// `None`: the kernel has no more watches; periodic looks replace it.
    watch: Option<AsyncFd<OwnedFd>>,
    /// Since when there are changes that were not examined.
    disturbed: Option<Instant>,
    /// Why this daemon cannot be found.
    trouble: Option<String>,
    handles: Handles,
    /// The file of the control socket.
    control_socket: Identity,
    /// The state folder was made again, which was not reported yet.
    state_is_new: bool,
}

/// What was made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remade {
    pub anything: bool,
    /// The state folder: log files and the daemon's own log were lost with it.
    pub state: bool,
}

impl Presence {
    /// Watches all files that must exist: locks and socket by their number of links, their folders
    /// by name (inotify(7)).
    fn watch(paths: &Paths) -> io::Result<OwnedFd> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        for file in [paths.lock(), paths.socket()] {
            inotify.add_watch(&file, gone | AddWatchFlags::IN_ATTRIB)?;
        }
        for folder in paths.runtime.ancestors().chain(paths.state.ancestors()) {
            // A folder that may not be read is covered by the periodic looks.
            let _ = inotify.add_watch(folder, gone | AddWatchFlags::IN_ONLYDIR);
        }
        inotify.as_fd().try_clone_to_owned()
    }

    /// Starts to watch. `handles` are those of the files at `paths`.
    pub fn begin(paths: &Paths, handles: Handles) -> Self {
        let mut presence = Self {
            watch: None,
            disturbed: None,
            trouble: None,
            handles,
            control_socket: identity(&paths.socket()),
            state_is_new: false,
        };
        presence.watch_again(paths);
        presence
    }

    fn watch_again(&mut self, paths: &Paths) {
        self.watch = Self::watch(paths).and_then(readable).ok();
    }

    /// Waits until a file or a folder may have changed. Cancel-safe: events of other kinds do not
    /// delay it further.
    pub async fn disturbed(&mut self) {
        let Some(watch) = &self.watch else {
            return std::future::pending().await;
        };
        if let Ok(mut ready) = watch.readable().await {
            let since = *self.disturbed.get_or_insert_with(Instant::now);
            tokio::time::sleep_until(since + SETTLE).await;
            self.disturbed = None;
            // The kind of event does not matter.
            let mut events = [0; 4096];
            while nix::unistd::read(watch.get_ref(), &mut events).is_ok() {}
            ready.clear_ready();
        }
    }

    /// The descriptors that this process passes on if it becomes another program.
    pub fn handles(&self) -> &Handles {
        &self.handles
    }

    /// Whether changes are found by periodic looks only.
    pub fn needs_looks(&self) -> bool {
        self.watch.is_none() || self.trouble.is_some()
    }

    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn is_missing(&self, paths: &Paths) -> bool {
        !lock::is_at(&self.handles.lock, &paths.lock())
            || !is_bound_at(&self.control_socket, &paths.socket())
    }

    /// Makes again what was removed. `open` serves a new control socket.
    pub fn make_findable(
        &mut self,
        paths: &Paths,
        mut open: impl FnMut(OwnedFd) -> io::Result<()>,
    ) -> Remade {
        let mut remade = Remade::default();
        // Files may be removed before the watch is set.
        for _ in 0..TRIES {
            let trouble = match self.is_missing(paths).then(|| self.make(paths, &mut open)) {
                None => None,
                Some(Ok(what)) => {
                    warn!("{what} was gone, and was made again");
                    remade.anything = true;
                    remade.state |= std::mem::take(&mut self.state_is_new);
                    None
                }
                Some(Err(why)) => Some(format!(
                    "commands cannot find this rsup (pid {}), whose apps serve on: {why}",
                    std::process::id()
                )),
            };
            if let Some(why) = trouble.as_ref().filter(|_| self.trouble.is_none()) {
                error!("{why}");
            }
            self.trouble = trouble;
            self.watch_again(paths);
            if self.trouble.is_some() || !self.is_missing(paths) {
                return remade;
            }
        }
        // They are removed again and again: the next look is soon enough.
        self.watch = None;
        remade
    }

    fn make(
        &mut self,
        paths: &Paths,
        open: &mut impl FnMut(OwnedFd) -> io::Result<()>,
    ) -> Result<String, Error> {
        self.state_is_new |= !paths.state.is_dir();
        paths.create().map_err(Error::Start)?;
        if !lock::is_at(&self.handles.lock, &paths.lock()) {
            let taken = lock::take(&paths.lock());
            let failed = |why| system(format!("cannot lock {}", paths.lock().display()))(why);
            // The lock of the removed file is kept too: a daemon may have it open.
            let ours = taken.map_err(failed)?;
            self.handles.lock = ours.ok_or_else(|| Error::Running(paths.lock()))?;
        }
        let former = paths.former_lock();
        if !self
            .handles
            .former_locks
            .iter()
            .any(|held| lock::is_at(held, &former))
        {
            let is_there = |held: &File| held.metadata().is_ok_and(|found| found.nlink() > 0);
            self.handles.former_locks.retain(is_there);
            self.handles
                .former_locks
                .extend(lock::take(&former).ok().flatten());
        }
        let mut what = paths.lock().display().to_string();
        if !is_bound_at(&self.control_socket, &paths.socket()) {
            what = paths.socket().display().to_string();
            let control = bind(paths)?;
            let listener = control.try_clone().map_err(system("cannot listen"))?;
            open(listener).map_err(system("cannot listen"))?;
            self.handles.control = control;
            self.control_socket = identity(&paths.socket());
        }
        if self.state_is_new {
            what = paths.state.display().to_string();
        }
        Ok(what)
    }
}

impl Daemon {
    /// Makes again what was removed, and reports it.
    pub(super) fn stay_findable(&mut self) {
        if self.ending {
            return;
        }
        let control_sockets = &mut self.control_sockets;
        let remade = self
            .presence
            .make_findable(&self.paths, |control| control_sockets.open(control));
        if remade.state {
            self.output.pump.reopen();
            let log = self.paths.daemon_log();
            if let Err(why) = crate::logs::stderr::begin_again(&log) {
                warn!("cannot open {}: {why}", log.display());
            }
        }
        if remade.anything {
            self.store.unsaved_for_reboot();
        }
        self.fleet.tend_bind_holder(&self.fdstore);
    }
}

/// The file that a socket is bound to: device and inode.
type Identity = Option<(u64, u64)>;

fn identity(path: &Path) -> Identity {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn is_bound_at(socket: &Identity, path: &Path) -> bool {
    socket.is_some() && *socket == identity(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Former;

    /// Folders of this version, and those of an earlier one beside them, with a state each.
    fn both(folder: &Path) -> (Paths, PathBuf) {
        let former = folder.join("former");
        let paths = Paths {
            former: Former {
                runtimes: vec![former.clone(), folder.join("none")],
                state: Some(folder.join("former-state")),
            },
            ..Paths::in_home(&folder.join("h")).unwrap()
        };
        paths.create().unwrap();
        for made in [&former, &folder.join("former-state")] {
            fs::create_dir(made).unwrap();
            fs::set_permissions(made, fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(made.join("state.json"), "earlier").unwrap();
        }
        (paths, former)
    }

    #[test]
    fn the_files_of_an_earlier_version_are_taken_over_once() {
        let folder = tempfile::tempdir().unwrap();
        let (paths, former) = both(folder.path());
        assert_eq!(paths.at_work().runtime, former, "a state is left there");
        move_in(&paths);
        assert_eq!(fs::read_to_string(paths.live_state()).unwrap(), "earlier");
        assert_eq!(fs::read_to_string(paths.saved_state()).unwrap(), "earlier");
        assert!(!former.join("state.json").exists());
        assert_eq!(paths.at_work(), paths);
        let control = bind(&paths).unwrap();
        assert!(UnixStream::connect(former.join("control.sock")).is_ok());
        drop(control);
        // From here on the files of this version have precedence.
        for (file, text) in [(paths.live_state(), "live"), (paths.saved_state(), "saved")] {
            fs::write(file, text).unwrap();
        }
        fs::write(former.join("state.json"), "an older rsup was here").unwrap();
        move_in(&paths);
        assert_eq!(fs::read_to_string(paths.live_state()).unwrap(), "live");
        assert_eq!(fs::read_to_string(paths.saved_state()).unwrap(), "saved");
        assert!(!former.join("state.json").exists());
        move_out(&paths);
        assert!(!former.join("control.sock").exists());
    }

    #[test]
    fn a_daemon_of_either_version_keeps_the_other_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let (paths, former) = both(folder.path());
        for held in [
            paths.lock(),
            paths.former_lock(),
            former.join("daemon.lock"),
        ] {
            let taken = lock::take(&held).unwrap().unwrap();
            let refused = lock(&paths).err().map(|why| why.to_string());
            assert!(
                refused.is_some_and(|why| why.contains("runs already")),
                "{held:?}"
            );
            drop(taken);
        }
        let (_lock, _former) = lock(&paths).unwrap();
        assert!(lock::is_taken(&former.join("daemon.lock")));
    }

    #[test]
    fn a_removed_lock_is_still_a_daemons() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::in_home(&folder.path().join("h")).unwrap();
        paths.create().unwrap();
        // In another process, which holds nothing else of it.
        let mut holder = std::process::Command::new("sh")
            .args(["-c", "exec 3>\"$0\"; rm \"$0\"; echo; read _"])
            .arg(paths.lock())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
        assert_eq!(paths.removed_from(), Some(holder.id()));
        assert!(matches!(lock(&paths), Err(Error::Running(_))));
        // It is making another one, and has not locked it yet.
        fs::write(paths.lock(), "").unwrap();
        assert!(paths.has_daemon());
        assert!(matches!(lock(&paths), Err(Error::Running(_))));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert!(!paths.has_daemon());
        lock(&paths).unwrap();
    }

    fn presence(paths: &Paths) -> Presence {
        let (lock, former_locks) = lock(paths).unwrap();
        let control = bind(paths).unwrap();
        let handles = Handles {
            lock,
            former_locks,
            control,
        };
        Presence::begin(paths, handles)
    }

    #[tokio::test]
    async fn what_could_not_be_made_at_once_is_told_when_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::in_home(&folder.path().join("h")).unwrap();
        paths.create().unwrap();
        let mut presence = presence(&paths);
        let look = |presence: &mut Presence, works: bool| {
            presence.make_findable(&paths, |_| {
                works.then_some(()).ok_or(io::ErrorKind::OutOfMemory.into())
            })
        };
        assert_eq!(look(&mut presence, true), Remade::default());
        fs::remove_dir_all(folder.path().join("h")).unwrap();
        assert_eq!(look(&mut presence, false), Remade::default());
        assert!(presence.trouble().is_some() && presence.needs_looks());
        // The folder exists by now, but its files are not the former ones.
        let all = Remade {
            anything: true,
            state: true,
        };
        assert_eq!(look(&mut presence, true), all);
        assert!(presence.trouble().is_none());
        assert_eq!(look(&mut presence, true), Remade::default());
    }

    /// The daemon's loop drops the wait at every other event.
    #[tokio::test]
    async fn a_wait_that_is_dropped_again_and_again_ends() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::in_home(&folder.path().join("h")).unwrap();
        paths.create().unwrap();
        let mut presence = presence(&paths);
        fs::remove_file(paths.socket()).unwrap();
        let mut dropped = 0;
        while tokio::time::timeout(SETTLE / 10, presence.disturbed())
            .await
            .is_err()
        {
            dropped += 1;
            assert!(dropped < 1000, "every drop begins it anew");
        }
        assert!(presence.disturbed.is_none());
    }

    #[test]
    fn a_socket_that_is_listened_on_is_not_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::in_home(&folder.path().join("h")).unwrap();
        paths.create().unwrap();
        let first = bind(&paths).unwrap();
        assert!(matches!(bind(&paths), Err(Error::Running(path)) if path == paths.socket()));
        drop(first);
        bind(&paths).unwrap();
    }
}
