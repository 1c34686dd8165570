//! A worker that runs as another user and tries whatever it should not be able to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::common::{Home, command_line, is_alive, wait_for};
use crate::{ALICE, BOB, NOBODY, open, open_home, root, script, status, the_pid};

const SLEEPER: &str = "command = [\"sleep\", \"1000\"]";

/// What the hostile worker says that it could do.
fn said(home: &Home) -> Value {
    wait_for("what it tried", || {
        let log = home.logs("hostile");
        let line = log
            .lines()
            .find_map(|line| line.split_once("SAID "))
            .map(|(_, said)| said.to_owned());
        line.and_then(|line| serde_json::from_str(&line).ok())
            .ok_or(log)
    })
}

fn done(attempt: &Value) -> bool {
    attempt["done"]
        .as_bool()
        .unwrap_or_else(|| panic!("no attempt: {attempt}"))
}

/// None of these attempts came to anything.
#[track_caller]
fn all_failed(what: &str, attempts: &Value) {
    for (name, attempt) in attempts.as_object().expect("attempts") {
        assert!(
            !done(attempt),
            "{what}: {name} should not be possible: {attempt}"
        );
    }
}

#[test]
fn a_hostile_worker_reaches_nothing_of_rsup_or_of_others() {
    if !root() {
        return;
    }
    let home = open_home();
    let Some(command) = script(&home, "hostile.py") else {
        return;
    };
    let secret = "env = { API_KEY = \"hunter2\" }";
    home.config(&format!(
        "[app.other]\n{SLEEPER}\nuser = {ALICE}\ngroup = {ALICE}\n{secret}\n\
         [app.mine]\n{SLEEPER}\n{secret}\n\
         [app.waits]\n{SLEEPER}\nuser = {BOB}\ngroup = {BOB}\nlisten_timeout = \"1h\"\nreadiness = {{ notify = true }}\n"
    ));
    home.ok(&["start", "--only", "other,mine"]);
    home.ok(&["start", "--only", "waits", "--no-wait"]);
    home.wait_view("waits", "its worker", |view| {
        view["workers"][0]["pid"].is_u64()
    });
    let daemon = home.ok(&["ping", "--json"]).json()["pid"]
        .as_u64()
        .expect("a pid") as u32;
    let mut neighbours: Vec<u32> = ["other", "mine", "waits"]
        .iter()
        .map(|app| the_pid(&home, app))
        .collect();
    let keeper: u32 = status(daemon, "PPid").parse().expect("a number");
    assert!(
        command_line(keeper).contains("keeper"),
        "the daemon has no keeper: {}",
        command_line(keeper)
    );
    neighbours.push(keeper);
    let rsup = home.rsup_home();
    let files: Vec<String> = [
        "state/daemon.log",
        "state/logs/other-out.log",
        "state/logs/mine-err.log",
        "state/state.json",
        "run/state.json",
        "run/daemon.lock",
        "run/keeper.lock",
    ]
    .iter()
    .map(|file| rsup.join(file).display().to_string())
    .collect();
    let sockets: Vec<String> = (0..10)
        .map(|n| rsup.join(format!("run.notify/{n}")).display().to_string())
        .collect();
    assert!(
        sockets
            .iter()
            .any(|path| fs::symlink_metadata(path).is_ok()),
        "the socket of `waits` is not where it is attacked"
    );
    let env = format!(
        "[app.hostile.env]\nHOME_OF_RSUP = {:?}\nDAEMON = {daemon}\nNEIGHBOURS = {:?}\nSECRET_FILES = {:?}\nNOTIFY_OF_OTHERS = {:?}\n",
        rsup,
        neighbours
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(","),
        files.join(":"),
        sockets.join(":"),
    );
    home.write("hostile.toml", &format!("[app.hostile]\n{command}\nuser = {NOBODY}\ngroup = {NOBODY}\nlisten = {}\nsocket_activation = true\nreadiness = {{ exec = [\"true\"] }}\n{env}", home.port()));
    home.ok(&["start", "hostile.toml"]);
    let said = said(&home);
    assert_eq!(said["uid"], NOBODY, "{said:#}");

    assert!(
        !done(&said["connect"])
            && !done(&said["ask"])
            && !done(&said["enter"])
            && !done(&said["lock"]),
        "{said:#}"
    );
    for what in ["list", "read", "write", "ready", "daemon", "neighbours"] {
        if what == "neighbours" {
            for (pid, attempts) in said[what].as_object().expect("neighbours") {
                all_failed(&format!("neighbour {pid}"), attempts);
            }
        } else {
            all_failed(what, &said[what]);
        }
    }
    assert!(!done(&said["root"]), "{said:#}");
    assert!(
        done(&said["stdout"]),
        "its own output can be opened: {said:#}"
    );

    // 0, 1, 2 and, as it asks for it, the socket of its slot; no more.
    let fds = said["fds"].as_object().expect("descriptors");
    let mut numbers: Vec<&str> = fds.keys().map(String::as_str).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, ["0", "1", "2", "3"], "{fds:#?}");
    assert_eq!(fds["0"], "/dev/null");
    assert!(
        fds["1"].as_str().is_some_and(|to| to.starts_with("pipe:"))
            && fds["2"].as_str().is_some_and(|to| to.starts_with("pipe:"))
    );
    assert!(
        fds["3"]
            .as_str()
            .is_some_and(|to| to.starts_with("socket:"))
    );

    // Nobody has noticed.
    assert!(is_alive(daemon) && neighbours.iter().all(|pid| is_alive(*pid)));
    assert_eq!(
        home.view("waits")["workers"][0]["phase"],
        "starting",
        "nobody said that it is ready"
    );
    let shown = home.ok(&["describe", "waits", "hostile"]).out;
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn an_open_folder_does_not_open_the_control_socket() {
    if !root() {
        return;
    }
    let home = open_home();
    let Some(command) = script(&home, "hostile.py") else {
        return;
    };
    home.config(&format!(
        "[app.mine]\n{SLEEPER}\nenv = {{ API_KEY = \"hunter2\" }}\n"
    ));
    home.ok(&["start"]);
    let daemon = home.ok(&["ping", "--json"]).json()["pid"].clone();
    let rsup = home.rsup_home();
    let env = format!(
        "[app.hostile.env]\nHOME_OF_RSUP = {rsup:?}\nDAEMON = {daemon}\nNEIGHBOURS = \"\"\nSECRET_FILES = \"/nowhere\"\nNOTIFY_OF_OTHERS = \"/nowhere\"\n"
    );
    home.write(
        "hostile.toml",
        &format!("[app.hostile]\n{command}\nuser = {NOBODY}\ngroup = {NOBODY}\n{env}"),
    );
    home.ok(&["start", "hostile.toml", "--no-wait"]);
    // Somebody opens what rsup keeps closed; a client of rsup would refuse to use it then.
    open(&rsup.join("run"), 0o711);
    fs::set_permissions(
        rsup.join("run/control.sock"),
        fs::Permissions::from_mode(0o666),
    )
    .expect("chmod");
    let first = said(&home);
    // It may have tried before the control_sockets were open: a second worker surely comes after.
    let pid = first["pid"].as_u64().expect("a pid") as u32;
    crate::common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    let ask = wait_for("the second try", || {
        let log = home.logs("hostile");
        let tries: Vec<Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line.split_once("SAID ")?.1).ok())
            .filter(|t: &Value| t["pid"] != pid)
            .collect();
        tries.first().map(|said| said["ask"].clone()).ok_or(log)
    });
    open(&rsup.join("run"), 0o700);
    assert!(done(&ask), "the door was open: {ask}");
    let answer = ask["result"].as_str().expect("an answer");
    assert!(
        answer.contains("belongs to another user") && !answer.contains("mine"),
        "{answer}"
    );
}
