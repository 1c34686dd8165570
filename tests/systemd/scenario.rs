//! A real systemd: install, boot, reload, kill, stop, sockets, reboot, an ordinary user.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::load::Load;
use crate::common::{self, Home, http, is_ready, wait_for, wait_until};
use crate::machine::{Machine, PROGRAM, TESTS};

const SERVICE: &str = "rsup.service";
const CONFIG: &str = "/srv/web/supervisor.toml";

impl Machine {
    fn view(&self, app: &str) -> Value {
        let list = self.ok(&["rsup", "list", "--json"]).json();
        list.as_array()
            .and_then(|apps| apps.iter().find(|a| a["name"] == app))
            .cloned()
            .unwrap_or(Value::Null)
    }

    fn pids(&self, app: &str) -> BTreeSet<u32> {
        common::pids(&self.view(app))
    }

    fn main_pid(&self) -> String {
        self.show(SERVICE, "MainPID")
    }

    fn configure(&self, port: u16, keys: &str) {
        self.write(
            CONFIG,
            &format!(
                "[app.web]\ncommand = [\"{PROGRAM}\", \"sample-app\"]\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\n\
                 readiness = \"/readiness\"\nkill_timeout = \"20s\"\n{keys}\n"
            ),
        );
    }

    fn start_web(&self) {
        self.ok(&["rsup", "up", CONFIG]);
        assert!(is_ready(&self.view("web")), "{:#}", self.view("web"));
    }

    /// A process that is alive inside.
    fn lives(&self, pid: u32) -> bool {
        self.run(&["test", "-d", &format!("/proc/{pid}")]).code == 0
    }
}

/// There is a connection to this port, and what was sent over it has been read.
fn request_taken(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // sl local_address rem_address st tx_queue:rx_queue
        fields.len() > 4
            && fields[1].ends_with(&format!(":{port:04X}"))
            && fields[3] == "01"
            && fields[4].ends_with(":00000000")
    })
}

/// Says what is done, and how long it took.
fn step(name: &str, act: impl FnOnce()) {
    let began = Instant::now();
    act();
    eprintln!("{:5.1} s  {name}", began.elapsed().as_secs_f64());
}

#[test]
fn a_life_under_systemd() {
    let home = Home::new();
    let Some(mut machine) = Machine::boot() else {
        return;
    };
    let port = home.port();
    machine.configure(port, "env = { WARM_MS = \"700\" }");
    let m = &machine;
    step("install and start", || install(m));
    step("apps, their environment and group", || apps(m));
    step("reload under load", || reload(m, port));
    step("an upgrade under load", || upgrade(m, port));
    step("the main process is killed under load", || kill(m, port));
    step("with KillMode=mixed the workers die", || mixed(m));
    step("descriptors in systemd's store", || store(m));
    step("a stuck loop is noticed", || watchdog(m));
    step("a stop that takes longer than systemd expects", || {
        slow_stop(m, port)
    });
    step("a graceful stop", || stop(m, port));
    step("rsup is killed while it stops", || {
        killed_while_stopping(m, port)
    });
    step("systemd cannot start it", || cannot_start(m));
    step("a unit of an earlier rsup", || earlier_unit(m));
    step("rsup kill and rsup start", || kill_and_start(m));
    step("a .socket unit", || socket(m, port));
    step("reboot", || reboot(&mut machine, port));
    let m = &machine;
    step("a daemon that runs already", || takes_over(m));
    step("an ordinary user", || user(m, &home));
    step("a second one, with odd names", || odd_names(m, &home));
    step("unstartup", || unstartup(m));
}

fn install(m: &Machine) {
    let run = m.ok(&["rsup", "startup", CONFIG]).says(&[
        "wrote /etc/systemd/system/rsup.service",
        "kill_timeout 20s",
        "from boot on",
    ]);
    assert!(!run.err.contains("linger"), "{}", run.err);
    assert_eq!(m.show(SERVICE, "ActiveState"), "active");
    assert_eq!(m.show(SERVICE, "UnitFileState"), "enabled");
    m.wait_show(SERVICE, "StatusText", "no app is to run");
    // 15 s beyond drain_timeout (5 s by default) and kill_timeout.
    assert_eq!(m.show(SERVICE, "TimeoutStopUSec"), "40s");
    let verify = m.ok(&[
        "systemd-analyze",
        "--man=no",
        "verify",
        "/etc/systemd/system/rsup.service",
    ]);
    assert_eq!(
        (verify.out.as_str(), verify.err.as_str()),
        ("", ""),
        "systemd has nothing to say against it"
    );
    let security = m.ok(&["systemd-analyze", "security", "--no-pager", SERVICE]);
    eprintln!(
        "         {}",
        security.out.lines().last().unwrap_or_default().trim()
    );
    // Again is no error.
    let again = m.ok(&["rsup", "startup", CONFIG, "--json"]).json();
    assert_eq!(
        (
            &again["started"],
            &again["waits_for"],
            &again["timeout_stop_s"]
        ),
        (&true.into(), &Value::Null, &40.into())
    );
    m.write(
        "/etc/systemd/system/other.service",
        "[Service]\nExecStart=/bin/true\n",
    );
    m.run(&["rsup", "startup", "--name", "other"])
        .code(2)
        .says(&["was not written by `rsup startup`", "--name"]);
}

