//! Nothing is left behind, and nobody is killed who would have ended by himself.

use std::fs;
use std::time::Duration;

use crate::common::apps::toml_command;
use nix::sys::signal::Signal;

use crate::common::{Home, RSUP, is_alive, signal, wait_until};
use crate::support::{Life, all_gone};

#[test]
fn a_stop_is_graceful() {
    let home = Home::new();
    home.web("web", "kill_timeout = \"60s\"");
    home.ok(&["start"]);
    let pid = home.pid("web");
    home.ok(&["stop", "web"]);
    assert!(!is_alive(pid));
    // The log thread may be a moment behind.
    home.wait_log("web", ": done");
    let log = home.log("web-out");
    assert!(
        log.contains("SIGTERM: no new connections") && log.trim_end().ends_with("done"),
        "{log}"
    );
    let events = home.events("web");
    assert!(
        events.contains("exited with code 0") && !events.contains("kill"),
        "{events}"
    );
}

#[test]
fn what_ignores_the_signal_is_killed_after_kill_timeout() {
    let home = Home::new();
    home.web(
        "web",
        "kill_timeout = \"300ms\"\nenv = { IGNORE_SIGTERM = \"1\" }",
    );
    home.ok(&["start"]);
    let pid = home.pid("web");
    let run = home.ok(&["stop", "web"]);
    assert!(run.took >= Duration::from_millis(300));
    assert!(!is_alive(pid));
    assert!(home.log("web-out").contains("SIGTERM: ignored"));
    let events = home.events("web");
    assert!(
        events.contains("had not ended within kill_timeout 300 ms")
            && events.contains("killed by SIGKILL"),
        "{events}"
    );
    assert!(home.daemon_log().contains("kill_timeout 300 ms"));
}

#[test]
fn another_stop_signal() {
    let home = Home::new();
    home.write(
        "app",
        "trap 'echo got-int; exit 0' INT\ntrap 'echo got-term; exit 0' TERM\necho up\nwhile :; do sleep 0.05; done\n",
    );
    home.app(
        "job",
        "command = [\"sh\", \"app\"]\nkill_timeout = \"30s\"\nrestart.min_uptime = \"100ms\"\nstop.signal = \"SIGINT\"",
    );
    home.ok(&["start"]);
    home.wait_log("job", "up");
    home.ok(&["stop", "job"]);
    let log = home.log("job-out");
    assert!(
        log.contains("got-int") && !log.contains("got-term"),
        "{log}"
    );
}

/// A family with every kind of relation that hides from its supervisor. Each member writes its pid.
const FAMILY: &str = r#"
echo $$ >> pids
# In the worker's group.
sh -c 'echo $$ >> pids; exec sleep 1000' &
# In a session of its own.
setsid sh -c 'echo $$ >> pids; exec sleep 1000' &
# Forked twice, as daemons do.
(setsid sh -c 'echo $$ >> pids; exec sleep 1000' > /dev/null 2>&1 &) &
# Forked twice, with an empty environment.
(env -i setsid sh -c 'echo $$ >> pids; exec sleep 1000' &) &
# It cares for no signal, and has a child that does not either.
sh -c 'trap "" TERM HUP INT; echo $$ >> pids; sleep 1000 & echo $! >> pids; wait' &
while [ "$(wc -l < pids)" -lt 7 ]; do sleep 0.02; done
"#;

const MEMBERS: usize = 7;

fn start_family(home: &Home, then: &str) {
    home.write("family", &format!("{FAMILY}\n{then}\n"));
    let restart = "restart = { min_uptime = \"1ms\", backoff = \"1h\", backoff_max = \"1h\" }";
    home.app(
        "family",
        &format!("command = [\"sh\", \"family\"]\nkill_timeout = \"400ms\"\n{restart}"),
    );
    home.ok(&["start"]);
}

fn members(home: &Home) -> Vec<u32> {
    let mut pids = Vec::new();
    wait_until("the family is complete", || {
        pids = fs::read_to_string(home.path("pids"))
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.parse().ok())
            .collect();
        pids.len() == MEMBERS
    });
    pids
}

#[test]
fn a_stop_leaves_nobody_of_the_tree() {
    let home = Home::new();
    start_family(&home, "wait");
    let pids = members(&home);
    home.ok(&["stop", "family"]);
    all_gone(&pids);
}

#[test]
fn the_end_of_the_daemon_leaves_nobody_of_the_tree() {
    let home = Home::new();
    start_family(&home, "wait");
    let pids = members(&home);
    let daemon = home.daemon();
    home.ok(&["kill"]);
    all_gone(&pids);
    wait_until("the daemon has ended", || !is_alive(daemon));
}

#[test]
fn a_crash_leaves_nobody_of_the_tree() {
    let home = Home::new();
    start_family(
        &home,
        "while [ ! -e crash ]; do sleep 0.02; done\nmv pids old; rm crash; kill -SEGV $$",
    );
    let old = members(&home);
    home.write("crash", "");
    wait_until("the tree of the crashed worker is gone", || {
        old.iter().all(|pid| !is_alive(*pid))
    });
    let new = members(&home);
    assert!(new.iter().all(|pid| is_alive(*pid)));
    let events = home.events("family");
    assert!(events.contains("killed by SIGSEGV"), "{events}");
    home.ok(&["delete", "family"]);
    all_gone(&new);
}

#[test]
fn a_reload_leaves_nobody_of_the_old_tree() {
    let home = Home::new();
    start_family(&home, "wait");
    let old = members(&home);
    fs::rename(home.path("pids"), home.path("old")).unwrap();
    home.ok(&["reload", "family"]);
    all_gone(&old);
    let new = members(&home);
    assert!(new.iter().all(|pid| is_alive(*pid)));
    home.ok(&["stop", "family"]);
    all_gone(&new);
}

