//! rsup's part of the cgroup v2 tree (Documentation/admin-guide/cgroup-v2.rst): a cgroup for each
//! worker, which limits its whole tree and lists every process of it, even daemonized ones.
//!
//! ```text
//! own cgroup ─ NAME ─┬─ supervisor            rsup itself, where the kernel wants no process above
//!                    └─ app.API ─┬─ 1         one for each worker, by its generation
//!                                └─ 2
//! ```
//!
//! Cgroups outlive rsup: they do not end with the process that made them.
//!
//! A controller is enabled only when a worker with such a limit comes. The kernel admits no process
//! to a cgroup with controllers for its children (cgroup-v2.rst, "No Internal Process Constraint"),
//! and systemd before 254 puts the main process of a service exactly there: as long as they are
//! enabled in the service's cgroup, no next rsup can be started. [`make_room`] disables them once
//! rsup is dead.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

mod delegated;
#[cfg(test)]
mod tests;

/// The name of rsup's own leaf.
const SUPERVISOR: &str = "supervisor";

/// The period of `cpu.max` in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;

/// The limits that are available.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Controllers {
    /// `memory`
    pub memory: bool,
    /// `cpu`
    pub cpu: bool,
    /// `pids`
    pub tasks: bool,
}

impl Controllers {
    fn parse(text: &str) -> Controllers {
        let has = |name| text.split_whitespace().any(|word| word == name);
        Controllers {
            memory: has("memory"),
            cpu: has("cpu"),
            tasks: has("pids"),
        }
    }

    fn without(self, other: Controllers) -> Controllers {
        Controllers {
            memory: self.memory && !other.memory,
            cpu: self.cpu && !other.cpu,
            tasks: self.tasks && !other.tasks,
        }
    }

    fn or(self, other: Controllers) -> Controllers {
        Controllers {
            memory: self.memory || other.memory,
            cpu: self.cpu || other.cpu,
            tasks: self.tasks || other.tasks,
        }
    }

    fn and(self, other: Controllers) -> Controllers {
        self.without(self.without(other))
    }

    fn any(self) -> bool {
        self != Controllers::default()
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.memory, "memory"),
            (self.cpu, "cpu"),
            (self.tasks, "pids"),
        ]
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
    }
}

/// The controllers that cgroup v2 has on this machine, as far as visible; others may be bound to
/// v1.
#[must_use]
pub fn controllers_of_machine() -> Controllers {
    delegated::mount()
        .map(|(_, point)| read_controllers(&point, "cgroup.controllers"))
        .unwrap_or_default()
}

fn read_controllers(folder: &Path, file: &str) -> Controllers {
    Controllers::parse(&fs::read_to_string(folder.join(file)).unwrap_or_default())
}

/// Limits of one worker with its descendants.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bounds {
    /// Bytes; the kernel kills it at this limit, and swaps none of it out.
    pub memory: Option<u64>,
    /// Cores.
    pub cpu: Option<f64>,
    /// Processes and threads.
    pub tasks: Option<u32>,
}

impl Bounds {
    fn needs(self) -> Controllers {
        Controllers {
            memory: self.memory.is_some(),
            cpu: self.cpu.is_some(),
            tasks: self.tasks.is_some(),
        }
    }
}

/// rsup's part of the tree.
#[derive(Debug)]
pub struct Tree {
    /// The cgroup that was delegated to rsup.
    own: PathBuf,
    base: PathBuf,
    /// rsup itself is in no cgroup that needs controllers for its children, or in the root cgroup.
    aside: bool,
    /// Those that are enabled for workers.
    controllers: Controllers,
    /// Controllers that were needed and could not be enabled.
    refused: Controllers,
    /// Why the last of them could not be enabled.
    lacks: Option<String>,
}