fn apps(m: &Machine) {
    m.start_web();
    m.wait_show(SERVICE, "StatusText", "1 app ready (2 workers)");
    let group = m.show(SERVICE, "ControlGroup");
    for pid in m.pids("web") {
        let environ = m.read(&format!("/proc/{pid}/environ"));
        for name in [
            "NOTIFY_SOCKET=",
            "WATCHDOG_",
            "INVOCATION_ID=",
            "JOURNAL_STREAM=",
        ] {
            assert!(!environ.contains(name), "{name} is in {environ:?}");
        }
        assert!(
            m.read(&format!("/proc/{pid}/cgroup")).contains(&group),
            "a worker belongs to the unit"
        );
    }
    assert_eq!(
        m.ok(&["stat", "-c", "%a", "/run/rsup", "/var/lib/rsup"])
            .out,
        "700\n700\n"
    );
    assert!(
        m.ok(&["journalctl", "-t", "rsup", "--no-pager"])
            .out
            .contains("rsup is up")
    );
}

fn reload(m: &Machine, port: u16) {
    let load = Load::start(port, "/health");
    let before = m.pids("web");
    let mut reload = m.background(&["systemctl", "reload", SERVICE]);
    m.wait_show(SERVICE, "ActiveState", "reloading");
    wait_for("the reload in words", || {
        let text = m.show(SERVICE, "StatusText");
        if text.starts_with("reloading web: ") {
            Ok(())
        } else {
            Err(text)
        }
    });
    assert!(reload.wait().unwrap().success());
    assert!(
        m.pids("web").is_disjoint(&before),
        "every worker is replaced"
    );
    m.wait_show(SERVICE, "ActiveState", "active");
    // By hand it is one for systemd as well.
    let mut reload = m.background(&["rsup", "reload", "web"]);
    m.wait_show(SERVICE, "ActiveState", "reloading");
    assert!(reload.wait().unwrap().success());
    m.wait_show(SERVICE, "ActiveState", "active");
    m.wait_show(SERVICE, "StatusText", "1 app ready (2 workers)");
    load.more(200);
    let report = load.lossless();
    eprintln!("         {} requests, none failed", report.requests);
    // One that fails changes nothing, and systemctl says so.
    let old = m.pids("web");
    m.configure(port, "env = { CRASH_AT_START = \"1\" }");
    assert_ne!(m.run(&["systemctl", "reload", SERVICE]).code, 0);
    m.wait_show(SERVICE, "ActiveState", "active");
    assert_eq!(m.pids("web"), old);
    m.configure(port, "env = { WARM_MS = \"700\" }");
}

/// The process becomes the new program, and systemd hears of it as before.
fn upgrade(m: &Machine, port: u16) {
    let (main, workers) = (m.main_pid(), m.pids("web"));
    let load = Load::start(port, "/health");
    m.ok(&["rsup", "upgrade"]).says(&["no worker was touched"]);
    assert_eq!((m.main_pid(), m.pids("web")), (main, workers));
    m.ok(&["rsup", "reload", "web"]);
    m.wait_show(SERVICE, "ActiveState", "active");
    m.wait_show(SERVICE, "StatusText", "1 app ready (2 workers)");
    assert_eq!(m.show(SERVICE, "NRestarts"), "0");
    load.more(200);
    load.lossless();
}

