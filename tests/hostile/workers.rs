//! Workers that misbehave. Many do so in tests/lifecycle and tests/sockets; these are the others.

use std::io::{Read, Write};

use nix::sys::signal::Signal;

use crate::bystander::Bystander;
use crate::common::apps::{python, toml_command};
use crate::common::http::{connect, local};
use crate::common::{Home, command_line, is_alive, signal, wait_for, wait_until};
use crate::support::Life;

/// `odd` runs this program in Python.
fn odd(home: &Home, program: &str, keys: &str) -> bool {
    let Some(python) = python() else { return false };
    home.write("odd.py", program);
    home.app(
        "odd",
        &format!("{}\n{keys}", toml_command(&[python, "odd.py"])),
    );
    true
}

const SERVER: &str = r#"
import http.server, os, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
def serve():
    http.server.ThreadingHTTPServer.daemon_threads = True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    server.serve_forever()
"#;

#[test]
fn one_that_closes_every_descriptor() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let port = home.port();
    // Its output, its inherited sockets, and whatever it may have of rsup's.
    let program = format!("{SERVER}\nos.closerange(0, 1024)\nserve()\n");
    if !odd(
        &home,
        &program,
        &format!(
            "listen = \"127.0.0.1:{port}\"\nreadiness = {{ path = \"/\" }}\nlisten_timeout = \"20s\""
        ),
    ) {
        return;
    }
    home.ok(&["start"]);
    let first = home.pid("odd");
    assert_eq!(
        crate::common::http::get(local(port), "/").unwrap().body,
        first.to_string()
    );
    home.ok(&["reload", "odd"]);
    assert_ne!(home.pid("odd"), first);
    home.ok(&["delete", "odd"]);
    assert!(!is_alive(first));
    calm.untouched(&home);
}

#[test]
fn one_that_writes_as_fast_as_it_can_and_never_ends_its_line() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    home.app(
        "spew",
        "command = [\"sh\", \"-c\", \"exec cat /dev/zero\"]\nlog = { max_size = \"1M\", keep = 1, compress = false }",
    );
    home.ok(&["start"]);
    let logs = home.rsup_home().join("state/logs");
    let size = |name: &str| std::fs::metadata(logs.join(name)).map_or(0, |m| m.len());
    wait_until("its log is rotated", || size("spew-out.log.1") > 0);
    // The daemon answers, and its other apps' lines get to their files.
    home.app(
        "say",
        "command = [\"sh\", \"-c\", \"echo here I am; exec sleep 1000\"]",
    );
    home.ok(&["start"]);
    home.wait_log("say", "here I am");
    assert!(
        size("spew-out.log") <= 2 << 20 && size("spew-out.log.1") <= 2 << 20,
        "its log is kept within bounds"
    );
    let spew = home.pid("spew");
    assert!(is_alive(spew));
    home.ok(&["delete", "spew"]);
    assert!(!is_alive(spew));
    calm.untouched(&home);
}

#[test]
fn a_bounded_fork_bomb() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    // Seven generations, each of which forks twice: 254 processes, half of them in sessions of their own.
    let program = r#"
import os, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for generation in range(7):
    if os.fork() == 0 and generation % 2:
        os.setsid()
print("done", os.getpid(), flush=True)
time.sleep(1000)
"#;
    if !odd(&home, program, "kill_timeout = \"200ms\"") {
        return;
    }
    home.ok(&["start"]);
    let all = wait_for("all of them are there", || {
        let all: Vec<u32> = home
            .processes()
            .into_iter()
            .filter(|(_, what)| what.contains("odd.py"))
            .map(|(pid, _)| pid)
            .collect();
        if all.len() >= 128 {
            Ok(all)
        } else {
            Err(all.len())
        }
    });
    home.list();
    home.ok(&["delete", "odd"]);
    let left: Vec<String> = all
        .iter()
        .filter(|pid| is_alive(**pid))
        .map(|pid| command_line(*pid))
        .collect();
    assert!(left.is_empty(), "{} are left: {left:?}", left.len());
    calm.untouched(&home);
}

#[test]
fn one_whose_connections_never_end() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let port = home.port();
    let program = format!("{SERVER}\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve()\n");
    let keys = format!(
        "listen = \"127.0.0.1:{port}\"\nreadiness = {{ path = \"/\" }}\nlisten_timeout = \"20s\"\nkill_timeout = \"300ms\""
    );
    if !odd(&home, &program, &keys) {
        return;
    }
    home.ok(&["start"]);
    let first = home.pid("odd");
    // They have begun to ask, and go on beginning.
    let mut held: Vec<_> = (0..50).map(|_| connect(local(port)).unwrap()).collect();
    held.iter_mut()
        .for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap());
    let run = home.ok(&["reload", "odd"]);
    assert!(!is_alive(first), "{run:?}");
    assert!(
        home.events("odd").contains("killed"),
        "{}",
        home.events("odd")
    );
    // Whoever held on is let go, by the end of the worker.
    for stream in &mut held {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
    }
    calm.untouched(&home);
}

#[test]
fn one_that_dies_while_it_is_asked_whether_it_is_ready() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let port = home.port();
    let program = format!("{SERVER}\nHandler.do_GET = lambda self: os._exit(7)\nserve()\n");
    let keys = format!(
        "listen = \"127.0.0.1:{port}\"\nreadiness = {{ path = \"/\" }}\nlisten_timeout = \"20s\"\nrestart = {{ max_restarts = 2, backoff = \"1ms\", backoff_max = \"1ms\" }}"
    );
    if !odd(&home, &program, &keys) {
        return;
    }
    home.run(&["start"])
        .code(1)
        .says(&["odd", "exited with code 7", "before it was ready"]);
    let view = home.wait_view("odd", "it is given up", |v| v["phase"] == "errored");
    assert!(
        view["workers"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("given up after 2 restarts"),
        "{view:#}"
    );
    calm.untouched(&home);
}

#[test]
fn one_that_is_stopped_and_never_goes_on() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    home.web("web", "kill_timeout = \"300ms\"\nliveness = { path = \"/liveness\", interval = \"100ms\", timeout = \"200ms\", failure_threshold = 2 }");
    home.ok(&["start"]);
    let frozen = home.pid("web");
    signal(frozen, Signal::SIGSTOP);
    home.wait_view("web", "it is replaced", |v| {
        let pids = crate::common::pids(v);
        v["phase"] == "ready" && pids.len() == 1 && !pids.contains(&frozen)
    });
    let events = home.events("web");
    assert!(
        events.contains("liveness failed: no answer within"),
        "{events}"
    );
    calm.untouched(&home);
}
