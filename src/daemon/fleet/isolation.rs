//! What holds workers apart: their user, what they may use and do, and the cgroup around each.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;

use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups};
use tracing::{debug, warn};

use crate::config::{AppName, AppSpec, Capabilities, RunAs};
use crate::control::{Failure, FailureCode};
use crate::core::{Worker, WorkerId};
use crate::exit::Exit;
use crate::paths::Paths;
use crate::sys::capability;
use crate::sys::cgroup::{self, Bounds, Leaf, Tree};
use crate::sys::limits;
use crate::sys::process::Limit;
use crate::sys::spawn::{Credentials, Plan};

/// What this daemon can do for and against its workers.
pub struct Isolation {
    /// Or why there is none.
    tree: Result<Tree, String>,
    mine: Capabilities,
    /// The limit of open files that rsup was started with: workers get that one.
    nofile: Option<Limit>,
    /// Of workers that are gone, but not yet empty when that was known.
    leftover: Vec<Leaf>,
    /// Apps of which it has been said that limits are not enforced.
    told: HashSet<AppName>,
    /// How many adopted workers have memory that no limit counts.
    uncounted: u64,
    /// How often the kernel has killed for want of memory: as far as it has been explained, or is long ago; and as
    /// last seen.
    killed: (u64, u64),
}

/// All that is done to a process between fork and exec.
#[derive(Clone, Default)]
pub struct Confinement {
    credentials: Option<Credentials>,
    nofile: Option<Limit>,
    nice: Option<i8>,
    umask: Option<u32>,
    no_new_privs: bool,
    capabilities: Option<u64>,
    leaf: Option<Leaf>,
}

impl Confinement {
    pub fn apply(&self, plan: &mut Plan) -> Result<(), String> {
        plan.credentials.clone_from(&self.credentials);
        plan.nofile = self.nofile;
        plan.nice = self.nice;
        plan.umask = self.umask;
        plan.no_new_privs |= self.no_new_privs;
        plan.capabilities = self.capabilities;
        let folder = |leaf: &Leaf| {
            leaf.folder().map_err(|why| {
                let why = limits::or_files(&why);
                format!("its cgroup {}: {why}", leaf.path().display())
            })
        };
        plan.cgroup = self.leaf.as_ref().map(folder).transpose()?;
        Ok(())
    }

    /// Whose its pipes and sockets have to be, if another's than ours.
    pub fn owner(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    pub fn leaf(&self) -> Option<&Leaf> {
        self.leaf.as_ref()
    }

    /// How it ended, now that the kernel has told by what.
    fn judge(&self, exit: Exit) -> Exit {
        // Of an orphan that no parent waited for, the count alone is known.
        let Some(leaf) = self
            .leaf()
            .filter(|leaf| (exit.is_kill() || exit == Exit::Unknown) && leaf.out_of_memory() > 0)
        else {
            return exit;
        };
        if leaf.is_at_its_limit() {
            Exit::OutOfMemory
        } else {
            Exit::Starved {
                limit: limits::memory(),
            }
        }
    }
}

impl Isolation {
    pub fn begin(paths: &Paths, nofile: Option<Limit>) -> Self {
        let tree = Tree::claim(&cgroup::name_for(&paths.runtime));
        match &tree {
            Ok(tree) => debug!("workers get cgroups in {}", tree.path().display()),
            Err(why) => debug!("workers get no cgroups: {why}"),
        }
        let mine = Capabilities::from_bits(capability::effective().unwrap_or(0));
        Self {
            tree,
            mine,
            nofile,
            leftover: Vec::new(),
            told: HashSet::new(),
            uncounted: 0,
            killed: (limits::killed_for_memory(), 0),
        }
    }

    /// How a worker ended, now that the kernel has told by what: at a limit of its own, or of what it is in.
    ///
    /// A kill of ours has nothing to do with memory, unless the kernel has killed a process for it meanwhile.
    pub fn judge(&mut self, confinement: &Confinement, exit: Exit) -> Exit {
        let killed = limits::killed_for_memory();
        let more = killed > self.killed.0;
        self.killed.0 = killed;
        match confinement.judge(exit) {
            exit if exit.is_kill() && more => Exit::Starved {
                limit: limits::memory(),
            },
            exit => exit,
        }
    }

