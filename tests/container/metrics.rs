//! `/metrics` while things happen.

use crate::common::{Home, signal, wait_for};
use crate::exposition::Exposition;
use crate::support::{admin, edit, page, web};
use nix::sys::signal::Signal;

fn scrape(address: std::net::SocketAddr) -> Exposition {
    let answer = page(address, "/metrics");
    assert_eq!(answer.status, 200);
    Exposition::parse(&answer.body)
}

#[test]
fn they_tell_what_happens_to_apps_and_no_secrets() {
    let home = Home::new();
    web(
        &home,
        "web",
        "instances = 2\nenv = { SECRET = \"hunter2\" }",
    );
    let address = admin(&home);
    home.ok(&["start"]);
    let first = scrape(address);
    assert_eq!(first.get("rsup_up", &[]), Some(1.0));
    assert_eq!(
        first.get("rsup_build_info", &[("version", env!("CARGO_PKG_VERSION"))]),
        Some(1.0)
    );
    assert_eq!(
        first.get("rsup_app_instances", &[("app", "web")]),
        Some(2.0)
    );
    assert_eq!(
        first.get("rsup_app_workers", &[("app", "web"), ("phase", "ready")]),
        Some(2.0)
    );
    assert_eq!(first.count("rsup_app_workers"), 10);
    assert_eq!(
        first.get(
            "rsup_worker_restarts_total",
            &[("app", "web"), ("worker", "1")]
        ),
        Some(0.0)
    );
    assert!(
        first
            .get(
                "rsup_worker_memory_bytes",
                &[("app", "web"), ("worker", "0")]
            )
            .unwrap()
            > 1e6
    );
    assert!(
        first
            .get(
                "rsup_worker_cpu_seconds_total",
                &[("app", "web"), ("worker", "0")]
            )
            .is_some()
    );
    assert_eq!(
        first.get("rsup_app_relayed_connections_total", &[("app", "web")]),
        Some(0.0)
    );
    assert_eq!(
        first.get("rsup_log_lost_bytes_total", &[("sink", "files")]),
        Some(0.0)
    );
    assert!(first.get("rsup_log_lines_total", &[]).unwrap() >= 2.0);
    assert!(first.get("process_resident_memory_bytes", &[]).unwrap() > 1e6);
    assert_eq!(first.types["rsup_worker_restarts"], "counter");

    home.ok(&["reload", "web"]);
    edit(&home, "hunter2\"", "hunter2\", NEVER_READY = \"1\"");
    edit(
        &home,
        "instances = 2",
        "instances = 2\nlisten_timeout = \"1s\"",
    );
    home.run(&["reload", "web"]).code(1);
    let of = |result| [("app", "web"), ("result", result)];
    wait_for("both reloads are counted", || {
        let seen = scrape(address);
        let counts =
            ["succeeded", "failed"].map(|result| seen.get("rsup_reloads_total", &of(result)));
        if counts == [Some(1.0), Some(1.0)] {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    });
    let victim = home.view("web")["workers"][0]["pid"].as_u64().unwrap() as u32;
    signal(victim, Signal::SIGKILL);
    wait_for("the restart is counted", || {
        let restarts = scrape(address).get(
            "rsup_worker_restarts_total",
            &[("app", "web"), ("worker", "0")],
        );
        if restarts == Some(1.0) {
            Ok(())
        } else {
            Err(format!("{restarts:?}"))
        }
    });
    for path in ["/metrics", "/readiness", "/health", "/liveness"] {
        let body = page(address, path).body;
        assert!(
            !body.contains("hunter2") && !body.contains("SECRET"),
            "{body}"
        );
    }
    home.ok(&["delete", "web"]);
    wait_for("a deleted app is gone from them", || {
        let seen = scrape(address);
        let left = seen.count("rsup_app_instances")
            + seen.count("rsup_reloads_total")
            + seen.count("rsup_worker_memory_bytes");
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} samples"))
        }
    });
}

#[test]
fn an_app_without_a_worker_and_one_in_the_midst_of_a_reload_are_told_as_well() {
    let home = Home::new();
    web(&home, "web", "instances = 3\nenv = { WARM_MS = \"300\" }");
    let address = admin(&home);
    home.ok(&["start"]);
    let reload = home.background(&["reload", "web"]);
    // Old and new workers of an instance live at the same time: no sample may be there twice.
    let ended = wait_for("the end of the reload", || {
        scrape(address);
        reload.ended().ok_or("not yet")
    });
    ended.ok();
    home.ok(&["stop", "web"]);
    wait_for("no worker is left", || {
        let seen = scrape(address);
        let left: f64 = ["ready", "draining", "stopping"]
            .iter()
            .filter_map(|phase| seen.get("rsup_app_workers", &[("app", "web"), ("phase", phase)]))
            .sum();
        if left == 0.0 {
            Ok(())
        } else {
            Err(left.to_string())
        }
    });
}

#[test]
fn the_content_type_is_the_one_that_was_asked_for() {
    use std::io::{Read, Write};
    let home = Home::new();
    web(&home, "web", "");
    let address = admin(&home);
    home.ok(&["start"]);
    let ask = |accept: &str| {
        let mut stream = crate::common::http::connect(address).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("*/*").contains("content-type: text/plain; version=0.0.4"));
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    assert!(ask(prometheus).contains("content-type: application/openmetrics-text; version=1.0.0"));
}
