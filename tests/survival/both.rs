//! `kill -9` of daemon and keeper: the workers are alone, and the next command finds them.

use std::process::Stdio;
use std::time::Instant;

use crate::common::load::Load;
use crate::common::{Home, is_alive, is_ready, wait_for, wait_until};
use crate::supervisors::Supervisors;
use crate::support::Life;

#[test]
fn the_next_command_adopts_the_workers() {
    let home = Home::new();
    let port = home.web("web", "instances = 3");
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    for _ in 0..2 {
        home.kill_keeper_and_daemon();
        load.more(300);
        let began = Instant::now();
        let list = home.list();
        eprintln!("the first command took {:?}", began.elapsed());
        assert_eq!(crate::common::pids(&list[0]), before, "{list:#}");
        home.wait_view("web", "ready", is_ready);
    }
    // Every slot can be probed and steered, the ones that were lost too.
    for _ in 0..2 {
        home.ok(&["reload", "web"]);
    }
    load.more(100);
    load.lossless();
    assert!(before.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn what_is_printed_meanwhile_is_not_lost() {
    let home = Home::new();
    let script = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo line $i; sleep 0.01; done; echo last $i; exec sleep 1000";
    home.app(
        "printer",
        &format!("command = ['sh', '-c', '{script}']\nlog.timestamps = false"),
    );
    home.ok(&["start"]);
    let pid = home.pid("printer");
    home.wait_log("printer", "line 3\n");
    home.kill_keeper_and_daemon();
    home.write("stop", "");
    // It wrote to a pipe that no process of rsup had open.
    wait_for("its last line", || {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if words.starts_with(b"sleep\x001000") {
            Ok(())
        } else {
            Err("not yet")
        }
    });
    assert_eq!(home.pid("printer"), pid);
    let text = home.wait_log("printer", "last ");
    let last: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("last "))
        .unwrap()
        .parse()
        .unwrap();
    let expected: String = (1..=last).map(|n| format!("line {n}\n")).collect();
    assert_eq!(home.log("printer-out"), format!("{expected}last {last}\n"));
}

#[test]
fn a_single_worker_that_died_too_is_started_again() {
    let home = Home::new();
    let port = home.web("web", "");
    home.ok(&["start"]);
    let pid = home.pid("web");
    home.kill_keeper_and_daemon();
    crate::common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    wait_until("its end", || !is_alive(pid));
    home.wait_view("web", "another worker", is_ready);
    assert_ne!(home.pid("web"), pid);
    let load = Load::start(port, "/");
    home.ok(&["reload", "web"]);
    load.lossless();
}

#[test]
fn after_a_foreground_rsup_only_a_start_adopts() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    let mut command = home.rsup();
    command
        .args(["start", "--foreground", "supervisor.toml"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut foreground = command.spawn().unwrap();
    wait_until("the daemon", || home.run(&["ping"]).code == 0);
    home.wait_view("web", "ready", is_ready);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    foreground.kill().unwrap();
    foreground.wait().unwrap();
    load.more(100);
    // Whoever started it will start it again, and must not find another one in its place.
    home.run(&["ping"]).code(1).says(&["no daemon runs"]);
    home.ok(&["start"]);
    assert_eq!(home.pids("web"), before);
    home.ok(&["reload", "web"]);
    load.lossless();
}

/// Once it listens it does what ssh-agent does: nobody but root may look into it (prctl(2),
/// PR_SET_DUMPABLE), so the kernel forbids pidfd_getfd(2), and Yama would no more.
const SECRETIVE: &str = r#"
import ctypes, http.server, os, signal, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"pid": %d}\n' % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
server.serve_forever()
server.server_close()
"#;

/// An interpreter that every user may execute.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn workers_out_of_reach_are_replaced_without_a_gap() {
    let Some(home) = Home::of_user(65534) else {
        return;
    };
    if !std::path::Path::new(PYTHON).exists() {
        return crate::common::apps::missing("python3", PYTHON);
    }
    let port = home.port();
    home.write("server.py", SECRETIVE);
    home.app(
        "web",
        &format!(
            "command = [\"{PYTHON}\", \"server.py\"]\ninstances = 2\nlisten = \"127.0.0.1:{port}\""
        ),
    );
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    home.kill_keeper_and_daemon();
    load.more(300);
    home.list();
    let gone =
        |view: &serde_json::Value| is_ready(view) && crate::common::pids(view).is_disjoint(&before);
    let view = home.wait_view("web", "replacements", gone);
    assert_eq!(view["revision"], 1, "{view:#}");
    assert!(
        home.events("web")
            .contains("may not take the worker's sockets back"),
        "{}",
        home.events("web")
    );
    load.more(100);
    home.ok(&["reload", "web"]);
    load.more(100);
    load.lossless();
}
