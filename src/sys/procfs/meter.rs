//! The memory and the processor time of many process trees, once a second, for next to nothing.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::{Children, stat};

/// The most files of one kind that stay open: beyond that, descriptors are worth more than time.
const MOST_OPEN: usize = 1024;

/// Measures resident memory of process trees.
///
/// Three things keep it cheap:
///
/// * each process's `/proc/PID/statm` (and `stat`) is opened once and read again by `pread(2)`. The open file
///   belongs to the process, not to the number: after its end the read fails (`ESRCH`), even if
///   the number has been given away;
/// * who descends from whom is looked up again only when `/proc/loadavg` shows a new last process
///   id (its fifth field, `kernel/pid.c`: ids are given out in a circle). No new id, no new
///   process;
/// * even then only ids within the stretch given out since, and processes whose parent has gone,
///   have their `/proc/PID/stat` read: all other entries of `/proc` are known by their number.
#[derive(Debug, Default)]
pub struct Meter {
    loadavg: Option<File>,
    last_pid: Option<u32>,
    /// Parent of every process, as of the last scan.
    parents: HashMap<u32, u32>,
    children: Children,
    /// Processes below each root, as of the last scan.
    trees: HashMap<u32, Vec<u32>>,
    statm: HashMap<u32, File>,
    stat: HashMap<u32, File>,
}

impl Meter {
    /// A meter that knows nothing yet: its first reading scans everything.
    #[must_use]
    pub fn new() -> Meter {
        Meter::default()
    }

    /// The resident memory, in bytes, of each root and its descendants: 0 once they
    /// are all gone. Pages that several processes share count for each of them. What is left of a
    /// tree without its root counts until the next scan at least.
    pub fn rss_tree(&mut self, roots: &[u32]) -> Vec<u64> {
        self.refresh(roots);
        // SAFETY: no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1) as u64;
        let Meter { trees, statm, .. } = self;
        roots
            .iter()
            .map(|root| {
                let tree = trees.get_mut(root);
                let mut pages = resident(statm, *root);
                if let Some(tree) = tree {
                    for &pid in tree.iter() {
                        pages = pages.saturating_add(resident(statm, pid));
                    }
                }
                pages.saturating_mul(page)
            })
            .collect()
    }

    /// The processor time, user and system, that each root, its present descendants and those
    /// descendants that were waited for have used; `None` where the root is gone. To a clock tick,
    /// commonly 10 ms.
    pub fn cpu_tree(&mut self, roots: &[u32]) -> Vec<Option<Duration>> {
        self.refresh(roots);
        let Meter { trees, stat, .. } = self;
        let of_tree = |root: &u32| {
            let mut sum = ticks(stat, *root)?;
            for pid in trees.get(root).into_iter().flatten() {
                sum = sum.saturating_add(ticks(stat, *pid).unwrap_or(0));
            }
            Some(super::time_of(sum))
        };
        roots.iter().map(of_tree).collect()
    }

    /// Brings the trees up to date, if anything can have changed.
    fn refresh(&mut self, roots: &[u32]) {
        let last_pid = self.read_last_pid();
        if last_pid.is_none() || last_pid != self.last_pid {
            self.scan(last_pid);
            self.trees.clear();
            self.children = Children::new(self.parents.iter().map(|(&pid, &parent)| (pid, parent)));
            self.statm.retain(|pid, _| self.parents.contains_key(pid));
            self.stat.retain(|pid, _| self.parents.contains_key(pid));
        }
        for root in roots {
            self.trees
                .entry(*root)
                .or_insert_with(|| self.children.below(*root));
        }
    }

    fn scan(&mut self, last_pid: Option<u32>) {
        let before = self.last_pid;
        self.last_pid = last_pid;
        let present: HashSet<u32> = super::all().into_iter().collect();
        let new = |pid: u32| match (before, last_pid) {
            (Some(before), Some(last)) if before <= last => (before < pid) && (pid <= last),
            // The circle has been closed meanwhile.
            (Some(before), Some(last)) => pid > before || pid <= last,
            _ => true,
        };
        let mut fresh = HashMap::with_capacity(present.len());
        for &pid in &present {
            let kept = self.parents.get(&pid).filter(|&parent| {
                // A parent's number within the stretch may be another process by now.
                !new(pid) && !new(*parent) && (*parent == 0 || present.contains(parent))
            });
            match kept {
                Some(&parent) => {
                    fresh.insert(pid, parent);
                }
                None => {
                    if new(pid) {
                        // Of the process that had the number before.
                        self.statm.remove(&pid);
                        self.stat.remove(&pid);
                    }
                    if let Ok(stat) = stat(pid) {
                        fresh.insert(pid, stat.parent);
                    }
                }
            }
        }
        self.parents = fresh;
    }

    /// The last process (or thread) id given out in our pid namespace.
    fn read_last_pid(&mut self) -> Option<u32> {
        if self.loadavg.is_none() {
            self.loadavg = File::open("/proc/loadavg").ok();
        }
        let mut buffer = [0; 128];
        let len = self.loadavg.as_ref()?.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(buffer.get(..len)?).ok()?;
        text.split_ascii_whitespace().nth(4)?.parse().ok()
    }
}

/// Resident pages of one process: the second field of `/proc/PID/statm` (proc_pid_statm(5)).
/// 0 when it is gone.
fn resident(open: &mut HashMap<u32, File>, pid: u32) -> u64 {
    read_open(open, pid, "statm", read_resident).unwrap_or(0)
}

/// Processor time of one process and of its children that were waited for. `None` when it is gone.
fn ticks(open: &mut HashMap<u32, File>, pid: u32) -> Option<u64> {
    let stat = read_open(open, pid, "stat", |file| super::read_stat(file).ok())?;
    Some(stat.ticks.saturating_add(stat.children_ticks))
}

/// Reads a file of a process, which stays open for the next time unless the process is gone.
fn read_open<T>(
    open: &mut HashMap<u32, File>,
    pid: u32,
    name: &str,
    read: impl Fn(&File) -> Option<T>,
) -> Option<T> {
    if let Some(file) = open.get(&pid) {
        let value = read(file);
        if value.is_none() {
            open.remove(&pid);
        }
        return value;
    }
    let file = File::open(format!("/proc/{pid}/{name}")).ok()?;
    let value = read(&file)?;
    if open.len() < MOST_OPEN {
        open.insert(pid, file);
    }
    Some(value)
}

fn read_resident(file: &File) -> Option<u64> {
    let mut buffer = [0; 128];
    let len = file.read_at(&mut buffer, 0).ok()?;
    std::str::from_utf8(buffer.get(..len)?)
        .ok()?
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
