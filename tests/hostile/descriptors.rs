//! The daemon runs out of descriptors.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::bystander::{Bystander, open_files, ticks};
use crate::common::{Home, signal, wait_for};
use crate::support::Life;

/// No new descriptor can have a number from `most` on.
fn limit(daemon: u32, most: usize) {
    let run = Command::new("prlimit")
        .args([format!("--pid={daemon}"), format!("--nofile={most}:")])
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
}

/// So many clients that wait for their reload of `stuck`, which does not end.
fn waiting(home: &Home, count: usize) -> Vec<UnixStream> {
    let mut spec = home.describe("stuck")["spec"].clone();
    spec["env"] = serde_json::json!({"NEVER_READY": "1"});
    spec["listen_timeout"] = serde_json::json!({"secs": 600, "nanos": 0});
    let reload = serde_json::json!({"reload": {"apps": [spec], "base_env": null, "queue": true}});
    let ask = || {
        let action = serde_json::json!({"id": fastrand::u64(..), "action": reload});
        let request = serde_json::json!({"action": action});
        let call = serde_json::json!({"version": 2, "request": request, "wait": true}).to_string();
        let mut stream = UnixStream::connect(home.rsup_home().join("run/control.sock")).unwrap();
        stream
            .write_all(&(call.len() as u32).to_be_bytes())
            .unwrap();
        stream.write_all(call.as_bytes()).unwrap();
        stream
    };
    (0..count).map(|_| ask()).collect()
}

#[test]
fn no_descriptor_is_left() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    home.web(
        "web",
        "restart = { backoff = \"50ms\", max_restarts = 100000, min_uptime = \"100ms\" }",
    );
    home.web(
        "tcp",
        "liveness = { tcp = true, interval = \"100ms\", failure_threshold = 1 }",
    );
    home.web("stuck", "");
    home.ok(&["start"]);
    let (web, tcp) = (home.pid("web"), home.pid("tcp"));
    let mut queue = waiting(&home, 1);
    home.wait_view("stuck", "its reload has begun", |v| {
        crate::common::pids(v).len() == 2
    });
    // A few more than it has, and those are soon taken.
    limit(calm.daemon(), open_files(calm.daemon()) + 10);
    queue.extend(waiting(&home, 100));
    let run = wait_for("somebody is told", || {
        let run = home.run(&["list"]);
        if run.code == 1 { Ok(run) } else { Err(run.out) }
    });
    run.says(&[
        "cannot take this call",
        "Too many open files",
        "limit of open files",
    ]);
    signal(web, Signal::SIGKILL);
    // For a while: checks cannot be made, and a worker cannot be started.
    let (began, used) = (Instant::now(), ticks(calm.daemon()));
    std::thread::sleep(Duration::from_secs(2));
    let share = (ticks(calm.daemon()) - used) as f64 / 100.0 / began.elapsed().as_secs_f64();
    assert!(
        share < 0.5,
        "the daemon spins: {:.0} % of a processor",
        100.0 * share
    );
    limit(calm.daemon(), 1024);
    home.wait_view("web", "it recovers by itself", |v| v["phase"] == "ready");
    let events = home.events("web");
    assert!(
        events.contains("Too many open files") || events.contains("limit of open files"),
        "{events}"
    );
    assert_eq!(
        home.pid("tcp"),
        tcp,
        "a check that rsup could not make is not the worker's failure"
    );
    calm.same_workers(&home);
    home.ok(&["delete", "stuck"]);
    drop(queue);
    home.ok(&["reload", "all"]);
    let log = home.daemon_log();
    let told = log.matches("cannot accept a client").count();
    assert!(
        (1..10).contains(&told),
        "it is said, and not over and over:\n{log}"
    );
    calm.load_was_lossless();
}