fn kill(m: &Machine, port: u16) {
    let (main, workers) = (m.main_pid(), m.pids("web"));
    let load = Load::start(port, "/health");
    let began = Instant::now();
    m.ok(&[
        "systemctl",
        "kill",
        "-s",
        "KILL",
        "--kill-who=main",
        SERVICE,
    ]);
    wait_until("another daemon answers", || {
        m.run(&["rsup", "ping", "--json"]).code == 0 && m.main_pid() != main && m.main_pid() != "0"
    });
    eprintln!(
        "         back after {} ms, as seen from here",
        began.elapsed().as_millis()
    );
    m.wait_show(SERVICE, "ActiveState", "active");
    assert_eq!(m.show(SERVICE, "NRestarts"), "1");
    assert!(
        workers.iter().all(|pid| m.lives(*pid)),
        "KillMode=process leaves the workers alone"
    );
    load.more(500);
    let report = load.lossless();
    eprintln!("         {} requests, none failed", report.requests);
    assert_eq!(m.pids("web"), workers, "the same processes");
    m.wait_show(SERVICE, "StatusText", "1 app ready (2 workers)");
    m.ok(&["rsup", "reload", "web"]);
    m.ok(&["rsup", "delete", "web"]);
}

/// Other settings of the service, as an administrator makes them.
fn with_settings(m: &Machine, settings: &str, act: impl FnOnce()) {
    m.write(
        "/etc/systemd/system/rsup.service.d/test.conf",
        &format!("[Service]\n{settings}\n"),
    );
    m.ok(&["systemctl", "daemon-reload"]);
    m.ok(&["systemctl", "restart", SERVICE]);
    act();
    m.ok(&["rm", "-r", "/etc/systemd/system/rsup.service.d"]);
    m.ok(&["systemctl", "daemon-reload"]);
    m.ok(&["systemctl", "restart", SERVICE]);
}

/// Why the unit has KillMode=process.
fn mixed(m: &Machine) {
    with_settings(m, "KillMode=mixed", || {
        m.start_web();
        let workers = m.pids("web");
        m.ok(&[
            "systemctl",
            "kill",
            "-s",
            "KILL",
            "--kill-who=main",
            SERVICE,
        ]);
        wait_until("the end of the workers", || {
            workers.iter().all(|pid| !m.lives(*pid))
        });
        m.wait_show(SERVICE, "ActiveState", "active");
    });
}

/// See [`crate::store`]: a service that dies after it has stored descriptors gets them back.
fn store(m: &Machine) {
    m.write(
        "/run/systemd/system/store.service",
        &format!(
            "[Service]\nType=notify\nNotifyAccess=main\nExecStart={TESTS} --exact store::as_a_service --nocapture\n\
             Environment={}=/run/found\nFileDescriptorStoreMax=16\nRestart=always\nRestartSec=50ms\n",
            crate::store::VARIABLE
        ),
    );
    m.ok(&["systemctl", "daemon-reload"]);
    m.ok(&["systemctl", "start", "store.service"]);
    wait_for("what the second run found", || {
        let found = m.read("/run/found");
        if found == crate::store::EXPECTED {
            Ok(())
        } else {
            Err(found)
        }
    });
    m.ok(&["systemctl", "stop", "store.service"]);
}

/// rsup asks for more time as long as workers stop in their own.
fn slow_stop(m: &Machine, port: u16) {
    m.configure(port, "env = { WARM_MS = \"100\", IGNORE_SIGTERM = \"1\" }");
    with_settings(m, "TimeoutStopSec=2s", || {
        let config = m
            .read(CONFIG)
            .replace("kill_timeout = \"20s\"", "kill_timeout = \"5s\"");
        m.write(CONFIG, &config);
        m.start_web();
        m.ok(&["rsup", "reload", "web"]);
        let began = Instant::now();
        m.ok(&["systemctl", "stop", SERVICE]);
        assert!(
            began.elapsed() > Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(m.show(SERVICE, "Result"), "success");
    });
    m.configure(port, "env = { WARM_MS = \"700\" }");
}

fn watchdog(m: &Machine) {
    with_settings(m, "WatchdogSec=2s", || stuck(m));
}

fn stuck(m: &Machine) {
    let main = m.main_pid();
    // Idle, it pings in time.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert_eq!(m.main_pid(), main);
        std::thread::sleep(Duration::from_millis(250));
    }
    m.ok(&["kill", "-STOP", &main]);
    wait_until("another main process", || {
        let now = m.main_pid();
        now != main && now != "0" && m.run(&["rsup", "ping"]).code == 0
    });
}

