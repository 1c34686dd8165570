//! Readiness that a worker says itself, and that nobody else can say for it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use crate::common::{Home, apps, wait_until};
use crate::{NOBODY, mode, open_home, root, the_pid};

/// Sends READY=1 once a file is there, from a child of a child.
const SAYS: &str = "while ! test -e go; do sleep 0.05; done; \
                    python3 -c 'import os,socket,time; \
                    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b\"READY=1\", os.environ[\"NOTIFY_SOCKET\"]); \
                    time.sleep(1000)'";

fn app(home: &Home, keys: &str) -> bool {
    if apps::python().is_none() {
        return false;
    }
    home.config(&format!(
        "[app.a]\ncommand = [\"sh\", \"-c\", {SAYS:?}]\nreadiness = {{ notify = true }}\nlisten_timeout = \"1h\"\n{keys}\n"
    ));
    true
}

fn socket(home: &Home) -> String {
    let environ =
        fs::read_to_string(format!("/proc/{}/environ", the_pid(home, "a"))).expect("environ");
    environ
        .split('\0')
        .find_map(|entry| entry.strip_prefix("NOTIFY_SOCKET="))
        .expect("NOTIFY_SOCKET")
        .to_owned()
}

#[test]
fn a_worker_of_another_user_says_that_it_is_ready() {
    if !root() {
        return;
    }
    let home = open_home();
    if !app(&home, "user = \"nobody\"") {
        return;
    }
    let start = home.background(&["start"]);
    home.wait_view("a", "its worker", |view| view["workers"][0]["pid"].is_u64());
    let path = socket(&home);
    let found = fs::symlink_metadata(&path).expect("the socket");
    assert_eq!(
        (found.uid(), found.mode() & 0o777),
        (NOBODY, 0o600),
        "its user alone can send to it"
    );
    assert_eq!(
        mode(home.rsup_home().join("run.notify")),
        0o711,
        "nobody lists it"
    );
    assert_eq!(mode(home.rsup_home().join("run")), 0o700);
    home.write("go", "");
    start.wait().ok();
    home.ok(&["kill"]);
    assert!(
        !home.rsup_home().join("run.notify").exists(),
        "nothing is left behind"
    );
}

#[test]
fn a_folder_that_the_user_cannot_pass_is_named() {
    if !root() {
        return;
    }
    // As rsup makes it, closed to all others.
    let home = Home::new();
    if !app(&home, "user = \"nobody\"\ncwd = \"/\"") {
        return;
    }
    home.run(&["start"]).code(1).says(&[
        "out of reach of user 65534",
        &format!("{} is closed to it", home.rsup_home().display()),
    ]);
}

#[test]
fn what_another_process_of_the_same_user_says_does_not_count() {
    let home = Home::new();
    if !app(&home, "") {
        return;
    }
    let start = home.background(&["start"]);
    home.wait_view("a", "its worker", |view| view["workers"][0]["pid"].is_u64());
    let path = socket(&home);
    assert_eq!(mode(&path), 0o600);
    UnixDatagram::unbound()
        .expect("a socket")
        .send_to(b"READY=1", &path)
        .expect("sent");
    wait_until("the refusal in the log", || {
        home.daemon_log()
            .contains("none of its own, said that it is ready")
    });
    assert_eq!(home.view("a")["workers"][0]["phase"], "starting");
    home.write("go", "");
    start.wait().ok();
}

#[test]
fn a_worker_of_another_user_is_heard_by_the_next_daemon_too() {
    if !root() {
        return;
    }
    let home = open_home();
    if !app(&home, "user = \"nobody\"") {
        return;
    }
    home.ok(&["start", "--no-wait"]);
    home.wait_view("a", "its worker", |view| {
        view["workers"][0]["phase"] == "starting"
    });
    let (pid, path) = (the_pid(&home, "a"), socket(&home));
    let daemon = home.ok(&["ping", "--json"]).json()["pid"]
        .as_u64()
        .expect("a pid") as u32;
    crate::common::signal(daemon, nix::sys::signal::Signal::SIGKILL);
    wait_until("the daemon's end", || !crate::common::is_alive(daemon));
    home.ok(&["ping"]);
    assert_eq!(
        fs::symlink_metadata(&path).expect("the socket").uid(),
        NOBODY
    );
    UnixDatagram::unbound()
        .expect("a socket")
        .send_to(b"READY=1", &path)
        .expect("sent");
    wait_until("a stranger is not believed", || {
        home.daemon_log()
            .contains("none of its own, said that it is ready")
    });
    home.write("go", "");
    home.wait_view("a", "that it is ready", |view| {
        view["workers"][0]["phase"] == "ready"
    });
    assert_eq!(the_pid(&home, "a"), pid);
}
