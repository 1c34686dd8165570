//! The status for systemd, derived from the state of the apps. Pure: views in, words out.

use std::fmt::Write;
use std::time::Duration;

use crate::core::{AppPhase, AppView, OperationKind, WorkerPhase};

/// What the daemon knows at one moment.
pub struct Facts<'a> {
    pub apps: &'a [AppView],
    /// Since the daemon began.
    pub up: Duration,
    /// How long apps may take to get ready before the start as a whole counts as done anyway.
    pub patience: Duration,
    /// Every app is being stopped, and the daemon ends then.
    pub ending: bool,
    /// [`Phase::Ready`] was reached once: [`Phase::Starting`] does not come back.
    pub been_ready: bool,
}

/// The states of a service that sd_notify(3) knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Ready,
    Reloading,
    Stopping,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub phase: Phase,
    /// One line for `systemctl status`.
    pub status: String,
    /// An action under way may take longer than systemd's timeouts: rsup asks for more time.
    pub slow: bool,
}

/// The most names in one line.
const NAMED: usize = 5;

pub fn derive(facts: &Facts<'_>) -> State {
    let left = facts
        .apps
        .iter()
        .flat_map(|app| &app.workers)
        .filter(|w| w.pid.is_some())
        .count();
    let pending = || facts.apps.iter().filter(|app| is_pending(app));
    let reloading: Vec<&AppView> = facts.apps.iter().filter(|app| is_reloading(app)).collect();
    let phase = if facts.ending {
        Phase::Stopping
    } else if !facts.been_ready && pending().next().is_some() && facts.up < facts.patience {
        Phase::Starting
    } else if !reloading.is_empty() {
        Phase::Reloading
    } else {
        Phase::Ready
    };
    let status = match phase {
        Phase::Starting => format!(
            "starting, waiting for {}: {}",
            names(pending()),
            count(facts.apps)
        ),
        Phase::Reloading => format!(
            "reloading {}: {}",
            names(reloading.into_iter()),
            count(facts.apps)
        ),
        Phase::Ready => summary(facts.apps),
        Phase::Stopping if left == 0 => "stopping".to_owned(),
        Phase::Stopping => format!("stopping: {} left", number(left, "worker")),
    };
    State {
        phase,
        status,
        slow: phase != Phase::Ready,
    }
}

/// Whether it may still become ready. An app that was given up, or whose workers ended for good,
/// does not.
fn is_pending(app: &AppView) -> bool {
    match app.phase {
        AppPhase::Starting | AppPhase::Degraded | AppPhase::Reloading => {
            let settled = |phase| {
                matches!(
                    phase,
                    WorkerPhase::Ready | WorkerPhase::Errored | WorkerPhase::Exited
                )
            };
            app.workers.iter().filter(|w| settled(w.phase)).count() < usize::from(app.instances)
        }
        AppPhase::Ready | AppPhase::Stopping | AppPhase::Stopped | AppPhase::Errored => false,
    }
}

/// Whether the app counts as reloading for systemd: workers are replaced on request.
fn is_reloading(app: &AppView) -> bool {
    match app.operation.as_ref().map(|operation| operation.kind) {
        Some(OperationKind::Reload | OperationKind::Restart) => true,
        Some(
            OperationKind::Start
            | OperationKind::Stop
            | OperationKind::Scale
            | OperationKind::Delete,
        )
        | None => false,
    }
}

fn is_wanted(app: &AppView) -> bool {
    !matches!(app.phase, AppPhase::Stopped | AppPhase::Stopping)
}

fn ready(app: &AppView) -> usize {
    let ready = app
        .workers
        .iter()
        .filter(|w| w.phase == WorkerPhase::Ready)
        .count();
    ready.min(usize::from(app.instances))
}

/// That all is well, or what is not.
fn summary(apps: &[AppView]) -> String {
    let mut text = count(apps);
    for phase in [AppPhase::Errored, AppPhase::Degraded, AppPhase::Starting] {
        let such: Vec<&AppView> = apps.iter().filter(|app| app.phase == phase).collect();
        if !such.is_empty() {
            let _ = write!(text, "; {}: {}", phase.as_str(), names(such.into_iter()));
        }
    }
    text
}