impl Tree {
    /// Claims the delegated cgroup, in a folder of this name, which must be the same in every life
    /// of this supervisor. Enables no controller yet.
    ///
    /// # Errors
    /// A message why there is none: no cgroup v2, or not delegated.
    pub fn claim(name: &str) -> Result<Tree, String> {
        let delegated::Delegated { own, aside } = delegated::find(name)?;
        let base = own.join(name);
        make(&base).map_err(|why| format!("{} cannot be made: {why}", base.display()))?;
        // Only the root cgroup may have processes beside children with controllers.
        let aside = aside || !own.join("cgroup.type").exists();
        let controllers = read_controllers(&base, "cgroup.subtree_control");
        Ok(Tree {
            own,
            base,
            aside,
            controllers,
            refused: Controllers::default(),
            lacks: None,
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.base
    }

    /// Enables what these bounds need, as far as possible; [`Self::lacking`] returns what is
    /// missing.
    pub fn provide(&mut self, bounds: &Bounds) {
        let missing = bounds.needs().without(self.controllers);
        let offered = missing.and(read_controllers(&self.own, "cgroup.controllers"));
        if offered.any() {
            self.lacks = self.try_provide(offered).err();
            self.controllers = read_controllers(&self.base, "cgroup.subtree_control");
        }
        self.refused = self.refused.or(bounds.needs()).without(self.controllers);
    }

    fn try_provide(&mut self, wanted: Controllers) -> Result<(), String> {
        if !self.aside {
            let leaf = self.base.join(SUPERVISOR);
            make(&leaf).map_err(|why| format!("{} cannot be made: {why}", leaf.display()))?;
            delegated::move_own(&self.own, &leaf)
                .map_err(|why| format!("rsup cannot move into {}: {why}", leaf.display()))?;
            self.aside = true;
        }
        enable(&self.own, wanted).and(enable(&self.base, wanted))
    }

    /// The limits that cannot be enforced, and why; `None` if all can, as far as tried.
    #[must_use]
    pub fn lacking(&self, bounds: &Bounds) -> Option<String> {
        let missing = bounds.needs().without(self.controllers);
        let untried = read_controllers(&self.own, "cgroup.controllers").without(self.refused);
        let names: Vec<&str> = missing.without(untried).names().collect();
        let why = self
            .lacks
            .as_deref()
            .unwrap_or("it may be bound to cgroup v1, or not be delegated to rsup");
        (!names.is_empty()).then(|| {
            format!(
                "{} has no controller `{}`: {why}",
                self.base.display(),
                names.join("`, `")
            )
        })
    }

    /// Makes a cgroup for a worker. Bounds that cannot be enforced here are left out.
    ///
    /// # Errors
    /// When it cannot be made, or a limit that should be possible is refused.
    pub fn worker(&mut self, app: &str, generation: u64, bounds: &Bounds) -> io::Result<Leaf> {
        self.provide(bounds);
        let app = self.base.join(format!("app.{app}"));
        make(&app)?;
        // What is missing shows when the limit is written.
        let _ = enable(&app, bounds.needs().and(self.controllers));
        let leaf = Leaf {
            path: free(&app, generation)?,
        };
        leaf.bound(bounds, self.controllers)
            .inspect_err(|_| drop(leaf.remove()))?;
        Ok(leaf)
    }

    /// Sets the limits of a worker of an earlier rsup again: they may have been
    /// [disabled](make_room) after its death. True if the memory that it used before is not counted
    /// any more.
    ///
    /// # Errors
    /// When a limit that should be possible is refused.
    pub fn bound_again(&mut self, leaf: &Leaf, bounds: &Bounds) -> io::Result<bool> {
        self.provide(bounds);
        let wanted = bounds.needs().and(self.controllers);
        let Some(app) = leaf.path.parent().filter(|_| wanted.any()) else {
            return Ok(false);
        };
        let before = read_controllers(app, "cgroup.subtree_control");
        enable(app, wanted.without(before)).map_err(io::Error::other)?;
        leaf.bound(bounds, self.controllers)?;
        Ok(wanted.memory && !before.memory)
    }

    /// The cgroup of a process, if it is one of rsup's: by it a new daemon finds that of a worker.
    #[must_use]
    pub fn leaf_of(&self, pid: u32) -> Option<Leaf> {
        let (root, point) = delegated::mount()?;
        let path = delegated::folder_of(&format!("/proc/{pid}/cgroup"), &root, &point)?;
        let ours = path
            .strip_prefix(&self.base)
            .is_ok_and(|inside| inside.components().count() == 2);
        ours.then_some(Leaf { path })
    }

    /// The cgroup that was made for a worker, if it still exists.
    #[must_use]
    pub fn leaf(&self, app: &str, generation: u64) -> Option<Leaf> {
        let path = self
            .base
            .join(format!("app.{app}"))
            .join(generation.to_string());
        path.is_dir().then_some(Leaf { path })
    }

    /// Removes the cgroup of an app without workers.
    pub fn forget_app(&self, app: &str) {
        let _ = fs::remove_dir(self.base.join(format!("app.{app}")));
    }

    /// Removes empty cgroups at the end. One with a process stays.
    pub fn release(self) {
        for app in fs::read_dir(&self.base).into_iter().flatten().flatten() {
            for leaf in fs::read_dir(app.path()).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(leaf.path());
            }
            let _ = fs::remove_dir(app.path());
        }
        let leaf = self.base.join(SUPERVISOR);
        if leaf.exists() {
            // A cgroup cannot have both processes and controllers for its children. Another rsup
            // may have its own beside this one, and keeps it.
            if make_room(&self.base)
                .and_then(|()| disable_all(&self.own))
                .is_ok()
            {
                let _ = delegated::move_own(&leaf, &self.own);
            }
            let _ = fs::remove_dir(&leaf);
        }
        let _ = fs::remove_dir(&self.base);
    }
}

/// Makes a cgroup ready for a process: disables every controller for its children, and before that
/// for theirs, since the kernel requires that order. The limits below it are then gone, and the
/// processes stay.
///
/// # Errors
/// Names the cgroup that keeps its controllers, and why.
pub fn make_room(folder: &Path) -> Result<(), String> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_room(&entry.path())?;
        }
    }
    disable_all(folder)
}

