//! A daemon that runs for months keeps what it needs and nothing more.

use std::fs;

use nix::sys::signal::Signal;

use crate::common::{Home, is_ready, signal, wait_until};
use crate::support::Life;

/// After a look at all apps, since the files that memory is read from stay open until the next look.
fn fds(home: &Home, daemon: u32) -> usize {
    home.list();
    fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count()
}

fn threads(daemon: u32) -> usize {
    fs::read_dir(format!("/proc/{daemon}/task"))
        .unwrap()
        .count()
}

#[test]
fn nothing_is_left_of_reloads_and_crashes() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.write("app", "exec sleep 1000\n");
    home.app("many", "command = [\"sh\", \"-c\", \"exec sleep 1000\"]\nrestart = { min_uptime = \"1ms\", backoff = \"1ms\", backoff_max = \"1ms\" }\ninstances = 20");
    home.app(
        "crash",
        "command = [\"sh\", \"app\"]\nrestart = { min_uptime = \"1ms\", max_restarts = 100000, backoff = \"1ms\", backoff_max = \"1ms\" }\n",
    );
    home.ok(&["start"]);
    let daemon = home.daemon();
    // Whatever is made on first use is made.
    home.ok(&["reload", "all"]);
    let (fds_before, threads_before) = (fds(&home, daemon), threads(daemon));
    for _ in 0..10 {
        home.ok(&["reload", "web"]);
    }
    wait_until(&format!("{fds_before} descriptors"), || {
        fds(&home, daemon) == fds_before
    });
    for _ in 0..3 {
        home.ok(&["reload", "many"]);
    }
    wait_until(
        &format!("{fds_before} descriptors after more reloads"),
        || fds(&home, daemon) == fds_before,
    );
    for _ in 0..50 {
        let old = home.pid("crash");
        signal(old, Signal::SIGKILL);
        home.wait_view("crash", "the next worker", |v| {
            is_ready(v) && !crate::common::pids(v).contains(&old)
        });
    }
    wait_until(&format!("{fds_before} descriptors after crashes"), || {
        fds(&home, daemon) == fds_before
    });
    assert_eq!(threads(daemon), threads_before);
    assert_eq!(home.pids("many").len(), 20);
}

#[test]
fn no_notification_socket_is_left() {
    let home = Home::new();
    home.write("app", "exec sleep 1000\n");
    let keys = "readiness = { notify = true }\nlisten_timeout = \"100ms\"\nrestart = { max_restarts = 3, backoff = \"1ms\", backoff_max = \"1ms\" }";
    home.app("job", &format!("command = [\"sh\", \"app\"]\n{keys}"));
    home.run(&["start"]).code(1).says(&["listen_timeout"]);
    home.wait_view("job", "it is given up", |v| v["phase"] == "errored");
    let sockets = || {
        let names = fs::read_dir(home.rsup_home().join("run"))
            .unwrap()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned());
        names
            .filter(|n| n.starts_with("notify"))
            .collect::<Vec<_>>()
    };
    assert_eq!(sockets(), Vec::<String>::new());
}
