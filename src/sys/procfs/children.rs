//! Our own children, and whether a process is still the one that was meant.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;

use super::{StartTime, Stat, owner, stat};

/// Room for the ids of so many children that one `read(2)` gets them all: the list may skip some
/// if it changes between two reads.
const LIST: usize = 64 << 10;

/// The children of process `parent`; zombies left out, and those that are `known`. By a scan of all
/// processes: for another process than this one the kernel's own list may be incomplete.
#[must_use]
pub fn children_of(parent: u32, known: impl Fn(u32) -> bool) -> Vec<(u32, StartTime)> {
    let of_parent = |(_, stat): &(u32, Stat)| stat.parent == parent && stat.state != b'Z';
    let all = super::all()
        .into_iter()
        .filter(|pid| !known(*pid))
        .filter_map(|pid| Some((pid, stat(pid).ok()?)));
    all.filter(of_parent)
        .map(|(pid, stat)| (pid, stat.started))
        .collect()
}

/// The children of this process, orphans that came to it included; zombies left out, and those that
/// are `known`, which cost nothing.
#[must_use]
pub fn children(known: impl Fn(u32) -> bool) -> Vec<(u32, StartTime)> {
    looked_at(known)
        .filter(|(_, stat)| stat.state != b'Z')
        .map(|(pid, stat)| (pid, stat.started))
        .collect()
}

/// Our children that have ended and wait to be waited for, but for the `known`.
pub fn zombie_children(known: impl Fn(u32) -> bool) -> Vec<u32> {
    looked_at(known)
        .filter(|(_, stat)| stat.state == b'Z')
        .map(|(pid, _)| pid)
        .collect()
}

fn looked_at(known: impl Fn(u32) -> bool) -> impl Iterator<Item = (u32, Stat)> {
    let me = std::process::id();
    let unknown = listed()
        .unwrap_or_else(super::all)
        .into_iter()
        .filter(move |pid| !known(*pid));
    unknown
        .filter_map(|pid| Some((pid, stat(pid).ok()?)))
        .filter(move |(_, stat)| stat.parent == me)
}

/// `/proc/PID/task/TID/children` lists by thread. `None` where the kernel has been built without
/// `CONFIG_PROC_CHILDREN`, which distributions set.
fn listed() -> Option<Vec<u32>> {
    let mut pids = Vec::new();
    let mut buffer = vec![0; LIST];
    for thread in fs::read_dir("/proc/self/task").ok()?.flatten() {
        let length = match fs::File::open(thread.path().join("children")) {
            Ok(mut file) => file.read(&mut buffer).ok()?,
            // A thread that has ended.
            Err(_) if !thread.path().exists() => 0,
            Err(_) => return None,
        };
        let list = std::str::from_utf8(buffer.get(..length)?).ok()?;
        pids.extend(
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Some(pids)
}

/// The parent of a process; `None` if there is no such process.
#[must_use]
pub fn parent_of(pid: u32) -> Option<u32> {
    stat(pid).ok().map(|stat| stat.parent)
}

/// Whether the process still lives; a zombie does not.
#[must_use]
pub fn is_alive(pid: u32, started: StartTime) -> bool {
    stat(pid).is_ok_and(|stat| stat.started == started && stat.state != b'Z')
}

/// Whether the process has died and cannot end: a thread beside its first one waits in the kernel for what never
/// comes, and keeps all that is open. An ordinary zombie has no such thread, and holds nothing.
#[must_use]
pub fn cannot_end(pid: u32) -> bool {
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task"));
    stat(pid).is_ok_and(|stat| stat.state == b'Z')
        && threads().is_ok_and(|threads| threads.count() > 1)
}

/// The session. It cannot be left but for a new one, unlike a process group.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn session_of(pid: u32) -> io::Result<u32> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid)))?.as_raw() as u32)
}

/// The name of a pipe, the same for both of its ends (pipe(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipeId(u64);

impl PipeId {
    /// # Errors
    /// As `fstat(2)`.
    pub fn of(end: impl AsFd) -> io::Result<Self> {
        Ok(Self(nix::sys::stat::fstat(end)?.st_ino))
    }
}

/// The pipes that are the standard output and error of the process. Others of its descriptors do not
/// count: between fork and exec a child has all of ours.
#[must_use]
pub fn output_of(pid: u32) -> [Option<PipeId>; 2] {
    [1, 2].map(|fd| {
        let link =
            owner::with_access(pid, || fs::read_link(format!("/proc/{pid}/fd/{fd}"))).ok()?;
        let number = link.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?;
        number.parse().ok().map(PipeId)
    })
}

/// Resident bytes of one process.
///
/// # Errors
/// When there is no such process.
pub fn resident(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = text
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages * page_size())
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .map_or(4096, |size| size as u64)
}