fn stop(m: &Machine, port: u16) {
    m.start_web();
    let workers = m.pids("web");
    let slow = std::thread::spawn(move || http::get(http::local(port), "/slow?ms=2000"));
    wait_until("the app has read the request", || request_taken(port));
    let began = Instant::now();
    m.ok(&["systemctl", "stop", SERVICE]);
    assert!(began.elapsed() < Duration::from_secs(40));
    assert_eq!(
        slow.join()
            .unwrap()
            .expect("what was under way is answered")
            .status,
        200
    );
    assert!(workers.iter().all(|pid| !m.lives(*pid)));
    assert_eq!(m.show(SERVICE, "ActiveState"), "inactive");
    assert_eq!(m.show(SERVICE, "Result"), "success");
    assert_eq!(m.show(SERVICE, "NRestarts"), "0");
}

/// rsup is killed in the midst of a stop: what systemd runs after it ends the workers, gracefully.
fn killed_while_stopping(m: &Machine, port: u16) {
    m.ok(&["systemctl", "start", SERVICE]);
    m.start_web();
    let (main, workers) = (m.main_pid(), m.pids("web"));
    let slow = std::thread::spawn(move || http::get(http::local(port), "/slow?ms=3000"));
    wait_until("the app has read the request", || request_taken(port));
    m.ok(&["systemctl", "stop", "--no-block", SERVICE]);
    m.wait_show(SERVICE, "ActiveState", "deactivating");
    m.ok(&["kill", "-KILL", &main]);
    m.wait_show(SERVICE, "ActiveState", "failed");
    assert!(
        workers.iter().all(|pid| !m.lives(*pid)),
        "no worker serves on"
    );
    assert_eq!(
        slow.join()
            .unwrap()
            .expect("what was under way is answered")
            .status,
        200
    );
    m.ok(&["systemctl", "reset-failed", SERVICE]);
    m.ok(&["systemctl", "start", SERVICE]);
    assert!(is_ready(&m.view("web")), "it was to run, and does again");
}

fn cannot_start(m: &Machine) {
    let (main, workers) = (m.main_pid(), m.pids("web"));
    m.ok(&["mv", PROGRAM, "/srv/rsup"]);
    m.ok(&["kill", "-KILL", &main]);
    m.wait_show(SERVICE, "ExecMainStatus", "203");
    for verb in ["list", "stop"] {
        let app: &[&str] = if verb == "stop" { &["web"] } else { &[] };
        m.run(&[&["/srv/rsup", verb], app].concat()).code(1).says(&[
            "systemd cannot start rsup.service",
            "203/EXEC",
            "serve on without it: 2",
            "journalctl -u rsup.service",
        ]);
    }
    m.ok(&["mv", "/srv/rsup", PROGRAM]);
    wait_until("the daemon is back", || m.run(&["rsup", "ping"]).code == 0);
    assert_eq!(m.pids("web"), workers, "the same processes");
    m.ok(&["rsup", "list"]);
}

fn earlier_unit(m: &Machine) {
    let path = "/etc/systemd/system/rsup.service";
    let now = m.read(path);
    let earlier: Vec<&str> = now
        .lines()
        .filter(|line| !line.starts_with("# Form"))
        .collect();
    m.write(path, &earlier.join("\n"));
    let said = m.ok(&["rsup", "list"]);
    assert!(
        said.err.contains("written by an earlier rsup") && said.err.contains("`rsup startup`"),
        "{}",
        said.err
    );
    let said = m.ok(&["rsup", "startup", CONFIG]);
    assert!(said.err.contains("it is written anew"), "{}", said.err);
    assert_eq!(m.read(path), now);
    let said = m.ok(&["rsup", "list"]);
    assert!(!said.err.contains("earlier rsup"), "{}", said.err);
    m.ok(&["rsup", "delete", "web"]);
    m.ok(&["systemctl", "stop", SERVICE]);
}

fn kill_and_start(m: &Machine) {
    m.ok(&["systemctl", "start", SERVICE]);
    m.ok(&["rsup", "kill"]);
    m.wait_show(SERVICE, "ActiveState", "inactive");
    // It is not restarted by systemd, and `rsup start` goes by way of systemd.
    m.start_web();
    m.wait_show(SERVICE, "ActiveState", "active");
    let pid = m.ok(&["rsup", "ping", "--json"]).json()["pid"].to_string();
    assert_eq!(m.main_pid(), pid);
    m.ok(&["rsup", "delete", "web"]);
}

