//! Sockets that an app takes from LISTEN_FDS, and those that rsup leaves alone.

use std::net::UdpSocket;
use std::os::unix::net::UnixStream;

use rsup::load::{Plan, Target};
use serde_json::Value;

use crate::common::load::Load;
use crate::common::{Home, RSUP, apps, http, quoted};
use crate::python_app;

fn facts(port: u16) -> Value {
    http::get(http::local(port), "/").expect("an answer").json()
}

#[test]
fn listen_fds() {
    let home = Home::new();
    let (first, second) = (home.port(), home.port());
    let listen = format!("listen = [\"127.0.0.1:{first}\", \"127.0.0.1:{second}\"]");
    if !python_app(
        &home,
        &listen,
        "fd:3 fd:4",
        "instances = 2\nsocket_activation = true",
    ) {
        return;
    }
    home.ok(&["start"]);
    let load = Load::start(first, "/");
    for round in 1..=2 {
        for port in [first, second] {
            let facts = facts(port);
            let env = &facts["env"];
            assert_eq!(env["LISTEN_FDS"], "2");
            assert_eq!(env["LISTEN_PID"], facts["pid"].to_string(), "{facts:#}");
            assert_eq!(env["LISTEN_FDNAMES"], "web-0:web-1");
            assert_eq!(
                (&env["RSUP_APP"], &env["RSUP_REVISION"]),
                (&"web".into(), &round.to_string().into())
            );
            assert_eq!(env["PORT"], first.to_string());
            assert!(
                facts["listener"]["name"]
                    .as_str()
                    .is_some_and(|name| name.contains(&port.to_string())),
                "{facts:#}"
            );
        }
        home.ok(&["reload", "web"]);
    }
    load.lossless();
}

/// A server that knows LISTEN_FDS for something else (uWSGI: sockets of its own protocol) is not to
/// find any, nor a socket that it did not ask for.
#[test]
fn nothing_is_inherited_by_default() {
    let home = Home::new();
    let port = home.port();
    let listen = format!("listen = \"127.0.0.1:{port}\"");
    if !python_app(
        &home,
        &listen,
        &format!("127.0.0.1:{port}"),
        "instances = 2",
    ) {
        return;
    }
    home.ok(&["start"]);
    let facts = facts(port);
    let names: Vec<&String> = facts["env"]
        .as_object()
        .expect("variables")
        .keys()
        .collect();
    assert!(
        names.iter().all(|name| !name.starts_with("LISTEN_")),
        "{names:?}"
    );
    for pid in home.pids("web") {
        assert_eq!(sockets_of(pid), 1, "the one that it has bound");
    }
    let shown = home.ok(&["describe", "web"]).out;
    assert!(shown.contains("by takeover"), "{shown}");
    let shown = home.ok(&["env", "web"]).out;
    assert!(!shown.contains("LISTEN_FDNAMES"), "{shown}");
}

/// Where nobody answers its bind, LISTEN_FDS is the only way.
#[test]
fn without_takeover_all_is_inherited() {
    let home = Home::new();
    let port = home.port();
    if !python_app(
        &home,
        &format!("listen = \"127.0.0.1:{port}\""),
        "fd:3",
        "instances = 2",
    ) {
        return;
    }
    let mut command = home.command(RSUP);
    command.env("RSUP_TAKEOVER", "off").arg("start");
    assert!(command.status().expect("rsup").success());
    let load = Load::start(port, "/");
    assert_eq!(facts(port)["env"]["LISTEN_FDS"], "1");
    let shown = home.ok(&["describe", "web"]).out;
    assert!(
        shown.contains("by LISTEN_FDS: takeover of bind(2) is not possible here"),
        "{shown}"
    );
    home.ok(&["reload", "web"]);
    load.lossless();
}

/// Sockets that a process has open.
fn sockets_of(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .flatten();
    fds.filter(|fd| {
        std::fs::read_link(fd.path())
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    })
    .count()
}

#[test]
fn unix_socket() {
    let home = Home::new();
    if !python_app(
        &home,
        "listen = \"unix:api.sock\"",
        "fd:3",
        "instances = 2\nrestart = { min_uptime = \"300ms\" }",
    ) {
        return;
    }
    home.ok(&["start"]);
    let path = home.path("api.sock");
    let ask = || {
        http::get_over(UnixStream::connect(&path).expect("a connection"), "/").expect("an answer")
    };
    assert!(home.pids("web").contains(&ask().pid()));
    let mut plan = Plan::new(Target::Unix(path.clone()), "/");
    plan.rate = Some(500.0);
    let load = Load::with(plan);
    for _ in 0..2 {
        home.ok(&["reload", "web"]);
        load.more(50);
    }
    home.ok(&["restart", "web"]);
    load.more(50);
    load.lossless();
    home.ok(&["stop", "web"]);
    assert!(!path.exists(), "it is taken away");
    home.ok(&["start", "web"]);
    ask();
}

