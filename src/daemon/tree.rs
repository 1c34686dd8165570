//! What a worker leaves behind: children of children, wherever they have hidden.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::supervisor::WorkerId;
use crate::sys::process;
use crate::sys::procfs::{self, StartTime};

pub fn below(pid: u32) -> Vec<(u32, StartTime)> {
    procfs::descendants(pid)
}

/// Members of the worker's process group, orphans of it that came to us (known by `RSUP_WORKER` in
/// their environment) with their descendants, and those seen below it earlier. Children of ours that
/// are `known` to be something else are not looked at.
pub fn remains(id: &WorkerId, leader: u32, earlier: &[(u32, StartTime)], known: impl Fn(u32) -> bool) -> Vec<(u32, StartTime)> {
    let mut found: Vec<(u32, StartTime)> = Vec::new();
    let tag = id.to_string();
    for (orphan, started) in procfs::children(known) {
        let ours = procfs::environ_of(orphan, "RSUP_WORKER").ok().flatten().is_some_and(|value| value.to_str() == Some(&tag));
        let grouped = procfs::group_of(orphan).is_ok_and(|group| group == leader);
        if orphan != leader && (ours || grouped) {
            found.push((orphan, started));
            found.extend(procfs::descendants(orphan));
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
pub async fn until_gone(id: &WorkerId, leader: u32, earlier: &[(u32, StartTime)], kill: &AtomicBool) {
    let mut pause = Duration::from_millis(2);
    loop {
        let left = remains(id, leader, earlier, |_| false);
        if left.is_empty() {
            return;
        }
        if kill.load(Ordering::Relaxed) {
            signal(&left, nix::libc::SIGKILL);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
