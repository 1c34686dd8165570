//! `kill -9` of the daemon, at any moment.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::load::Load;
use crate::common::{
    Home, all_pids, apps, command_line, is_alive, is_ready, signal, wait_for, wait_until,
};
use crate::supervisors::Supervisors;
use crate::support::{Life, all_gone};

#[test]
fn workers_serve_on_and_are_the_same_for_the_next_daemon() {
    let home = Home::new();
    let port = home.web("web", "instances = 3\nenv = { WARM_MS = \"50\" }");
    home.ok(&["start"]);
    home.ok(&["reload", "web"]);
    // A crash, so that there is a count to remember.
    let victim = *home.pids("web").first().unwrap();
    signal(victim, Signal::SIGKILL);
    let before = home.wait_view("web", "a worker in its place", |view| {
        is_ready(view)
            && view["workers"]
                .as_array()
                .unwrap()
                .iter()
                .any(|w| w["restarts"] == 1)
    });
    let load = Load::start(port, "/");
    for _ in 0..3 {
        home.kill_daemon();
        load.more(200);
        let after = home.wait_view("web", "the same workers", is_ready);
        for key in ["revision", "instances", "phase", "listen"] {
            assert_eq!(after[key], before[key], "{key}");
        }
        let of = |view: &serde_json::Value, key: &str| -> Vec<serde_json::Value> {
            view["workers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|w| w[key].clone())
                .collect()
        };
        for key in [
            "pid",
            "slot",
            "generation",
            "restarts",
            "instance",
            "revision",
        ] {
            assert_eq!(of(&after, key), of(&before, key), "{key}");
        }
    }
    // And they can all be replaced.
    let old = home.pids("web");
    home.ok(&["reload", "web"]);
    load.more(200);
    load.lossless();
    all_gone(&old.into_iter().collect::<Vec<_>>());
    assert_eq!(home.revision("web"), 3);
}

#[test]
fn a_worker_that_prints_gets_no_sigpipe_and_no_line_is_lost() {
    let home = Home::new();
    let script = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo line $i; echo err $i >&2; done; echo last $i; exec sleep 1000";
    home.app(
        "printer",
        &format!("command = ['sh', '-c', '{script}']\nlog.timestamps = false\nlog.max_size = 0"),
    );
    home.ok(&["start"]);
    let pid = home.pid("printer");
    for _ in 0..5 {
        let now = home.log("printer-out").len();
        home.kill_daemon();
        wait_until("more lines", || home.log("printer-out").len() > now);
    }
    home.write("stop", "");
    let text = home.wait_log("printer", "last ");
    let last: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("last "))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(home.pid("printer"), pid, "it was never started again");
    for (file, word) in [("printer-out", "line"), ("printer-err", "err")] {
        let expected: String = (1..=last).map(|n| format!("{word} {n}\n")).collect();
        let found = wait_for("all lines", || {
            let text = home.log(file);
            if text.contains(&format!("{word} {last}\n")) {
                Ok(text)
            } else {
                Err("not yet")
            }
        });
        let found: String = found
            .lines()
            .filter(|l| l.starts_with(word))
            .map(|l| format!("{l}\n"))
            .collect();
        assert!(
            found == expected,
            "{file}: {} lines, and {last} were written",
            found.lines().count()
        );
    }
}

/// At moments spread over a whole reload.
#[test]
fn a_reload_goes_on_and_its_client_learns_the_truth() {
    let home = Home::new();
    let port = home.web("web", "instances = 2\nenv = { WARM_MS = \"100\" }");
    home.ok(&["start"]);
    let load = Load::start(port, "/");
    let mut revision = 1;
    for moment in 0..12u64 {
        let before = home.pids("web");
        let reload = home.background(&["reload", "web"]);
        wait_until("the reload", || {
            home.view("web")["operation"]["kind"] == "reload" || reload.ended().is_some()
        });
        // The reload takes about half a second here; this is a spread, not a wait.
        std::thread::sleep(Duration::from_millis(moment * 37));
        home.kill_daemon();
        let run = reload.wait();
        revision += 1;
        assert_eq!(
            (run.code, home.revision("web")),
            (0, revision),
            "moment {moment}: {run:?}"
        );
        let view = home.wait_view("web", "two workers", is_ready);
        assert!(
            crate::common::pids(&view).is_disjoint(&before),
            "moment {moment}: {view:#}"
        );
        all_gone(&before.into_iter().collect::<Vec<_>>());
    }
    load.more(100);
    load.lossless();
    // No more processes than there should be.
    let workers = home
        .processes()
        .into_iter()
        .filter(|(_, what)| what.contains("sample-app"))
        .count();
    assert_eq!(workers, 2, "{:?}", home.processes());
}

