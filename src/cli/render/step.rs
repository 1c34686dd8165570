//! The steps of a long action as text.

use super::units::{duration, harmless};
use crate::core::{Progress, Step};

/// One step as a line of its own: `api:0 ready after 512 ms (pid 123)`.
pub fn step(progress: &Progress) -> String {
    let pid = progress
        .pid
        .map(|pid| format!(" (pid {pid})"))
        .unwrap_or_default();
    format!(
        "{}:{} {}{pid}",
        progress.app,
        progress.instance,
        words(&progress.step)
    )
}

/// The current step of an app, beside its spinner: without the app's name.
pub fn activity(progress: &Progress) -> String {
    let next = match &progress.step {
        Step::Started => "waiting until it is ready".into(),
        step => words(step),
    };
    format!("worker {}: {next}", progress.instance)
}

fn words(step: &Step) -> String {
    match step {
        Step::Started => "started".into(),
        Step::Ready { after_ms } => format!("ready after {}", duration(*after_ms)),
        Step::Draining => "draining".into(),
        Step::Stopping => "stopping".into(),
        Step::Killed => "killed, as it did not stop in time".into(),
        Step::Gone { exit } => format!("gone: {exit}"),
        Step::Failed { reason } => format!("failed: {}", harmless(reason)),
    }
}