/// The app's own processes share the socket of its slot.
#[test]
fn prefork_server() {
    let home = Home::new();
    let port = home.port();
    if !python_app(
        &home,
        &format!("listen = \"127.0.0.1:{port}\""),
        &format!("127.0.0.1:{port}"),
        "instances = 2\nkill_timeout = \"10s\"",
    ) {
        return;
    }
    let path = home.path("supervisor.toml");
    let text = std::fs::read_to_string(&path).expect("the file") + "FORK = \"2\"\n";
    home.config(&text);
    home.ok(&["start"]);
    let load = Load::start(port, "/");
    home.ok(&["reload", "web"]);
    home.ok(&["reload", "web"]);
    load.more(300);
    let report = load.lossless();
    assert!(
        report.before.pids.len() > 4,
        "children of every generation have served: {:?}",
        report.before.pids
    );
    assert!(
        report
            .before
            .pids
            .keys()
            .all(|pid| !home.pids("web").contains(pid)),
        "their parents have not"
    );
}

/// Another port, and the same one of another protocol, are the app's own business.
#[test]
fn what_is_not_ours() {
    let home = Home::new();
    let (port, other) = (home.port(), home.port());
    let bind = format!("0.0.0.0:{other} 0.0.0.0:{port} udp 0.0.0.0:{port}");
    if !python_app(
        &home,
        &format!("listen = \"127.0.0.1:{port}\""),
        &bind,
        "instances = 1",
    ) {
        return;
    }
    home.ok(&["start"]);
    assert_eq!(facts(port)["pid"], facts(other)["pid"]);
    assert_eq!(
        facts(port)["listener"]["name"],
        format!("('127.0.0.1', {port})"),
        "rsup's"
    );
    assert_eq!(
        facts(other)["listener"]["name"],
        format!("('0.0.0.0', {other})"),
        "its own"
    );
    UdpSocket::bind(("0.0.0.0", port)).expect_err("the app has the UDP port");
    // rsup does not hold the other port: it goes with the app.
    home.ok(&["stop", "web"]);
    http::connect(http::local(other)).expect_err("nobody listens there any more");
}

/// Without `listen` an app is just a process, whatever it binds.
#[test]
fn no_listener() {
    let home = Home::new();
    let port = home.port();
    if !python_app(
        &home,
        "restart = { min_uptime = \"200ms\" }",
        &format!("127.0.0.1:{port}"),
        "instances = 1",
    ) {
        return;
    }
    home.ok(&["start"]);
    // That it lives is all that rsup can say of it: it counts as ready before it binds.
    home.wait_log("web", "sockets.py:");
    let facts = facts(port);
    assert!(
        home.pids("web")
            .contains(&(facts["pid"].as_u64().expect("a pid") as u32))
    );
    assert!(
        facts["env"].get("LISTEN_FDS").is_none() && facts["env"].get("PORT").is_none(),
        "{facts:#}"
    );
    home.ok(&["stop", "web"]);
    http::connect(http::local(port)).expect_err("it is gone");
}

/// Two instances of a plain process, replaced one by one.
#[test]
fn plain_processes_are_reloaded_too() {
    let home = Home::new();
    home.config("[app.queue]\ncommand = \"sleep 1000\"\ninstances = 2\nrestart = { min_uptime = \"100ms\" }\n");
    home.ok(&["start"]);
    let before = home.pids("queue");
    home.ok(&["reload", "queue"]);
    let after = home.pids("queue");
    assert!(after.len() == 2 && after.is_disjoint(&before));
}

/// The wrapper passes on what it inherited, but LISTEN_PID is not its child's.
#[test]
fn a_shell_in_between() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let port = home.port();
    let script = apps::sources().join("sockets.py");
    home.write(
        "run.sh",
        &format!(
            "{} {} & child=$!\ntrap 'kill -TERM $child' TERM\nwait $child; wait $child\n",
            quoted(python),
            quoted(script.to_str().expect("UTF-8"))
        ),
    );
    home.config(&format!(
        "[app.web]\ncommand = \"sh run.sh\"\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\n"
    ));
    home.ok(&["start"]);
    let load = Load::start(port, "/");
    home.ok(&["reload", "web"]);
    assert!(
        !home
            .pids("web")
            .contains(&(facts(port)["pid"].as_u64().expect("a pid") as u32))
    );
    load.lossless();
}

/// Some servers (.NET, WEBrick) shut their listening socket down before they close it. That ends it
/// for all who hold it, and it leaves the kernel's group of sockets.
#[test]
fn shut_down_by_the_app() {
    for instances in [1, 3] {
        let home = Home::new();
        let port = home.port();
        if !python_app(
            &home,
            &format!("listen = \"127.0.0.1:{port}\""),
            &format!("127.0.0.1:{port}"),
            &format!("instances = {instances}"),
        ) {
            return;
        }
        let text = std::fs::read_to_string(home.path("supervisor.toml")).expect("the file")
            + "SHUTDOWN = \"0.3\"\n";
        home.config(&text);
        home.ok(&["start"]);
        let load = Load::start(port, "/");
        for _ in 0..3 {
            home.ok(&["reload", "web"]);
            load.more(100);
        }
        home.ok(&["restart", "web"]);
        load.more(100);
        let report = load.lossless();
        let all: std::collections::BTreeSet<u32> = (0..100)
            .map(|_| facts(port)["pid"].as_u64().expect("a pid") as u32)
            .collect();
        assert_eq!(
            all,
            home.pids("web"),
            "all workers serve, after {} requests",
            report.requests
        );
        let relayed = || home.describe("web")["app"]["relayed"].clone();
        let before = relayed();
        (0..100).for_each(|_| drop(facts(port)));
        assert_eq!(relayed(), before, "rsup is out of the way again");
    }
}
