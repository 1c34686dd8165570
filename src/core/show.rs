//! Views of apps and workers.

use super::app::{App, Wanted, stage};
use super::plan::Stage;
use super::seat::{Hold, Seat};
use super::types::Time;
use super::view::{
    AppPhase, AppView, OperationKind, OperationView, PastEvent, WorkerPhase, WorkerView,
};
use super::{Supervisor, Worker};
use crate::config::AppName;

impl Supervisor {
    /// One app, or `None` if there is none of that name. Memory, CPU and relayed connections are
    /// the daemon's to add.
    pub fn view(&self, app: &AppName, now: Time) -> Option<AppView> {
        self.apps.get(app).map(|app| app.view(now))
    }

    /// What happened to an app, oldest first.
    pub fn events(&self, app: &AppName, now: Time) -> Vec<PastEvent> {
        let past = |(at, text): &(Time, String)| PastEvent {
            age_ms: now.since(*at).as_millis() as u64,
            text: text.clone(),
        };
        self.apps
            .get(app)
            .map(|app| app.events.iter().map(past).collect())
            .unwrap_or_default()
    }
}

impl App {
    /// Nothing of it is left but the record.
    pub fn gone(&self) -> bool {
        self.workers().next().is_none()
            && self.listening.held.is_none()
            && self.listening.pending.is_none()
    }

    fn view(&self, now: Time) -> AppView {
        let mut workers: Vec<WorkerView> =
            self.workers().map(|w| self.worker_view(w, now)).collect();
        if self.goal() == Wanted::Up {
            workers.extend(
                self.seats
                    .iter()
                    .enumerate()
                    .filter_map(|(instance, seat)| self.empty_seat(instance as u16, seat, now)),
            );
        }
        workers.sort_by_key(|w| (w.instance, w.generation));
        AppView {
            name: self.name.clone(),
            phase: self.phase(now),
            revision: self.target.number,
            instances: self.instances,
            listen: self.spec().listen.iter().map(ToString::to_string).collect(),
            workers,
            operation: self.operation.as_ref().map(|o| OperationView {
                kind: o.kind,
                since_ms: now.since(o.since).as_millis() as u64,
            }),
            reason: self.reason.as_ref().map(|reason| reason.text.clone()),
            relayed: 0,
        }
    }

    fn phase(&self, now: Time) -> AppPhase {
        let serving = self
            .workers()
            .filter(|w| stage(w, now) == Stage::Serving)
            .count();
        let kind = self.operation.as_ref().map(|o| o.kind);
        match (self.goal(), kind) {
            (Wanted::Down | Wanted::Deleted, _) if self.gone() => AppPhase::Stopped,
            (Wanted::Down | Wanted::Deleted, _) => AppPhase::Stopping,
            (Wanted::Up, Some(OperationKind::Reload | OperationKind::Restart)) => {
                AppPhase::Reloading
            }
            (Wanted::Up, _) if serving >= usize::from(self.instances) => AppPhase::Ready,
            (Wanted::Up, _) if serving > 0 => AppPhase::Degraded,
            (Wanted::Up, _) => {
                let given_up = |seat: &Seat| matches!(seat.hold, Hold::Errored);
                let ended = |seat: &Seat| matches!(seat.hold, Hold::Errored | Hold::Exited);
                if self.workers().next().is_some()
                    || self.seats.is_empty()
                    || !self.seats.iter().all(ended)
                {
                    AppPhase::Starting
                } else if self.seats.iter().any(given_up) {
                    AppPhase::Errored
                } else {
                    AppPhase::Stopped
                }
            }
        }
    }

    fn worker_view(&self, worker: &Worker, now: Time) -> WorkerView {
        let seat = self.seats.get(usize::from(worker.instance));
        WorkerView {
            instance: worker.instance,
            slot: worker.id.slot,
            generation: worker.id.generation,
            revision: worker.revision.number,
            pid: worker.pid,
            phase: worker.phase(),
            uptime_ms: worker
                .pid
                .map(|_| now.since(worker.started).as_millis() as u64),
            restarts: seat.map_or(0, |s| s.restarts),
            memory: worker.memory,
            cpu: None,
            next_start_ms: None,
            reason: worker
                .condemned
                .clone()
                .or_else(|| worker.reason.clone())
                .or_else(|| seat.and_then(|s| s.reason.clone())),
        }
    }

    /// A seat without a worker: in backoff, or given up.
    fn empty_seat(&self, instance: u16, seat: &Seat, now: Time) -> Option<WorkerView> {
        if instance >= self.instances || self.workers().any(|w| w.instance == instance) {
            return None;
        }
        let (phase, next_start_ms) = match seat.hold {
            Hold::Open => return None,
            Hold::Backoff { until } => (
                WorkerPhase::Backoff,
                Some(until.since(now).as_millis() as u64),
            ),
            Hold::Errored => (WorkerPhase::Errored, None),
            Hold::Exited => (WorkerPhase::Exited, None),
        };
        Some(WorkerView {
            instance,
            slot: seat.last_slot.unwrap_or(instance),
            generation: 0,
            revision: self.target.number,
            pid: None,
            phase,
            uptime_ms: None,
            restarts: seat.restarts,
            memory: None,
            cpu: None,
            next_start_ms,
            reason: seat.reason.clone(),
        })
    }
}
