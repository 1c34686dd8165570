//! Apps with a single worker, restarts, and crashes under load.

use std::time::Duration;

use nix::sys::signal::Signal;
use rsup::load::Report;

use crate::common::load::{Load, kinds};
use crate::common::{Home, apps, http, is_ready, pids, signal};

fn site(instances: u16) -> (Home, u16) {
    let home = Home::new();
    let port = home.port();
    let lines = "readiness = \"/readiness\"\nenv = { WARM_MS = \"100\" }\nrestart = { min_uptime = \"0s\", backoff = \"10ms\" }";
    home.config(&format!(
        "[app.web]\n{}\ninstances = {instances}\nlisten = \"127.0.0.1:{port}\"\n{lines}\n",
        apps::sample()
    ));
    home.ok(&["start"]);
    (home, port)
}

#[test]
fn reload_of_a_single_worker() {
    let (home, port) = site(1);
    let load = Load::start(port, "/health");
    for _ in 0..3 {
        let before = home.pids("web");
        home.ok(&["reload", "web"]);
        let after = home.pids("web");
        assert!(after.len() == 1 && after.is_disjoint(&before));
    }
    load.lossless();
}

/// All workers go before the first new one comes: connections wait, none is refused.
#[test]
fn restart() {
    for instances in [1, 3] {
        let (home, port) = site(instances);
        let load = Load::start(port, "/health");
        for _ in 0..2 {
            let before = home.pids("web");
            home.ok(&["restart", "web"]);
            let view = home.view("web");
            assert!(
                is_ready(&view) && pids(&view).is_disjoint(&before),
                "{view:#}"
            );
        }
        load.more(100);
        load.lossless();
    }
}

/// Requests of a second each are under way while their worker is told to stop.
#[test]
fn slow_requests_are_finished() {
    let (home, port) = site(2);
    let load = Load::start(port, "/slow?ms=1000");
    for _ in 0..3 {
        home.ok(&["reload", "web"]);
    }
    home.ok(&["restart", "web"]);
    load.lossless();
}

/// No connection was refused, and none reset before it was accepted.
fn only_what_was_accepted(report: &Report) {
    let kinds = kinds(report);
    eprintln!(
        "{} of {} requests failed: {kinds:?}",
        report.failed, report.requests
    );
    let accepted = |(kind, _): &(String, u64)| kind == "read" || kind == "closed";
    assert!(
        kinds.iter().all(accepted),
        "{kinds:?}: {:#?}",
        report.failures
    );
}

/// What the killed worker had accepted is lost; nothing else is.
#[test]
fn kill_minus_nine() {
    const KILLS: u64 = 6;
    let (home, port) = site(3);
    let load = Load::start(port, "/health");
    let mut in_flight = 0;
    for round in 0..KILLS {
        let view = home.wait_view("web", "all workers ready", is_ready);
        let all: Vec<u32> = pids(&view).into_iter().collect();
        let victim = all[round as usize % all.len()];
        in_flight += load.snapshot().in_flight.max(1);
        signal(victim, Signal::SIGKILL);
        home.wait_view("web", "its successor", |view| {
            is_ready(view) && !pids(view).contains(&victim)
        });
        load.more(200);
    }
    let report = load.stop();
    only_what_was_accepted(&report);
    // A client has one request at a time, and the workers share them.
    assert!(
        report.failed <= KILLS * 20,
        "{} failed, {in_flight} were in flight",
        report.failed
    );
    assert_eq!(
        home.view("web")["workers"]
            .as_array()
            .expect("workers")
            .iter()
            .filter_map(|w| w["restarts"].as_u64())
            .sum::<u64>(),
        KILLS
    );
}

/// All of them at once: who comes then waits for the successors.
#[test]
fn everybody_dies() {
    let (home, port) = site(2);
    let load = Load::start(port, "/health");
    for _ in 0..3 {
        let before = home.pids("web");
        for pid in &before {
            signal(*pid, Signal::SIGKILL);
        }
        home.wait_view("web", "successors", |view| {
            is_ready(view) && pids(view).is_disjoint(&before)
        });
        load.more(200);
    }
    let report = load.stop();
    only_what_was_accepted(&report);
    assert!(report.failed <= 3 * 20, "{} failed", report.failed);
}

/// A request that comes while nobody is there is answered by the successor.
#[test]
fn connections_wait_for_the_only_worker() {
    let (home, port) = site(1);
    let victim = home.pids("web").into_iter().next().expect("a worker");
    signal(victim, Signal::SIGKILL);
    let answer = http::get(http::local(port), "/health").expect("an answer");
    assert_ne!(answer.pid(), victim);
    let load = Load::start(port, "/health");
    home.ok(&["restart", "web"]);
    let report = load.lossless();
    assert!(
        report
            .before
            .max_us
            .is_some_and(|us| Duration::from_micros(us) > Duration::from_millis(50)),
        "some had to wait"
    );
}
