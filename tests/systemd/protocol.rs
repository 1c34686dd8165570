//! What a service manager and the daemon say to each other, with the test in the manager's place.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::load::Load;
use crate::common::{
    Home, PATIENCE, RSUP, Run, apps, http, install, is_ready, signal, try_run, wait_for, wait_until,
};

/// A service, and its manager's end of the conversation.
struct Service<'a> {
    home: &'a Home,
    child: Child,
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl<'a> Service<'a> {
    /// `words` of rsup; descriptor 3 is `given`, if there is one.
    fn start(home: &'a Home, words: &str, env: &[(&str, &str)], given: Option<OwnedFd>) -> Self {
        let path = home.path("notify");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = home.command("sh");
        let script = match &given {
            // The shell's pid is the daemon's.
            Some(_) => format!(
                "LISTEN_FDS=1 LISTEN_FDNAMES=listen LISTEN_PID=$$ exec \"$0\" {words} 3<&0 0</dev/null"
            ),
            None => format!("exec \"$0\" {words}"),
        };
        command
            .args(["-c", &script, RSUP])
            .env("NOTIFY_SOCKET", &path)
            .envs(env.iter().copied());
        command
            .stderr(fs::File::create(home.path("stderr")).unwrap())
            .stdout(Stdio::null());
        command.stdin(given.map_or_else(Stdio::null, Stdio::from));
        Self {
            home,
            child: command.spawn().unwrap(),
            socket,
            heard: Vec::new(),
        }
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.home.path("stderr")).unwrap_or_default()
    }

    /// Waits for an assignment that begins so, and returns all that came until then.
    #[track_caller]
    fn hear(&mut self, begin: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        loop {
            while !self.heard.is_empty() {
                let line = self.heard.remove(0);
                let found = line.starts_with(begin);
                before.push(line);
                if found {
                    return before;
                }
            }
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            let Ok(length) = self.socket.recv(&mut buffer) else {
                panic!("never heard {begin}, but {before:?}\n{}", self.messages());
            };
            self.heard.extend(
                String::from_utf8_lossy(&buffer[..length])
                    .lines()
                    .map(str::to_owned),
            );
        }
    }

    #[track_caller]
    fn ends(mut self) -> i32 {
        let status = wait_for("the end of the service", || {
            self.child
                .try_wait()
                .map_err(|why| why.to_string())?
                .ok_or_else(|| "it lives".to_owned())
        });
        status.code().unwrap_or(-1)
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.home.run(&["kill"]);
        }
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn web(home: &Home, port: u16, keys: &str) {
    let app = apps::sample();
    home.config(&format!(
        "[app.web]\n{app}\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\n{keys}\n"
    ));
}

fn has(lines: &[String], begin: &str) -> bool {
    lines.iter().any(|line| line.starts_with(begin))
}

#[test]
fn ready_is_said_when_every_app_is_ready_and_stopping_at_the_end() {
    let home = Home::new();
    web(
        &home,
        home.port(),
        "instances = 2\nenv = { WARM_MS = \"500\" }",
    );
    let mut service = Service::start(&home, "start --foreground", &[], None);
    let before = service.hear("READY=1");
    assert!(
        has(
            &before,
            "STATUS=starting, waiting for web: 0 of 1 app ready (0 of 2 workers)"
        ),
        "{before:?}"
    );
    assert!(has(&before, "EXTEND_TIMEOUT_USEC="), "{before:?}");
    assert!(is_ready(&home.view("web")));
    service.hear("STATUS=1 app ready (2 workers)");
    signal(service.child.id(), Signal::SIGTERM);
    service.hear("STOPPING=1");
    assert_eq!(service.ends(), 0);
}

#[test]
fn an_app_that_fails_for_good_does_not_hold_up_the_boot() {
    let home = Home::new();
    web(
        &home,
        home.port(),
        "env = { CRASH_AT_START = \"1\" }\nrestart = { max_restarts = 1, backoff = \"10ms\" }",
    );
    let mut service = Service::start(&home, "start --foreground --exit-when never", &[], None);
    service.hear("READY=1");
    service.hear("STATUS=0 of 1 app ready (0 of 1 worker); errored: web");
}

