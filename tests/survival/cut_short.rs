//! A stop of everything that death cuts short: the next start is one all the same.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Home, is_ready, signal, wait_until};
use crate::supervisors::Supervisors;
use crate::support::Life;

/// `stubborn` does not end when it is told to, `calm` does, `idle` is stopped by its operator.
fn three(home: &Home) {
    home.web(
        "stubborn",
        "instances = 2\nkill_timeout = \"1h\"\nenv = { IGNORE_SIGTERM = \"1\" }",
    );
    home.app("calm", "command = [\"sleep\", \"1000\"]");
    home.app("idle", "command = [\"sleep\", \"1000\"]");
}

fn told(home: &Home) {
    home.wait_log("stubborn", "SIGTERM: ignored");
    wait_until("the other has ended", || {
        home.view("calm")["phase"] == "stopped"
    });
}

/// As a power cut does it, but within one boot.
fn kill_all(home: &Home) {
    wait_until("nobody is left", || {
        let left = home.processes();
        // Stopped first: a daemon that sees its last worker die comes to its end by itself.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for (pid, _) in &left {
                let _ = kill(Pid::from_raw(*pid as i32), signal);
            }
        }
        left.is_empty()
    });
    assert!(
        home.rsup_home().join("run/state.json").exists(),
        "it was cut short"
    );
}

fn obedient(home: &Home) {
    let text = std::fs::read_to_string(home.path("supervisor.toml")).unwrap();
    home.config(&text.replace("kill_timeout = \"1h\"", "kill_timeout = \"1s\""));
}

fn end(home: &Home) {
    for pid in home.pids("stubborn") {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

fn up(home: &Home) {
    three(home);
    home.ok(&["start"]);
    home.ok(&["stop", "idle"]);
}

#[test]
fn after_a_signal_apps_are_what_they_were() {
    let home = Home::new();
    up(&home);
    signal(home.daemon(), Signal::SIGTERM);
    told(&home);
    kill_all(&home);
    home.ok(&["start", "stubborn"]);
    home.wait_view("stubborn", "ready", is_ready);
    home.wait_view("calm", "ready", is_ready);
    assert_eq!(home.view("idle")["phase"], "stopped");
    kill_again(&home);
}

/// Ends what would take an hour.
fn kill_again(home: &Home) {
    let kill = home.background(&["kill"]);
    wait_until("all is being stopped", || {
        home.view("calm")["phase"] == "stopped"
    });
    end(home);
    kill.wait().ok();
}

#[test]
fn with_the_workers_left_alone_too() {
    let home = Home::new();
    up(&home);
    let before = home.pids("stubborn");
    signal(home.daemon(), Signal::SIGTERM);
    told(&home);
    home.kill_keeper_and_daemon();
    home.ok(&["start", "calm"]);
    // Those that were told end, sooner or later; as far as there is room, the next ones do not wait for it.
    let view = home.wait_view("stubborn", "served again", |v| {
        v["workers"].to_string().contains("\"ready\"")
    });
    assert!(crate::common::pids(&view).is_superset(&before), "{view:#}");
    before.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    home.wait_view("stubborn", "ready", is_ready);
    kill_again(&home);
}

/// Who only asks starts nothing, and is not kept waiting.
#[test]
fn a_question_ends_the_stop_and_a_start_comes_after() {
    let home = Home::new();
    up(&home);
    signal(home.daemon(), Signal::SIGTERM);
    told(&home);
    kill_all(&home);
    let began = Instant::now();
    home.ok(&["list"]).says(&["no daemon runs"]);
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    wait_until("nobody is there", || home.processes().is_empty());
    home.run(&["ping"]).code(1).says(&["no daemon runs"]);
    home.ok(&["start"]);
    home.wait_view("stubborn", "ready", is_ready);
    home.wait_view("calm", "ready", is_ready);
    kill_again(&home);
}

#[test]
fn after_rsup_kill_they_stay_stopped_but_for_what_is_started() {
    let home = Home::new();
    up(&home);
    let mut killing = home
        .rsup()
        .arg("kill")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    told(&home);
    // First, or it would start a daemon that goes on with the stop.
    killing.kill().unwrap();
    killing.wait().unwrap();
    kill_all(&home);
    home.ok(&["start", "supervisor.toml", "--only", "calm"]);
    home.wait_view("calm", "ready", is_ready);
    for app in ["stubborn", "idle"] {
        home.wait_view(app, "stopped", |view| view["phase"] == "stopped");
    }
    obedient(&home);
    home.ok(&["start"]);
    for app in ["stubborn", "calm", "idle"] {
        home.wait_view(app, "ready", is_ready);
    }
}

/// Nobody asks for a start: the keeper's next daemon goes on with the stop.
#[test]
fn a_keeper_starts_none_but_one_that_goes_on_stopping() {
    let home = Home::new();
    up(&home);
    let killing = home.background(&["kill"]);
    told(&home);
    let before = home.daemon();
    signal(before, Signal::SIGKILL);
    wait_until("the next daemon", || home.daemon() != before);
    assert_eq!(home.view("calm")["phase"], "stopped");
    end(&home);
    killing.wait().ok().says(&["every app is stopped"]);
    wait_until("nobody is there", || home.processes().is_empty());
}

fn service(home: &Home) -> Child {
    let mut command = home.rsup();
    command
        .args(["daemon", "--service"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().unwrap();
    wait_until("the service answers", || home.run(&["ping"]).code == 0);
    child
}

#[test]
fn a_service_starts_again_what_was_there() {
    let home = Home::new();
    three(&home);
    let mut first = service(&home);
    home.ok(&["start"]);
    home.ok(&["stop", "idle"]);
    signal(first.id(), Signal::SIGTERM);
    told(&home);
    // As systemd does it after TimeoutStopSec=.
    signal(first.id(), Signal::SIGKILL);
    first.wait().unwrap();
    kill_all(&home);
    let mut second = service(&home);
    home.wait_view("stubborn", "ready", is_ready);
    home.wait_view("calm", "ready", is_ready);
    assert_eq!(home.view("idle")["phase"], "stopped");
    kill_again(&home);
    second.wait().unwrap();
}
