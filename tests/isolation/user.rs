//! Workers that run as another user.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;

use crate::common::{RSUP, apps, http, install, is_alive, try_run, wait_for};
use crate::{ALICE, NOBODY, mode, open, open_home, root, script, status, the_pid};

fn environ(pid: u32) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).expect("environ");
    let text = String::from_utf8(bytes).expect("UTF-8");
    text.split('\0')
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn a_worker_becomes_its_user_with_all_that_goes_with_it() {
    if !root() {
        return;
    }
    let home = open_home();
    home.config(
        "[app.a]\ncommand = [\"sleep\", \"1000\"]\nuser = \"nobody\"\numask = \"027\"\n\
         env = { SHELL = \"/bin/own\" }\n\
         [app.a.limits]\nnofile = 4321\nnice = 7\nno_new_privs = true\ncapabilities = []\n\
         [app.b]\ncommand = [\"sleep\", \"1000\"]\nuser = 54321\ngroup = \"nogroup\"\ngroups = [\"video\", 4242]\n\
         [app.b.limits]\ncapabilities = [\"CAP_NET_BIND_SERVICE\"]\n\
         [app.plain]\ncommand = [\"sleep\", \"1000\"]\n",
    );
    home.ok(&["start"]);
    let a = the_pid(&home, "a");
    let four = |id: u32| [id; 4].map(|id| id.to_string()).join(" ");
    assert_eq!(status(a, "Uid"), four(NOBODY));
    assert_eq!(status(a, "Gid"), four(NOBODY));
    assert_eq!(status(a, "Groups"), NOBODY.to_string());
    assert_eq!(status(a, "Umask"), "0027");
    assert_eq!(status(a, "NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(a, set), "0000000000000000", "{set}");
    }
    let limits = fs::read_to_string(format!("/proc/{a}/limits")).expect("limits");
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("files");
    assert_eq!(
        files.split_whitespace().collect::<Vec<_>>()[3..5],
        ["4321", "4321"]
    );
    let stat = fs::read_to_string(format!("/proc/{a}/stat")).expect("stat");
    assert_eq!(
        stat.rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(16)),
        Some("7"),
        "nice"
    );
    let env = environ(a);
    assert_eq!(
        (
            env["HOME"].as_str(),
            env["USER"].as_str(),
            env["LOGNAME"].as_str()
        ),
        ("/nonexistent", "nobody", "nobody")
    );
    assert_eq!(env["SHELL"], "/bin/own");

    let b = the_pid(&home, "b");
    assert_eq!(status(b, "Uid"), four(ALICE));
    assert_eq!(status(b, "Gid"), four(NOBODY));
    let mut groups: Vec<String> = status(b, "Groups").split(' ').map(str::to_owned).collect();
    groups.sort();
    assert_eq!(groups, ["4242", "44"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(b, set), "0000000000000400", "{set}");
    }

    let plain = the_pid(&home, "plain");
    assert_eq!(status(plain, "Uid"), four(0));
    assert_eq!(
        status(plain, "CapEff"),
        status(std::process::id(), "CapEff")
    );

    let shown = home.ok(&["describe", "a"]).out;
    assert!(
        shown.contains("user nobody (65534)")
            && shown.contains("open files 4321")
            && shown.contains("capabilities none"),
        "{shown}"
    );
}

