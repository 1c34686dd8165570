//! What a worker leaves behind: children of children, wherever they have hidden.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::warn;

use super::census::{Age, Census, Orphan};
use crate::core::WorkerId;
use crate::sys::cgroup::Leaf;
use crate::sys::process;
use crate::sys::procfs::{self, PipeId, StartTime};

/// By what an orphan is known to be a worker's, whatever else it has shed.
#[derive(Clone, Debug)]
pub struct Marks {
    /// `RSUP_WORKER` in its environment.
    pub worker: WorkerId,
    /// The worker's pid: that of its session.
    pub leader: u32,
    /// The pipes that its output goes to.
    pub output: Vec<PipeId>,
    /// Where there is one, no process leaves it.
    pub cgroup: Option<Leaf>,
    pub orphans: Orphans,
}

/// Where the orphans of a worker go: to its nearest ancestor that is a reaper (prctl(2),
/// `PR_SET_CHILD_SUBREAPER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Orphans {
    /// The worker is this daemon's own child.
    Here,
    /// An earlier daemon started it. `ours`: that is our keeper, and has no other children than those
    /// of this rsup.
    Adopted { reaper: u32, ours: bool },
}

impl Orphans {
    pub fn list(self, known: impl Fn(u32) -> bool) -> Vec<(u32, StartTime)> {
        match self {
            Self::Here => procfs::children(known),
            Self::Adopted { reaper, .. } => procfs::children_of(reaper, known),
        }
    }

    /// Only processes of this rsup are among them.
    pub fn are_ours(self) -> bool {
        match self {
            Self::Here => true,
            Self::Adopted { ours, .. } => ours,
        }
    }
}

impl Marks {
    fn are_on(&self, orphan: &Orphan) -> bool {
        orphan.is_of_session(self.leader)
            || orphan.is_named(&self.worker)
            || orphan.writes_to(&self.output)
    }
}

/// Whether a process has the worker's name in its environment.
fn is_named(pid: u32, worker: &WorkerId) -> bool {
    let value = procfs::environ_of(pid, "RSUP_WORKER").ok().flatten();
    value.is_some_and(|value| value.to_str() == Some(&worker.to_string()))
}

/// Whether exec has happened: from then on the worker has its own environment.
pub fn runs_its_program(pid: u32, worker: &WorkerId) -> bool {
    is_named(pid, worker)
}

/// Orphans of the worker that came to us, known by its marks, with their descendants, and those
/// seen below it earlier.
pub fn remains(
    marks: &Marks,
    earlier: &[(u32, StartTime)],
    census: &Census,
    age: Age,
) -> Vec<(u32, StartTime)> {
    let mut found: Vec<(u32, StartTime)> = Vec::new();
    for orphan in census.orphans(marks.orphans, age).iter() {
        if orphan.pid != marks.leader && marks.are_on(orphan) {
            found.push((orphan.pid, orphan.started));
            found.extend(census.all().below(orphan.pid));
        }
    }
    for pid in marks
        .cgroup
        .iter()
        .flat_map(Leaf::members)
        .filter(|pid| *pid != marks.leader && !census.is_worker(*pid))
    {
        if !found.iter().any(|(p, _)| *p == pid)
            && let Ok(started) = procfs::start_time(pid)
        {
            found.push((pid, started));
        }
    }
    for (pid, started) in earlier {
        if !found.iter().any(|(p, _)| p == pid) && procfs::is_alive(*pid, *started) {
            found.push((*pid, *started));
        }
    }
    found
}

pub fn signal(processes: &[(u32, StartTime)], signal: i32) {
    for (pid, started) in processes {
        // The pidfd is taken first and the identity checked after: then the signal cannot reach a stranger.
        if let Ok(pidfd) = process::pidfd_open(*pid)
            && procfs::is_alive(*pid, *started)
        {
            let _ = process::signal(&pidfd, signal);
        }
    }
}

/// Resolves when nothing is left; kills again and again what is left once `kill` is set.
pub async fn until_gone(
    marks: &Marks,
    earlier: &[(u32, StartTime)],
    kill: &AtomicBool,
    census: &Census,
) {
    let mut pause = Duration::from_millis(2);
    loop {
        // One look serves all who wait for such an end.
        let left = remains(marks, earlier, census, Age::AtMost(pause / 2));
        if left.is_empty() {
            return;
        }
        if kill.load(Ordering::Relaxed) {
            let _ = marks.cgroup.as_ref().map(Leaf::kill);
            signal(&left, nix::libc::SIGKILL);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// How long orphans without a mark have, after SIGTERM, when the daemon ends.
const LAST_SWEEP: Duration = Duration::from_secs(2);

/// At the end, when no worker is left: every process that still is below rsup is an orphan of one, even if it
/// has shed every mark.
/// All but `spared`, with what is below it.
pub async fn sweep_all(spared: Option<u32>) {
    let left = || {
        let below_spared: Vec<u32> = spared
            .into_iter()
            .flat_map(procfs::descendants)
            .map(|(pid, _)| pid)
            .collect();
        let mut all = procfs::descendants(std::process::id());
        all.retain(|(pid, _)| Some(*pid) != spared && !below_spared.contains(pid));
        all
    };
    let found = left();
    if found.is_empty() {
        return;
    }
    let pids: Vec<u32> = found.iter().map(|(pid, _)| *pid).collect();
    warn!(?pids, "stopping what workers have left behind");
    signal(&found, nix::libc::SIGTERM);
    let gone = async {
        while !left().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(LAST_SWEEP, gone).await.is_err() {
        signal(&left(), nix::libc::SIGKILL);
    }
}
