//! Restart policy: who is started again, when, and when no more.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;

use crate::common::http::{get, local};
use crate::common::{Home, signal, wait_until};
use crate::support::Life;

#[test]
fn a_crash_is_followed_by_a_restart_and_others_are_left_alone() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.web("other", "instances = 2");
    home.ok(&["start"]);
    let (before, others) = (home.pids("web"), home.pids("other"));
    let _ = get(local(port), "/crash");
    let view = home.wait_view("web", "a new worker", |v| {
        v["phase"] == "ready" && crate::common::pids(v) != before
    });
    let after = crate::common::pids(&view);
    assert_eq!(
        after.intersection(&before).count(),
        1,
        "{before:?} {after:?}"
    );
    assert_eq!(home.pids("other"), others);
    let restarts: Vec<_> = home
        .workers("web")
        .iter()
        .map(|w| w["restarts"].as_u64().unwrap())
        .collect();
    assert_eq!(restarts.iter().sum::<u64>(), 1, "{restarts:?}");
    let events = home.events("web");
    assert!(events.contains("exited with code 3 after"), "{events}");
    assert!(home.daemon_log().contains("exited with code 3"));
}

/// Runs until a file of the signal's or code's name is there.
fn on_command(home: &Home, keys: &str) {
    home.write("app", "n=$(cat starts 2>/dev/null | wc -l)\necho start >> starts\nwhile :; do for f in end.*; do [ -e \"$f\" ] || continue; rm \"$f\"; case ${f#end.} in [0-9]*) exit ${f#end.};; *) kill -${f#end.} $$;; esac; done; sleep 0.02; done\n");
    home.app("job", &format!("command = [\"sh\", \"app\"]\nrestart.min_uptime = \"30ms\"\nrestart.backoff = \"1ms\"\n{keys}"));
    home.ok(&["start"]);
}

#[track_caller]
fn ends_and_restarts(home: &Home, how: &str, words: &str) {
    let before = home.pids("job");
    home.write(&format!("end.{how}"), "");
    let view = home.wait_view("job", &format!("a restart after {how}"), |v| {
        v["phase"] == "ready" && crate::common::pids(v) != before
    });
    let reason = view["workers"][0]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(reason.contains(words), "{reason}");
    let list = home.ok(&["list"]).out;
    let describe = home.ok(&["describe", "job"]).out;
    assert!(list.contains(words), "{list}");
    assert!(describe.contains(words), "{describe}");
}

#[test]
fn exits_have_names() {
    let home = Home::new();
    on_command(&home, "");
    ends_and_restarts(&home, "SEGV", "SIGSEGV");
    ends_and_restarts(&home, "KILL", "SIGKILL");
    ends_and_restarts(&home, "3", "code 3");
    ends_and_restarts(&home, "0", "code 0");
}

#[track_caller]
fn ends_for_good(home: &Home, how: &str, words: &str) {
    home.write(&format!("end.{how}"), "");
    let view = home.wait_view("job", &format!("the end after {how}"), |v| {
        v["workers"][0]["phase"] == "exited"
    });
    assert_eq!(view["phase"], "stopped", "{view:#}");
    assert_eq!(view["workers"][0]["pid"], serde_json::Value::Null);
    let reason = view["workers"][0]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(reason.contains(words), "{reason}");
}

#[test]
fn policy_never() {
    let home = Home::new();
    on_command(&home, "restart.policy = \"never\"");
    ends_for_good(&home, "3", "code 3");
    home.ok(&["start", "job"]);
    assert_eq!(home.view("job")["phase"], "ready");
    ends_for_good(&home, "0", "code 0");
}

#[test]
fn policy_on_failure() {
    let home = Home::new();
    on_command(&home, "restart.policy = \"on-failure\"");
    ends_and_restarts(&home, "3", "code 3");
    ends_and_restarts(&home, "KILL", "SIGKILL");
    ends_for_good(&home, "0", "code 0");
}

#[test]
fn exit_codes_that_end_it() {
    let home = Home::new();
    on_command(&home, "stop.exit_codes = [42]");
    ends_and_restarts(&home, "0", "code 0");
    ends_for_good(&home, "42", "code 42");
}

