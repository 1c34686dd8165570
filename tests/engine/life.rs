//! What holds of the example's app in every kind of container.

use std::time::Duration;

use crate::common::load::assert_lossless;
use crate::container::{Container, PORT};

/// More than the example's app takes to end.
const ENOUGH: u32 = 30;

/// From the first start to a second one's end: ready, listed, reloaded twice under load, a worker killed, stopped,
/// started again.
#[track_caller]
pub fn live(container: &Container, uid: u32) {
    live_at(container, uid, PORT);
}

#[track_caller]
pub fn live_at(container: &Container, uid: u32, port: u16) {
    container.wait_ready("api");
    assert_eq!(container.get_at(port, "/").json()["uid"], uid);
    let list = container.rsup(&["list"]).out;
    assert!(list.contains("api") && list.contains("ready"), "{list}");

    reloads(container, port);
    a_killed_worker_is_replaced(container, port);

    stops_well(container);
    container.docker(&["start"]);
    container.wait_ready("api");
    assert_eq!(container.get_at(port, "/").json()["uid"], uid);
    reloads(container, port);
    stops_well(container);
}

/// By a command and by SIGHUP, and no request fails.
#[track_caller]
pub fn reloads(container: &Container, port: u16) {
    let load = container.load(port, "/");
    for by_signal in [false, true] {
        let before = container.pids("api");
        let told = container.log().matches("api is reloaded").count();
        if by_signal {
            container.docker(&["kill", "--signal", "HUP"]);
            container.wait_logged("api is reloaded", told + 1);
        } else {
            container.rsup(&["reload", "api"]);
        }
        let after = container.wait_ready("api");
        assert!(
            crate::common::pids(&after).is_disjoint(&before),
            "{before:?} {after}"
        );
        load.more(100);
    }
    load.lossless();
}

/// No more requests fail than the killed worker may have accepted, and none afterwards.
#[track_caller]
fn a_killed_worker_is_replaced(container: &Container, port: u16) {
    let before = container.pids("api");
    let victim = *before.first().expect("a worker");
    let load = container.load(port, "/");
    let killed = container.exec(&["node", "-e", &format!("process.kill({victim}, 'SIGKILL')")]);
    // Root without its capabilities may not send signals to other users; rsup's own way to do it is no better then.
    assert_eq!(killed.code, 0, "{}", killed.err);
    container.wait_view("api", "a successor", |view| {
        let now = crate::common::pids(view);
        crate::common::is_ready(view) && now.len() == before.len() && !now.contains(&victim)
    });
    load.more(100);
    let report = load.stop();
    assert!(
        report.failed <= 20,
        "{:?}",
        crate::common::load::kinds(&report)
    );
    let load = container.load(port, "/");
    load.more(100);
    assert_lossless(&load.stop());
}

/// Exit code 0, long before the time is over.
#[track_caller]
pub fn stops_well(container: &Container) {
    let (code, took) = container.stop(ENOUGH);
    assert_eq!(code, 0, "{}", container.log());
    assert!(
        took < Duration::from_secs(u64::from(ENOUGH)) / 2,
        "{took:?}\n{}",
        container.log()
    );
}
