//! With which code a container ends whose apps have ended by themselves.

use nix::sys::signal::Signal;

use crate::common::Home;
use crate::support::{Container, app, said, up, wait_said, web};

/// An app that runs a shell script once.
fn job(home: &Home, name: &str, script: &str, keys: &str) {
    app(
        home,
        name,
        &format!("command = [\"sh\", \"-c\", \"{script}\"]\n{keys}"),
    );
}

#[track_caller]
fn ends_with(code: i32, jobs: &[(&str, &str)]) {
    let home = Home::new();
    for (number, (script, keys)) in jobs.iter().enumerate() {
        job(&home, &format!("job{number}"), script, keys);
    }
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    container.ends_with(&home, code);
    assert!(
        said(&home).contains("every app has ended by itself"),
        "{}",
        said(&home)
    );
}

const NEVER: &str = "restart.policy = \"never\"";

#[test]
fn work_that_is_done_is_a_success() {
    ends_with(
        0,
        &[
            ("exit 0", NEVER),
            ("exit 0", "restart.policy = \"on-failure\""),
        ],
    );
}

#[test]
fn the_code_of_an_app_that_failed_is_that_of_the_container() {
    ends_with(3, &[("exit 0", NEVER), ("exit 3", NEVER)]);
}

#[test]
fn an_app_that_a_signal_killed_counts_as_in_a_shell() {
    ends_with(137, &[("kill -9 $$", NEVER)]);
}

#[test]
fn an_app_that_is_given_up_ends_with_its_code() {
    ends_with(
        4,
        &[(
            "exit 4",
            "restart = { max_restarts = 2, backoff = \"1ms\" }",
        )],
    );
}

#[test]
fn an_app_that_is_given_up_is_no_success_even_if_it_ended_with_0() {
    ends_with(
        1,
        &[(
            "exit 0",
            "restart = { max_restarts = 2, backoff = \"1ms\" }",
        )],
    );
}

#[test]
fn several_that_failed_in_different_ways_are_a_failure() {
    ends_with(1, &[("exit 3", NEVER), ("exit 4", NEVER)]);
}

#[test]
fn a_program_that_is_not_there_is_a_failure() {
    let home = Home::new();
    app(
        &home,
        "ghost",
        "command = \"/no/such/program\"\nrestart = { max_restarts = 1, backoff = \"1ms\" }",
    );
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    container.ends_with(&home, 1);
    assert!(said(&home).contains("/no/such/program"), "{}", said(&home));
}

#[test]
fn one_app_that_lives_keeps_it_up() {
    let home = Home::new();
    web(&home, "web", "");
    job(&home, "job", "exit 3", NEVER);
    let Some(mut container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    home.wait_view("job", "the job is over", |v| {
        v["workers"][0]["phase"] == "exited"
    });
    assert!(!container.has_ended());
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

#[test]
fn an_app_that_was_stopped_by_a_command_keeps_it_up() {
    let home = Home::new();
    web(&home, "web", "");
    let Some(mut container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    home.ok(&["stop", "web"]);
    home.ok(&["start", "web"]);
    home.ok(&["delete", "web"]);
    home.ok(&["ping"]);
    assert!(!container.has_ended());
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

#[test]
fn any_app_can_be_the_one_that_matters() {
    let home = Home::new();
    web(&home, "web", "");
    job(&home, "job", "sleep 1; exit 5", NEVER);
    let Some(container) = Container::start(&home, &["--exit-when", "any"]) else {
        return;
    };
    container.ends_with(&home, 5);
    assert!(
        home.logs("web").contains(": done"),
        "the other one is stopped gracefully: {}",
        said(&home)
    );
}

#[test]
fn it_can_be_told_to_stay_whatever_happens() {
    let home = Home::new();
    job(&home, "job", "exit 5", NEVER);
    let Some(mut container) = Container::start(&home, &["--exit-when", "never"]) else {
        return;
    };
    wait_said(&home, "exited with code 5");
    for _ in 0..5 {
        home.ok(&["list"]);
    }
    assert!(!container.has_ended());
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}
