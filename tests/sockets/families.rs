//! The app finds the kind of socket that it made, and serves whoever the configuration says.

use std::net::{IpAddr, Ipv6Addr, TcpListener};

use crate::common::load::Load;
use crate::common::{Home, apps, http};
use crate::python_app;

const V4: &str = "127.0.0.1";
const V6: &str = "::1";

fn has_v6() -> bool {
    let there = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !there {
        eprintln!("SKIPPED: there is no ::1 here");
    }
    there
}

fn ask(host: &str, port: u16) -> Result<serde_json::Value, String> {
    let ip: IpAddr = host.parse().expect("an address");
    http::get((ip, port), "/").map(|answer| answer.json())
}

/// `P` in `listen` and `bind` stands for the port. Clients of `reached` are answered by a socket of
/// that family; those of other families are refused. Then the same after a reload.
#[track_caller]
fn case(listen: &str, bind: &str, reached: &[(&str, &str)]) {
    let home = Home::new();
    let port = home.port();
    let with_port = |text: &str| text.replace('P', &port.to_string());
    if !python_app(
        &home,
        &format!("listen = {}", with_port(listen)),
        &with_port(bind),
        "instances = 2",
    ) {
        return;
    }
    home.ok(&["start"]);
    for _ in 0..2 {
        for host in [V4, V6] {
            match (reached.iter().find(|(h, _)| *h == host), ask(host, port)) {
                (Some((_, family)), Ok(answer)) => {
                    assert_eq!(
                        answer["listener"]["family"], *family,
                        "{listen} {bind} {host}: {answer:#}"
                    );
                    assert_eq!(
                        answer["accepted"], *family,
                        "{listen} {bind} {host}: {answer:#}"
                    );
                }
                (Some(_), Err(why)) => panic!("{listen} {bind} {host}: {why}"),
                (None, Ok(answer)) => panic!("{listen} {bind} {host}: {answer:#}"),
                (None, Err(why)) => assert!(
                    why.starts_with("connect: "),
                    "{listen} {bind} {host}: {why}"
                ),
            }
        }
        home.ok(&["reload", "web"]);
    }
}

const INET: &str = "AF_INET";
const INET6: &str = "AF_INET6";

#[test]
fn any_v4() {
    case("\"0.0.0.0:P\"", "0.0.0.0:P", &[(V4, INET)]);
    case("\"0.0.0.0:P\"", "127.0.0.1:P", &[(V4, INET)]);
    if has_v6() {
        case("\"0.0.0.0:P\"", "dual [::]:P", &[(V4, INET6)]);
        case("\"0.0.0.0:P\"", "v6only [::]:P", &[(V4, INET6)]);
    }
}

#[test]
fn loopback_v4() {
    case("\"127.0.0.1:P\"", "0.0.0.0:P", &[(V4, INET)]);
    case("\"127.0.0.1:P\"", "127.0.0.1:P", &[(V4, INET)]);
    if has_v6() {
        case("\"127.0.0.1:P\"", "dual [::]:P", &[(V4, INET6)]);
    }
}

#[test]
fn bare_port() {
    case("P", "0.0.0.0:P", &[(V4, INET)]);
    if has_v6() {
        case("P", "dual [::]:P", &[(V4, INET6), (V6, INET6)]);
        case("P", "v6only [::]:P", &[(V4, INET6), (V6, INET6)]);
    }
}

#[test]
fn any_v6() {
    if has_v6() {
        case("\"[::]:P\"", "dual [::]:P", &[(V4, INET6), (V6, INET6)]);
        case("\"[::]:P\"", "v6only [::]:P", &[(V4, INET6), (V6, INET6)]);
        case("\"[::]:P\"", "0.0.0.0:P", &[(V4, INET)]);
    }
}

#[test]
fn loopback_v6() {
    if has_v6() {
        case("\"[::1]:P\"", "[::1]:P", &[(V6, INET6)]);
        case("\"[::1]:P\"", "dual [::]:P", &[(V6, INET6)]);
    }
}

#[test]
fn two_addresses() {
    if has_v6() {
        case(
            "[\"127.0.0.1:P\", \"[::1]:P\"]",
            "127.0.0.1:P [::1]:P",
            &[(V4, INET), (V6, INET6)],
        );
        case(
            "[\"0.0.0.0:P\", \"[::]:P\"]",
            "0.0.0.0:P v6only [::]:P",
            &[(V4, INET), (V6, INET6)],
        );
        case(
            "[\"[::]:P\", \"0.0.0.0:P\"]",
            "v6only [::]:P 0.0.0.0:P",
            &[(V4, INET), (V6, INET6)],
        );
    }
}

