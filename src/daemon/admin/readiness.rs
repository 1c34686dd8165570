//! Whether rsup as a whole may get traffic.

use serde::Serialize;

use super::ask::AppFacts;
use crate::config::AppName;
use crate::core::{AppPhase, Completion, OperationKind, WorkerPhase};

/// The answer of `/readiness`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    pub ready: bool,
    /// The reason, where it is not an app.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
    apps: Vec<AppReadiness>,
}

#[derive(Debug, Serialize)]
struct AppReadiness {
    app: AppName,
    ready: bool,
    phase: &'static str,
    workers_ready: usize,
    instances: u16,
    /// Why the app is not ready, or degraded.
    why: Option<String>,
}

impl Readiness {
    /// Ready once every wanted app is. An app that was stopped by a command, or has ended well,
    /// does not count.
    pub fn of(ending: bool, apps: &[AppFacts]) -> Self {
        let apps: Vec<AppReadiness> = apps.iter().filter_map(of_app).collect();
        Self {
            ready: !ending && apps.iter().all(|app| app.ready),
            why: ending.then_some("rsup is stopping every app and will end"),
            apps,
        }
    }
}

fn of_app(AppFacts { view, end, .. }: &AppFacts) -> Option<AppReadiness> {
    let workers_ready = view
        .workers
        .iter()
        .filter(|worker| worker.phase == WorkerPhase::Ready)
        .count();
    let starting = view
        .operation
        .as_ref()
        .is_some_and(|operation| operation.kind == OperationKind::Start);
    let ready = match (view.phase, end) {
        (AppPhase::Stopping | AppPhase::Stopped, None) | (_, Some(Completion::Succeeded)) => {
            return None;
        }
        (_, Some(Completion::Failed(_))) => false,
        // A start is over when all workers are ready. Later one ready worker is enough: it takes
        // the traffic of one that is being replaced, and withholding traffic would not help.
        (
            AppPhase::Starting
            | AppPhase::Ready
            | AppPhase::Degraded
            | AppPhase::Reloading
            | AppPhase::Errored,
            None,
        ) => workers_ready > 0 && !starting,
    };
    let whole = workers_ready >= usize::from(view.instances);
    let why = (!ready || !whole).then(|| {
        let of_worker = view.workers.iter().find_map(|worker| {
            worker
                .reason
                .clone()
                .filter(|_| worker.phase != WorkerPhase::Ready)
        });
        view.reason
            .clone()
            .or(of_worker)
            .unwrap_or_else(|| match starting {
                true => "its start is under way".to_owned(),
                false => format!("{workers_ready} of {} workers are ready", view.instances),
            })
    });
    Some(AppReadiness {
        app: view.name.clone(),
        ready,
        phase: view.phase.as_str(),
        workers_ready,
        instances: view.instances,
        why,
    })
}