#[test]
fn a_release_that_breaks_is_still_taken_back() {
    let home = Home::new();
    let port = home.web("web", "instances = 2\nenv = { WARM_MS = \"50\" }");
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    let text = fs::read_to_string(home.path("supervisor.toml")).unwrap();
    home.config(
        &text
            .replace("WARM_MS = \"50\"", "NEVER_READY = \"1\"")
            .replace("[app.web]", "[app.web]\nlisten_timeout = \"2s\""),
    );
    let reload = home.background(&["reload", "web"]);
    wait_until("a replacement", || home.pids("web").len() > 2);
    home.kill_daemon();
    reload.wait().code(1);
    let view = home.wait_view("web", "the old workers", is_ready);
    assert_eq!(crate::common::pids(&view), before);
    load.more(100);
    load.lossless();
}

/// Fork after fork, a daemon dies: no worker is lost, and none runs twice.
#[test]
fn in_the_midst_of_starting_workers() {
    let home = Home::new();
    home.web("web", "instances = 4");
    home.app("plain", "command = [\"sleep\", \"1000\"]\ninstances = 4");
    home.ok(&["start", "--no-wait"]);
    for moment in 0..10u64 {
        std::thread::sleep(Duration::from_millis(moment * 7));
        home.kill_daemon();
    }
    for app in ["web", "plain"] {
        home.wait_view(app, "all workers", is_ready);
    }
    let named: std::collections::BTreeSet<u32> = home
        .pids("web")
        .union(&home.pids("plain"))
        .copied()
        .collect();
    assert_eq!(named.len(), 8);
    let found = wait_for("no process too many", || {
        let found: Vec<_> = home
            .processes()
            .into_iter()
            .filter(|(_, w)| w.contains("sample-app") || w.contains("sleep"))
            .collect();
        if found.len() == 8 {
            Ok(found)
        } else {
            Err(format!("{found:?} beside {named:?}"))
        }
    });
    assert!(
        found.iter().all(|(pid, _)| named.contains(pid)),
        "{found:?}"
    );
}