fn disable_all(folder: &Path) -> Result<(), String> {
    let file = folder.join("cgroup.subtree_control");
    let enabled = match fs::read_to_string(&file) {
        Ok(enabled) => enabled,
        // It has no process any more.
        Err(why)
            if why.kind() == io::ErrorKind::NotFound
                || why.raw_os_error() == Some(libc::ENODEV) =>
        {
            return Ok(());
        }
        Err(why) => return Err(format!("{} cannot be read: {why}", file.display())),
    };
    let words: Vec<String> = enabled
        .split_whitespace()
        .map(|name| format!("-{name}"))
        .collect();
    if words.is_empty() {
        return Ok(());
    }
    match write(&file, &words.join(" ")) {
        Err(why)
            if why.kind() == io::ErrorKind::NotFound
                || why.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(())
        }
        result => result
            .map_err(|why| format!("{} still has {}: {why}", folder.display(), enabled.trim())),
    }
}

/// The cgroup of the service that this process serves as a control process, which systemd puts into
/// `.control` below it (`Delegate=` in systemd.resource-control(5)). `None` if it is no such
/// process.
#[must_use]
pub fn of_controlled_service() -> Option<PathBuf> {
    let (root, point) = delegated::mount()?;
    let own = delegated::folder_of("/proc/self/cgroup", &root, &point)?;
    delegated::controlled(&own).map(Path::to_owned)
}

/// The folder of a cgroup by its path as systemd shows it (`ControlGroup=`).
#[must_use]
pub fn folder(path: &str) -> Option<PathBuf> {
    let (root, point) = delegated::mount()?;
    delegated::folder_in(&format!("0::{path}"), &root, &point).filter(|folder| folder.is_dir())
}

/// The cgroup of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    path: PathBuf,
}

