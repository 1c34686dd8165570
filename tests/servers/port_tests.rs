//! Servers that test their port by connecting to it before they bind it: `serve` takes another one if
//! somebody answers, robyn asks for another one on its standard input, again and again.

use serde_json::Value;

use crate::common::load::Load;
use crate::common::{Home, apps, http, is_ready};
use crate::supervisors::Supervisors;
use crate::{lives, turn};

const FOUND: &str = "it tests its port by connecting to it";

/// What was found out is said in the answer of `start`, in `describe`, and once in the log; and no later
/// start fails first.
fn is_found_out(home: &Home) {
    let shown = home.ok(&["describe", "web"]).out;
    assert!(shown.contains(FOUND), "{shown}");
    let log = home.daemon_log();
    assert_eq!(
        log.matches("from now on rsup hides the port").count(),
        1,
        "{log}"
    );
    // Each of the two workers of the first start, at the most.
    let again = log
        .matches("it is started again, with the port hidden")
        .count();
    assert!((1..=2).contains(&again), "{again} times: {log}");
}

fn serve(home: &Home, port: u16, lines: &str) -> bool {
    let (Some(node), Some(folder)) = (apps::node(), apps::serve()) else {
        return false;
    };
    home.write("public/index.html", "hello\n");
    let script = folder.join("node_modules/serve/build/main.js");
    let address = format!("tcp://127.0.0.1:{port}");
    let command = apps::toml_command(&[
        node,
        script.to_str().expect("UTF-8"),
        "--listen",
        &address,
        "public",
    ]);
    home.config(&format!(
        "[app.web]\n{command}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\n{lines}\n"
    ));
    true
}

#[test]
fn serve_finds_its_port_free() {
    let home = Home::new();
    let port = home.port();
    if !serve(&home, port, "") {
        return;
    }
    lives(&home, port);
    is_found_out(&home);
    // A new daemon knows it, and so does one after a reboot: the list is saved with it.
    home.ok(&["stop", "web"]);
    home.kill_keeper_and_daemon();
    home.ok(&["start", "web"]);
    let log = home.daemon_log();
    assert!(
        log.matches("it is started again, with the port hidden")
            .count()
            <= 2,
        "{log}"
    );
}

#[test]
fn the_first_answer_says_so() {
    let home = Home::new();
    let port = home.port();
    if !serve(&home, port, "") {
        return;
    }
    home.ok(&["start"]).says(&[FOUND]);
    let again = home.ok(&["restart", "web"]);
    assert!(
        !again.err.contains(FOUND) && !again.out.contains(FOUND),
        "{again:?}"
    );
}

#[test]
fn a_key_says_it_beforehand_and_another_forbids_it() {
    let home = Home::new();
    let port = home.port();
    if !serve(&home, port, "hide_port = true") {
        return;
    }
    home.ok(&["start"]);
    crate::serves(port);
    let shown = home.ok(&["describe", "web"]).out;
    assert!(
        shown.contains("hide_port = true: rsup hides the port"),
        "{shown}"
    );
    assert!(!home.daemon_log().contains("started again"));
    home.ok(&["delete", "web"]);
    serve(&home, port, "hide_port = false\nlisten_timeout = \"2s\"");
    home.run(&["start"]).code(1).says(&["listen_timeout"]);
}

/// A release that begins to test its port, behind one that does not: the old workers answer the test.
#[test]
fn a_reload_to_such_a_server_does_not_fail() {
    let _turn = turn();
    let home = Home::new();
    let port = home.port();
    let listen = format!("listen = \"127.0.0.1:{port}\"\nlisten_timeout = \"3s\"");
    home.config(&format!(
        "[app.web]\n{}\ninstances = 2\n{listen}\n",
        apps::sample()
    ));
    home.ok(&["start"]);
    if !serve(&home, port, "listen_timeout = \"3s\"") {
        return;
    }
    let load = Load::start(port, "/");
    home.ok(&["reload", "web"]).says(&[FOUND]);
    load.more(200);
    home.ok(&["reload", "web"]);
    load.lossless();
    assert_eq!(
        http::get(http::local(port), "/").expect("an answer").body,
        "hello\n"
    );
    assert!(
        home.view("web")["workers"]
            .as_array()
            .expect("workers")
            .iter()
            .all(|w| w["restarts"] == 0)
    );
}

#[test]
fn robyn_finds_its_port_free() {
    let (Some(python), Some(packages)) = (apps::python(), apps::python_servers()) else {
        return;
    };
    let home = Home::new();
    let port = home.port();
    home.write(
        "app.py",
        "import os\nfrom robyn import Robyn\napp = Robyn(__file__)\n\
         @app.get('/')\nasync def root(request):\n    return str(os.getpid())\n\
         app.start(host='127.0.0.1', port=int(os.environ['PORT']))\n",
    );
    let command =
        apps::toml_command(&[python, "app.py", "--disable-openapi", "--log-level", "WARN"]);
    // It does not end at SIGTERM.
    home.config(&format!(
        "[app.web]\n{command}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nstop.signal = \"SIGINT\"\n\
         env = {{ PYTHONPATH = \"{}\" }}\n",
        packages.display()
    ));
    lives(&home, port);
    is_found_out(&home);
}

/// What the trap means for the worker: others are there as ever, its own port is once it has bound it.
const NEIGHBOUR: &str = r#"
import http.server, json, os, socket
port, other = int(os.environ["PORT"]), int(os.environ["OTHER"])
def ask(host, port, kind=socket.SOCK_STREAM):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as sock:
        return os.strerror(sock.connect_ex((host, port)))
seen = {host: ask(host, port) for host in ("127.0.0.1", "127.0.0.9", "0.0.0.0", "::ffff:127.0.0.1")}
seen["udp"] = ask("127.0.0.1", port, socket.SOCK_DGRAM)
seen["other"] = ask("127.0.0.1", other)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({**seen, "bound": ask("127.0.0.1", port), "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
"#;

#[test]
fn only_its_own_port_is_hidden_and_only_until_it_is_bound() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let (port, other) = (home.port(), home.port());
    let neighbour = std::net::TcpListener::bind(("127.0.0.1", other)).expect("a neighbour");
    home.write("app.py", NEIGHBOUR);
    let command = apps::toml_command(&[python, "app.py"]);
    let env = format!("env = {{ OTHER = \"{other}\" }}");
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"0.0.0.0:{port}\"\nhide_port = true\n{env}\n"
    ));
    let facts = || http::get(http::local(port), "/").expect("an answer").json();
    let is_right = |facts: &Value| {
        for host in ["127.0.0.1", "127.0.0.9", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert_eq!(facts[host], "Connection refused", "{host}: {facts:#}");
        }
        for there in ["udp", "other", "bound"] {
            assert_eq!(facts[there], "Success", "{there}: {facts:#}");
        }
    };
    home.ok(&["start"]);
    is_right(&facts());
    // Behind a worker that serves.
    home.ok(&["reload", "web"]);
    is_right(&facts());
    // The next daemon answers its calls too.
    home.kill_daemon();
    is_right(&facts());
    // The one after both deaths as well.
    let before = home.pids("web");
    home.kill_keeper_and_daemon();
    home.list();
    home.wait_view("web", "ready", is_ready);
    is_right(&facts());
    assert_eq!(home.pids("web"), before);
    drop(neighbour);
}