/// "1 of 2 apps ready (3 of 4 workers)".
fn count(apps: &[AppView]) -> String {
    let wanted: Vec<&AppView> = apps.iter().filter(|app| is_wanted(app)).collect();
    let stopped = match apps.len() - wanted.len() {
        0 => String::new(),
        n => format!(", {n} stopped"),
    };
    if wanted.is_empty() {
        return format!("no app is to run{stopped}");
    }
    let whole = wanted
        .iter()
        .filter(|app| ready(app) >= usize::from(app.instances))
        .count();
    let (workers, all) = wanted.iter().fold((0, 0), |(ready_so_far, all), app| {
        (ready_so_far + ready(app), all + usize::from(app.instances))
    });
    format!(
        "{} ready ({}){stopped}",
        of(whole, wanted.len(), "app"),
        of(workers, all, "worker")
    )
}

fn of(some: usize, all: usize, what: &str) -> String {
    if some == all {
        number(all, what)
    } else {
        format!("{some} of {}", number(all, what))
    }
}

fn number(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

fn names<'a>(apps: impl Iterator<Item = &'a AppView>) -> String {
    let names: Vec<&str> = apps.map(|app| app.name.as_str()).collect();
    match names.len().checked_sub(NAMED) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..NAMED].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AppName;
    use crate::core::{OperationView, WorkerView};

    fn worker(instance: u16, phase: WorkerPhase) -> WorkerView {
        WorkerView {
            instance,
            slot: instance,
            generation: 1,
            revision: 1,
            pid: (!matches!(
                phase,
                WorkerPhase::Errored | WorkerPhase::Exited | WorkerPhase::Backoff
            ))
            .then_some(100),
            phase,
            uptime_ms: None,
            restarts: 0,
            memory: None,
            cpu: None,
            next_start_ms: None,
            reason: None,
        }
    }

    fn app(name: &str, phase: AppPhase, workers: &[WorkerPhase]) -> AppView {
        AppView {
            name: AppName::new(name),
            phase,
            revision: 1,
            instances: workers.len().max(1) as u16,
            listen: Vec::new(),
            workers: (0..)
                .zip(workers)
                .map(|(instance, phase)| worker(instance, *phase))
                .collect(),
            operation: None,
            reason: None,
            held: 0,
            relayed: 0,
        }
    }

    fn state(apps: &[AppView], change: impl FnOnce(&mut Facts<'_>)) -> State {
        let second = Duration::from_secs(1);
        let mut facts = Facts {
            apps,
            up: second,
            patience: 40 * second,
            ending: false,
            been_ready: false,
        };
        change(&mut facts);
        derive(&facts)
    }

    use AppPhase as A;
    use WorkerPhase as W;

    #[test]
    fn nothing_to_wait_for_is_ready() {
        let state = state(&[], |_| {});
        assert_eq!(
            (state.phase, state.status.as_str(), state.slow),
            (Phase::Ready, "no app is to run", false)
        );
    }

    #[test]
    fn ready_only_when_every_app_is() {
        let mut apps = [
            app("api", A::Ready, &[W::Ready, W::Ready]),
            app("web", A::Degraded, &[W::Ready, W::Starting]),
        ];
        let early = state(&apps, |_| {});
        assert_eq!(early.phase, Phase::Starting);
        assert!(early.slow);
        assert_eq!(
            early.status,
            "starting, waiting for web: 1 of 2 apps ready (3 of 4 workers)"
        );
        apps[1] = app("web", A::Ready, &[W::Ready, W::Ready]);
        assert_eq!(
            state(&apps, |_| {}),
            State {
                phase: Phase::Ready,
                status: "2 apps ready (4 workers)".into(),
                slow: false
            }
        );
    }

    #[test]
    fn what_has_failed_for_good_is_not_waited_for_but_told() {
        let apps = [
            app("api", A::Ready, &[W::Ready]),
            app("web", A::Errored, &[W::Errored, W::Errored]),
        ];
        let failed = state(&apps, |_| {});
        assert_eq!(failed.phase, Phase::Ready);
        assert_eq!(
            failed.status,
            "1 of 2 apps ready (1 of 3 workers); errored: web"
        );
        // Partly given up.
        assert_eq!(
            state(&[app("web", A::Degraded, &[W::Ready, W::Errored])], |_| {}).phase,
            Phase::Ready
        );
        // An app that is tried again is waited for.
        assert_eq!(
            state(&[app("web", A::Starting, &[W::Backoff])], |_| {}).phase,
            Phase::Starting
        );
        // Workers that ended and are not started again.
        assert_eq!(
            state(&[app("job", A::Stopped, &[W::Exited])], |_| {}).phase,
            Phase::Ready
        );
    }

    #[test]
    fn the_boot_does_not_wait_for_ever() {
        let apps = [app("web", A::Starting, &[W::Backoff])];
        let late = state(&apps, |facts| facts.up = Duration::from_secs(41));
        assert_eq!(
            (late.phase, late.status.as_str()),
            (
                Phase::Ready,
                "0 of 1 app ready (0 of 1 worker); starting: web"
            )
        );
    }

    #[test]
    fn once_ready_never_starting_again() {
        let apps = [app("web", A::Starting, &[W::Starting])];
        assert_eq!(
            state(&apps, |facts| facts.been_ready = true).phase,
            Phase::Ready
        );
    }

    #[test]
    fn a_reload_is_told_until_it_is_over() {
        let mut apps = [app("api", A::Reloading, &[W::Ready, W::Ready, W::Starting])];
        apps[0].instances = 2;
        apps[0].operation = Some(OperationView {
            kind: OperationKind::Reload,
            since_ms: 5,
        });
        let during = state(&apps, |facts| facts.been_ready = true);
        assert_eq!((during.phase, during.slow), (Phase::Reloading, true));
        assert_eq!(during.status, "reloading api: 1 app ready (2 workers)");
        apps[0].operation = Some(OperationView {
            kind: OperationKind::Scale,
            since_ms: 5,
        });
        assert_eq!(
            state(&apps, |facts| facts.been_ready = true).phase,
            Phase::Ready
        );
    }

    #[test]
    fn a_reload_before_all_is_ready_does_not_end_the_start() {
        let mut apps = [app("api", A::Reloading, &[W::Starting])];
        apps[0].operation = Some(OperationView {
            kind: OperationKind::Reload,
            since_ms: 5,
        });
        assert_eq!(state(&apps, |_| {}).phase, Phase::Starting);
    }

    #[test]
    fn the_end_counts_what_is_left() {
        let apps = [app("api", A::Stopping, &[W::Stopping, W::Draining])];
        let ending = state(&apps, |facts| facts.ending = true);
        assert_eq!(
            (ending.phase, ending.status.as_str(), ending.slow),
            (Phase::Stopping, "stopping: 2 workers left", true)
        );
        assert_eq!(state(&[], |facts| facts.ending = true).status, "stopping");
    }

    #[test]
    fn many_names_are_cut() {
        let apps: Vec<AppView> = (0..8)
            .map(|n| app(&format!("a{n}"), A::Starting, &[W::Starting]))
            .collect();
        let status = state(&apps, |_| {}).status;
        assert!(
            status.starts_with("starting, waiting for a0, a1, a2, a3, a4 and 3 more: 0 of 8 apps"),
            "{status}"
        );
    }

    #[test]
    fn stopped_apps_are_not_missed() {
        let apps = [
            app("api", A::Ready, &[W::Ready]),
            app("old", A::Stopped, &[]),
        ];
        let state = state(&apps, |_| {});
        assert_eq!(
            (state.phase, state.status.as_str()),
            (Phase::Ready, "1 app ready (1 worker), 1 stopped")
        );
    }
}
