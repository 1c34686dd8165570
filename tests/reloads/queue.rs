//! One action at a time.

use std::time::Duration;

use crate::common::{Home, apps, is_ready, pids, wait_until};

/// A reload of it takes a second at least.
fn slow_site() -> (Home, u16) {
    let home = Home::new();
    let port = home.port();
    let env = "env = { WARM_MS = \"500\" }";
    home.config(&format!(
        "[app.web]\n{}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\n{env}\n",
        apps::sample()
    ));
    home.ok(&["start"]);
    (home, port)
}

fn reloading(home: &Home) {
    home.wait_view("web", "a reload under way", |view| {
        view["operation"]["kind"] == "reload"
    });
}

#[test]
fn a_second_reload_is_refused() {
    let (home, _) = slow_site();
    let first = home.background(&["reload", "web"]);
    reloading(&home);
    let second = home
        .run(&["reload", "web"])
        .code(1)
        .says(&["reload in progress since", "--wait"]);
    assert!(
        second.took < Duration::from_secs(2),
        "at once: {:?}",
        second.took
    );
    home.run(&["scale", "web", "3"])
        .code(1)
        .says(&["reload in progress since"]);
    home.run(&["restart", "web"])
        .code(1)
        .says(&["reload in progress since"]);
    assert!(first.ended().is_none(), "the first goes on");
    first.wait().ok();
    let view = home.view("web");
    assert!(is_ready(&view) && view["revision"] == 2, "{view:#}");
}

#[test]
fn a_second_reload_waits() {
    let (home, _) = slow_site();
    let first = home.background(&["reload", "web"]);
    reloading(&home);
    let others = [
        home.background(&["reload", "web", "--wait"]),
        home.background(&["reload", "web", "--wait"]),
    ];
    first.wait().ok();
    assert!(home.revision("web") <= 3);
    for other in others {
        other.wait().ok();
    }
    let view = home.view("web");
    assert!(is_ready(&view) && view["revision"] == 4, "{view:#}");
    assert_eq!(pids(&view).len(), 2);
}

/// A client that goes away takes nothing with it.
#[test]
fn a_reload_goes_on_without_its_client() {
    let (home, _) = slow_site();
    let mut client = home
        .rsup()
        .args(["reload", "web"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    reloading(&home);
    client.kill().expect("it lives");
    client.wait().expect("it ends");
    let view = home.wait_view("web", "the reload's end", is_ready);
    assert_eq!(view["revision"], 2);
}

#[test]
fn a_stop_ends_a_reload() {
    let (home, port) = slow_site();
    let reload = home.background(&["reload", "web"]);
    reloading(&home);
    let queued = home.background(&["reload", "web", "--wait"]);
    // It shows nowhere that it is queued; that it runs is near enough.
    wait_until("the queued client", || {
        home.processes()
            .iter()
            .any(|(_, command)| command.contains("--wait"))
    });
    home.ok(&["stop", "web"]);
    reload.wait().code(1).says(&["ended by a stop"]);
    queued.wait().code(1);
    let view = home.view("web");
    assert_eq!((&view["phase"], pids(&view).len()), (&"stopped".into(), 0));
    crate::common::http::connect(crate::common::http::local(port)).expect_err("nobody listens");
}

#[test]
fn without_waiting() {
    let (home, _) = slow_site();
    let run = home.ok(&["reload", "web", "--no-wait"]);
    assert!(run.took < Duration::from_secs(1), "{:?}", run.took);
    reloading(&home);
    let view = home.wait_view("web", "the reload's end", is_ready);
    assert_eq!(view["revision"], 2);
}