#[test]
fn a_reload_begins_with_its_time_and_ends_with_ready() {
    let home = Home::new();
    web(&home, home.port(), "env = { WARM_MS = \"300\" }");
    let mut service = Service::start(&home, "daemon --service", &[], None);
    service.hear("READY=1");
    service.hear("STATUS=no app is to run");
    home.ok(&["start"]);
    service.hear("STATUS=1 app ready (1 worker)");
    home.ok(&["reload", "all"]);
    let before = service.hear("RELOADING=1");
    assert!(!has(&before, "READY=1"), "{before:?}");
    let after = service.hear("READY=1");
    let at = after
        .iter()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="))
        .expect("a time");
    let now = rsup::sys::process::now().as_micros() as u64;
    let at: u64 = at.parse().unwrap();
    assert!(at < now && now - at < 120_000_000, "{at} of {now}");
}

#[test]
fn the_watchdog_is_pinged_by_an_idle_loop_and_a_service_ends_with_0_when_it_is_told_to() {
    let home = Home::new();
    let mut service = Service::start(
        &home,
        "daemon --service",
        &[("WATCHDOG_USEC", "400000")],
        None,
    );
    service.hear("READY=1");
    let begin = Instant::now();
    for _ in 0..5 {
        service.hear("WATCHDOG=1");
    }
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_millis(500),
        "not more often than needed: {took:?}"
    );
    home.ok(&["kill"]);
    assert_eq!(service.ends(), 0);
}

#[test]
fn workers_get_nothing_that_was_meant_for_the_daemon() {
    let home = Home::new();
    let port = home.port();
    web(&home, port, "socket_activation = true");
    let listener = TcpListener::bind(("127.0.0.1", home.port())).unwrap();
    let env = [
        ("WATCHDOG_USEC", "60000000"),
        ("INVOCATION_ID", "0123"),
        ("JOURNAL_STREAM", "1:2"),
    ];
    let mut service = Service::start(&home, "daemon --service", &env, Some(listener.into()));
    service.hear("READY=1");
    home.ok(&["start"]);
    for pid in home.pids("web") {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = String::from_utf8_lossy(&environ);
        for name in [
            "NOTIFY_SOCKET=",
            "WATCHDOG_",
            "INVOCATION_ID=",
            "JOURNAL_STREAM=",
            "LISTEN_FDNAMES=listen",
        ] {
            assert!(!text.contains(name), "{name} is in {text}");
        }
        // Its own socket, not the one that nobody wants.
        assert!(
            text.contains("LISTEN_FDNAMES=web-0") && text.contains("LISTEN_FDS=1"),
            "{text}"
        );
    }
    assert!(
        fs::read_to_string(home.rsup_home().join("state/daemon.log"))
            .unwrap()
            .contains("journalctl")
    );
}

#[test]
fn a_given_socket_is_served_reloaded_without_loss_and_left_listening() {
    let home = Home::new();
    let port = home.port();
    web(&home, port, "instances = 2\nenv = { WARM_MS = \"100\" }");
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let ours = listener.try_clone().unwrap();
    let mut service = Service::start(&home, "daemon --service", &[], Some(listener.into()));
    service.hear("READY=1");
    // It waits in the queue of the given socket, which becomes the lobby.
    let early = std::thread::spawn(move || http::get(http::local(port), "/health"));
    home.ok(&["start"]);
    assert_eq!(early.join().unwrap().unwrap().status, 200);
    let load = Load::start(port, "/health");
    for _ in 0..3 {
        home.ok(&["reload", "web"]);
        load.more(100);
    }
    load.lossless();
    // A stop and a start find it again.
    home.ok(&["stop", "web"]);
    home.ok(&["start", "web"]);
    assert_eq!(http::get(http::local(port), "/health").unwrap().status, 200);
    home.ok(&["kill"]);
    assert_eq!(service.ends(), 0);
    let client =
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("the manager listens still");
    ours.set_nonblocking(true).unwrap();
    let taken = wait_for("the connection", || ours.accept().map(|(_, peer)| peer));
    assert_eq!(taken, client.local_addr().unwrap());
}

