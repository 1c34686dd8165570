//! Processes seen through `/proc`: who descends from whom, memory, processor time, environment.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::owner;

mod children;
pub(in crate::sys) mod memory;
mod meter;
pub(super) use children::zombie_children;
pub use children::{
    PipeId, cannot_end, children, children_of, is_alive, output_of, parent_of, resident, session_of,
};
pub use meter::Meter;

/// When a process was started, in clock ticks since boot (`/proc/PID/stat`, field 22). With the
/// process id, this names a process for good, within one boot.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct StartTime(pub u64);

impl fmt::Display for StartTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether the process is stopped by a signal or a debugger (`T` and `t` of proc_pid_stat(5)).
#[must_use]
pub fn is_halted(pid: u32) -> bool {
    stat(pid).is_ok_and(|stat| matches!(stat.state, b'T' | b't'))
}

/// The fields of `/proc/PID/stat` in use here (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: u8,
    parent: u32,
    /// User and system time, in ticks: its own, and that of children waited for.
    ticks: u64,
    children_ticks: u64,
    started: StartTime,
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The name, in parentheses, may hold anything, parentheses too; no field after it does.
    let after = text.get(text.iter().rposition(|&byte| byte == b')')? + 1..)?;
    let mut fields = std::str::from_utf8(after).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?; // field 3
    let parent = fields.next()?.parse().ok()?; // 4
    let mut number = |skip| fields.nth(skip)?.parse::<u64>().ok();
    let (user, system) = (number(9)?, number(0)?); // 14, 15
    let children_ticks = number(0)?.saturating_add(number(0)?); // 16, 17
    let started = StartTime(number(4)?); // 22
    Some(Stat {
        state,
        parent,
        ticks: user.saturating_add(system),
        children_ticks,
        started,
    })
}

fn stat(pid: u32) -> io::Result<Stat> {
    read_stat(&File::open(format!("/proc/{pid}/stat"))?)
}

/// By one system call: the line has 52 numbers and a short name.
fn read_stat(file: &File) -> io::Result<Stat> {
    let mut buffer = [0; 2048];
    let length = file.read_at(&mut buffer, 0)?;
    let text = buffer.get(..length).unwrap_or_default();
    parse_stat(text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat"))
}

/// When process `pid` was started.
///
/// # Errors
/// `NotFound` or `ESRCH` when there is none.
pub fn start_time(pid: u32) -> io::Result<StartTime> {
    stat(pid).map(|stat| stat.started)
}

/// The ids of all processes of this pid namespace.
fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn all_stats() -> HashMap<u32, Stat> {
    all()
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid).ok()?)))
        .collect()
}

/// All processes at one moment: one scan of `/proc` for many questions.
#[derive(Debug)]
pub struct Snapshot {
    stats: HashMap<u32, Stat>,
    children: Children,
}

impl Snapshot {
    /// As it is now.
    #[must_use]
    pub fn take() -> Snapshot {
        let stats = all_stats();
        let children = Children::new(stats.iter().map(|(&pid, stat)| (pid, stat.parent)));
        Snapshot { stats, children }
    }

    /// All descendants of `pid`, parents before their children; zombies and `pid` itself left out.
    #[must_use]
    pub fn below(&self, pid: u32) -> Vec<(u32, StartTime)> {
        self.children
            .below(pid)
            .into_iter()
            .filter_map(|pid| {
                let stat = self.stats.get(&pid)?;
                (stat.state != b'Z').then_some((pid, stat.started))
            })
            .collect()
    }
}

/// All descendants of `pid` now: see [`Snapshot::below`].
#[must_use]
pub fn descendants(pid: u32) -> Vec<(u32, StartTime)> {
    Snapshot::take().below(pid)
}

/// Who is whose child.
#[derive(Debug, Default)]
struct Children(HashMap<u32, Vec<u32>>);

impl Children {
    /// From pairs of process and parent.
    fn new(parents: impl Iterator<Item = (u32, u32)>) -> Children {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (pid, parent) in parents {
            children.entry(parent).or_default().push(pid);
        }
        Children(children)
    }

    /// The processes below `root` in breadth-first order. A snapshot with a loop in it (ids reused
    /// during the scan) ends too.
    fn below(&self, root: u32) -> Vec<u32> {
        let of = |pid| self.0.get(&pid).map(Vec::as_slice).unwrap_or_default();
        let mut found = of(root).to_vec();
        let mut seen: HashSet<u32> = found.iter().copied().chain([root]).collect();
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            found.extend(of(pid).iter().filter(|&&child| seen.insert(child)));
            next += 1;
        }
        found
    }
}

/// Clock ticks as time.
fn time_of(ticks: u64) -> Duration {
    // SAFETY: no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    Duration::from_secs(ticks / per_second)
        + Duration::from_secs(ticks % per_second) / per_second as u32
}

/// The value that variable `name` had when `pid` was executed; `None` when it had none. This is
/// how an orphan that came to us is told to be a worker's.
///
/// # Errors
/// When the process does not exist or may not be looked into.
pub fn environ_of(pid: u32, name: &str) -> io::Result<Option<OsString>> {
    let block = memory::read(pid, "environ")?;
    Ok(block.split(|&byte| byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(OsString::from_vec(value.to_vec()))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let text = b"42 (a) S 1 (b) R 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 777 1 2";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.parent), (b'R', 7));
        assert_eq!((stat.ticks, stat.children_ticks), (30, 70));
        assert_eq!(stat.started, StartTime(777));
        assert_eq!(parse_stat(b"42 (short) R 7"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn a_loop_of_parents_ends() {
        let children = Children::new([(2, 1), (3, 2), (4, 3), (5, 6), (6, 5), (1, 4)].into_iter());
        assert_eq!(children.below(1), [2, 3, 4]);
        assert_eq!(children.below(5), [6]);
        assert!(children.below(9).is_empty());
    }

    #[test]
    fn oneself() {
        let me = std::process::id();
        assert_eq!(start_time(me).unwrap(), start_time(me).unwrap());
        assert_eq!(environ_of(me, "PATH").unwrap(), std::env::var_os("PATH"));
        assert_eq!(environ_of(me, "PAT").unwrap(), None);
        assert!(start_time(u32::MAX).is_err());
    }
}