#[test]
fn an_unmodified_server_of_another_user_is_taken_over_reloaded_and_probed_as_that_user() {
    if !root() {
        return;
    }
    let home = open_home();
    let Some(command) = script(&home, "server.py") else {
        return;
    };
    let port = home.port();
    let seen = home.path("seen");
    fs::create_dir(&seen).expect("a folder");
    open(&seen, 0o777);
    let probe = format!(
        "echo $(id -u) $(id -G) $(ulimit -n) $(umask) $(grep CapEff /proc/self/status) > {}/probe",
        seen.display()
    );
    home.config(&format!(
        "[app.web]\n{command}\ninstances = 2\nlisten = \"0.0.0.0:{port}\"\nuser = \"nobody\"\numask = \"022\"\n\
         readiness = {{ exec = [\"sh\", \"-c\", {probe:?}] }}\nlimits = {{ nofile = 777, capabilities = [] }}\n"
    ));
    home.ok(&["start"]);
    let probe = wait_for("the probe's words", || {
        fs::read_to_string(seen.join("probe"))
            .ok()
            .filter(|t| t.ends_with('\n'))
            .ok_or("none")
    });
    assert_eq!(
        probe.trim(),
        "65534 65534 777 0022 CapEff: 0000000000000000"
    );
    wait_for("an answer", || {
        http::get(http::local(port), "/").map_err(|why| why.to_string())
    });
    let before = home.pids("web");
    assert!(
        before
            .iter()
            .all(|pid| status(*pid, "Uid").starts_with("65534 "))
    );
    home.ok(&["reload", "web"]);
    let after = home.pids("web");
    assert!(
        before.is_disjoint(&after)
            && after
                .iter()
                .all(|pid| status(*pid, "Uid").starts_with("65534 "))
    );
    http::get(http::local(port), "/").expect("an answer after the reload");
}

#[test]
fn the_output_of_another_user_can_be_opened_anew() {
    if !root() {
        return;
    }
    let home = open_home();
    let script = "echo to-stdout > /dev/stdout; echo to-stderr > /dev/stderr; exec sleep 1000";
    home.config(&format!(
        "[app.a]\ncommand = [\"sh\", \"-c\", {script:?}]\nuser = \"nobody\"\n"
    ));
    home.ok(&["start"]);
    home.wait_log("a", "to-stdout");
    home.wait_log("a", "to-stderr");
}

#[test]
fn what_is_closed_to_the_user_is_named() {
    if !root() {
        return;
    }
    let home = open_home();
    let closed = home.path("closed");
    fs::create_dir_all(closed.join("app")).expect("a folder");
    open(&closed, 0o700);
    home.config(&format!(
        "[app.a]\ncommand = [\"sleep\", \"1\"]\nuser = \"nobody\"\ncwd = {:?}\n",
        closed.join("app")
    ));
    let run = home.run(&["start"]).code(1);
    run.says(&[
        "user 65534 may not enter it",
        &format!("{} is closed to it", closed.display()),
    ]);
    home.ok(&["delete", "a"]);

    let program = home.script("closed/app/run.sh", "#!/bin/sh\nsleep 1000\n");
    home.config(&format!(
        "[app.b]\ncommand = [{program:?}]\nuser = \"nobody\"\n"
    ));
    let run = home.run(&["start"]).code(1);
    run.says(&[
        "may not be executed by user 65534",
        &format!("{} is closed to it", closed.display()),
    ]);
}

#[test]
fn rsup_of_an_ordinary_user_refuses_before_anything_starts() {
    if !root() {
        return;
    }
    let home = open_home();
    // Its own rsup, that every user can execute.
    let rsup = home.path("rsup");
    install(RSUP, &rsup);
    let own = home.path("own");
    fs::create_dir(&own).expect("a folder");
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).expect("chown");
    let run = |args: &[&str]| {
        let mut command = home.command(rsup.to_str().expect("UTF-8"));
        command
            .args(args)
            .env("RSUP_HOME", own.join("h"))
            .uid(NOBODY)
            .gid(NOBODY);
        // Root's capabilities go with the change of user.
        try_run(command).expect("it runs")
    };
    let config = |keys: &str| {
        open(
            &home.config(&format!(
                "[app.a]\ncommand = [\"sleep\", \"1000\"]\n{keys}\n"
            )),
            0o644,
        )
    };
    for (keys, words) in [
        ("user = \"www-data\"", ["www-data", "sudo rsup start"]),
        ("limits.capabilities = []", ["CAP_SETPCAP", "no_new_privs"]),
        ("limits.nice = -3", ["CAP_SYS_NICE", "as root"]),
        ("limits.nofile = 99999999", ["99999999", "write at most"]),
    ] {
        config(keys);
        run(&["start"]).code(1).says(&words);
        assert_eq!(
            run(&["list", "--json"]).ok().json(),
            serde_json::json!([]),
            "{keys}: nothing is left"
        );
    }
    config("user = \"www-data\"");
    run(&["check"])
        .ok()
        .says(&["only a root rsup can run workers as `www-data`"]);
    // What it may do, it does; its own user is no other.
    config("user = \"nobody\"\numask = \"077\"\nlimits = { nice = 19, no_new_privs = true }");
    run(&["start"]).ok();
    let pid = run(&["list", "--json"]).json()[0]["workers"][0]["pid"]
        .as_u64()
        .expect("a pid") as u32;
    assert!(is_alive(pid));
    assert_eq!(
        (status(pid, "Umask"), status(pid, "NoNewPrivs")),
        ("0077".to_owned(), "1".to_owned())
    );
    assert_eq!(mode(own.join("h/run")), 0o700);
    run(&["kill"]).ok();
}

