//! What a user is told of the addresses that workers bind.

use std::net::{IpAddr, TcpStream};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{Home, Run, apps, http, signal, wait_until};
use crate::python_app;

fn notes(home: &Home) -> Vec<String> {
    let notes = home.describe("web")["notes"].as_array().cloned();
    let texts = notes.unwrap_or_default().into_iter();
    texts
        .filter_map(|note| note.as_str().map(str::to_owned))
        .collect()
}

fn listens(home: &Home) -> Value {
    home.view("web")["listen"].clone()
}

fn reaches(host: &str, port: u16) -> bool {
    let ip: IpAddr = host.parse().expect("an address");
    TcpStream::connect((ip, port)).is_ok()
}

/// All hints are of use: what they say to write is tried.
fn says(run: &Run, words: &[&str]) {
    for word in words {
        assert!(run.err.contains(word), "`{word}` is not in\n{}", run.err);
    }
}

#[test]
fn the_address_is_said_that_is_served() {
    let home = Home::new();
    let port = home.port();
    let bind = format!("0.0.0.0:{port}");
    if !python_app(&home, &format!("listen = {port}"), &bind, "") {
        return;
    }
    let run = home.ok(&["start"]);
    assert!(
        run.out.contains(&format!("ready on 0.0.0.0:{port}")),
        "{}",
        run.out
    );
    let note = format!("although `listen` says [::]:{port}: the app binds 0.0.0.0:{port}");
    says(&run, &[&note]);
    assert!(
        notes(&home).iter().any(|n| n.contains(&note)),
        "{:?}",
        notes(&home)
    );
    assert_eq!(listens(&home), serde_json::json!([bind]));
    assert!(reaches("127.0.0.1", port) && !reaches("::1", port));
    // The same for the next daemon, and a configuration that asks for no more says nothing.
    home.ok(&["delete", "web"]);
    python_app(&home, &format!("listen = \"{bind}\""), &bind, "");
    let run = home.ok(&["start"]);
    assert!(
        run.out.contains(&format!("ready on {bind}")) && !run.err.contains("listen"),
        "{run:?}"
    );
    assert_eq!(notes(&home), Vec::<String>::new());
}

#[test]
fn both_families_are_served_to_an_app_that_takes_them() {
    let Some(node) = apps::node() else { return };
    if !reaches_v6() {
        return;
    }
    let home = Home::new();
    let port = home.port();
    let script = "require('http').createServer((q, s) => s.end('{}')).listen(process.env.PORT)";
    let command = apps::toml_command(&[node, "-e", script]);
    home.config(&format!("[app.web]\n{command}\nlisten = {port}\n"));
    let run = home.ok(&["start"]);
    assert!(
        run.out.contains(&format!("ready on [::]:{port}")) && !run.err.contains("listen"),
        "{run:?}"
    );
    assert!(reaches("127.0.0.1", port) && reaches("::1", port));
}

fn reaches_v6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn an_app_for_this_machine_is_not_made_public_in_silence() {
    for (listen, noted) in [
        ("\"0.0.0.0:P\"", true),
        ("P", true),
        ("\"127.0.0.1:P\"", false),
    ] {
        let home = Home::new();
        let port = home.port();
        let bind = format!("127.0.0.1:{port}");
        let listen = listen.replace('P', &port.to_string());
        if !python_app(&home, &format!("listen = {listen}"), &bind, "instances = 2") {
            return;
        }
        let run = home.ok(&["start"]);
        let words = format!("the app binds {bind}");
        let told = |text: &str| text.contains(&words) && text.contains("other machines");
        assert_eq!(told(&run.err), noted, "{listen}: {}", run.err);
        assert!(
            !run.err.contains("alone"),
            "one note is enough: {}",
            run.err
        );
        assert_eq!(
            notes(&home).iter().any(|note| told(note)),
            noted,
            "{listen}: {:?}",
            notes(&home)
        );
    }
}