    /// Some seconds later, what was seen the last time has nothing to do any more with a worker that ends.
    pub fn look_at_memory(&mut self) {
        self.killed.0 = self.killed.0.max(self.killed.1);
        self.killed.1 = limits::killed_for_memory();
    }

    /// Takes the cgroups away.
    pub fn end(self) {
        if let Ok(tree) = self.tree {
            tree.release();
        }
    }

    fn can_become(&self, who: &RunAs) -> bool {
        self.mine.has(Capabilities::SETGID)
            && (who.uid == geteuid().as_raw() || self.mine.has(Capabilities::SETUID))
    }

    /// To become it changes nothing.
    fn is_me(who: &RunAs) -> bool {
        let own = getegid().as_raw();
        let mine: BTreeSet<u32> = getgroups()
            .unwrap_or_default()
            .into_iter()
            .map(Gid::as_raw)
            .chain([own])
            .collect();
        let wanted: BTreeSet<u32> = who.groups.iter().copied().chain([who.gid]).collect();
        who.uid == geteuid().as_raw() && who.gid == own && wanted == mine
    }

    /// What this daemon has not the privileges for, before anything is begun.
    pub fn refuse(&self, spec: &AppSpec) -> Result<(), Failure> {
        let name = &spec.name;
        let refused =
            |why: String, hint: String| Err(Failure::new(FailureCode::BadRequest, why).hint(hint));
        if let Some(who) = spec
            .run_as
            .as_ref()
            .filter(|who| !Self::is_me(who) && !self.can_become(who))
        {
            return refused(
                format!(
                    "`{name}` is to run as user {}, group {} and groups {:?}, but this rsup runs as user {} with its own groups and cannot become another",
                    who.user,
                    who.group,
                    who.groups,
                    geteuid()
                ),
                "start it as root (sudo rsup start), or leave out `user`, `group` and `groups`"
                    .into(),
            );
        }
        let limits = &spec.limits;
        if let Some(keep) = limits.capabilities {
            if !self.mine.has(Capabilities::SETPCAP) {
                return refused(
                    format!("`{name}`: only root (CAP_SETPCAP) can take capabilities away from a worker"),
                    "leave out `limits.capabilities`; a worker of an ordinary user has none, and with limits.no_new_privs = true gets none"
                        .into(),
                );
            }
            let missing = keep.without(self.mine);
            if !missing.is_empty() {
                return refused(
                    format!("`{name}` is to keep {missing}, which this rsup does not have itself"),
                    "take it out of `limits.capabilities`, or let the container or unit give it to rsup".into(),
                );
            }
        }
        let own = rustix::process::getpriority_process(None).unwrap_or(0);
        if let Some(nice) = limits
            .nice
            .filter(|nice| i32::from(*nice) < own && !self.mine.has(Capabilities::SYS_NICE))
        {
            return refused(
                format!(
                    "`{name}`: limits.nice = {nice} goes before rsup's own {own}, which only root (CAP_SYS_NICE) can grant"
                ),
                format!("write {own} or more, or start rsup as root"),
            );
        }
        if let (Some(wanted), Some(Limit { hard, .. })) = (limits.nofile, self.nofile)
            && wanted > hard
            && !self.mine.has(Capabilities::SYS_RESOURCE)
        {
            return refused(
                format!(
                    "`{name}`: limits.nofile = {wanted} is more than the {hard} that rsup itself may have"
                ),
                format!(
                    "write at most {hard}, or start rsup as root or with a higher limit (ulimit -Hn)"
                ),
            );
        }
        if let Some(Limit { hard, .. }) = self.nofile
            && let Some(why) = crate::config::too_many_files(spec, hard)
        {
            return refused(
                format!("`{name}`: {why}"),
                "write fewer instances, or start rsup with a higher limit (ulimit -Hn, LimitNOFILE= of a unit)".into(),
            );
        }
        Ok(())
    }

    /// Which limits of the app are not enforced here, and why.
    pub fn lacking(&self, spec: &AppSpec) -> Option<String> {
        if !spec.limits.need_cgroup() {
            return None;
        }
        let why = match &self.tree {
            Ok(tree) => tree.lacking(&bounds(spec))?,
            Err(why) => why.clone(),
        };
        Some(format!(
            "limits that need cgroup v2 (memory, cpu, tasks) are not all enforced: {why}"
        ))
    }

