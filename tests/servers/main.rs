//! Servers as people run them, unmodified: start, restart, and reloads under load.

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code, reason = "the tests of rsup's own death use all of it")]
#[path = "../survival/supervisors.rs"]
mod supervisors;
#[path = "../lifecycle/support.rs"]
mod support;

mod port_tests;
mod python;
mod uwsgi;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::load::Load;
use common::{Home, http};

/// Servers are under load one after the other, however many tests run at a time: one that gets no time in its
/// graceful stop closes connections that it has accepted.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts `web`, which listens on 127.0.0.1, and takes it through its whole life; no connection may fail.
fn lives(home: &Home, port: u16) {
    let _turn = turn();
    let started = home.ok(&["start"]);
    eprintln!("{}{}", started.out, started.err);
    serves(port);
    let load = Load::start(port, "/");
    for _ in 0..2 {
        home.ok(&["reload", "web"]);
        load.more(200);
    }
    let before = home.pids("web");
    home.ok(&["restart", "web"]);
    assert!(home.pids("web").is_disjoint(&before));
    load.more(200);
    load.lossless();
    assert_eq!(
        home.view("web")["workers"]
            .as_array()
            .expect("workers")
            .len(),
        2
    );
    for worker in home.view("web")["workers"].as_array().expect("workers") {
        assert_eq!(
            (&worker["phase"], &worker["restarts"]),
            (&"ready".into(), &0.into()),
            "{worker:#}"
        );
    }
}

#[track_caller]
fn serves(port: u16) {
    let answer = http::get(http::local(port), "/").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
}