#[test]
fn a_second_port_that_two_workers_want() {
    let Some(node) = apps::node() else { return };
    let home = Home::new();
    let (port, metrics) = (home.port(), home.port());
    let script = format!(
        "const http = require('http'); \
         const serve = port => http.createServer((q, s) => s.end(JSON.stringify({{ pid: process.pid }}))).listen(port, '0.0.0.0'); \
         serve({metrics}); serve(process.env.PORT)"
    );
    let command = apps::toml_command(&[node, "-e", &script]);
    let config = |listen: &str| {
        home.config(&format!(
            "[app.web]\n{command}\ninstances = 2\nlisten = {listen}\nrestart.max_restarts = 1\n"
        ))
    };
    config(&format!("\"0.0.0.0:{port}\""));
    let run = home.run(&["start"]).code(1);
    let both = format!("[\"0.0.0.0:{port}\", {metrics}]");
    says(
        &run,
        &[
            &format!("it binds 0.0.0.0:{metrics}, which is not in `listen`, and which web:"),
            &format!("write `listen = {both}`"),
        ],
    );
    // What the hint says works, reloads included.
    home.ok(&["delete", "web"]);
    config(&both);
    home.ok(&["start"]);
    home.ok(&["reload", "web"]);
    for port in [port, metrics] {
        http::get(http::local(port), "/").expect("an answer");
    }
}

/// One worker gets it, and the first reload would fail: that is said before.
#[test]
fn a_second_port_of_one_worker() {
    let home = Home::new();
    let (port, metrics) = (home.port(), home.port());
    let binds = format!("127.0.0.1:{metrics} 127.0.0.1:{port}");
    if !python_app(&home, &format!("listen = \"127.0.0.1:{port}\""), &binds, "") {
        return;
    }
    let run = home.ok(&["start"]);
    let hint = format!("`listen = [\"127.0.0.1:{port}\", \"127.0.0.1:{metrics}\"]`");
    says(
        &run,
        &[
            &format!("127.0.0.1:{metrics} as well, which is not in `listen`"),
            &hint,
        ],
    );
    // The next daemon knows it too.
    let daemon = || home.ok(&["ping", "--json"]).json()["pid"].as_u64();
    let before = daemon();
    signal(before.expect("a pid") as u32, Signal::SIGKILL);
    wait_until("another daemon", || daemon() != before);
    assert!(
        notes(&home).iter().any(|n| n.contains(&hint)),
        "{:?}",
        notes(&home)
    );
    let run = home.run(&["reload", "web"]).code(1);
    says(
        &run,
        &[&format!("it binds 127.0.0.1:{metrics}"), "web:0 has", &hint],
    );
}

#[test]
fn an_app_that_ignores_its_port() {
    let home = Home::new();
    let (port, other) = (home.port(), home.port());
    let listen = format!("listen = \"127.0.0.1:{port}\"\nlisten_timeout = \"2s\"");
    if !python_app(&home, &listen, &format!("127.0.0.1:{other}"), "") {
        return;
    }
    let run = home.run(&["start"]).code(1);
    says(
        &run,
        &[
            &format!(
                "it has bound 127.0.0.1:{other}, which is not in `listen`, and not 127.0.0.1:{port}"
            ),
            &format!(
                "write `listen = \"127.0.0.1:{other}\"`, or have the app listen on the port in the variable PORT, {port}"
            ),
        ],
    );
}

/// The same without a file: flags are advised, not keys.
#[test]
fn started_from_the_command_line() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let (port, other) = (home.port(), home.port());
    home.write("app.py", &format!("import http.server as h\nh.HTTPServer(('', {other}), h.SimpleHTTPRequestHandler).serve_forever()\n"));
    let run = home
        .run(&[
            "start",
            "-n",
            "web",
            "--listen",
            &port.to_string(),
            "--listen-timeout",
            "2s",
            "--",
            python,
            "app.py",
        ])
        .code(1);
    says(&run, &[&format!("`--listen {other}`")]);
}

#[test]
fn a_go_app_with_two_ports() {
    let Some(go) = apps::go_server() else { return };
    let home = Home::new();
    let (port, metrics) = (home.port(), home.port());
    let command = apps::toml_command(&[go.to_str().expect("UTF-8")]);
    home.config(&format!(
        "[app.web]\n{command}\ninstances = 2\nlisten = {port}\nenv = {{ METRICS = \"{metrics}\" }}\nrestart.max_restarts = 1\n"
    ));
    let run = home.run(&["start"]).code(1);
    says(
        &run,
        &[
            &format!(":{metrics}, which is not in `listen`, and which web:"),
            &format!("write `listen = [{port}, {metrics}]`"),
        ],
    );
}
