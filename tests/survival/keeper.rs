//! `kill -9` of the keeper.

use nix::sys::signal::Signal;

use crate::common::load::Load;
use crate::common::{Home, is_alive, is_ready, signal, wait_until};
use crate::supervisors::Supervisors;
use crate::support::Life;

#[test]
fn the_daemon_makes_another_which_does_the_same() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    for _ in 0..3 {
        let daemon = home.daemon();
        let keeper = home.keeper();
        signal(keeper, Signal::SIGKILL);
        wait_until("its end", || !is_alive(keeper));
        wait_until("another keeper", || {
            home.processes().iter().any(|(pid, what)| *pid != keeper && what.trim_end().ends_with(" keeper"))
        });
        assert_eq!(home.daemon(), daemon);
        // It knows everything, as the death of the daemon shows.
        home.kill_daemon();
        load.more(100);
        let view = home.wait_view("web", "the same workers", is_ready);
        assert_eq!(crate::common::pids(&view), before);
    }
    home.ok(&["reload", "web"]);
    load.more(100);
    load.lossless();
    home.ok(&["kill"]);
    wait_until("the end of all", || home.processes().is_empty());
}

#[test]
fn a_keeper_that_stands_still_holds_up_nobody() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let load = Load::start(port, "/");
    let keeper = home.keeper();
    signal(keeper, Signal::SIGSTOP);
    for _ in 0..5 {
        home.ok(&["reload", "web"]);
    }
    home.ok(&["scale", "web", "8"]);
    signal(keeper, Signal::SIGCONT);
    home.kill_daemon();
    home.wait_view("web", "eight workers", is_ready);
    assert_eq!(home.pids("web").len(), 8);
    load.more(100);
    load.lossless();
}

#[test]
fn sigterm_to_the_keeper_stops_everything_gracefully() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.ok(&["start"]);
    signal(home.keeper(), Signal::SIGTERM);
    wait_until("the end of all", || home.processes().is_empty());
    assert!(home.daemon_log().contains("told to stop"), "{}", home.daemon_log());
}

#[test]
fn a_daemon_that_cannot_begin_is_reported_and_leaves_no_keeper() {
    let home = Home::new();
    home.app("web", "command = [\"sleep\", \"1000\"]");
    // The control socket's place is taken by a folder that cannot be removed as a file.
    std::fs::create_dir_all(home.rsup_home().join("run/control.sock/in/the/way")).unwrap();
    for folder in ["", "run", "state"] {
        use std::os::unix::fs::PermissionsExt;
        let path = home.rsup_home().join(folder);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    home.run(&["start"]).code(1).says(&["control.sock"]);
    wait_until("nobody is left", || home.processes().is_empty());
    std::fs::remove_dir_all(home.rsup_home()).unwrap();
}
