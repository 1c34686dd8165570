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

use std::sync::{Condvar, Mutex, PoisonError};

use common::load::Load;
use common::{Home, http};

/// Servers under load at this moment.
static LOADED: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// One of [`LOADED`].
struct Turn;

impl Turn {
    /// Waits while servers are under load for half of the processors, however many tests run at a time: a server
    /// that gets no time in its graceful stop closes connections that it has accepted.
    fn wait() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let most = (processors / 2).max(1);
        let loaded = LOADED.0.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = LOADED.1.wait_while(loaded, |loaded| *loaded >= most);
        *loaded.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *LOADED.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LOADED.1.notify_one();
    }
}

/// Starts `web`, which listens on 127.0.0.1, and takes it through its whole life; no connection may fail.
fn lives(home: &Home, port: u16) {
    let _turn = Turn::wait();
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
