//! `rsup start --foreground`, as in a container.

use std::fs;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Home, is_alive, signal, wait_for, wait_until};
use crate::support::Life;

struct Foreground {
    child: Child,
}

impl Foreground {
    fn start(home: &Home) -> Self {
        let mut command = home.rsup();
        let file = |name: &str| Stdio::from(fs::File::create(home.path(name)).unwrap());
        command
            .args(["start", "--foreground"])
            .stdout(file("fg-out"))
            .stderr(file("fg-err"));
        Self {
            child: command.spawn().unwrap(),
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    fn end(mut self) -> ExitStatus {
        wait_for("the end of the daemon", || {
            self.child
                .try_wait()
                .map_err(|e| e.to_string())?
                .ok_or_else(|| "still there".to_owned())
        })
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn messages(home: &Home) -> String {
    ["fg-out", "fg-err"]
        .map(|name| fs::read_to_string(home.path(name)).unwrap_or_default())
        .concat()
}

fn up(home: &Home, app: &str) {
    wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
    home.wait_view(app, "the app is ready", |v| v["phase"] == "ready");
}

fn ends_gracefully_with(which: Signal) {
    let home = Home::new();
    home.web("web", "instances = 2\nkill_timeout = \"60s\"");
    let daemon = Foreground::start(&home);
    up(&home, "web");
    let pids = home.pids("web");
    assert_eq!(pids.len(), 2);
    signal(daemon.pid(), which);
    let status = daemon.end();
    assert_eq!(status.code(), Some(0), "{}", messages(&home));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(home.log("web-out").matches(": done").count(), 2);
    assert_eq!(home.run(&["ping"]).code, 1);
}

#[test]
fn ctrl_c_stops_everything_gracefully() {
    ends_gracefully_with(Signal::SIGINT);
}

#[test]
fn sigterm_stops_everything_gracefully() {
    ends_gracefully_with(Signal::SIGTERM);
}

#[test]
fn a_second_signal_forces_the_stop() {
    let home = Home::new();
    home.web(
        "web",
        "kill_timeout = \"1h\"\nenv = { IGNORE_SIGTERM = \"1\" }",
    );
    let daemon = Foreground::start(&home);
    up(&home, "web");
    let pid = home.pid("web");
    let begin = Instant::now();
    signal(daemon.pid(), Signal::SIGINT);
    home.wait_log("web", "SIGTERM: ignored");
    assert!(is_alive(pid));
    signal(daemon.pid(), Signal::SIGINT);
    let status = daemon.end();
    assert_eq!(
        status.code(),
        Some(128 + Signal::SIGINT as i32),
        "{}",
        messages(&home)
    );
    assert!(!is_alive(pid));
    assert!(begin.elapsed() < Duration::from_secs(50));
    assert!(messages(&home).contains("again"), "{}", messages(&home));
}

/// Not the first process of a namespace, which the kernel would spare: here the default of most of them is death.
#[test]
fn signals_without_a_meaning_do_no_harm() {
    let home = Home::new();
    home.web("web", "");
    let daemon = Foreground::start(&home);
    up(&home, "web");
    let before = home.pids("web");
    for which in [
        Signal::SIGUSR2,
        Signal::SIGWINCH,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGPIPE,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGURG,
        Signal::SIGCONT,
    ] {
        signal(daemon.pid(), which);
        home.ok(&["ping"]);
    }
    assert_eq!(home.pids("web"), before);
    signal(daemon.pid(), Signal::SIGTERM);
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn rsup_kill_ends_it_too() {
    let home = Home::new();
    home.web("web", "");
    let daemon = Foreground::start(&home);
    up(&home, "web");
    home.ok(&["kill"]);
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_told() {
    let home = Home::new();
    let port = home.web("web", "");
    let _holder = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
    let daemon = Foreground::start(&home);
    assert_eq!(daemon.end().code(), Some(1));
    let said = messages(&home);
    assert!(
        said.contains(&port.to_string()) && said.contains(&std::process::id().to_string()),
        "{said}"
    );
}

#[test]
fn a_second_daemon_is_refused() {
    let home = Home::new();
    home.web("web", "");
    home.ok(&["start"]);
    home.run(&["start", "--foreground"])
        .code(1)
        .says(&["runs already", "rsup kill"]);
    assert!(home.view("web")["phase"] == "ready");
}

/// State letters of the daemon's children, by /proc.
fn zombies(daemon: u32) -> usize {
    let child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        fields.first() == Some(&"Z") && fields.get(1) == Some(&daemon.to_string().as_str())
    };
    crate::common::all_pids()
        .iter()
        .filter(|pid| child(pid))
        .count()
}

#[test]
fn orphans_that_end_are_taken_away() {
    let home = Home::new();
    home.write("app", "i=0\nwhile [ $i -lt 200 ]; do (sh -c 'exit 7' &); i=$((i+1)); done\necho spawned\nexec sleep 1000\n");
    home.app(
        "job",
        "command = [\"sh\", \"app\"]\nrestart.min_uptime = \"50ms\"",
    );
    let daemon = Foreground::start(&home);
    home.wait_log("job", "spawned");
    up(&home, "job");
    wait_until("no zombie is left", || zombies(daemon.pid()) == 0);
    assert_eq!(home.workers("job")[0]["restarts"], 0);
    signal(daemon.pid(), Signal::SIGTERM);
    assert_eq!(daemon.end().code(), Some(0));
}
