//! A daemon that is killed before a command has heard that it was accepted.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Home, is_ready, pids, signal};
use crate::support::Life;

/// The daemon dies within the first 20 ms of a command, `times` times.
fn killed_early(home: &Home, args: &[&str], times: u32, judge: impl Fn(u32, crate::common::Run)) {
    for time in 0..times {
        let daemon = home.daemon();
        let run = home.background(args);
        // A spread of moments, not a wait.
        let moment = Instant::now() + Duration::from_micros(u64::from(20_000 * time / times));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        signal(daemon, Signal::SIGKILL);
        judge(time, run.wait());
    }
}

#[test]
fn a_reload_is_done_once_and_its_exit_code_is_the_truth() {
    let home = Home::new();
    home.web("web", "instances = 1\nlisten_timeout = \"5s\"");
    home.ok(&["start"]);
    let revision = std::cell::Cell::new(1);
    killed_early(&home, &["reload", "web"], 24, |time, run| {
        let now = home.wait_view("web", "ready", is_ready)["revision"]
            .as_u64()
            .unwrap();
        match run.code {
            0 => assert_eq!(now, revision.get() + 1, "{time}: {run:?}"),
            // A reload that fails says why, and changes nothing.
            1 => {
                assert_eq!(now, revision.get(), "{time}: {run:?}");
                assert!(run.err.contains("listen_timeout"), "{time}: {run:?}");
            }
            code => panic!("{time}: {code}: {run:?}"),
        }
        revision.set(now);
    });
}

#[test]
fn a_scale_by_one_is_done_once() {
    let home = Home::new();
    home.app("job", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    let workers = std::cell::Cell::new(1);
    killed_early(&home, &["scale", "job", "+1"], 12, |time, run| {
        assert_eq!(run.code, 0, "{time}: {run:?}");
        workers.set(workers.get() + 1);
        let view = home.wait_view("job", "ready", is_ready);
        assert_eq!(pids(&view).len(), workers.get(), "{time}: {run:?}");
    });
}

#[test]
fn a_delete_of_several_says_what_became_of_each() {
    let home = Home::new();
    for time in 0..6 {
        for app in ["a", "b", "c"] {
            home.app(app, "command = [\"sleep\", \"1000\"]");
        }
        home.ok(&["start"]);
        killed_early(&home, &["delete", "all"], 1, |_, run| {
            assert_eq!(run.code, 0, "{time}: {run:?}");
            assert_eq!(run.out.matches("deleted").count(), 3, "{time}: {run:?}");
            assert_eq!(home.list().as_array().unwrap().len(), 0);
        });
        std::fs::remove_file(home.path("supervisor.toml")).unwrap();
    }
}
