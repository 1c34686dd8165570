//! The part of the daemon that owns the processes of workers: their fork and their user, the calls
//! that rsup answers for them, their memory and their end, and the commands that run beside them.
//!
//! Another part that a call needs is handed to it; what the core has to hear of a call is returned
//! as an [`Input`].

pub mod binds;
mod bound;
mod census;
pub mod command;
mod forks;
pub mod hiding;
pub mod isolation;
pub mod limit;
mod memory;
pub mod notify;
mod spawn;
pub mod takeover_support;
pub mod tree;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::store::Process;
use super::{AbortOnDrop, Event, Events, log_error};
use crate::config::AppName;
use crate::core::{Input, Reach, WorkerId};
use crate::exit::signal_name;
use crate::keeper::binds_link::Link as BindHolder;
use crate::paths::Paths;
use crate::sys::process::Limit;
use crate::sys::procfs;
use bound::Bound;
pub use bound::Explanation;
use census::{Census, Reaping};
use command::Commands;
use forks::Forks;
pub use forks::{Fork, Turn};
use isolation::Isolation;
use memory::Memory;
use spawn::Running;
pub use spawn::{Held, environment, until_end, wants_takeover};
use takeover_support::TakeoverSupport;

/// Of so many ended workers the last log lines and the binds are kept: 8 KB of lines each at the most.
const REMEMBERED: usize = 16;

/// The processes of workers.
pub struct Fleet {
    /// Their users, limits and cgroups.
    pub isolation: Isolation,
    /// Whether takeover is possible for them.
    pub takeover: TakeoverSupport,
    /// What runs beside them.
    pub commands: Commands,
    events: Events,
    paths: Paths,
    /// By generation.
    running: HashMap<u64, Running>,
    /// Workers that wait for their fork.
    forks: Forks,
    census: Census,
    reaping: Reaping,
    memory: Memory,
    bound: Bound,
    /// Who holds listeners of filters that workers may not hold themselves.
    bind_holder: BindHolder,
    /// The latest ended workers, by generation.
    remembered: VecDeque<u64>,
}

/// A drain under way; dropped, it is called off.
struct Drain {
    /// Its answer counts while this is held.
    _wanted: Arc<()>,
    _task: AbortOnDrop,
}

impl Fleet {
    /// Without workers yet. `nofile`: the limit of open files that rsup was started with.
    pub fn new(paths: &Paths, events: Events, nofile: Option<Limit>) -> Self {
        Self {
            isolation: Isolation::begin(paths, nofile),
            takeover: TakeoverSupport::begin(),
            commands: Commands::default(),
            events,
            paths: paths.clone(),
            running: HashMap::new(),
            forks: Forks::default(),
            census: Census::default(),
            reaping: Reaping::default(),
            memory: Memory::default(),
            bound: Bound::default(),
            bind_holder: BindHolder::new(paths.binds()),
            remembered: VecDeque::new(),
        }
    }

    /// The loop begins to wait for what happens next.
    pub fn turn(&self) {
        self.census.turn();
    }

    /// Whether the process is a worker of the app, or below one.
    pub fn owns(&self, app: &AppName, pid: u32) -> bool {
        let mut of_app = self
            .running
            .values()
            .filter(|running| running.id.app == *app);
        of_app.any(|running| running.owns(pid))
    }

    /// The pid of a worker that has not ended.
    pub fn pid_of(&self, worker: &WorkerId) -> Option<u32> {
        let running = self.running.get(&worker.generation)?;
        (!running.exited).then_some(running.pid)
    }

    /// Whether a signal (SIGSTOP) has halted the worker's process: then it accepts nothing.
    pub fn is_halted(&self, worker: &WorkerId) -> bool {
        let running = self.running.get(&worker.generation);
        running.is_some_and(|running| procfs::is_halted(running.pid))
    }

    /// The user, limits and cgroup of a worker, for what is run for it.
    pub fn confinement_of(&self, worker: &WorkerId) -> Option<&isolation::Confinement> {
        let running = self.running.get(&worker.generation)?;
        Some(&running.confinement)
    }

    /// Sends a signal to a worker, or to its whole tree. One that waits for its fork is not started any more, which
    /// the returned input says.
    pub fn signal(&mut self, worker: &WorkerId, signal: i32, reach: Reach) -> Option<Input> {
        let Some(running) = self.running.get_mut(&worker.generation) else {
            return self.give_up_fork(worker);
        };
        running.remember_tree(&self.census);
        let result = match reach {
            Reach::Worker => running.signal(signal),
            Reach::Tree => {
                running.signal_tree(signal, &self.census);
                Ok(())
            }
        };
        // A process that is gone already needs no signal.
        if let Err(why) = result
            && why.raw_os_error() != Some(nix::libc::ESRCH)
        {
            log_error(
                &format!("{worker}: cannot send {}", signal_name(signal)),
                why,
            );
        }
        None
    }

    /// Sends a signal of a user to a worker that has not ended. Returns its pid.
    ///
    /// # Errors
    /// As `pidfd_send_signal(2)`, with the pid.
    pub fn signal_for_user(
        &self,
        worker: &WorkerId,
        signal: i32,
    ) -> Result<Option<u32>, (u32, io::Error)> {
        let running = self.running.get(&worker.generation);
        let Some(running) = running.filter(|running| !running.exited) else {
            return Ok(None);
        };
        let pid = running.pid;
        running.signal(signal).map_err(|why| (pid, why))?;
        Ok(Some(pid))
    }

    /// Reports when the worker's queue is empty. `None`: it runs no more, and need not be drained.
    pub fn drain(
        &mut self,
        worker: WorkerId,
        empty: impl Future<Output = ()> + Send + 'static,
    ) -> Option<Input> {
        let Some(running) = self.running.get_mut(&worker.generation) else {
            return Some(Input::Drained { worker });
        };
        let wanted = Arc::new(());
        let of = Arc::downgrade(&wanted);
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            empty.await;
            let _ = events.send(Event::Drained { worker, of });
        });
        // It holds copies of the sockets, and must not outlive the worker with them.
        running.drain = Some(Drain {
            _wanted: wanted,
            _task: AbortOnDrop(task),
        });
        None
    }

    /// Calls the worker's drain off.
    pub fn keep_on(&mut self, worker: &WorkerId) {
        if let Some(running) = self.running.get_mut(&worker.generation) {
            running.drain = None;
        }
    }

    /// The worker is gone, with all that it left behind. Returns the generation of the worker whose last lines are not
    /// kept any longer for that.
    pub fn forget(&mut self, worker: &WorkerId) -> Option<u64> {
        if let Some(ended) = self.running.remove(&worker.generation) {
            self.census.worker_ended(ended.pid);
            self.isolation.forget(&ended.confinement);
        }
        self.memory.forget(worker.generation);
        self.remembered.push_back(worker.generation);
        (self.remembered.len() > REMEMBERED)
            .then(|| self.remembered.pop_front())
            .flatten()
    }

    /// The app is deleted.
    pub fn forget_app(&mut self, app: &AppName) {
        self.takeover.seen(app);
        self.isolation.forget_app(app);
    }

    /// When to reap zombies next, if any wait.
    pub fn reaping_wakes(&self) -> Option<Instant> {
        self.reaping.wake()
    }
}

/// The answer of a drain that was called off meanwhile is not that of the next one.
pub fn on_drained(worker: WorkerId, of: &Weak<()>) -> Option<Input> {
    of.upgrade().map(|_| Input::Drained { worker })
}
