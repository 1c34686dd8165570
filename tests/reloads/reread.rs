//! A reload reads the file again, and looks up the folder anew.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use crate::common::load::Load;
use crate::common::{Home, apps, http, is_ready, pids, wait_until};

fn config(port: u16, instances: u16, lines: &str) -> String {
    format!(
        "[app.web]\n{}\ninstances = {instances}\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\n{lines}\n",
        apps::sample()
    )
}

fn environ(pid: u32) -> BTreeSet<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).expect("its environment");
    String::from_utf8_lossy(&bytes)
        .split('\0')
        .map(str::to_owned)
        .collect()
}

#[test]
fn command_and_environment() {
    let home = Home::new();
    let port = home.port();
    home.config(&config(
        port,
        2,
        "env = { APP_VERSION = \"v1\", GONE = \"1\" }",
    ));
    home.ok(&["start"]);
    let load = Load::start(port, "/health");
    let copy = home.path("other-name");
    crate::common::install(crate::common::RSUP, &copy);
    let command = "command = \"./other-name sample-app\"";
    let changed = config(port, 2, "env = { APP_VERSION = \"v2\", NEW = \"1\" }")
        .replace(&apps::sample(), command);
    home.config(&changed);
    home.ok(&["reload", "web"]);
    for pid in home.pids("web") {
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/exe")).expect("its program"),
            copy
        );
        let environ = environ(pid);
        assert!(
            environ.contains("APP_VERSION=v2")
                && environ.contains("NEW=1")
                && environ.contains("RSUP_REVISION=2"),
            "{environ:?}"
        );
        assert!(
            !environ.iter().any(|e| e.starts_with("GONE=")),
            "{environ:?}"
        );
    }
    assert_eq!(
        http::get(http::local(port), "/").expect("an answer").json()["version"],
        "v2"
    );
    load.lossless();
}

/// Without `--update-env` the environment is that of `rsup start`.
#[test]
fn the_callers_environment() {
    let home = Home::new();
    let port = home.port();
    home.config(&config(port, 1, ""));
    let with = |value: &str, args: &[&str]| {
        let mut command = home.rsup();
        command.args(args).env("FROM_SHELL", value);
        crate::common::try_run(command).expect("it runs").ok();
        let pid = home.pids("web").into_iter().next().expect("a worker");
        environ(pid)
            .into_iter()
            .find(|e| e.starts_with("FROM_SHELL="))
            .expect("the variable")
    };
    assert_eq!(with("one", &["start"]), "FROM_SHELL=one");
    assert_eq!(with("two", &["reload", "web"]), "FROM_SHELL=one");
    assert_eq!(
        with("three", &["reload", "web", "--update-env"]),
        "FROM_SHELL=three"
    );
    assert_eq!(with("four", &["reload", "web"]), "FROM_SHELL=three");
}

#[test]
fn more_and_fewer_workers() {
    let home = Home::new();
    let port = home.port();
    home.config(&config(port, 1, ""));
    home.ok(&["start"]);
    let load = Load::start(port, "/health");
    for instances in [4, 2, 3, 1] {
        let before = home.pids("web");
        home.config(&config(port, instances, ""));
        home.ok(&["reload", "web"]);
        let view = home.view("web");
        assert!(
            is_ready(&view) && view["instances"] == instances,
            "{view:#}"
        );
        assert_eq!(pids(&view).len(), usize::from(instances));
        assert!(pids(&view).is_disjoint(&before));
        load.more(100);
    }
    home.ok(&["scale", "web", "3"]);
    assert_eq!(home.pids("web").len(), 3);
    home.ok(&["scale", "web", "-1"]);
    assert_eq!(home.pids("web").len(), 2);
    load.lossless();
}

/// `current` is a link to the newest release. Workers run in the release itself, and those that are
/// not reloaded stay there.
#[test]
fn the_link_to_the_current_release() {
    let home = Home::new();
    let port = home.port();
    for release in ["r1", "r2"] {
        fs::create_dir(home.path(release)).expect("a release");
    }
    let point = |release: &str| {
        symlink(release, home.path("next")).expect("a link");
        fs::rename(home.path("next"), home.path("current")).expect("put in place");
    };
    let folders = || -> BTreeSet<_> {
        home.pids("web")
            .iter()
            .map(|pid| fs::read_link(format!("/proc/{pid}/cwd")).expect("its folder"))
            .collect()
    };
    point("r1");
    home.config(&config(port, 2, "cwd = \"current\""));
    home.ok(&["start"]);
    let load = Load::start(port, "/health");
    assert_eq!(folders(), [home.path("r1")].into());
    point("r2");
    // A crash in mid-deploy upgrades nobody.
    let victim = home.pids("web").into_iter().next().expect("a worker");
    crate::common::signal(victim, nix::sys::signal::Signal::SIGTERM);
    home.wait_view("web", "a successor", |view| {
        is_ready(view) && !pids(view).contains(&victim)
    });
    assert_eq!(folders(), [home.path("r1")].into());
    home.ok(&["reload", "web"]);
    assert_eq!(folders(), [home.path("r2")].into());
    load.lossless();
}

