//! Memory and processor time of workers with their descendants.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::Fleet;
use crate::core::{AppView, Input, Supervisor, Time, WorkerId};
use crate::daemon::now;
use crate::sys::procfs::Meter;

#[derive(Default)]
pub struct Memory {
    meter: Meter,
    /// Generations whose app has a limit.
    limited: HashSet<u64>,
    /// Last over-limit state by generation: only changes and excesses are worth an input.
    over: HashSet<u64>,
    cpu: HashMap<u64, CpuSample>,
}

struct CpuSample {
    at: Time,
    used: Duration,
    percent: Option<f32>,
}

/// Samples closer together than this say nothing: the kernel counts in ticks of 10 ms.
const SHORTEST_SAMPLE: Duration = Duration::from_millis(500);

impl Memory {
    pub fn limit(&mut self, generation: u64) {
        self.limited.insert(generation);
    }

    pub fn forget(&mut self, generation: u64) {
        self.limited.remove(&generation);
        self.over.remove(&generation);
        self.cpu.remove(&generation);
    }

    /// Whether anybody has to be watched.
    pub fn wanted(&self) -> bool {
        !self.limited.is_empty()
    }

    fn cpu(&mut self, generation: u64, used: Duration) -> Option<f32> {
        let at = now();
        let Some(sample) = self.cpu.get_mut(&generation) else {
            self.cpu.insert(
                generation,
                CpuSample {
                    at,
                    used,
                    percent: None,
                },
            );
            return None;
        };
        let elapsed = at.since(sample.at);
        if elapsed >= SHORTEST_SAMPLE {
            let percent =
                100.0 * used.saturating_sub(sample.used).as_secs_f32() / elapsed.as_secs_f32();
            *sample = CpuSample {
                at,
                used,
                percent: Some(percent),
            };
        }
        sample.percent
    }
}

impl Fleet {
    /// Whether any worker's memory has a limit.
    pub fn measures(&self) -> bool {
        self.memory.wanted()
    }

    /// The worker's memory has a limit.
    pub fn limit_memory(&mut self, worker: &WorkerId) {
        self.memory.limit(worker.generation);
    }

    /// Reads the memory of every worker that has a limit. Returns what the core has to hear of it.
    pub fn measure(&mut self, supervisor: &Supervisor) -> Vec<Input> {
        let mut news = Vec::new();
        let mut watched: Vec<(WorkerId, u32, u64)> = Vec::new();
        for running in self.running.values() {
            let limited = self.memory.limited.contains(&running.id.generation) && !running.exited;
            let limit = supervisor
                .worker(&running.id)
                .and_then(|w| supervisor.revision_of(w)?.spec.max_memory);
            if let (true, Some(limit)) = (limited, limit) {
                watched.push((running.id.clone(), running.pid, limit));
            }
        }
        let pids: Vec<u32> = watched.iter().map(|(_, pid, _)| *pid).collect();
        let readings = self.memory.meter.rss_tree(&pids);
        for ((worker, _, limit), bytes) in watched.into_iter().zip(readings) {
            let over = bytes > limit;
            let was_over = if over {
                !self.memory.over.insert(worker.generation)
            } else {
                self.memory.over.remove(&worker.generation)
            };
            if over || was_over {
                news.push(Input::Memory { worker, bytes });
            }
        }
        news
    }

    /// The processor time of workers by generation, for each view.
    pub fn processor_times(&mut self, views: &[AppView]) -> Vec<HashMap<u64, Duration>> {
        let pids: Vec<u32> = views
            .iter()
            .flat_map(|view| &view.workers)
            .filter_map(|worker| worker.pid)
            .collect();
        let mut times = self.memory.meter.cpu_tree(&pids).into_iter();
        let mut of_view = |view: &AppView| {
            let running = view.workers.iter().filter(|worker| worker.pid.is_some());
            running
                .filter_map(|worker| Some((worker.generation, times.next()??)))
                .collect()
        };
        views.iter().map(&mut of_view).collect()
    }

    /// Adds memory and processor time to views; to all at once, since one look at `/proc` serves all.
    pub fn add_usage(&mut self, views: &mut [AppView]) {
        let pids: Vec<u32> = views
            .iter()
            .flat_map(|view| &view.workers)
            .filter_map(|worker| worker.pid)
            .collect();
        let memory = self.memory.meter.rss_tree(&pids);
        let times = self.memory.meter.cpu_tree(&pids);
        let readings = memory.into_iter().zip(times);
        let workers = views.iter_mut().flat_map(|view| &mut view.workers);
        for (worker, (bytes, used)) in workers.filter(|w| w.pid.is_some()).zip(readings) {
            worker.memory = Some(bytes);
            worker.cpu = used.and_then(|used| self.memory.cpu(worker.generation, used));
        }
    }
}