#[test]
fn restarts_slow_down_and_end() {
    let home = Home::new();
    home.write("app", "date +%s%N >> starts\nexit 3\n");
    let restart = "restart = { max_restarts = 5, backoff = \"80ms\", min_uptime = \"1s\" }";
    home.app("job", &format!("command = [\"sh\", \"app\"]\n{restart}"));
    home.run(&["start"])
        .code(1)
        .says(&["code 3", "before it was ready"]);
    let view = home.wait_view("job", "it is given up", |v| v["phase"] == "errored");
    let starts = || {
        std::fs::read_to_string(home.path("starts"))
            .unwrap()
            .lines()
            .map(|l| l.parse::<u64>().unwrap() / 1_000_000)
            .collect::<Vec<_>>()
    };
    let times = starts();
    // The first start and five restarts.
    assert_eq!(times.len(), 6, "{times:?}");
    let gaps: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    // The first restart is immediate; then at least 3/4 of 80, 160, 320, 640 ms.
    for (gap, least) in gaps[1..].iter().zip([60, 120, 240, 480]) {
        assert!(*gap >= least, "{gaps:?}");
    }
    let reason = view["workers"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("code 3") && reason.contains("given up after 5 restarts"),
        "{view:#}"
    );
    assert_eq!(view["workers"][0]["phase"], "errored");
    assert!(home.ok(&["list"]).out.contains("errored"));
    let describe = home.ok(&["describe", "job"]).out;
    assert!(describe.contains("given up after 5 restarts"), "{describe}");
    assert!(
        home.daemon_log().contains("given up"),
        "{}",
        home.daemon_log()
    );

    // A start by name gives it another chance.
    home.write("app", "echo well\nexec sleep 1000\n");
    home.ok(&["start", "job"]);
    assert_eq!(home.view("job")["phase"], "ready");
    home.ok(&["stop", "job"]);
}

#[test]
fn workers_that_fall_together_do_not_rise_together() {
    let home = Home::new();
    home.write("app", "date +%s%N >> starts.$RSUP_INSTANCE\nexit 3\n");
    let restart = "restart = { max_restarts = 2, backoff = \"400ms\", min_uptime = \"1s\" }";
    home.app(
        "job",
        &format!("command = [\"sh\", \"app\"]\ninstances = 6\n{restart}"),
    );
    home.run(&["start"]).code(1);
    home.wait_view("job", "it is given up", |v| v["phase"] == "errored");
    let gap = |instance: usize| {
        let text = std::fs::read_to_string(home.path(&format!("starts.{instance}"))).unwrap();
        let times: Vec<u64> = text
            .lines()
            .map(|l| l.parse::<u64>().unwrap() / 1_000_000)
            .collect();
        assert_eq!(times.len(), 3, "{text}");
        times[2] - times[1]
    };
    let gaps: BTreeSet<u64> = (0..6).map(gap).collect();
    let (first, last) = (*gaps.first().unwrap(), *gaps.last().unwrap());
    assert!(first >= 300 && last - first >= 10, "{gaps:?}");
}

#[test]
fn a_worker_that_was_up_long_enough_is_not_given_up() {
    let home = Home::new();
    on_command(&home, "restart.max_restarts = 2");
    for _ in 0..5 {
        ends_and_restarts(&home, "3", "code 3");
    }
    assert_eq!(home.workers("job")[0]["restarts"], 5);
}

#[test]
fn a_storm_of_crashes_disturbs_nobody_else() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.app(
        "storm",
        "command = [\"sh\", \"-c\", \"exit 1\"]\ninstances = 4\nrestart = { max_restarts = 100000, backoff = \"1ms\", backoff_max = \"5ms\" }",
    );
    home.ok(&["start", "--only", "web"]);
    let before = home.pids("web");
    let load = crate::common::load::Load::start(port, "/");
    home.run(&["start"]).code(1);
    home.wait_view("storm", "many crashes", |v| {
        v["workers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|w| w["restarts"].as_u64().unwrap() >= 50)
    });
    load.lossless();
    assert_eq!(home.pids("web"), before);
    assert_eq!(home.view("web")["phase"], "ready");
    home.ok(&["delete", "storm"]);
    assert_eq!(home.list().as_array().unwrap().len(), 1);
}

#[test]
fn a_program_that_is_not_there() {
    let home = Home::new();
    home.app(
        "job",
        "command = [\"./missing\"]\nrestart = { max_restarts = 1, backoff = \"1ms\" }",
    );
    home.run(&["start"]).code(1).says(&["missing"]);
    let view = home.wait_view("job", "it is given up", |v| v["phase"] == "errored");
    assert!(
        view["workers"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("missing"),
        "{view:#}"
    );
}

#[test]
fn a_kill_from_outside_is_a_crash() {
    let home = Home::new();
    let port = home.web("web", "");
    home.ok(&["start"]);
    let pid = home.pid("web");
    signal(pid, Signal::SIGKILL);
    // Connections wait for the next one instead of being refused.
    let answer = get(local(port), "/").unwrap();
    assert_eq!(answer.status, 200);
    assert_ne!(answer.pid(), pid);
    wait_until("it is ready", || home.view("web")["phase"] == "ready");
    assert!(home.events("web").contains("killed by SIGKILL"));
}