fn socket(m: &Machine, port: u16) {
    m.ok(&["systemctl", "stop", SERVICE]);
    m.ok(&["rsup", "startup", "--socket", CONFIG])
        .says(&["wrote /etc/systemd/system/rsup.socket"]);
    let verify = m.ok(&[
        "systemd-analyze",
        "--man=no",
        "verify",
        "/etc/systemd/system/rsup.socket",
    ]);
    assert_eq!((verify.out.as_str(), verify.err.as_str()), ("", ""));
    assert_eq!(m.show("rsup.socket", "SubState"), "running");
    assert!(
        m.ok(&["journalctl", "-t", "rsup", "--no-pager"])
            .out
            .contains(&format!("listen on 127.0.0.1:{port}"))
    );
    // Before there is an app the client waits.
    let early = std::thread::spawn(move || http::get(http::local(port), "/health"));
    m.start_web();
    assert_eq!(early.join().unwrap().unwrap().status, 200);
    let load = Load::start(port, "/health");
    m.ok(&["systemctl", "reload", SERVICE]);
    load.more(100);
    load.lossless();
    m.ok(&["systemctl", "stop", SERVICE]);
    // systemd listens on, and a client starts the service.
    let late = http::connect(http::local(port)).expect("the socket unit listens");
    m.wait_show(SERVICE, "ActiveState", "active");
    drop(late);
    m.ok(&["rsup", "start", CONFIG]);
    assert_eq!(http::get(http::local(port), "/health").unwrap().status, 200);
    // Without --socket the socket unit goes.
    m.ok(&["systemctl", "stop", "rsup.socket", SERVICE]);
    m.ok(&["rsup", "startup", CONFIG]);
    assert_eq!(m.show("rsup.socket", "LoadState"), "not-found");
    m.start_web();
    assert_eq!(http::get(http::local(port), "/health").unwrap().status, 200);
}

fn reboot(machine: &mut Machine, port: u16) {
    machine.reboot();
    machine.wait_show(SERVICE, "ActiveState", "active");
    assert!(is_ready(&machine.view("web")), "active means ready");
    assert_eq!(http::get(http::local(port), "/health").unwrap().status, 200);
    machine.ok(&["rsup", "delete", "web"]);
    assert_eq!(
        machine.ok(&["systemctl", "--failed", "--no-legend"]).out,
        ""
    );
}

fn takes_over(m: &Machine) {
    m.ok(&["rsup", "unstartup"])
        .says(&["removed /etc/systemd/system/rsup.service"]);
    assert_eq!(m.show(SERVICE, "LoadState"), "not-found");
    m.start_web();
    let pid = m.ok(&["rsup", "ping", "--json"]).json()["pid"]
        .as_u64()
        .unwrap();
    m.ok(&["rsup", "startup"])
        .says(&[&format!("pid {pid}"), "rsup kill", "as it runs"]);
    m.wait_show(SERVICE, "ActiveState", "activating");
    wait_for("the wait in words", || {
        let text = m.show(SERVICE, "StatusText");
        if text.contains("`rsup kill`") {
            Ok(())
        } else {
            Err(text)
        }
    });
    assert!(is_ready(&m.view("web")), "it is not disturbed");
    m.ok(&["rsup", "kill"]);
    m.wait_show(SERVICE, "ActiveState", "active");
    m.start_web();
    assert_eq!(
        m.ok(&["rsup", "ping", "--json"]).json()["pid"].to_string(),
        m.main_pid()
    );
    m.ok(&["rsup", "delete", "web"]);
}