    /// For a new worker of the app.
    pub fn of(&mut self, id: &WorkerId, spec: &AppSpec) -> Result<Confinement, String> {
        if let Ok(tree) = &mut self.tree {
            tree.provide(&bounds(spec));
        }
        if let Some(why) = self.lacking(spec)
            && self.told.insert(id.app.clone())
        {
            warn!("{}: {why}", id.app);
        }
        self.leftover.retain(|leaf| {
            leaf.remove()
                .is_err_and(|why| why.kind() != io::ErrorKind::NotFound)
        });
        let leaf = match &mut self.tree {
            Ok(tree) => match tree.worker(id.app.as_str(), id.generation, &bounds(spec)) {
                Ok(leaf) => Some(leaf),
                Err(why) if spec.limits.need_cgroup() => {
                    return Err(format!("its cgroup cannot be made: {why}"));
                }
                Err(why) => {
                    debug!("{id}: runs without a cgroup of its own: {why}");
                    None
                }
            },
            Err(_) => None,
        };
        Ok(self.around(spec, leaf))
    }

    /// Of a worker that an earlier daemon started; with its pid, if it lives. Its limits are set again:
    /// after the death of that daemon they may have been taken away.
    pub fn adopt(&mut self, worker: &Worker, spec: &AppSpec, pid: Option<u32>) -> Confinement {
        let leaf = self.tree.as_mut().ok().and_then(|tree| {
            let Some(pid) = pid else {
                return tree.leaf(worker.id.app.as_str(), worker.id.generation);
            };
            let leaf = tree.leaf_of(pid)?;
            match tree.bound_again(&leaf, &bounds(spec)) {
                Ok(forgotten) => self.uncounted += u64::from(forgotten),
                Err(why) => warn!("{}: its limits are not enforced any more: {why}", worker.id),
            }
            Some(leaf)
        });
        self.around(spec, leaf)
    }

    /// Whom a worker of the app becomes, if that is a change.
    pub fn credentials(&self, spec: &AppSpec) -> Option<Credentials> {
        // What cannot be had is tried all the same, and fails: never as another user than was asked for.
        let change = |who: &&RunAs| self.can_become(who) || !Self::is_me(who);
        spec.run_as.as_ref().filter(change).map(credentials)
    }

    /// All workers of the earlier daemon are adopted.
    pub fn adopted(&mut self) {
        let count = std::mem::take(&mut self.uncounted);
        if count > 0 {
            warn!(
                "limits.memory counts from now on for {count} adopted {}: what they had in memory before rsup died \
                 is not counted any more (see ExecStopPost= in the unit; systemd 254 needs none of this)",
                if count == 1 { "worker" } else { "workers" }
            );
        }
    }

    /// With this cgroup, be it new or that of a worker which runs already.
    fn around(&self, spec: &AppSpec, leaf: Option<Leaf>) -> Confinement {
        let limits = &spec.limits;
        Confinement {
            credentials: self.credentials(spec),
            nofile: limits
                .nofile
                .map(|n| Limit { soft: n, hard: n })
                .or(self.nofile),
            nice: limits.nice,
            umask: spec.umask,
            no_new_privs: limits.no_new_privs,
            capabilities: limits.capabilities.map(Capabilities::bits),
            leaf,
        }
    }

    /// The worker is gone.
    pub fn forget(&mut self, confinement: &Confinement) {
        if let Some(leaf) = &confinement.leaf
            && leaf.remove().is_err()
        {
            self.leftover.push(leaf.clone());
        }
    }

