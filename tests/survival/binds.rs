//! Calls of bind and connect that are trapped, when daemon and keeper are killed together.

use std::collections::BTreeSet;
use std::fs;
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::common::load::Load;
use crate::common::{
    Background, Home, all_pids, apps, http, is_alive, is_ready, pids, signal, try_run, wait_for,
    wait_until,
};
use crate::supervisors::Supervisors;
use crate::support::Life;

/// Serves, and does on request what is trapped: `/udp` and `/tcp` bind port 0, `/connect` connects to the
/// port that comes after it.
const SERVER: &str = r#"
import errno, http.server, json, os, socket, subprocess, sys
if "CLOSE" in os.environ: os.closerange(3, 65536)
HELD = """
import os
def link(fd):
    try: return os.readlink("/proc/self/fd/" + fd)
    except OSError: return ""
print(sum("seccomp" in link(fd) for fd in os.listdir("/proc/self/fd")), flush=True)
"""
exec(HELD)
def attempt(act):
    try: act(); return "done"
    except OSError as e: return errno.errorcode[e.errno]
ACTS = {
    "udp": lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("127.0.0.1", 0)),
    "tcp": lambda _: socket.socket().bind(("127.0.0.1", 0)),
    "connect": lambda port: socket.socket().connect(("127.0.0.1", int(port))),
}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        act, _, port = self.path.strip("/").partition("/")
        if act == "held":
            exec(HELD)
            subprocess.run([sys.executable, "-c", HELD], close_fds=False)
            print("end", flush=True)
        said = attempt(lambda: ACTS[act](port)) if act in ACTS else "hello"
        body = json.dumps({"pid": os.getpid(), "said": said}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

const CALLS: [&str; 2] = ["udp", "tcp"];

fn start(home: &Home, python: &str, keys: &str) -> u16 {
    let port = home.port();
    home.write("server.py", SERVER);
    home.app(
        "web",
        &format!("command = [\"{python}\", \"server.py\"]\nlisten = \"127.0.0.1:{port}\"\n{keys}"),
    );
    home.ok(&["start"]);
    port
}

fn ask(port: u16, what: &str) -> String {
    let answer = http::get(http::local(port), &format!("/{what}"));
    let answer = answer.unwrap_or_else(|why| panic!("{what}: {why}"));
    answer.json()["said"].as_str().expect("a word").to_owned()
}

fn asked(port: u16, what: &str) -> JoinHandle<String> {
    let what = what.to_owned();
    std::thread::spawn(move || ask(port, &what))
}

/// Threads of the processes that wait for the answer to a trapped call.
fn waiting(pids: &BTreeSet<u32>) -> usize {
    let threads = |pid: &u32| {
        fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
    };
    let stands = |place: String| place.contains("seccomp");
    pids.iter()
        .flat_map(threads)
        .flatten()
        .filter(|thread| fs::read_to_string(thread.path().join("wchan")).is_ok_and(stands))
        .count()
}

fn holders(home: &Home) -> BTreeSet<u32> {
    let folder = home.rsup_home();
    let environ = format!("RSUP_HOME={}", folder.display());
    let is_one = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.trim() == "bind-holder")
            && fs::read(format!("/proc/{pid}/environ")).is_ok_and(|text| {
                text.split(|b| *b == 0)
                    .any(|entry| entry == environ.as_bytes())
            })
    };
    all_pids().into_iter().filter(is_one).collect()
}

/// Binds that are asked for while nobody is there wait, and work once rsup is there; so do later ones.
fn binds_wait(home: &Home, port: u16, calls: &[String]) {
    let before = home.pids("web");
    for call in calls {
        assert_eq!(ask(port, call), "done");
    }
    for _ in 0..2 {
        home.kill_keeper_and_daemon();
        let asked: Vec<_> = calls.iter().map(|call| asked(port, call)).collect();
        wait_until("calls that wait", || waiting(&before) == calls.len());
        assert!(asked.iter().all(|call| !call.is_finished()));
        assert_eq!(pids(&home.list()[0]), before);
        for call in asked {
            assert_eq!(call.join().expect("an answer"), "done");
        }
        for call in calls {
            assert_eq!(ask(port, call), "done");
        }
        home.wait_view("web", "ready", is_ready);
        assert_eq!(home.pids("web"), before, "nothing was replaced");
    }
}

