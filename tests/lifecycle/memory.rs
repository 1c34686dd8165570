//! `max_memory`: a worker that leaks is replaced, the replacement first.

use crate::common::apps::{python, toml_command};
use crate::common::http::{get, local};
use crate::common::load::Load;
use crate::common::{Home, is_alive, pids};
use crate::support::Life;

#[test]
fn a_leaking_worker_is_replaced_without_a_failed_request() {
    let home = Home::new();
    let port = home.web("web", "max_memory = \"80M\"\nenv = { WARM_MS = \"500\" }");
    home.ok(&["start"]);
    let old = home.pid("web");
    let load = Load::start(port, "/");
    assert_eq!(get(local(port), "/leak?mb=120").unwrap().pid(), old);
    // Both live for a while: the old one serves until the new one is ready.
    home.wait_view("web", "a replacement beside it", |v| {
        let found = pids(v);
        found.len() == 2 && found.contains(&old)
    });
    assert_eq!(get(local(port), "/").unwrap().pid(), old);
    let view = home.wait_view("web", "the replacement alone", |v| {
        v["phase"] == "ready" && !pids(v).contains(&old) && pids(v).len() == 1
    });
    load.more(200);
    load.lossless();
    assert!(!is_alive(old));
    let new = *pids(&view).first().unwrap();
    assert_eq!(get(local(port), "/").unwrap().pid(), new);

    let reason = view["workers"][0]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        reason.contains("memory") && reason.contains("max_memory 80"),
        "{view:#}"
    );
    assert_eq!(view["workers"][0]["restarts"], 1);
    assert!(
        home.ok(&["list"]).out.contains("max_memory"),
        "{}",
        home.ok(&["list"]).out
    );
    assert!(home.ok(&["describe", "web"]).out.contains("max_memory 80"));
    assert!(
        home.events("web").contains("is replaced: memory"),
        "{}",
        home.events("web")
    );
    assert!(home.daemon_log().contains("is replaced: memory"));
    // One replacement, not one after another.
    assert_eq!(home.events("web").matches("is replaced").count(), 1);
}

#[test]
fn children_of_the_worker_count() {
    let Some(python) = python() else { return };
    let home = Home::new();
    home.write(
        "app.py",
        "import os, sys, time
if os.path.exists('second'):
    print('second', flush=True)
    time.sleep(1000)
open('second', 'w').close()
if os.fork() == 0:
    block = b'x' * (150 << 20)
    print('allocated', flush=True)
    time.sleep(1000)
time.sleep(1000)
",
    );
    home.app(
        "job",
        &format!(
            "{}\nmax_memory = \"100M\"\nrestart.min_uptime = \"100ms\"\nkill_timeout = \"1s\"",
            toml_command(&[python, "app.py"])
        ),
    );
    home.ok(&["start"]);
    let old = home.pid("job");
    home.wait_log("job", "second");
    let view = home.wait_view("job", "the replacement alone", |v| {
        v["phase"] == "ready" && !pids(v).contains(&old) && pids(v).len() == 1
    });
    let reason = view["workers"][0]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(reason.contains("max_memory 100"), "{view:#}");
}

#[test]
fn memory_is_shown() {
    let home = Home::new();
    let port = home.web("web", "");
    home.ok(&["start"]);
    let memory = || home.workers("web")[0]["memory"].as_u64().unwrap();
    let before = memory();
    assert!(before > 1 << 20, "{before}");
    get(local(port), "/leak?mb=50").unwrap();
    assert!(memory() >= before + (45 << 20), "{before} {}", memory());
}
