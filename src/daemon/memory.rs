//! Memory and processor time of workers with their descendants.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{Daemon, now};
use crate::core::{AppView, Input, Time, WorkerId};
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

impl Daemon {
    /// Reads the memory of every worker that has a limit, and tells the supervisor of those above it.
    pub(super) fn measure(&mut self) {
        let mut watched: Vec<(WorkerId, u32, u64)> = Vec::new();
        for running in self.running.values() {
            let limited = self.meter.limited.contains(&running.id.generation) && !running.exited;
            let limit = self
                .supervisor
                .worker(&running.id)
                .and_then(|w| self.supervisor.revision_of(w)?.spec.max_memory);
            if let (true, Some(limit)) = (limited, limit) {
                watched.push((running.id.clone(), running.pid, limit));
            }
        }
        let pids: Vec<u32> = watched.iter().map(|(_, pid, _)| *pid).collect();
        let readings = self.meter.meter.rss_tree(&pids);
        for ((worker, _, limit), bytes) in watched.into_iter().zip(readings) {
            let over = bytes > limit;
            let was_over = if over {
                !self.meter.over.insert(worker.generation)
            } else {
                self.meter.over.remove(&worker.generation)
            };
            if over || was_over {
                self.handle(Input::Memory { worker, bytes });
            }
        }
    }

    /// The processor time of workers by generation, for each view.
    pub(super) fn processor_times(&mut self, views: &[AppView]) -> Vec<HashMap<u64, Duration>> {
        let pids: Vec<u32> = views
            .iter()
            .flat_map(|view| &view.workers)
            .filter_map(|worker| worker.pid)
            .collect();
        let mut times = self.meter.meter.cpu_tree(&pids).into_iter();
        let mut of_view = |view: &AppView| {
            let running = view.workers.iter().filter(|worker| worker.pid.is_some());
            running
                .filter_map(|worker| Some((worker.generation, times.next()??)))
                .collect()
        };
        views.iter().map(&mut of_view).collect()
    }

    /// Adds what only the daemon knows to views; all at once, since one look at `/proc` serves all.
    pub(super) fn complete(&mut self, views: &mut [AppView]) {
        let pids: Vec<u32> = views
            .iter()
            .flat_map(|view| &view.workers)
            .filter_map(|worker| worker.pid)
            .collect();
        let memory = self.meter.meter.rss_tree(&pids);
        let times = self.meter.meter.cpu_tree(&pids);
        let mut readings = memory.into_iter().zip(times);
        for view in views.iter_mut() {
            self.tell_served(view);
        }
        for view in views {
            if let Some((relayed, held)) = self.network.relayed_and_held(&view.name) {
                (view.relayed, view.held) = (relayed, held);
            }
            for worker in view
                .workers
                .iter_mut()
                .filter(|worker| worker.pid.is_some())
            {
                let Some((bytes, used)) = readings.next() else {
                    return;
                };
                worker.memory = Some(bytes);
                worker.cpu = used.and_then(|used| self.meter.cpu(worker.generation, used));
            }
        }
    }
}
