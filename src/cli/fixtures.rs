//! Made-up apps for the tests of the renderers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::*;
use crate::core::*;

pub fn name(name: &str) -> AppName {
    AppName::new(name)
}

pub fn spec(app: &str) -> AppSpec {
    AppSpec {
        cwd: format!("/srv/{app}/current").into(),
        cwd_resolved: format!("/srv/{app}/releases/42").into(),
        instances: 2,
        listen: vec![Listen::Tcp {
            addr: ([0, 0, 0, 0], 3001).into(),
            v6only: false,
        }],
        env: BTreeMap::from([("NODE_ENV".into(), "production".into())]),
        readiness: Probe {
            check: Check::Http {
                path: "/readiness".into(),
                host: None,
                headers: BTreeMap::new(),
                expect_status: vec![200..=299],
            },
            interval: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            initial_delay: Duration::ZERO,
            success_threshold: 1,
            failure_threshold: 3,
        },
        max_memory: Some(500 << 20),
        stop: Stop {
            signal: 15,
            exit_codes: BTreeSet::from([0]),
        },
        reload: Reload {
            max_surge: Surge::Workers(1),
            min_ready: Duration::ZERO,
            deadline: Duration::from_secs(600),
            auto_rollback: true,
        },
        ..minimal(app, &["node", "server.js", "--title=My app"])
    }
}

pub fn worker(instance: u16, phase: WorkerPhase) -> WorkerView {
    WorkerView {
        instance,
        slot: instance,
        generation: 7,
        revision: 3,
        pid: Some(41_200 + u32::from(instance)),
        phase,
        uptime_ms: Some(273_600_000),
        restarts: 0,
        memory: Some(54_840_525),
        cpu: Some(1.25),
        next_start_ms: None,
        reason: None,
    }
}

pub fn app(app: &str, phase: AppPhase, workers: Vec<WorkerView>) -> AppView {
    AppView {
        name: name(app),
        phase,
        revision: 3,
        instances: 2,
        listen: vec!["0.0.0.0:3001".into()],
        workers,
        operation: None,
        reason: None,
        held: 0,
        relayed: 0,
    }
}

/// One app in each condition that the renderers know.
pub fn sample_views() -> Vec<AppView> {
    let api = app(
        "api",
        AppPhase::Ready,
        vec![worker(0, WorkerPhase::Ready), worker(1, WorkerPhase::Ready)],
    );
    let mut web = app(
        "web",
        AppPhase::Reloading,
        vec![
            worker(0, WorkerPhase::Draining),
            worker(1, WorkerPhase::Ready),
        ],
    );
    web.listen = vec!["[::]:8080".into(), "unix:/run/web/http.sock".into()];
    web.operation = Some(OperationView {
        kind: OperationKind::Reload,
        since_ms: 3_200,
    });
    web.workers.push(WorkerView {
        generation: 8,
        slot: 2,
        revision: 4,
        uptime_ms: Some(512),
        cpu: Some(98.0),
        memory: Some(30 << 20),
        ..worker(0, WorkerPhase::Starting)
    });
    let mut mailer = app(
        "mailer",
        AppPhase::Degraded,
        vec![worker(0, WorkerPhase::Ready)],
    );
    mailer.listen.clear();
    mailer.workers.push(WorkerView {
        pid: None,
        uptime_ms: None,
        memory: None,
        cpu: None,
        restarts: 12,
        next_start_ms: Some(6_400),
        reason: Some("exited with code 1 after 340 ms".into()),
        ..worker(1, WorkerPhase::Backoff)
    });
    let mut import = app("import", AppPhase::Errored, Vec::new());
    import.listen.clear();
    import.reason = Some("given up after 15 restarts: exited with code 127".into());
    let mut old = app("old-reports", AppPhase::Stopped, Vec::new());
    old.listen.clear();
    vec![api, web, mailer, import, old]
}

pub fn described() -> Description {
    let mut view = sample_views().swap_remove(1);
    view.relayed = 3;
    view.workers[0].restarts = 1;
    view.workers[0].reason = Some("replaced by a reload".into());
    let mut spec = spec("web");
    spec.source = Some("/srv/web/supervisor.toml".into());
    Description {
        app: view,
        spec,
        sockets: Some("by LISTEN_FDS: takeover of bind(2) is not possible here".into()),
        out_log: "/var/lib/rsup/logs/web-out.log".into(),
        err_log: "/var/lib/rsup/logs/web-err.log".into(),
        events: vec![
            PastEvent {
                age_ms: 273_600_000,
                text: "started with 2 workers".into(),
            },
            PastEvent {
                age_ms: 3_200,
                text: "reload to revision 4 began".into(),
            },
        ],
        notes: vec![
            "the kernel forbids takeover of bind here: the app must take its socket by LISTEN_FDS"
                .into(),
        ],
    }
}
