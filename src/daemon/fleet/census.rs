//! Processes that may be a worker's, looked at once for many questions: a thousand workers that end
//! together must not read all of `/proc` a thousand times.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::tree::Orphans;
use crate::core::WorkerId;
use crate::sys::procfs::{self, PipeId, Snapshot, StartTime};

/// A look at all processes counts for so many times the time that it took, so that looks take a fifth of
/// the loop's time at the most.
const WORTH: u32 = 4;

/// The same for zombies that no task waits for.
const REAPED_EVERY: u32 = 10;

/// What was seen, shared with the tasks that wait for the ends of trees.
#[derive(Clone, Debug, Default)]
pub struct Census(Arc<Mutex<Looks>>);

#[derive(Debug, Default)]
struct Looks {
    /// The processes of workers that have not been seen to end.
    workers: HashSet<u32>,
    all: Option<Look<Snapshot>>,
    /// Seen in this turn of the loop.
    now: HashMap<Orphans, Look<Vec<Orphan>>>,
    /// Seen by tasks, at any time.
    lately: HashMap<Orphans, Look<Vec<Orphan>>>,
}

#[derive(Debug)]
struct Look<T> {
    begun: Instant,
    took: Duration,
    found: Arc<T>,
}

impl<T> Look<T> {
    fn take(look: impl FnOnce() -> T) -> Self {
        let begun = Instant::now();
        let found = Arc::new(look());
        let took = begun.elapsed();
        Self { begun, took, found }
    }
}

/// How old what was seen may be.
#[derive(Clone, Copy, Debug)]
pub enum Age {
    /// Of this turn of the loop: it is younger than every end that the turn has heard of.
    Turn,
    AtMost(Duration),
}

/// A child of a reaper that is no worker that runs.
#[derive(Debug)]
pub struct Orphan {
    pub pid: u32,
    pub started: StartTime,
    session: Option<u32>,
    /// `RSUP_WORKER` in its environment.
    worker: Option<OsString>,
    output: [Option<PipeId>; 2],
}

impl Orphan {
    /// `ours`: it can be known by more than its output.
    fn look(pid: u32, started: StartTime, ours: bool) -> Self {
        let session = ours.then(|| procfs::session_of(pid).ok()).flatten();
        let worker = ours.then(|| procfs::environ_of(pid, "RSUP_WORKER"));
        Self {
            pid,
            started,
            session,
            worker: worker.and_then(Result::ok).flatten(),
            output: procfs::output_of(pid),
        }
    }

    pub fn is_of_session(&self, leader: u32) -> bool {
        self.session == Some(leader)
    }

    pub fn is_named(&self, worker: &WorkerId) -> bool {
        let named = self.worker.as_ref().and_then(|name| name.to_str());
        named.is_some_and(|name| name == worker.to_string())
    }

    pub fn writes_to(&self, pipes: &[PipeId]) -> bool {
        self.output.iter().flatten().any(|to| pipes.contains(to))
    }
}

impl Census {
    fn with<T>(&self, look: impl FnOnce(&mut Looks) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The loop begins to wait: what was seen before may be older than the ends that it then hears of.
    pub fn turn(&self) {
        self.with(|looks| looks.now.clear());
    }

    pub fn worker_begins(&self, pid: u32) {
        self.with(|looks| looks.workers.insert(pid));
    }

    pub fn worker_ended(&self, pid: u32) {
        self.with(|looks| looks.workers.remove(&pid));
    }

    /// Whether it is the process of a worker that has not been seen to end.
    pub fn is_worker(&self, pid: u32) -> bool {
        self.with(|looks| looks.workers.contains(&pid))
    }

    /// All processes, as they were a moment ago.
    pub fn all(&self) -> Arc<Snapshot> {
        self.with(|looks| {
            let fresh = |look: &Look<Snapshot>| look.begun.elapsed() < look.took * (1 + WORTH);
            if !looks.all.as_ref().is_some_and(fresh) {
                looks.all = None;
            }
            let look = looks.all.get_or_insert_with(|| Look::take(Snapshot::take));
            look.found.clone()
        })
    }

    /// Children of a reaper that may be orphans of workers.
    pub fn orphans(&self, place: Orphans, age: Age) -> Arc<Vec<Orphan>> {
        self.with(|looks| {
            let (seen, age) = match age {
                Age::Turn => (&mut looks.now, Duration::MAX),
                Age::AtMost(age) => (&mut looks.lately, age),
            };
            let fresh = |look: &&Look<Vec<Orphan>>| look.begun.elapsed() <= age;
            if let Some(look) = seen.get(&place).filter(fresh) {
                return look.found.clone();
            }
            let workers = &looks.workers;
            let look = Look::take(|| {
                let found = place.list(|pid| workers.contains(&pid)).into_iter();
                let ours = place.are_ours();
                let orphans = found.map(|(pid, started)| Orphan::look(pid, started, ours));
                orphans.collect::<Vec<_>>()
            });
            let found = look.found.clone();
            seen.insert(place, look);
            found
        })
    }
}

/// When zombies that no task waits for are reaped.
#[derive(Debug, Default)]
pub struct Reaping {
    /// Not earlier, since each look costs as much as there are workers.
    next: Option<Instant>,
    due: bool,
}

impl Reaping {
    /// A child has ended. True if it is time to look for zombies; else [`Self::wake`] tells when.
    pub fn is_due(&mut self) -> bool {
        self.due = self.next.is_some_and(|next| Instant::now() < next);
        !self.due
    }

    pub fn wake(&self) -> Option<tokio::time::Instant> {
        self.next.filter(|_| self.due).map(Into::into)
    }

    /// They were looked for, which took so long.
    pub fn done(&mut self, took: Duration) {
        self.next = Some(Instant::now() + took * REAPED_EVERY);
        self.due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_serves_all_questions_of_a_turn_and_none_of_the_next() {
        let census = Census::default();
        let first = census.orphans(Orphans::Here, Age::Turn);
        let is = |seen: &Arc<_>, age| Arc::ptr_eq(seen, &census.orphans(Orphans::Here, age));
        assert!(is(&first, Age::Turn));
        census.turn();
        assert!(!is(&first, Age::Turn));
    }

    #[test]
    fn a_task_takes_what_another_saw_lately() {
        let census = Census::default();
        let hour = Age::AtMost(Duration::from_secs(3600));
        let first = census.orphans(Orphans::Here, hour);
        let is = |age| Arc::ptr_eq(&first, &census.orphans(Orphans::Here, age));
        assert!(is(hour));
        assert!(!is(Age::Turn), "it may be older than an end of this turn");
        assert!(!is(Age::AtMost(Duration::ZERO)));
    }

    #[test]
    fn workers_that_run_are_no_orphans() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .env("RSUP_WORKER", "web/1#7")
            .spawn()
            .unwrap();
        let pid = child.id();
        let census = Census::default();
        let found = || {
            census.turn();
            let orphans = census.orphans(Orphans::Here, Age::Turn);
            orphans.iter().any(|orphan| orphan.pid == pid)
        };
        assert!(found());
        census.worker_begins(pid);
        assert!(census.is_worker(pid) && !found());
        census.worker_ended(pid);
        assert!(found());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn zombies_are_looked_for_at_once_and_then_after_a_pause() {
        let mut reaping = Reaping::default();
        assert!(reaping.is_due());
        reaping.done(Duration::from_secs(60));
        assert!(!reaping.is_due() && reaping.wake().is_some());
        reaping.done(Duration::ZERO);
        assert!(reaping.wake().is_none());
        assert!(reaping.is_due());
    }
}
