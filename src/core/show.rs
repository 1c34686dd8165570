//! Views of apps and workers.

use super::app::{App, Wanted};
use super::restart::{Instance, RestartState};
use super::types::Time;
use super::view::{AppPhase, AppView, OperationKind, OperationView, WorkerPhase, WorkerView};
use super::{Supervisor, Worker};
use crate::config::AppName;

impl Supervisor {
    /// One app, or `None` if there is none of that name. The daemon adds memory, CPU and relayed
    /// connections.
    pub fn view(&self, app: &AppName, now: Time) -> Option<AppView> {
        self.apps.get(app).map(|app| app.view(now))
    }
}

impl App {
    /// Whether only the record of the app is left.
    pub fn gone(&self) -> bool {
        self.workers().next().is_none()
            && self.listening.held.is_none()
            && self.listening.pending.is_none()
    }

    fn view(&self, now: Time) -> AppView {
        let mut workers: Vec<WorkerView> =
            self.workers().map(|w| self.worker_view(w, now)).collect();
        if self.goal() == Wanted::Up {
            for (revision, set) in &self.sets {
                let empty = set.instances.iter();
                workers.extend(
                    empty.filter_map(|(number, i)| self.without_worker(*revision, *number, i, now)),
                );
            }
        }
        workers.sort_by_key(|w| (w.instance, w.generation));
        AppView {
            name: self.name.clone(),
            phase: self.phase(),
            revision: self.current,
            instances: self.instances,
            listen: self.spec().listen.iter().map(ToString::to_string).collect(),
            workers,
            operation: self.rollout.as_ref().map(|o| OperationView {
                kind: o.kind,
                since_ms: now.since(o.since).as_millis() as u64,
            }),
            reason: self.reason.as_ref().map(|reason| reason.text(&self.name)),
            held: 0,
            relayed: 0,
        }
    }

    fn phase(&self) -> AppPhase {
        let serving = self
            .workers()
            .filter(|w| w.phase() == WorkerPhase::Ready)
            .count();
        let kind = self.rollout.as_ref().map(|o| o.kind);
        match (self.goal(), kind) {
            (Wanted::Down | Wanted::Deleted, _) if self.gone() => AppPhase::Stopped,
            (Wanted::Down | Wanted::Deleted, _) => AppPhase::Stopping,
            (Wanted::Up, Some(OperationKind::Reload | OperationKind::Restart)) => {
                AppPhase::Reloading
            }
            (Wanted::Up, _) if serving >= usize::from(self.instances) => AppPhase::Ready,
            (Wanted::Up, _) if serving > 0 => AppPhase::Degraded,
            (Wanted::Up, _) => {
                let given_up = |i: &Instance| i.state == RestartState::Errored;
                let ended = |i: &Instance| match i.state {
                    RestartState::Errored | RestartState::Exited => true,
                    RestartState::Open | RestartState::Backoff { .. } => false,
                };
                let mut all = self.sets.values().flat_map(|set| set.instances.values());
                if self.workers().next().is_some()
                    || all.clone().next().is_none()
                    || !all.clone().all(ended)
                {
                    AppPhase::Starting
                } else if all.any(given_up) {
                    AppPhase::Errored
                } else {
                    AppPhase::Stopped
                }
            }
        }
    }

    fn worker_view(&self, worker: &Worker, now: Time) -> WorkerView {
        let instance = self
            .sets
            .get(&worker.revision)
            .and_then(|set| set.instances.get(&worker.instance));
        WorkerView {
            instance: worker.instance,
            slot: worker.id.slot,
            generation: worker.id.generation,
            revision: worker.revision,
            pid: worker.pid,
            phase: worker.phase(),
            uptime_ms: worker
                .pid
                .map(|_| now.since(worker.started).as_millis() as u64),
            restarts: instance.map_or(0, |i| i.restarts),
            memory: worker.memory,
            cpu: None,
            next_start_ms: None,
            reason: self
                .why_it_goes(worker)
                .map(|why| why.to_string())
                .or_else(|| worker.doubt.as_ref().map(ToString::to_string))
                .or_else(|| instance?.reason.as_ref().map(ToString::to_string)),
        }
    }

    /// The view of an instance without a worker: in backoff, given up, or ended for good.
    fn without_worker(
        &self,
        revision: u64,
        number: u16,
        instance: &Instance,
        now: Time,
    ) -> Option<WorkerView> {
        let wanted = revision == self.current || self.rollout.is_none();
        if !wanted || self.workers().any(|w| w.instance == number) {
            return None;
        }
        let (phase, next_start_ms) = match instance.state {
            RestartState::Open => return None,
            RestartState::Backoff { until } => (
                WorkerPhase::Backoff,
                Some(until.since(now).as_millis() as u64),
            ),
            RestartState::Errored => (WorkerPhase::Errored, None),
            RestartState::Exited => (WorkerPhase::Exited, None),
        };
        Some(WorkerView {
            instance: number,
            slot: instance.last_slot.unwrap_or(number),
            generation: 0,
            revision,
            pid: None,
            phase,
            uptime_ms: None,
            restarts: instance.restarts,
            memory: None,
            cpu: None,
            next_start_ms,
            reason: instance.reason.as_ref().map(ToString::to_string),
        })
    }
}
