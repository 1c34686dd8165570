//! The kernel refuses to fork.

use std::process::Command;

use crate::common::{Home, RSUP, Run, try_run, wait_for};

/// A user whom nobody else is: the limit counts all processes of a user.
fn uid() -> u32 {
    1_000_000 + std::process::id()
}

/// As that user, in a folder of his own.
fn rsup(home: &Home, args: &[&str]) -> Run {
    let mut command: Command = home.command("setpriv");
    let uid = uid().to_string();
    command
        .args(["--reuid", &uid, "--regid", &uid, "--clear-groups"])
        .arg(home.path("rsup"))
        .args(args);
    command.env("RSUP_HOME", home.path("u"));
    try_run(command).unwrap()
}

fn list(home: &Home, app: &str) -> serde_json::Value {
    let all = rsup(home, &["list", "--json"]).ok().json();
    all.as_array()
        .unwrap()
        .iter()
        .find(|a| a["name"] == app)
        .cloned()
        .unwrap_or_default()
}

fn limit(daemon: u64, processes: &str) {
    let uid = uid().to_string();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        &uid,
        "--regid",
        &uid,
        "--clear-groups",
        "prlimit",
    ]);
    let run = command
        .args([format!("--pid={daemon}"), format!("--nproc={processes}")])
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
}

struct Ended<'a>(&'a Home);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        rsup(self.0, &["kill"]);
    }
}

#[test]
fn fork_says_eagain() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become somebody else");
        return;
    }
    let home = Home::new();
    crate::common::install(RSUP, home.path("rsup"));
    std::fs::create_dir(home.path("u")).unwrap();
    for path in [home.folder().to_owned(), home.path("u")] {
        std::os::unix::fs::chown(&path, Some(uid()), Some(uid())).unwrap();
    }
    let job = |name: &str| {
        format!(
            "[app.{name}]\ncommand = [\"sleep\", \"1000\"]\nrestart = {{ backoff = \"50ms\", max_restarts = 100000, min_uptime = \"100ms\" }}\n"
        )
    };
    home.config(&(job("calm") + &job("job")));
    let _ended = Ended(&home);
    rsup(&home, &["start"]).ok();
    let daemon = rsup(&home, &["ping", "--json"]).ok().json()["pid"]
        .as_u64()
        .unwrap();
    let calm = list(&home, "calm")["workers"][0]["pid"].clone();
    let limits = std::fs::read_to_string(format!("/proc/{daemon}/limits")).unwrap();
    let as_before = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max processes"))
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    limit(daemon, "1:");
    rsup(&home, &["signal", "KILL", "job"]).ok();
    let view = wait_for("it is tried again and again", || {
        let view = list(&home, "job");
        let tried = view["workers"][0]["restarts"].as_u64() >= Some(4);
        if tried { Ok(view) } else { Err(view) }
    });
    let reason = view["workers"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("limit of processes is reached"), "{view:#}");
    assert_eq!(view["workers"][0]["phase"], "backoff", "{view:#}");
    // A reload that cannot fork changes nothing, and says why.
    rsup(&home, &["reload", "calm"])
        .code(1)
        .says(&["limit of processes is reached"]);
    limit(daemon, &format!("{as_before}:"));
    wait_for("it recovers by itself", || {
        let view = list(&home, "job");
        if view["phase"] == "ready" {
            Ok(())
        } else {
            Err(view)
        }
    });
    assert_eq!(list(&home, "calm")["workers"][0]["pid"], calm);
    rsup(&home, &["reload", "calm"]).ok();
}