fn user(m: &Machine, home: &Home) {
    let port = home.port();
    m.ok(&["useradd", "--create-home", "--uid", "4711", "alice"]);
    m.ok(&["loginctl", "enable-linger", "alice"]);
    m.wait_show("user@4711.service", "ActiveState", "active");
    let alice = |words: &[&str]| {
        let mut all = vec![
            "setpriv",
            "--reuid=4711",
            "--regid=4711",
            "--clear-groups",
            "env",
            "HOME=/home/alice",
            "XDG_RUNTIME_DIR=/run/user/4711",
        ];
        all.extend(words);
        m.run(&all)
    };
    m.write(
        "/srv/alice/supervisor.toml",
        &format!(
            "[app.hers]\ncommand = [\"{PROGRAM}\", \"sample-app\"]\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\n"
        ),
    );
    m.run(&[
        "setpriv",
        "--reuid=4711",
        "--regid=4711",
        "--clear-groups",
        "env",
        "HOME=/home/alice",
        "rsup",
        "startup",
        "--system",
    ])
    .code(2)
    .says(&["for root", "sudo rsup startup"]);
    let run = alice(&["rsup", "startup"])
        .ok()
        .says(&["wrote /home/alice/.config/systemd/user/rsup.service"]);
    assert!(
        !run.err.contains("linger"),
        "she lingers already: {}",
        run.err
    );
    let verify = alice(&[
        "systemd-analyze",
        "--user",
        "--man=no",
        "verify",
        "/home/alice/.config/systemd/user/rsup.service",
    ])
    .ok();
    assert_eq!((verify.out.as_str(), verify.err.as_str()), ("", ""));
    alice(&["rsup", "start", "/srv/alice/supervisor.toml"]).ok();
    assert_eq!(http::get(http::local(port), "/health").unwrap().status, 200);
    let load = Load::start(port, "/health");
    alice(&["systemctl", "--user", "reload", SERVICE]).ok();
    load.more(50);
    load.lossless();
    let status = alice(&[
        "systemctl",
        "--user",
        "show",
        "--value",
        "-p",
        "StatusText",
        SERVICE,
    ])
    .ok();
    assert_eq!(status.out.trim(), "1 app ready (1 worker)");
    alice(&["rsup", "unstartup"]).ok().says(&["stopped"]);
    assert!(http::get(http::local(port), "/health").is_err());
}

/// Paths that mean something to systemd, and a unit beside the other one.
fn odd_names(m: &Machine, home: &Home) {
    let (folder, at) = ("/opt/o d%u $x", "/srv/h m%n \"q\" \\n $HOME");
    let program = format!("{folder}/rsup");
    m.ok(&["mkdir", "-p", folder]);
    m.ok(&["cp", PROGRAM, &program]);
    let env = format!("RSUP_HOME={at}");
    let odd = |words: &[&str]| m.run(&[&["env", &env, &program][..], words].concat());
    odd(&["startup"])
        .code(2)
        .says(&["is for another RSUP_HOME", "--name NAME"]);
    m.ok(&["mkdir", "-p", "/opt/\"q\""]);
    m.ok(&["cp", PROGRAM, "/opt/\"q\"/rsup"]);
    m.run(&["/opt/\"q\"/rsup", "startup"])
        .code(2)
        .says(&["cannot name a program", "/usr/local/bin"]);
    odd(&["startup", "--name", "odd"]).ok();
    let verify = m.ok(&[
        "systemd-analyze",
        "--man=no",
        "verify",
        "/etc/systemd/system/odd.service",
    ]);
    assert_eq!((verify.out.as_str(), verify.err.as_str()), ("", ""));
    let pid = odd(&["ping", "--json"]).ok().json()["pid"].to_string();
    assert_eq!(m.show("odd.service", "MainPID"), pid);
    assert_eq!(
        m.ok(&["readlink", &format!("/proc/{pid}/exe")])
            .out
            .trim_end(),
        program
    );
    let port = home.port();
    m.write(
        "/srv/odd/supervisor.toml",
        &format!("[app.odd]\ncommand = [\"{PROGRAM}\", \"sample-app\"]\nlisten = {port}\nreadiness = \"/readiness\"\n"),
    );
    odd(&["start", "/srv/odd/supervisor.toml"]).ok();
    m.ok(&["systemctl", "reload", "odd.service"]);
    // A unit of any name is found, and started instead of a daemon beside it.
    m.ok(&["systemctl", "stop", "odd.service"]);
    odd(&["start", "/srv/odd/supervisor.toml"]).ok();
    m.wait_show("odd.service", "ActiveState", "active");
    odd(&["unstartup", "--name", "odd"]).ok();
    assert_eq!(
        m.show(SERVICE, "ActiveState"),
        "active",
        "the other one is not touched"
    );
}

fn unstartup(m: &Machine) {
    m.ok(&["rsup", "unstartup"])
        .says(&["removed", "are stopped"]);
    assert_eq!(m.show(SERVICE, "LoadState"), "not-found");
    assert_ne!(m.run(&["rsup", "ping"]).code, 0);
    m.ok(&["rsup", "startup", "--no-start"])
        .says(&["from the next boot on"]);
    assert_eq!(
        (
            m.show(SERVICE, "UnitFileState"),
            m.show(SERVICE, "ActiveState")
        ),
        ("enabled".into(), "inactive".into())
    );
    m.ok(&["rsup", "unstartup"]);
    m.run(&["rsup", "unstartup"]).code(1).says(&[
        "there is no /etc/systemd/system/rsup.service",
        "rsup startup",
    ]);
}
