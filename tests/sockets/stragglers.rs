//! Connections that arrive where no worker takes them: they are passed on, and none is lost.

use std::io::Write;
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::common::load::Load;
use crate::common::{Home, apps, http, is_alive, is_ready, pids, signal, wait_for};

fn site(instances: u16, lines: &str) -> (Home, u16) {
    let home = Home::new();
    let port = home.port();
    let rest = format!("readiness = \"/readiness\"\n{lines}");
    home.config(&format!(
        "[app.web]\n{}\ninstances = {instances}\nlisten = \"127.0.0.1:{port}\"\n{rest}\n",
        apps::sample()
    ));
    home.ok(&["start"]);
    (home, port)
}

fn relayed(home: &Home) -> u64 {
    home.describe("web")["app"]["relayed"]
        .as_u64()
        .expect("a number")
}

/// Connections whose requests are sent, and wait.
fn requests(port: u16, count: usize) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = http::connect(http::local(port)).expect("a connection");
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .expect("it takes the request");
        stream
    };
    (0..count).map(open).collect()
}

fn answers(requests: Vec<TcpStream>) -> Vec<u32> {
    let answer = |stream: TcpStream| {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut { stream }, &mut text).expect("an answer");
        let body = text
            .split("\r\n\r\n")
            .nth(1)
            .unwrap_or_else(|| panic!("no whole answer: {text:?}"));
        let answer: serde_json::Value = serde_json::from_str(body).expect("JSON");
        answer["pid"].as_u64().expect("a pid") as u32
    };
    requests.into_iter().map(answer).collect()
}

/// They wait in the lobby, and go to the successors.
#[test]
fn nobody_is_ready() {
    let (home, port) = site(2, "restart = { min_uptime = \"0s\", backoff = \"100ms\" }");
    let dead = home.pids("web");
    assert_eq!(relayed(&home), 0);
    for pid in &dead {
        signal(*pid, Signal::SIGKILL);
    }
    home.wait_view("web", "that nobody is ready", |view| {
        view["workers"]
            .as_array()
            .is_some_and(|w| w.iter().all(|w| w["phase"] != "ready"))
    });
    let pids = answers(requests(port, 20));
    assert!(pids.iter().all(|pid| !dead.contains(pid)), "{pids:?}");
    assert!(relayed(&home) > 0);
}

/// What a worker had not accepted when it died is answered by the others, at once.
#[test]
fn the_queue_of_a_dead_worker() {
    let (home, port) = site(2, "restart = { min_uptime = \"0s\", backoff = \"10ms\" }");
    let victim = home.pids("web").into_iter().next().expect("a worker");
    signal(victim, Signal::SIGSTOP);
    let requests = requests(port, 30);
    signal(victim, Signal::SIGKILL);
    let pids = answers(requests);
    assert!(pids.iter().all(|pid| *pid != victim), "{pids:?}");
    let relayed = relayed(&home);
    assert!((1..30).contains(&relayed), "{relayed} of 30 were passed on");
}

/// The only worker: its successor in the same slot must not get them before it is ready, nor lose them.
#[test]
fn the_queue_of_the_only_worker() {
    let (home, port) = site(1, "restart = { min_uptime = \"0s\", backoff = \"10ms\" }");
    let victim = home.pids("web").into_iter().next().expect("a worker");
    signal(victim, Signal::SIGSTOP);
    let requests = requests(port, 10);
    signal(victim, Signal::SIGKILL);
    let pids = answers(requests);
    assert!(pids.iter().all(|pid| *pid != victim), "{pids:?}");
    assert_eq!(relayed(&home), 10);
}

/// It does not drain within `drain_timeout`, as it does nothing at all: what waits for it goes to others.
#[test]
fn the_queue_of_a_worker_that_hangs() {
    let (home, port) = site(2, "drain_timeout = \"300ms\"\nkill_timeout = \"300ms\"");
    let before = home.pids("web");
    let hung = *before.iter().next().expect("a worker");
    signal(hung, Signal::SIGSTOP);
    let requests = requests(port, 30);
    home.ok(&["reload", "web"]);
    let pids = answers(requests);
    assert!(pids.iter().all(|pid| *pid != hung), "{pids:?}");
    assert!(relayed(&home) > 0);
    assert!(home.pids("web").is_disjoint(&before));
}

/// A restart under load: those who come in between wait, and are counted.
#[test]
fn restarts() {
    let (home, port) = site(2, "");
    let load = Load::start(port, "/health");
    home.ok(&["restart", "web"]);
    load.more(50);
    load.lossless();
    assert!(relayed(&home) > 0);
    let view = home.view("web");
    assert!(is_ready(&view) && pids(&view).len() == 2, "{view:#}");
}

/// The app never comes up: clients learn so, instead of waiting for ever.
#[test]
fn a_connection_waits_for_a_worker_no_longer_than_hold_timeout() {
    let home = Home::new();
    let port = home.port();
    home.config(&format!(
        "[app.web]\n{}\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\nhold_timeout = \"1s\"\n\
         listen_timeout = \"100s\"\nenv = {{ WARM_MS = \"60000\" }}\n",
        apps::sample()
    ));
    home.ok(&["start", "--no-wait"]);
    home.wait_view("web", "starting", |view| !pids(view).is_empty());
    let waiting = requests(port, 3);
    let view = home.wait_view("web", "held", |view| view["held"] == 3);
    assert_eq!(view["phase"], "starting", "{view:#}");
    home.ok(&["list"])
        .says(&["3 connections held until a worker is ready"]);
    for mut stream in waiting {
        let mut answer = Vec::new();
        let end = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        let kind = end.expect_err("it is reset").kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
    }
    home.wait_view("web", "none held", |view| view["held"] == 0);
}

/// Its last request takes its time, and clients that come meanwhile do not wait for that; what was asked before is
/// answered. After a restart there is somebody to wait for: see [`restarts`].
#[test]
fn a_stop_refuses_at_once_and_ends_what_is_in_progress() {
    let (home, port) = site(2, "kill_timeout = \"60s\"");
    let mut slow = http::connect(http::local(port)).expect("a connection");
    slow.write_all(b"GET /slow?ms=3000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("it takes the request");
    let busy = home.pids("web");
    home.ok(&["stop", "web", "--no-wait"]);
    let refused = || -> Result<(), String> {
        match http::get(http::local(port), "/health") {
            Ok(answer) => Err(format!("it was answered: {}", answer.status)),
            Err(why) if why.contains("reset") || why.contains("refused") => Ok(()),
            Err(why) => Err(why),
        }
    };
    // From then on every one is, though the last request is still in progress.
    wait_for("a refusal", refused);
    for _ in 0..20 {
        refused().expect("a refusal");
    }
    assert!(
        busy.iter().any(|pid| is_alive(*pid)),
        "it was not stopped while a request was in progress"
    );
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut slow, &mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    home.wait_view("web", "stopped", |view| view["phase"] == "stopped");
    home.ok(&["start", "web"]);
    assert_eq!(
        http::get(http::local(port), "/health")
            .expect("an answer")
            .status,
        200
    );
}