#[test]
fn a_worker_that_ends_meanwhile_is_replaced_and_its_exit_is_told() {
    let home = Home::new();
    home.app("web", "command = [\"sleep\", \"1000\"]");
    home.app("other", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    let (pid, other) = (home.pid("web"), home.pid("other"));
    let keeper = home.keeper();
    // Held still, so that the daemon is away for as long as this takes.
    let daemon = home.daemon();
    signal(keeper, Signal::SIGSTOP);
    signal(daemon, Signal::SIGKILL);
    wait_until("the end of the daemon", || !is_alive(daemon));
    signal(pid, Signal::SIGUSR2);
    wait_until("the end of the worker", || !is_alive(pid));
    signal(keeper, Signal::SIGCONT);
    let view = home.wait_view("web", "another worker", |view| {
        is_ready(view) && !crate::common::pids(view).contains(&pid)
    });
    assert_eq!(view["workers"][0]["restarts"], 1, "{view:#}");
    assert!(
        home.events("web").contains("SIGUSR2"),
        "{}",
        home.events("web")
    );
    assert_eq!(home.pid("other"), other);
    // And one that the next daemon sees end, though it is not its child.
    signal(other, Signal::SIGUSR1);
    home.wait_view("other", "another worker", |view| {
        is_ready(view) && !crate::common::pids(view).contains(&other)
    });
    assert!(
        home.events("other").contains("SIGUSR1"),
        "{}",
        home.events("other")
    );
}

#[test]
fn a_stop_of_everything_is_finished() {
    let home = Home::new();
    home.app(
        "slow",
        "command = ['sh', '-c', 'trap \"\" TERM; sleep 1000 & wait; wait']\nkill_timeout = \"1s\"",
    );
    home.ok(&["start"]);
    let pid = home.pid("slow");
    let kill = home.background(&["kill"]);
    wait_until("the stop", || {
        home.view("slow")["phase"] == "stopping" || kill.ended().is_some()
    });
    let daemon = home.daemon();
    signal(daemon, Signal::SIGKILL);
    let run = kill.wait();
    assert!(run.code == 0 || run.err.contains("no daemon"), "{run:?}");
    wait_until("the end of all", || home.processes().is_empty());
    assert!(!is_alive(pid));
}

#[test]
fn probes_memory_limit_and_descendants_go_on() {
    let home = Home::new();
    home.web(
        "web",
        "instances = 2\nliveness = { path = \"/liveness\", interval = \"100ms\" }",
    );
    home.app(
        "tree",
        "command = ['sh', '-c', '(setsid sleep 1000 &) ; exec sleep 1000']",
    );
    home.ok(&["start"]);
    home.kill_daemon();
    // A worker that hangs is noticed by the next daemon's probes.
    let victim = *home.pids("web").first().unwrap();
    signal(victim, Signal::SIGSTOP);
    home.wait_view("web", "one in its place", |view| {
        is_ready(view) && !crate::common::pids(view).contains(&victim)
    });
    // What a worker left behind is stopped with it.
    let left = || {
        all_pids()
            .into_iter()
            .filter(|p| command_line(*p).starts_with("sleep 1000"))
            .collect::<Vec<u32>>()
    };
    let ours = home
        .processes()
        .into_iter()
        .filter(|(_, what)| what.starts_with("sleep 1000"))
        .count();
    assert_eq!(ours, 2, "{:?}", home.processes());
    home.ok(&["stop", "tree"]);
    let sleeping: Vec<_> = home
        .processes()
        .into_iter()
        .filter(|(_, what)| what.starts_with("sleep 1000"))
        .collect();
    assert!(sleeping.is_empty(), "{sleeping:?} of {:?}", left());
}

#[test]
fn nothing_is_leaked_by_many_deaths() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.ok(&["start"]);
    home.kill_daemon();
    home.wait_view("web", "ready", is_ready);
    let few = home.descriptors();
    for _ in 0..10 {
        home.kill_daemon();
    }
    home.wait_view("web", "ready", is_ready);
    wait_for("no more descriptors than before", || {
        let now = home.descriptors();
        if now <= few + 1 {
            Ok(())
        } else {
            Err(format!("{now}, and there were {few}"))
        }
    });
    let keeper = home.keeper();
    let kept = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count();
    assert!(kept < 40, "the keeper has {kept} descriptors");
}

const NODE: &str = r#"
const server = require("http").createServer((_, res) => res.end(JSON.stringify({ pid: process.pid }) + "\n"));
server.listen(process.env.PORT, () => setTimeout(() => process.send("ready"), 300));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"#;

#[test]
fn a_worker_says_that_it_is_ready_while_there_is_no_daemon() {
    let Some(node) = apps::node() else { return };
    let home = Home::new();
    let port = home.port();
    home.write("app.js", NODE);
    let command = apps::toml_command(&[node, "app.js"]);
    home.app(
        "api",
        &format!("{command}\ninstances = 2\nlisten = {port}\nreadiness = {{ notify = true }}"),
    );
    home.ok(&["start", "--no-wait"]);
    wait_until("two processes", || home.pids("api").len() == 2);
    let first = home.pids("api");
    home.kill_daemon();
    home.wait_view("api", "ready", is_ready);
    assert_eq!(home.pids("api"), first);
    let load = Load::start(port, "/");
    home.kill_daemon();
    home.ok(&["reload", "api"]);
    load.more(100);
    load.lossless();
    assert!(home.pids("api").is_disjoint(&first));
}

#[test]
fn an_express_app_serves_through_deaths_and_a_reload() {
    let (Some(node), Some(folder)) = (apps::node(), apps::express()) else {
        return;
    };
    let home = Home::new();
    let port = home.port();
    let cwd = toml::Value::from(folder.to_str().expect("UTF-8"));
    let command = apps::toml_command(&[node, "server.js"]);
    home.app(
        "api",
        &format!(
            "{command}\ncwd = {cwd}\ninstances = 2\nlisten = {port}\nenv = {{ WARM_MS = \"100\" }}\nreadiness = \"/readiness\""
        ),
    );
    home.ok(&["start"]);
    let load = Load::start(port, "/health");
    let before = home.pids("api");
    home.kill_daemon();
    let reload = home.background(&["reload", "api"]);
    home.wait_view("api", "the reload", |view| {
        view["operation"]["kind"] == "reload"
    });
    home.kill_daemon();
    reload.wait().ok();
    load.more(100);
    load.lossless();
    assert!(home.pids("api").is_disjoint(&before));
}