    pub fn forget_app(&mut self, app: &AppName) {
        self.told.remove(app);
        if let Ok(tree) = &self.tree {
            tree.forget_app(app.as_str());
        }
    }
}

fn bounds(spec: &AppSpec) -> Bounds {
    Bounds {
        memory: spec.limits.memory,
        cpu: spec.limits.cpu,
        tasks: spec.limits.tasks,
    }
}

pub fn credentials(who: &RunAs) -> Credentials {
    Credentials {
        uid: who.uid,
        gid: who.gid,
        groups: who.groups.clone(),
    }
}

/// Makes a pipe one that its user can open anew, as `/dev/stdout` does.
pub fn give(pipe: &OwnedFd, to: &Credentials) -> io::Result<()> {
    Ok(nix::unistd::fchown(
        pipe,
        Some(Uid::from_raw(to.uid)),
        Some(Gid::from_raw(to.gid)),
    )?)
}

/// Variables that belong to a user: they follow the one that the worker runs as, unless the
/// configuration sets them (as su(1) and systemd do).
pub fn follow_user(env: &mut BTreeMap<String, String>, spec: &AppSpec) {
    let Some(who) = &spec.run_as else { return };
    let home = who.home.to_string_lossy();
    let shell = who.shell.to_string_lossy();
    for (name, value) in [
        ("HOME", &*home),
        ("USER", &who.user),
        ("LOGNAME", &who.user),
        ("SHELL", &shell),
    ] {
        if !spec.env.contains_key(name) {
            env.insert(name.into(), value.into());
        }
    }
    if who.uid == geteuid().as_raw() {
        return;
    }
    // Folders of the user that rsup was started by, closed to this one.
    for name in [
        "MAIL",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
    ] {
        if !spec.env.contains_key(name) {
            env.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixtures;

    fn powerless() -> Isolation {
        Isolation {
            tree: Err("no tree".into()),
            mine: Capabilities::default(),
            nofile: Some(Limit {
                soft: 100,
                hard: 1000,
            }),
            leftover: Vec::new(),
            told: HashSet::new(),
            uncounted: 0,
            killed: (0, 0),
        }
    }

    fn other() -> RunAs {
        let uid = geteuid().as_raw() + 1;
        RunAs {
            user: "web".into(),
            group: "web".into(),
            uid,
            gid: uid,
            groups: vec![],
            home: "/w".into(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn what_takes_privileges_is_refused_with_a_reason() {
        let refused = |change: fn(&mut AppSpec)| {
            let mut spec = fixtures::spec("api");
            change(&mut spec);
            powerless().refuse(&spec).unwrap_err()
        };
        assert!(powerless().refuse(&fixtures::spec("api")).is_ok());
        assert!(
            refused(|spec| spec.run_as = Some(other()))
                .message
                .contains("user web")
        );
        assert!(
            refused(|spec| spec.limits.capabilities = Some(Capabilities::default()))
                .message
                .contains("CAP_SETPCAP")
        );
        assert!(
            refused(|spec| spec.limits.nice = Some(-20))
                .message
                .contains("CAP_SYS_NICE")
        );
        assert!(
            refused(|spec| spec.limits.nofile = Some(1001))
                .message
                .contains("1000")
        );
        let mut spec = fixtures::spec("api");
        (spec.limits.nice, spec.limits.nofile) = (Some(19), Some(1000));
        assert!(powerless().refuse(&spec).is_ok());
    }

    #[test]
    fn nobody_runs_as_somebody_else_than_was_said() {
        let mut spec = fixtures::spec("api");
        spec.run_as = Some(other());
        // As after a reboot, with a daemon that has lost its privileges: the change of user fails then.
        assert_eq!(
            powerless().around(&spec, None).credentials,
            Some(credentials(&other()))
        );
        let groups = getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
        let me = RunAs {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups,
            ..other()
        };
        spec.run_as = Some(RunAs {
            groups: vec![424_242],
            ..me.clone()
        });
        assert!(powerless().refuse(&spec).is_err());
        assert!(powerless().around(&spec, None).credentials.is_some());
        spec.run_as = Some(me);
        assert!(powerless().refuse(&spec).is_ok());
        assert_eq!(powerless().around(&spec, None).credentials, None);
    }

    #[test]
    fn what_is_not_enforced_is_said() {
        let mut spec = fixtures::spec("api");
        assert_eq!(powerless().lacking(&spec), None);
        spec.limits.tasks = Some(9);
        assert!(powerless().lacking(&spec).unwrap().contains("no tree"));
    }

    #[test]
    fn variables_follow_the_user() {
        let mut spec = fixtures::spec("api");
        spec.run_as = Some(other());
        spec.env.insert("SHELL".into(), "/bin/mine".into());
        let pairs = [
            ("HOME", "/root"),
            ("XDG_RUNTIME_DIR", "/run/user/0"),
            ("PATH", "/bin"),
            ("SHELL", "/bin/mine"),
        ];
        let mut env: BTreeMap<String, String> = pairs
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        follow_user(&mut env, &spec);
        let shown: Vec<String> = env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            shown,
            [
                "HOME=/w",
                "LOGNAME=web",
                "PATH=/bin",
                "SHELL=/bin/mine",
                "USER=web"
            ]
        );
    }
}