fn calls() -> Vec<String> {
    CALLS.map(str::to_owned).to_vec()
}

#[test]
fn binds_wait_for_the_next_rsup() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let port = start(&home, python, "instances = 2");
    binds_wait(&home, port, &calls());
    home.ok(&["stop", "web"]);
    wait_until("the end of the holder", || holders(&home).is_empty());
}

/// Without privileges the worker itself holds the listener of its filter.
#[test]
fn of_an_ordinary_user_they_do_too() {
    let Some(home) = Home::of_user(65534) else {
        return;
    };
    let Some(python) = apps::python_for_all() else {
        return;
    };
    let port = start(&home, python, "instances = 2");
    binds_wait(&home, port, &calls());
    assert!(holders(&home).is_empty());
}

/// Also with a program that closes all descriptors when it starts. What an app executes does not have the
/// listener, with or without it.
#[test]
fn what_a_program_closes_is_given_to_it_again() {
    for (env, counts) in [
        ("", "1\n1\n0\nend\n"),
        ("env.CLOSE = \"1\"", "0\n1\n0\nend\n"),
    ] {
        let Some(home) = Home::of_user(65534) else {
            return;
        };
        let Some(python) = apps::python_for_all() else {
            return;
        };
        let port = start(&home, python, &format!("log.timestamps = false\n{env}"));
        ask(port, "held");
        assert_eq!(home.wait_log("web", "end\n"), counts);
        binds_wait(&home, port, &calls());
    }
}

/// Where the port is hidden, `connect` is trapped as well.
#[test]
fn connects_wait_as_well() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let there = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let connect = format!("connect/{}", there.local_addr().expect("an address").port());
    let port = start(&home, python, "hide_port = true");
    binds_wait(&home, port, &[connect, "udp".to_owned()]);
}

/// Whoever kills everything that is rsup's: the binds of these workers fail, and they are replaced.
#[test]
fn workers_whose_listener_is_gone_are_replaced_without_a_gap() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let port = start(&home, python, "instances = 2");
    let before = home.pids("web");
    let holder = holders(&home);
    if holder.is_empty() {
        eprintln!("SKIPPED: an ordinary user's workers hold their listeners themselves");
        return;
    }
    assert_eq!(holder.len(), 1);
    let load = Load::start(port, "/");
    home.kill_keeper_and_daemon();
    holder.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    wait_until("the end of the holder", || holders(&home).is_empty());
    assert_eq!(ask(port, "udp"), "ENOSYS");
    home.list();
    let gone = |view: &serde_json::Value| is_ready(view) && pids(view).is_disjoint(&before);
    home.wait_view("web", "replacements", gone);
    assert!(
        home.events("web").contains("calls of bind"),
        "{}",
        home.events("web")
    );
    assert_eq!(ask(port, "udp"), "done");
    load.more(100);
    load.lossless();
}

/// One that dies alone is made again, and holds what the first one held.
#[test]
fn the_holder_is_made_again() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let port = start(&home, python, "");
    let Some(first) = holders(&home).pop_first() else {
        return;
    };
    signal(first, Signal::SIGKILL);
    let next = wait_for("another holder", || {
        holders(&home)
            .into_iter()
            .find(|pid| *pid != first && is_alive(*pid))
            .ok_or("not yet")
    });
    assert_ne!(next, first);
    binds_wait(&home, port, &calls());
}

/// Binds its port once it is told to.
const LATE: &str = r#"
import http.server, os, time
while not os.path.exists("go"): time.sleep(0.01)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler).serve_forever()
"#;

/// Starts a worker that has no socket of ours yet: its port, the start that waits for it, and its pid.
fn start_late(home: &Home, python: &str) -> (u16, Background, u32) {
    let port = home.port();
    home.write("late.py", LATE);
    home.app(
        "web",
        &format!(
            "command = [\"{python}\", \"late.py\"]\nlisten = \"127.0.0.1:{port}\"\nlisten_timeout = \"60s\""
        ),
    );
    let start = home.background(&["start"]);
    let started = |view: &serde_json::Value| view["workers"][0]["phase"] == "starting";
    home.wait_view("web", "a process", started);
    let before = home.pid("web");
    (port, start, before)
}

