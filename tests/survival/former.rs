//! A state that the first released rsup (version 1 of the state) wrote, with workers that live: they are adopted.
//! The states were written by the build of commit 34fdbcb, with two workers of an app at rest, and in a reload
//! that waits for `min_ready`; what differs from run to run (pids, paths, times) is put in by the test.

use std::fs;

use rsup::config::AppName;
use rsup::daemon::decode_state;
use rsup::sys::sockdiag::listeners;
use serde_json::Value;

use crate::common::load::Load;
use crate::common::{Home, RSUP, is_alive, is_ready, wait_until};
use crate::supervisors::Supervisors;
use crate::support::Life;

const AT_REST: &str = include_str!("former/at-rest.json");
const IN_A_RELOAD: &str = include_str!("former/in-a-reload.json");

/// Puts the state of the former rsup in place of that of a dead one, with its workers.
fn put_in_place(home: &Home, former: &str, port: u16) {
    let path = home.rsup_home().join("run/state.json");
    let dead = decode_state(&fs::read(&path).unwrap()).unwrap();
    let text = former
        .replace("@BOOT@", &dead.boot)
        .replace("@PROGRAM@", RSUP)
        .replace(
            "@HOME@",
            home.path("").to_str().unwrap().trim_end_matches('/'),
        )
        .replace("@PORT@", &port.to_string());
    let mut state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(state["version"], 1);
    state["daemon"]["processes"] = serde_json::to_value(&dead.daemon.processes).unwrap();
    let name = AppName::new("web");
    for worker in dead.supervisor.workers(&name) {
        let slots = state["supervisor"]["apps"]["web"]["slots"]
            .as_array()
            .unwrap();
        // The same place among those that are in use.
        let used = slots.iter().enumerate().filter(|(_, slot)| !slot.is_null());
        let of = |slot: &Value| slot["revision"] == worker.revision;
        let at = used
            .filter(|(_, slot)| of(slot) && slot["instance"] == worker.instance)
            .map(|(at, _)| at)
            .next()
            .unwrap_or_else(|| panic!("no worker like {}", worker.id));
        let slot = usize::from(worker.id.slot);
        let slots = state["supervisor"]["apps"]["web"]["slots"]
            .as_array_mut()
            .unwrap();
        slots.swap(at, slot);
        slots[slot]["id"] = serde_json::to_value(&worker.id).unwrap();
        slots[slot]["pid"] = worker.pid.into();
    }
    state["supervisor"]["next_generation"] = 100.into();
    fs::write(&path, state.to_string()).unwrap();
    fs::remove_file(home.rsup_home().join("state/state.json")).unwrap();
}

#[test]
fn its_workers_are_adopted() {
    let home = Home::new();
    let port = home.web("web", "instances = 2\nenv = { WARM_MS = \"50\" }");
    home.ok(&["start"]);
    // The state has its workers in revision 2.
    home.ok(&["reload", "web"]);
    let before = home.pids("web");
    // Without load: the slot between theirs has no worker, so that this very moment may cost a request (README,
    // Limits).
    home.kill_keeper_and_daemon();
    wait_until(
        "the sockets of the slots without a worker are closed",
        || listeners(port).is_ok_and(|all| all.len() == before.len()),
    );
    let load = Load::start(port, "/");
    put_in_place(&home, AT_REST, port);
    load.more(100);
    assert_eq!(crate::common::pids(&home.list()[0]), before);
    home.wait_view("web", "ready", is_ready);
    assert_eq!(home.pids("web"), before);
    // It goes on from there, and so does the daemon after this one.
    home.kill_daemon();
    assert_eq!(home.pids("web"), before);
    home.ok(&["reload", "web"]);
    assert_eq!(home.revision("web"), 3);
    load.more(100);
    load.lossless();
    assert!(before.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn its_reload_goes_on() {
    let home = Home::new();
    let port = home.web(
        "web",
        "instances = 2\nreload.min_ready = \"60s\"\nenv = { WARM_MS = \"50\" }",
    );
    home.ok(&["start"]);
    let old = home.pids("web");
    let load = Load::start(port, "/");
    home.ok(&["reload", "web", "--no-wait"]);
    let view = home.wait_view("web", "the first new worker", |view| {
        let workers = view["workers"].as_array().unwrap();
        workers.len() == 3 && workers.iter().all(|worker| worker["phase"] == "ready")
    });
    let new: Vec<u32> = crate::common::pids(&view)
        .difference(&old)
        .copied()
        .collect();
    home.kill_keeper_and_daemon();
    put_in_place(&home, IN_A_RELOAD, port);
    load.more(100);
    home.list();
    assert!(
        home.daemon_log()
            .contains("3 of 3 workers of an earlier daemon are adopted"),
        "{}",
        home.daemon_log()
    );
    // There, `min_ready` is over.
    home.wait_view("web", "the end of the reload", |view| {
        is_ready(view) && view["revision"] == 2 && view["operation"].is_null()
    });
    let after = home.pids("web");
    assert!(after.contains(&new[0]), "{new:?} {after:?}");
    assert!(after.is_disjoint(&old));
    load.more(100);
    load.lossless();
}