impl Leaf {
    /// A descriptor of its folder, for a process that starts in it.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn folder(&self) -> io::Result<OwnedFd> {
        File::open(&self.path).map(OwnedFd::from)
    }

    /// The path of its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn bound(&self, bounds: &Bounds, has: Controllers) -> io::Result<()> {
        let set = |file: &str, value: &str| {
            let named = |why: io::Error| io::Error::new(why.kind(), format!("{file}: {why}"));
            write(&self.path.join(file), value).map_err(named)
        };
        if let (Some(bytes), true) = (bounds.memory, has.memory) {
            set("memory.max", &bytes.to_string())?;
            // A kernel without swap has no such file.
            let _ = set("memory.swap.max", "0");
            // The worker and its children are killed together, not in part (Linux 4.19).
            let _ = set("memory.oom.group", "1");
        }
        if let (Some(cores), true) = (bounds.cpu, has.cpu) {
            set("cpu.max", &cpu_max(cores))?;
        }
        if let (Some(tasks), true) = (bounds.tasks, has.tasks) {
            set("pids.max", &tasks.to_string())?;
        }
        Ok(())
    }

    /// Kills every process in it, including those that are being forked (`cgroup.kill`, Linux
    /// 5.14).
    ///
    /// # Errors
    /// `NotFound` where the kernel is older.
    pub fn kill(&self) -> io::Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// The processes in it, without zombies.
    #[must_use]
    pub fn members(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid != 0)
            .collect()
    }

    /// How often the kernel has killed a process in it for want of memory, at any limit.
    #[must_use]
    pub fn out_of_memory(&self) -> u64 {
        self.memory_event("oom_kill ")
    }

    /// Whether its own limit was reached: `oom` counts at the cgroup with the limit, and above, but
    /// not below (cgroup-v2.rst, `memory.events`).
    #[must_use]
    pub fn is_at_its_limit(&self) -> bool {
        self.memory_event("oom ") > 0
    }

    fn memory_event(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.parse().ok())
            .unwrap_or(0)
    }

    /// Removes it.
    ///
    /// # Errors
    /// `EBUSY` while a process is in it.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }
}

/// `QUOTA PERIOD`; the kernel refuses less than a millisecond.
fn cpu_max(cores: f64) -> String {
    let quota = (cores * PERIOD as f64).round().max(1000.0);
    format!("{} {PERIOD}", quota as u64)
}

/// A new folder for this generation. One of that name may exist from a daemon whose state was lost:
/// with processes in it, it is left alone.
fn free(app: &Path, generation: u64) -> io::Result<PathBuf> {
    for try_next in 0..100 {
        let name = if try_next == 0 {
            generation.to_string()
        } else {
            format!("{generation}.{try_next}")
        };
        let path = app.join(name);
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Empty: made again, without earlier limits and counts.
                if fs::remove_dir(&path).is_ok() && fs::create_dir(&path).is_ok() {
                    return Ok(path);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn enable(folder: &Path, wanted: Controllers) -> Result<(), String> {
    let file = folder.join("cgroup.subtree_control");
    let mut result = Ok(());
    for name in wanted.names() {
        // One by one: a controller that is refused must not prevent the others.
        if let Err(why) = write(&file, &format!("+{name}")) {
            let busy = why.raw_os_error() == Some(libc::EBUSY);
            let why = if busy {
                delegated::who_is_in(folder)
            } else {
                why.to_string()
            };
            result = Err(format!(
                "`{name}` cannot be enabled in {}: {why}",
                folder.display()
            ));
        }
    }
    result
}

/// Writes in one call, as these files require; a missing file is not created.
fn write(file: &Path, text: &str) -> io::Result<()> {
    File::options()
        .write(true)
        .open(file)?
        .write_all(text.as_bytes())
}

/// The folder's name for the supervisor with this runtime folder.
#[must_use]
pub fn name_for(runtime: &Path) -> String {
    if runtime == Path::new("/run/rsup") {
        return "rsup".to_owned();
    }
    // FNV-1a: the same in every build.
    let hash = runtime
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
    format!("rsup-{hash:016x}")
}