#[test]
fn a_user_on_the_command_line() {
    if !root() {
        return;
    }
    let home = open_home();
    home.ok(&[
        "start", "-n", "a", "--user", "nobody", "--", "sleep", "1000",
    ]);
    assert!(status(the_pid(&home, "a"), "Uid").starts_with("65534 "));
    home.ok(&["reload", "a"]);
    assert!(status(the_pid(&home, "a"), "Uid").starts_with("65534 "));
    home.run(&[
        "start", "-n", "b", "--user", "nobodi", "--", "sleep", "1000",
    ])
    .code(2)
    .says(&["no user `nobodi`", "nobody"]);
}

#[test]
fn the_limit_of_open_files_is_that_of_whoever_started_rsup() {
    let home = open_home();
    let soft = |pid: u32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let files = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .expect("files");
        files.split_whitespace().nth(3).map(str::to_owned)
    };
    let mut shell = home.command("sh");
    shell.args([
        "-c",
        "ulimit -Sn 777; exec \"$0\" start -n a -- sleep 1000",
        RSUP,
    ]);
    try_run(shell).expect("it runs").ok();
    let daemon = || {
        home.ok(&["ping", "--json"]).json()["pid"]
            .as_u64()
            .expect("a pid") as u32
    };
    assert_eq!(soft(the_pid(&home, "a")).as_deref(), Some("777"));
    assert_ne!(
        soft(daemon()).as_deref(),
        Some("777"),
        "rsup itself has more"
    );
    // Not that of the keeper, nor of the program before.
    let before = daemon();
    crate::common::signal(before, nix::sys::signal::Signal::SIGKILL);
    crate::common::wait_until("the daemon's end", || !is_alive(before));
    home.ok(&["reload", "a"]);
    assert_eq!(soft(the_pid(&home, "a")).as_deref(), Some("777"));
    home.ok(&["upgrade"]);
    home.ok(&["reload", "a"]);
    assert_eq!(soft(the_pid(&home, "a")).as_deref(), Some("777"));
}

/// What the dead daemon had tried as that user, the next one has not yet.
#[test]
fn how_an_adopted_app_has_its_sockets_is_said_as_before() {
    if !root() {
        return;
    }
    let home = open_home();
    home.config(&format!(
        "[app.a]\n{}\nlisten = \"127.0.0.1:{}\"\nreadiness = \"/readiness\"\nuser = \"nobody\"\n",
        apps::sample(),
        home.port()
    ));
    home.ok(&["start"]);
    let facts = || {
        (
            home.describe("a")["sockets"].clone(),
            home.ok(&["env", "a"]).out,
        )
    };
    let before = facts();
    assert!(
        before
            .0
            .as_str()
            .is_some_and(|way| way.starts_with("by takeover")),
        "{before:?}"
    );
    let worker = the_pid(&home, "a");
    let daemon = home.ok(&["ping", "--json"]).json()["pid"]
        .as_u64()
        .expect("a pid") as u32;
    crate::common::signal(daemon, nix::sys::signal::Signal::SIGKILL);
    crate::common::wait_until("the daemon's end", || !is_alive(daemon));
    assert_eq!(facts(), before);
    assert_eq!(the_pid(&home, "a"), worker);
}