#[test]
fn two_ports() {
    let home = Home::new();
    let (first, second) = (home.port(), home.port());
    let listen = format!("listen = [\"127.0.0.1:{first}\", \"0.0.0.0:{second}\"]");
    if !python_app(
        &home,
        &listen,
        &format!("0.0.0.0:{second} 127.0.0.1:{first}"),
        "instances = 2",
    ) {
        return;
    }
    home.ok(&["start"]);
    let loads = [first, second].map(|port| Load::start(port, "/"));
    for port in [first, second] {
        let answer = ask(V4, port).expect("an answer");
        assert!(
            answer["listener"]["name"]
                .as_str()
                .is_some_and(|name| name.contains(&port.to_string())),
            "{answer:#}"
        );
    }
    home.ok(&["reload", "web"]);
    for load in loads {
        load.lossless();
    }
}

/// Node binds `::` when it is told nothing.
#[test]
fn node_without_an_address() {
    let Some(node) = apps::node() else { return };
    let script = "require('http').createServer((q, s) => s.end(JSON.stringify({ pid: process.pid }))).listen(process.env.PORT)";
    let command = apps::toml_command(&[node, "-e", script]);
    let hosts: &[&str] = if has_v6() { &[V4, V6] } else { &[V4] };
    for (listen, hosts) in [
        ("\"127.0.0.1:P\"", &[V4][..]),
        ("\"0.0.0.0:P\"", &[V4]),
        ("P", hosts),
    ] {
        let home = Home::new();
        let port = home.port();
        home.config(&format!(
            "[app.web]\n{command}\ninstances = 2\nlisten = {}\n",
            listen.replace('P', &port.to_string())
        ));
        home.ok(&["start"]);
        home.ok(&["reload", "web"]);
        for host in hosts {
            let pid = ask(host, port).expect("an answer")["pid"]
                .as_u64()
                .expect("a pid") as u32;
            assert!(home.pids("web").contains(&pid));
        }
    }
}

/// npm is the worker, node its child.
#[test]
fn npm_start() {
    let Some(folder) = apps::express() else {
        return;
    };
    let home = Home::new();
    let port = home.port();
    let cwd = toml::Value::from(folder.to_str().expect("UTF-8"));
    home.config(&format!(
        "[app.web]\ncommand = \"npm start\"\ncwd = {cwd}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\nlisten_timeout = \"30s\"\n"
    ));
    home.ok(&["start"]);
    let load = Load::start(port, "/health");
    home.ok(&["reload", "web"]);
    let answer = http::get(http::local(port), "/health").expect("an answer");
    assert!(
        !home.pids("web").contains(&answer.pid()),
        "npm's child answers"
    );
    load.lossless();
}

/// Each worker binds both families, in an order of its own, as asyncio does (which keeps its addresses in a
/// set). Worker 1 binds when worker 0 listens already, and neither is ready before both are bound.
const BOTH: &str = r#"
import os, select, socket, time
instance, port, folder = os.environ['RSUP_INSTANCE'], int(os.environ['PORT']), os.environ['FOLDER']
there = lambda name: os.path.exists(os.path.join(folder, name))
def bind(family, host):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((host, port))
    return s
while instance == '1' and not there('listens-0'): time.sleep(0.005)
sockets = [bind(socket.AF_INET6, '::'), bind(socket.AF_INET, '0.0.0.0')]
for s in sockets: s.listen(100)
open(os.path.join(folder, 'listens-' + instance), 'w').close()
while True:
    for s in select.select(sockets, [], [])[0]:
        c, _ = s.accept()
        c.recv(1000)
        both = there('listens-0') and there('listens-1')
        c.sendall(b'HTTP/1.0 %s\r\n\r\n{"pid": %d}' % (b'200 OK' if both else b'503 Wait', os.getpid()))
        c.close()
"#;

#[test]
fn an_app_that_binds_both_families_keeps_its_sockets() {
    let Some(python) = apps::python() else { return };
    if !has_v6() {
        return;
    }
    let home = Home::new();
    let port = home.port();
    let script = home.write("both.py", BOTH);
    let command = apps::toml_command(&[python, script.to_str().expect("UTF-8")]);
    let folder = home.folder().display();
    home.config(&format!(
        "[app.web]\n{command}\nlisten = {port}\ninstances = 2\nreadiness = \"/\"\nenv = {{ FOLDER = \"{folder}\" }}\n"
    ));
    home.ok(&["start"]);
    let load = Load::start(port, "/");
    home.ok(&["reload", "web"]);
    load.lossless();
}
