//! `rsup events`: what happened, numbered, over the death of the daemon.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{Home, PATIENCE, is_ready, signal};
use crate::support::Life;

fn events(home: &Home, args: &[&str]) -> Vec<Value> {
    let run = home.ok(&[&["events", "--json", "-n", "1000"], args].concat());
    let lines = run.out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}")))
        .collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().expect("a kind"))
        .collect()
}

#[test]
fn who_asked_what_happened_and_why_it_failed() {
    let home = Home::new();
    home.web("web", "reload.min_ready = 0");
    home.app("other", "command = ['sleep', '1000']");
    home.ok(&["start"]);
    home.ok(&["reload", "web"]);
    let of_web = events(&home, &["web"]);
    assert_eq!(
        kinds(&of_web),
        [
            "action_began",
            "worker_ready",
            "action_done",
            "action_began",
            "worker_ready",
            "worker_stopped",
            "action_done"
        ]
    );
    let began = &of_web[3];
    assert_eq!(
        (
            began["kind"].as_str(),
            began["cause"].as_str(),
            began["revision"].as_u64()
        ),
        (Some("reload"), Some("command"), Some(2))
    );
    assert!(of_web[4]["worker"]["pid"].as_u64().is_some(), "{of_web:#?}");
    // One that fails says why, as data.
    let text = std::fs::read_to_string(home.path("supervisor.toml")).unwrap();
    let fails = "env = { CRASH_AT_START = \"1\" }\nreload.min_ready = 0";
    home.config(&text.replace("reload.min_ready = 0", fails));
    home.run(&["reload", "web"]).code(1);
    let all = events(&home, &["web"]);
    let failed = all.iter().rev().find(|e| e["event"] == "action_failed");
    let failed = failed.unwrap_or_else(|| panic!("{all:#?}"));
    assert_eq!(failed["error"]["loss"]["exit"]["code"], 3, "{failed:#?}");
    // Numbers are counted over all apps, and none is missing.
    let all: Vec<u64> = events(&home, &[])
        .iter()
        .map(|event| event["seq"].as_u64().expect("a number"))
        .collect();
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
    let later = all[all.len() - 3].to_string();
    let run = home.ok(&["events", "--json", "--since", &later]);
    assert_eq!(run.out.lines().count(), 2);
    home.ok(&["events", "web"]).says(&["is ready after"]);
}

#[test]
fn they_are_followed_over_the_death_of_the_daemon() {
    let home = Home::new();
    home.app(
        "web",
        "command = ['sleep', '1000']\nrestart.min_uptime = \"20ms\"",
    );
    home.ok(&["start"]);
    let mut command = home.rsup();
    command.args(["events", "-f", "--json", "-n", "0"]);
    let mut follower = command.stdout(Stdio::piped()).spawn().expect("rsup runs");
    let lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = sender.send(serde_json::from_str::<Value>(&line).expect("JSON"));
        }
    });
    let mut last = 0;
    let mut wait = |kind: &str| loop {
        let event = receiver.recv_timeout(PATIENCE).expect("an event");
        let seq = event["seq"].as_u64().expect("a number");
        assert!(seq > last, "{event} after {last}");
        last = seq;
        if event["event"] == kind {
            return;
        }
    };
    signal(home.daemon(), Signal::SIGKILL);
    wait("adopted");
    home.wait_view("web", "ready", is_ready);
    home.ok(&["reload", "web"]);
    wait("action_done");
    follower.kill().expect("it runs");
    follower.wait().expect("it ended");
}