#[test]
fn a_given_socket_of_another_address_is_named_in_the_error() {
    let home = Home::new();
    let port = home.port();
    web(&home, port, "");
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let mut service = Service::start(&home, "daemon --service", &[], Some(listener.into()));
    service.hear("READY=1");
    home.run(&["start"])
        .code(1)
        .says(&[".socket unit listens on 0.0.0.0", "ListenStream=127.0.0.1"]);
}

#[test]
fn a_daemon_that_runs_already_is_waited_for() {
    let home = Home::new();
    web(&home, home.port(), "");
    home.ok(&["start"]);
    let mut service = Service::start(&home, "daemon --service", &[], None);
    let before =
        service.hear("STATUS=waiting for the rsup daemon that runs already to end (`rsup kill`)");
    assert!(!has(&before, "READY=1"));
    service.hear("EXTEND_TIMEOUT_USEC=");
    assert!(
        is_ready(&home.view("web")),
        "the first one is not disturbed"
    );
    home.ok(&["kill"]);
    service.hear("READY=1");
    wait_until("the second one answers", || home.run(&["ping"]).code == 0);
    let pid = home.ok(&["ping", "--json"]).json()["pid"].as_u64();
    assert_eq!(pid, Some(service.child.id().into()));
}

#[test]
fn an_error_that_stays_is_told_once_a_second() {
    let home = Home::new();
    // A folder where the lock should be.
    let lock = home.rsup_home().join("run/daemon.lock");
    fs::create_dir_all(&lock).unwrap();
    for folder in ["run", "."] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(home.rsup_home().join(folder), open).unwrap();
    }
    let begin = Instant::now();
    let service = Service::start(&home, "daemon --service", &[], None);
    let messages = home.path("stderr");
    assert_eq!(service.ends(), 1);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let said = fs::read_to_string(messages).unwrap();
    assert!(said.contains("daemon.lock"), "{said}");
}

/// By a path that systemd takes for a program, wherever the repository lies.
fn plainly(home: &Home, words: &[&str]) -> Run {
    let rsup = home.path("rsup");
    install(RSUP, &rsup);
    let mut command = home.command(rsup.to_str().unwrap());
    command.args(words);
    try_run(command).unwrap()
}

#[test]
fn the_unit_can_be_printed_anywhere() {
    let home = Home::new();
    let port = home.port();
    web(
        &home,
        port,
        "kill_timeout = \"100s\"\ndrain_timeout = \"20s\"",
    );
    let unit = plainly(
        &home,
        &["startup", "--print", "--system", "supervisor.toml"],
    )
    .ok()
    .out;
    assert!(
        unit.contains("TimeoutStopSec=135\n") && unit.contains("in the file"),
        "{unit}"
    );
    let quoted = format!("Environment=RSUP_HOME={}\n", home.rsup_home().display());
    assert!(
        unit.contains(&quoted) && !unit.contains("RuntimeDirectory="),
        "{unit}"
    );
    let socket = [
        "startup",
        "--print",
        "--user",
        "--socket",
        "supervisor.toml",
    ];
    let both = plainly(&home, &socket).ok().out;
    assert!(
        both.contains(&format!("ListenStream=127.0.0.1:{port}\n"))
            && both.contains("Sockets=rsup.socket\n"),
        "{both}"
    );
    home.run(&["startup", "--print", "--socket"])
        .code(2)
        .says(&["no app is known that listens", "rsup startup --socket"]);
    home.run(&["startup", "--user", "--system"]).code(2);
    assert!(
        !home.rsup_home().join("run/control.sock").exists(),
        "no daemon is started for it"
    );
}

#[test]
fn where_systemd_does_not_run_that_is_said() {
    if std::path::Path::new("/run/systemd/system").is_dir() {
        // Here it would install a unit on the machine of whoever runs the tests.
        eprintln!("systemd runs here: the error where it does not cannot be seen");
        return;
    }
    let home = Home::new();
    plainly(&home, &["startup"]).code(1).says(&[
        "systemd does not run here",
        "--foreground",
        "--print",
    ]);
    home.run(&["unstartup"])
        .code(1)
        .says(&["systemd does not run here"]);
}