/// A worker that has no socket of ours yet: whether it is the same that serves in the end.
fn late(home: &Home, python: &str, meanwhile: impl Fn()) -> bool {
    let (port, start, before) = start_late(home, python);
    home.kill_keeper_and_daemon();
    meanwhile();
    home.list();
    home.write("go", "");
    home.wait_view("web", "ready", is_ready);
    start.wait().ok();
    http::get(http::local(port), "/").expect("an answer");
    let same = home.pid("web") == before;
    assert_eq!(is_alive(before), same);
    same
}

#[test]
fn a_worker_that_had_not_bound_gets_its_socket_from_the_next_rsup() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    assert!(late(&home, python, || {}));
}

#[test]
fn of_an_ordinary_user_it_does_too() {
    let Some(home) = Home::of_user(65534) else {
        return;
    };
    let Some(python) = apps::python_for_all() else {
        return;
    };
    assert!(late(&home, python, || {}));
}

#[test]
fn one_whose_listener_is_gone_is_started_anew() {
    let Some(python) = apps::python() else { return };
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let home = Home::new();
    let kill = || {
        holders(&home)
            .iter()
            .for_each(|pid| signal(*pid, Signal::SIGKILL));
        wait_until("the end of the holder", || holders(&home).is_empty());
    };
    assert!(!late(&home, python, kill));
}

/// Receives the next call of a filter whose listener process `argv[1]` has open, and ends without an answer.
const SILENT: &str = r#"
import ctypes, fcntl, os, sys
pid = int(sys.argv[1])
def link(fd):
    try: return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError: return ""
fd = next(int(fd) for fd in os.listdir(f"/proc/{pid}/fd") if "seccomp" in link(fd))
pidfd_getfd = 438
ours = ctypes.CDLL(None).syscall(pidfd_getfd, os.pidfd_open(pid), fd, 0)
assert ours >= 0
SECCOMP_IOCTL_NOTIF_RECV = 0xc0502100
fcntl.ioctl(ours, SECCOMP_IOCTL_NOTIF_RECV, bytearray(80))
"#;

/// The daemon is killed between receiving a call that is made now and answering it.
fn dies_before_its_answer(home: &Home, python: &str, worker: u32, call: impl FnOnce()) {
    let daemon = home.daemon();
    signal(daemon, Signal::SIGSTOP);
    call();
    let workers = BTreeSet::from([worker]);
    wait_until("a call that waits", || waiting(&workers) == 1);
    let holder = holders(home).pop_first().unwrap_or(worker);
    let mut silent = home.command(python);
    silent.args(["-c", SILENT, &holder.to_string()]);
    try_run(silent).expect("python runs").ok();
    signal(daemon, Signal::SIGKILL);
}

#[test]
fn a_worker_whose_bind_was_never_answered_is_started_anew() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let (port, start, before) = start_late(&home, python);
    dies_before_its_answer(&home, python, before, || drop(home.write("go", "")));
    start.wait().ok();
    http::get(http::local(port), "/").expect("an answer");
    assert_ne!(home.pid("web"), before);
}

/// Of one that serves the thread hangs: it is replaced, the replacement first.
#[test]
fn a_ready_worker_whose_bind_was_never_answered_is_replaced() {
    let Some(python) = apps::python() else { return };
    let home = Home::new();
    let port = start(&home, python, "kill_timeout = \"500ms\"");
    let before = home.pid("web");
    let load = Load::start(port, "/");
    dies_before_its_answer(&home, python, before, || {
        std::thread::spawn(move || http::get(http::local(port), "/udp"));
    });
    let other = |view: &serde_json::Value| is_ready(view) && !pids(view).contains(&before);
    home.wait_view("web", "a replacement", other);
    assert_eq!(ask(port, "udp"), "done");
    load.more(100);
    load.lossless();
}
