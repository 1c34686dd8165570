//! Limits of the environment of this process: how many processes, how much memory; and where they
//! are set.
//!
//! They are those of its cgroup and of the cgroups above, in either version, as far as visible: in
//! a container up to the container's own.

use std::fs;
use std::path::{Path, PathBuf};

/// Which limit prevents a new process or thread (`EAGAIN`). `cgroup` is one that the new process
/// was to start in.
#[must_use]
pub fn processes(cgroup: Option<&Path>) -> String {
    let above = cgroups("pids").into_iter().flat_map(|cgroup| cgroup.up());
    let of_worker = cgroup.map(Path::to_owned).into_iter();
    let full = of_worker.chain(above).find_map(|folder| {
        let max = number(&folder, "pids.max")?;
        // A process that was about to start may be gone again, so this accepts values just below
        // the limit.
        (number(&folder, "pids.current")? + 1 >= max).then_some((folder, max))
    });
    if let Some((folder, max)) = full {
        return format!(
            "the limit of processes is reached: {max} in {} (pids.max; docker run --pids-limit, TasksMax= of a unit, limits.tasks)",
            folder.display()
        );
    }
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NPROC) {
        Ok((soft, _)) if soft != nix::libc::RLIM_INFINITY && !nix::unistd::geteuid().is_root() => {
            format!("the limit of processes is reached: {soft} for this user (ulimit -u, LimitNPROC= of a unit)")
        }
        _ => "the limit of processes is reached (pids.max of a cgroup above, ulimit -u, kernel.pid_max or kernel.threads-max)"
            .into(),
    }
}

/// The message when this process can open no more files (`EMFILE`).
#[must_use]
pub fn files() -> String {
    match hard_files() {
        Some(hard) => format!(
            "rsup's limit of open files is reached: {hard} (ulimit -Hn, LimitNOFILE= of a unit, docker run --ulimit nofile)"
        ),
        None => "the limit of open files is reached (fs.file-max)".into(),
    }
}

/// As [`files`] where that is the cause; otherwise the system's error.
#[must_use]
pub fn or_files(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(nix::libc::EMFILE) => files(),
        _ => error.to_string(),
    }
}

/// The hard limit of open files of this process, which rsup raises its soft one to; `None` without one.
#[must_use]
pub fn hard_files() -> Option<u64> {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(_, hard)| hard)
        .filter(|hard| *hard != nix::libc::RLIM_INFINITY)
}

/// How many more processes the cgroups around this process allow; `None` where none has a limit.
#[must_use]
pub fn room_for_processes() -> Option<u64> {
    cgroups("pids")
        .into_iter()
        .flat_map(|cgroup| cgroup.up())
        .filter_map(|folder| {
            let max = number(&folder, "pids.max")?;
            Some(max.saturating_sub(number(&folder, "pids.current")?))
        })
        .min()
}

/// How often the kernel has killed a process of this cgroup for want of memory: in `memory.events`
/// of cgroup v2, which includes those below, or in `memory.oom_control` of v1 (since Linux 4.13),
/// which does not.
#[must_use]
pub fn killed_for_memory() -> u64 {
    cgroups("memory")
        .iter()
        .filter_map(|cgroup| cgroup.killed())
        .sum()
}

/// The lowest memory limit around this process, in bytes.
#[must_use]
pub fn memory() -> Option<u64> {
    let limit = |folder: PathBuf| {
        number(&folder, "memory.max").or_else(|| number(&folder, "memory.limit_in_bytes"))
    };
    // Without a limit v1 has a number near the largest one.
    cgroups("memory")
        .into_iter()
        .flat_map(|cgroup| cgroup.up())
        .filter_map(limit)
        .filter(|bytes| *bytes < 1 << 60)
        .min()
}

/// The place of this process in one hierarchy.
struct Cgroup {
    folder: PathBuf,
    mount: PathBuf,
}

impl Cgroup {
    /// Its folder, and those above.
    fn up(&self) -> Vec<PathBuf> {
        self.folder
            .ancestors()
            .take_while(|folder| folder.starts_with(&self.mount))
            .map(Path::to_owned)
            .collect()
    }

    fn killed(&self) -> Option<u64> {
        // The nearest that has a count: without a cgroup of their own, workers are in rsup's.
        let of_v2 = self
            .up()
            .into_iter()
            .find_map(|folder| fs::read_to_string(folder.join("memory.events")).ok());
        let of_v1 = || fs::read_to_string(self.folder.join("memory.oom_control")).ok();
        of_v2
            .or_else(of_v1)?
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }
}

/// The cgroups of this process for a controller: in the v1 hierarchy that has it, and in that of
/// v2.
fn cgroups(controller: &str) -> Vec<Cgroup> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    find(
        controller,
        &read("/proc/self/cgroup"),
        &read("/proc/self/mountinfo"),
    )
}

fn find(controller: &str, own: &str, mounts: &str) -> Vec<Cgroup> {
    let mut found = Vec::new();
    // ID:CONTROLLERS:PATH (cgroups(7)); v2 has none.
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let is_v2 = controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|name| name == controller) {
            continue;
        }
        // id, parent, device, root, mount point, …, `-`, type, source, options (proc_pid_mountinfo(5))
        let place = mounts.lines().find_map(|mount| {
            let (before, after) = mount.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, point) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let of_type = after.next()? == if is_v2 { "cgroup2" } else { "cgroup" };
            let has = is_v2 || after.nth(1)?.split(',').any(|name| name == controller);
            let below = Path::new(path).strip_prefix(root).ok()?;
            (of_type && has).then(|| Cgroup {
                folder: Path::new(point).join(below),
                mount: point.into(),
            })
        });
        found.extend(place);
    }
    found
}

/// `None` for `max`.
fn number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file))
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(own: &str, mounts: &str) -> Vec<String> {
        find("memory", own, mounts)
            .iter()
            .map(|cgroup| cgroup.folder.display().to_string())
            .collect()
    }

    #[test]
    fn our_place_is_found_in_both_versions() {
        let v1 = "40 30 0:33 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
                  41 30 0:34 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(
            folders("5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n", v1),
            ["/sys/fs/cgroup/memory/a/b"]
        );
        // In a container, the mount begins at its own cgroup.
        let inside = "40 30 0:33 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(
            folders("4:memory:/docker/1\n", inside),
            ["/sys/fs/cgroup/memory/"]
        );
        assert_eq!(folders("4:memory:/docker/2\n", inside), [] as [&str; 0]);
        let v2 = "29 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            folders("0::/system.slice/x.service\n", v2),
            ["/sys/fs/cgroup/system.slice/x.service"]
        );
        let up = find("memory", "0::/a/b\n", v2).remove(0).up();
        assert_eq!(
            up,
            ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"].map(PathBuf::from)
        );
    }
}
