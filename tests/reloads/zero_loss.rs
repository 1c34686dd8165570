//! Reload after reload under load, each request on a connection of its own: none may fail.

use std::time::{Duration, Instant};

use crate::common::load::Load;
use crate::common::{Home, apps, is_ready};

/// For so long it is reloaded, at least.
const TIME: Duration = Duration::from_secs(5);

/// `app`: the lines of the app's table that say how it is run and probed.
fn reload_under_load(app: &str) {
    let home = Home::new();
    let port = home.port();
    home.config(&format!(
        "[app.web]\n{app}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nkill_timeout = \"20s\"\n"
    ));
    home.ok(&["start"]);
    let load = Load::hard(port, "/health");
    let began = Instant::now();
    let mut reloads = 0;
    while reloads < 3 || began.elapsed() < TIME {
        let before = home.pids("web");
        home.ok(&["reload", "web"]);
        reloads += 1;
        let view = home.view("web");
        assert!(is_ready(&view), "{view:#}");
        assert_eq!(view["revision"], 1 + reloads);
        assert!(
            home.pids("web").is_disjoint(&before),
            "every worker is replaced"
        );
        load.more(100);
    }
    let report = load.lossless();
    eprintln!(
        "{reloads} reloads, {} requests, none failed; longest {} ms",
        report.requests,
        report.before.max_us.unwrap_or(0) / 1000
    );
    assert!(
        report.before.pids.len() as u64 > reloads,
        "every generation has served: {:?}",
        report.before.pids
    );
}

#[test]
fn sample_app() {
    reload_under_load(&format!(
        "{}\nreadiness = \"/readiness\"\nenv = {{ WARM_MS = \"100\" }}",
        apps::sample()
    ));
}

#[test]
fn express() {
    let (Some(node), Some(folder)) = (apps::node(), apps::express()) else {
        return;
    };
    let command = apps::toml_command(&[node, "server.js"]);
    let cwd = toml::Value::from(folder.to_str().expect("UTF-8"));
    reload_under_load(&format!(
        "{command}\ncwd = {cwd}\nreadiness = \"/readiness\"\nenv = {{ WARM_MS = \"100\" }}"
    ));
}

#[test]
fn python_asyncio() {
    let Some(python) = apps::python() else { return };
    let script = apps::sources().join("server.py");
    reload_under_load(&apps::toml_command(&[
        python,
        script.to_str().expect("UTF-8"),
    ]));
}

#[test]
fn go_net_http() {
    let Some(program) = apps::go_server() else {
        return;
    };
    reload_under_load(&format!(
        "{}\nreadiness = \"/\"",
        apps::toml_command(&[program.to_str().expect("UTF-8")])
    ));
}