#[test]
fn addresses_come_and_go() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let (first, second) = (home.port(), home.port());
    let script = apps::sources().join("sockets.py");
    let command = apps::toml_command(&[python, script.to_str().expect("UTF-8")]);
    let config = |ports: &[u16]| {
        let listen: Vec<String> = ports
            .iter()
            .map(|port| format!("\"127.0.0.1:{port}\""))
            .collect();
        let binds: Vec<String> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        home.config(&format!(
            "[app.web]\n{command}\ninstances = 2\nlisten = [{}]\nenv = {{ BIND = \"{}\" }}\n",
            listen.join(", "),
            binds.join(" ")
        ));
    };
    config(&[first]);
    home.ok(&["start"]);
    let load = Load::start(first, "/");
    config(&[first, second]);
    home.ok(&["reload", "web"]);
    let both = Load::start(second, "/");
    both.more(100);
    home.ok(&["reload", "web"]);
    both.lossless();
    config(&[first]);
    home.ok(&["reload", "web"]);
    http::connect(http::local(second)).expect_err("nobody listens there any more");
    load.more(100);
    load.lossless();
    // From one to the other at once.
    config(&[second]);
    home.ok(&["reload", "web"]);
    http::get(http::local(second), "/").expect("an answer");
    http::connect(http::local(first)).expect_err("nobody listens there any more");
}

/// An address that cannot be had: the reload fails before anything is touched.
#[test]
fn a_new_address_is_taken() {
    let home = Home::new();
    let (port, taken) = (home.port(), home.port());
    let _holder = std::net::TcpListener::bind(("127.0.0.1", taken)).expect("a free port");
    home.config(&config(port, 2, ""));
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/health");
    home.config(
        &config(port, 2, "")
            .replace("listen = ", &format!("listen = [\"127.0.0.1:{taken}\", "))
            .replace("\"\nreadiness", "\"]\nreadiness"),
    );
    let me = format!("{}", std::process::id());
    home.run(&["reload", "web"])
        .code(1)
        .says(&[&taken.to_string(), &me]);
    let view = home.view("web");
    assert_eq!(
        (pids(&view), view["revision"].as_u64()),
        (before, Some(1)),
        "{view:#}"
    );
    assert!(is_ready(&view), "{view:#}");
    home.config(&config(port, 2, ""));
    home.ok(&["reload", "web"]);
    load.lossless();
}

/// Four workers, two at a time: never more than six, and the old ones go in pairs.
#[test]
fn batches_of_two() {
    let home = Home::new();
    let port = home.port();
    home.config(&config(port, 4, "[app.web.reload]\nmax_surge = 2"));
    home.ok(&["start"]);
    let load = Load::start(port, "/health");
    let before = home.pids("web");
    let reload = home.background(&["reload", "web"]);
    let mut most = 0;
    let mut least_ready = usize::MAX;
    let run = loop {
        if let Some(run) = reload.ended() {
            break run;
        }
        let view = home.view("web");
        most = most.max(pids(&view).len());
        let ready = view["workers"]
            .as_array()
            .expect("workers")
            .iter()
            .filter(|w| w["phase"] == "ready")
            .count();
        least_ready = least_ready.min(ready);
    };
    run.ok();
    assert_eq!(most, 6);
    assert!(least_ready >= 4, "{least_ready} were ready");
    assert!(home.pids("web").is_disjoint(&before));
    load.lossless();
}

#[test]
fn mistakes_in_the_file() {
    let home = Home::new();
    let port = home.port();
    home.config(&config(port, 2, ""));
    home.ok(&["start"]);
    let before = home.view("web");
    let unchanged = || {
        let after = home.view("web");
        assert_eq!(
            (pids(&after), &after["revision"]),
            (pids(&before), &before["revision"])
        );
    };
    home.config(&config(port, 2, "readines = \"/\"\nmax_memory = \"much\""));
    home.run(&["reload", "web"])
        .code(2)
        .says(&["readines", "max_memory", "supervisor.toml"]);
    unchanged();
    home.config("[app.web\n");
    home.run(&["reload", "web"])
        .code(2)
        .says(&["supervisor.toml"]);
    unchanged();
    // The app is in the file no longer.
    home.config(&config(port, 2, "").replace("app.web", "app.other"));
    home.run(&["reload", "web"])
        .code(2)
        .says(&["web", "supervisor.toml"]);
    unchanged();
    fs::remove_file(home.path("supervisor.toml")).expect("it is there");
    home.run(&["reload", "web"])
        .code(2)
        .says(&["supervisor.toml"]);
    unchanged();
    wait_until("an answer", || http::get(http::local(port), "/").is_ok());
}
