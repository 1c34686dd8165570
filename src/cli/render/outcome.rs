//! The outcome of a long action on one app, in one line.

use super::style::{Look, Paint};
use super::units::{count, duration, harmless};
use crate::control::Outcome;
use crate::core::{AppView, OperationKind, WorkerPhase};

/// The line of an action that did not fail. `accepted`: it has only begun (`--no-wait`).
pub fn outcome(outcome: &Outcome, accepted: bool, look: Look) -> String {
    let app = look.paint(Paint::Bold, outcome.app.as_str());
    if accepted {
        return format!(
            "{} of {app} under way; `rsup list` shows how it goes\n",
            outcome.kind.as_str()
        );
    }
    let took = look.paint(Paint::Dim, &format!("in {}", duration(outcome.took_ms)));
    let view = outcome.view.as_ref();
    let revision = view
        .map(|view| format!(" to revision {}", view.revision))
        .unwrap_or_default();
    let workers = view.map(workers).unwrap_or_default();
    let what = match outcome.kind {
        OperationKind::Start => format!("started {took}{workers}"),
        OperationKind::Stop => format!("stopped {took}"),
        OperationKind::Restart => format!("restarted{revision} {took}{workers}"),
        OperationKind::Reload => format!("reloaded{revision} {took}{workers}"),
        OperationKind::Scale => format!("scaled {took}{workers}"),
        OperationKind::Delete => format!("deleted {took}"),
    };
    let sign = if look.terminal {
        look.paint(Paint::Good, "✓ ")
    } else {
        String::new()
    };
    format!("{sign}{app} {what}\n")
}

/// `: 2 workers ready on 0.0.0.0:3001`.
fn workers(view: &AppView) -> String {
    let ready = view
        .workers
        .iter()
        .filter(|worker| worker.phase == WorkerPhase::Ready)
        .count();
    if ready == 0 {
        return String::new();
    }
    let listen = if view.listen.is_empty() {
        String::new()
    } else {
        format!(" on {}", harmless(&view.listen.join(", ")))
    };
    format!(": {} ready{listen}", count(ready as u64, "worker"))
}