#[test]
fn a_worker_that_ends_well_leaves_nobody_either() {
    let home = Home::new();
    home.write("family", &format!("{FAMILY}\nexit 0"));
    home.app(
        "family",
        "command = [\"sh\", \"family\"]\nrestart = { policy = \"never\", min_uptime = \"1ms\" }\nkill_timeout = \"400ms\"",
    );
    // It may be over before it counts as ready.
    home.run(&["start"]);
    let pids = members(&home);
    wait_until("its tree is gone", || {
        pids.iter().all(|pid| !is_alive(*pid))
    });
}

#[test]
fn a_grandchild_has_time_to_end_well() {
    let home = Home::new();
    // The shell dies of the signal at once; its child needs a while.
    home.write("child", "trap 'sleep 0.7; echo child-done; exit 0' TERM\necho child-up\nwhile :; do sleep 0.05; done\n");
    home.write("app", "sh child\necho never\n");
    home.app(
        "job",
        "command = [\"sh\", \"app\"]\nkill_timeout = \"50s\"\nrestart.min_uptime = \"100ms\"",
    );
    home.ok(&["start"]);
    home.wait_log("job", "child-up");
    let run = home.ok(&["stop", "job"]);
    assert!(run.took < Duration::from_secs(40), "{run:?}");
    let log = home.log("job-out");
    assert!(
        log.contains("child-done") && !log.contains("never"),
        "{log}"
    );
}

#[test]
fn a_web_app_behind_a_shell_is_stopped_gracefully() {
    let home = Home::new();
    let command = toml_command(&["sh", "-c", "\"$0\" sample-app; echo over", RSUP]);
    home.app(
        "web",
        &format!(
            "{command}\nlisten = {}\nreadiness = \"/readiness\"\nkill_timeout = \"50s\"",
            home.port()
        ),
    );
    home.ok(&["start"]);
    let run = home.ok(&["stop", "web"]);
    assert!(run.took < Duration::from_secs(40), "{run:?}");
    let log = home.log("web-out");
    assert!(log.trim_end().ends_with("done"), "{log}");
}

#[test]
fn the_end_of_the_daemon_takes_those_that_have_shed_every_mark() {
    let home = Home::new();
    home.write("app", "(env -i setsid sh -c 'echo $$ > orphan; exec sleep 1000' > /dev/null 2>&1 &) &\nexec sleep 1000\n");
    home.app(
        "job",
        "command = [\"sh\", \"app\"]\nrestart.min_uptime = \"20ms\"",
    );
    home.ok(&["start"]);
    let orphan = || {
        fs::read_to_string(home.path("orphan"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    wait_until("the orphan is there", || orphan().is_some_and(is_alive));
    let daemon = home.daemon();
    home.ok(&["kill"]);
    wait_until("the daemon has ended", || !is_alive(daemon));
    all_gone(&[orphan().unwrap()]);
}

#[test]
fn a_frozen_worker_is_killed() {
    let home = Home::new();
    home.web("web", "kill_timeout = \"300ms\"");
    home.ok(&["start"]);
    let pid = home.pid("web");
    signal(pid, Signal::SIGSTOP);
    home.ok(&["stop", "web"]);
    assert!(!is_alive(pid));
}

#[test]
fn a_stop_ends_a_start_that_does_not_get_there() {
    let home = Home::new();
    home.web(
        "web",
        "listen_timeout = \"1h\"\nenv = { NEVER_READY = \"1\" }",
    );
    let start = home.background(&["start"]);
    wait_until("it is starting", || {
        home.run(&["list"]).code == 0 && home.view("web")["workers"][0]["phase"] == "starting"
    });
    let pid = home.pid("web");
    home.ok(&["stop", "web"]);
    start.wait().code(1).says(&["ended by a stop"]);
    assert!(!is_alive(pid));
    assert_eq!(home.view("web")["phase"], "stopped");
}

#[test]
fn a_stop_ends_a_backoff() {
    let home = Home::new();
    home.app("job", "command = [\"sh\", \"-c\", \"exit 1\"]\nrestart = { backoff = \"1h\", backoff_max = \"1h\" }");
    home.run(&["start"]).code(1);
    home.wait_view("job", "it waits", |v| v["workers"][0]["phase"] == "backoff");
    home.ok(&["stop", "job"]);
    assert_eq!(home.view("job")["phase"], "stopped");
    home.ok(&["delete", "job"]);
}

#[test]
fn a_signal_to_the_daemon_in_the_background_stops_everything() {
    let home = Home::new();
    home.web("web", "kill_timeout = \"1h\"");
    home.ok(&["start"]);
    let (pid, daemon) = (home.pid("web"), home.daemon());
    // A terminal that is closed is none of its business.
    signal(daemon, Signal::SIGHUP);
    home.ok(&["ping"]);
    signal(daemon, Signal::SIGTERM);
    wait_until("the daemon has ended", || !is_alive(daemon));
    all_gone(&[pid]);
    assert!(home.log("web-out").trim_end().ends_with("done"));
}

#[test]
fn a_check_under_way_is_not_left_behind() {
    let home = Home::new();
    home.write("check", "echo $$ >> checks\nexec sleep 1000\n");
    let readiness =
        "readiness = { exec = [\"sh\", \"check\"], timeout = \"30s\" }\nlisten_timeout = \"1h\"";
    home.app(
        "job",
        &format!("command = [\"sleep\", \"1000\"]\n{readiness}"),
    );
    home.ok(&["start", "--no-wait"]);
    let check = || {
        fs::read_to_string(home.path("checks"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    wait_until("a check is under way", || check().is_some_and(is_alive));
    home.ok(&["delete", "job"]);
    wait_until("it is gone", || !check().is_some_and(is_alive));
}
