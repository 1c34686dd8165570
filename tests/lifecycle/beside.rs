//! Verbs beside what is stopped on purpose, and a start beside what is under way.

use nix::sys::signal::Signal;

use crate::common::{Home, Run, is_ready, signal, wait_until};
use crate::support::Life;

fn phase(home: &Home, app: &str) -> String {
    home.view(app)["phase"].as_str().unwrap_or_default().into()
}

/// `web` runs, `job` is stopped; both are of one file.
fn one_is_stopped() -> Home {
    let home = Home::new();
    home.web("web", "");
    home.app("job", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    home.ok(&["stop", "job"]);
    home
}

#[test]
fn a_reload_of_all_or_of_a_file_leaves_what_is_stopped() {
    let home = one_is_stopped();
    let mut revision = 1;
    for (verb, what) in [
        ("reload", "all"),
        ("reload", "supervisor.toml"),
        ("restart", "all"),
        ("restart", "supervisor.toml"),
    ] {
        let run = home.ok(&[verb, what]);
        revision += 1;
        assert!(
            run.err
                .contains("job is stopped and stays so; `rsup start job` starts it"),
            "{run:?}"
        );
        assert_eq!(home.revision("web"), revision, "{verb} {what}");
        assert_eq!(phase(&home, "job"), "stopped", "{verb} {what}");
    }
    let outcomes = home.ok(&["reload", "all", "--json"]).json();
    let job = outcomes
        .as_array()
        .unwrap()
        .iter()
        .find(|o| o["app"] == "job");
    assert_eq!(job.unwrap()["untouched"], "stopped");
    home.ok(&["stop", "web"]);
    home.ok(&["reload", "all"])
        .says(&["web is stopped and stays so"]);
    assert_eq!(phase(&home, "web"), "stopped");
}

#[test]
fn a_reload_of_a_stopped_app_by_its_name_is_an_error_with_the_way_out() {
    let home = one_is_stopped();
    home.run(&["reload", "job"])
        .code(1)
        .says(&["`job` is stopped", "rsup start job"]);
    assert_eq!(phase(&home, "job"), "stopped");
    // The others are reloaded all the same.
    home.run(&["reload", "job", "web"])
        .code(1)
        .says(&["`job` is stopped", "web reloaded to revision 2"]);
    assert_eq!(phase(&home, "job"), "stopped");
}

/// A worker that needs a second to be ready, or a second to stop.
fn slow(home: &Home, app: &str) {
    let script = "trap 'sleep 1; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    home.app(app, &format!("command = [\"sh\", \"-c\", \"{script}\"]"));
}

fn ok(run: &Run, words: &str) {
    assert_eq!(run.code, 0, "{run:?}");
    let said = format!("{}{}", run.out, run.err);
    assert!(said.contains(words), "{run:?}");
}

#[test]
fn a_second_start_waits_for_the_same_truth() {
    let home = Home::new();
    home.web("web", "env = { WARM_MS = \"700\" }");
    let first = home.background(&["start"]);
    wait_until("it is being started", || {
        home.run(&["list", "--json"]).out.contains("\"starting\"")
    });
    let (by_file, by_name) = (
        home.background(&["start"]),
        home.background(&["start", "web"]),
    );
    for run in [first, by_file, by_name].map(|run| run.wait()) {
        ok(&run, "web started");
        assert!(is_ready(&home.view("web")));
    }
    ok(&home.ok(&["start"]), "web runs already");
    assert_eq!(home.revision("web"), 1);
}

#[test]
fn a_second_start_of_what_fails_fails_too() {
    let home = Home::new();
    home.web(
        "web",
        "listen_timeout = \"1s\"\nenv = { NEVER_READY = \"1\" }",
    );
    let first = home.background(&["start"]);
    wait_until("it is being started", || {
        home.run(&["list", "--json"]).out.contains("\"starting\"")
    });
    let second = home.background(&["start", "web"]);
    for run in [first, second].map(|run| run.wait()) {
        run.code(1).says(&["listen_timeout"]);
    }
}

#[test]
fn a_start_during_a_stop_starts_what_has_just_stopped() {
    for (how, again) in [("stop", "file"), ("stop", "name"), ("delete", "file")] {
        let home = Home::new();
        slow(&home, "job");
        home.ok(&["start"]);
        home.wait_log("job", "up");
        let before = home.pids("job");
        let stop = home.background(&[how, "job"]);
        wait_until("it is being stopped", || phase(&home, "job") == "stopping");
        let args: &[&str] = if again == "name" {
            &["start", "job"]
        } else {
            &["start"]
        };
        let (one, another) = (home.background(args), home.background(args));
        stop.wait().ok();
        for run in [one, another].map(|run| run.wait()) {
            ok(&run, "job started");
        }
        assert!(home.pids("job").is_disjoint(&before), "{how} {again}");
        assert!(is_ready(&home.view("job")), "{how} {again}");
    }
}

#[test]
fn a_start_that_waits_for_a_stop_outlives_the_daemon() {
    let home = Home::new();
    slow(&home, "job");
    home.ok(&["start"]);
    home.wait_log("job", "up");
    let stop = home.background(&["stop", "job"]);
    wait_until("it is being stopped", || phase(&home, "job") == "stopping");
    home.ok(&["start", "job", "--no-wait"]);
    signal(home.daemon(), Signal::SIGKILL);
    stop.wait().ok();
    home.wait_view("job", "it runs again", is_ready);
}

#[test]
fn a_start_during_kill_begins_with_the_next_daemon() {
    for by_name in [false, true] {
        let home = Home::new();
        slow(&home, "job");
        home.ok(&["start"]);
        home.wait_log("job", "up");
        let daemon = home.daemon();
        let kill = home.background(&["kill"]);
        wait_until("it is being stopped", || phase(&home, "job") == "stopping");
        let args: &[&str] = if by_name {
            &["start", "job"]
        } else {
            &["start"]
        };
        let run = home.run(args);
        ok(&run, "job started");
        ok(&run, "after its end");
        kill.wait().ok().says(&["every app is stopped"]);
        assert_ne!(home.daemon(), daemon);
        assert!(is_ready(&home.view("job")));
    }
}

#[test]
fn after_kill_apps_can_be_started_by_their_names() {
    let home = one_is_stopped();
    home.ok(&["kill"]);
    home.run(&["start", "nope"])
        .code(1)
        .says(&["no daemon runs"]);
    assert!(home.processes().is_empty());
    home.ok(&["start", "job"]).says(&["job started"]);
    assert_eq!(phase(&home, "web"), "stopped");
}
