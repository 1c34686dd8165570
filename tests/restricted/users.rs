//! Workers of another user where root lacks CAP_SYS_PTRACE: podman, and Docker with any profile.

use nix::sys::signal::Signal;

use crate::common::http::{get, local};
use crate::common::{is_alive, signal, wait_for};
use crate::supervisors::Supervisors;
use crate::support::Life;
use crate::{OLD, TODAY, node, node_under_a_shell, open_home, root, serves};

#[track_caller]
fn with_user(command: Option<String>, profile: &[&str], keys: &str) {
    let (true, Some(command)) = (root(), command) else {
        return;
    };
    let Some(home) = open_home(&[profile, &["no-ptrace"]].concat()) else {
        return;
    };
    serves(&home, &command, "0.0.0.0:P", keys);
    let pid = *home.pids("web").first().expect("a worker");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(
        status.contains("\nUid:\t65534\t65534\t65534\t65534\n"),
        "{status}"
    );
    // The daemon is as it was: root in every respect, and open to root.
    let daemon = home.daemon();
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status")).expect("status");
    assert!(
        status.contains("\nUid:\t0\t0\t0\t0\n") && status.contains("\nGid:\t0\t0\t0\t0\n"),
        "{status}"
    );
    assert!(is_alive(daemon));
}

#[test]
fn with_all_calls_allowed() {
    with_user(node(), &[], "user = \"nobody\"\n");
}

#[test]
fn with_todays_profile() {
    with_user(node(), TODAY, "user = \"nobody\"\n");
}

#[test]
fn with_the_old_profile_and_a_wrapper() {
    with_user(node_under_a_shell(), OLD, "user = \"nobody\"\n");
}

/// What root may have for files, it has when it looks at them as that user, too.
#[test]
fn with_capabilities_left() {
    let keys = "user = \"nobody\"\nlimits = { capabilities = [\"CAP_NET_BIND_SERVICE\", \"CAP_CHOWN\", \"CAP_DAC_OVERRIDE\"] }\n";
    with_user(node(), TODAY, keys);
}

/// A program that changes its user by itself, as containers' entrypoints do (gosu, su-exec, setpriv).
#[test]
fn with_a_user_that_the_app_chooses_itself() {
    let Some(node) = crate::common::apps::node() else {
        return;
    };
    let command = crate::common::apps::toml_command(&[
        "/usr/bin/setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        node,
        "-e",
        crate::NODE,
    ]);
    with_user(Some(command), TODAY, "");
}

/// The next daemon is not the parent of the worker, whose bind it answers all the same.
#[test]
fn after_the_death_of_the_daemon() {
    let (true, Some(node)) = (root(), crate::common::apps::node()) else {
        return;
    };
    let Some(home) = open_home(&[TODAY, &["no-ptrace"]].concat()) else {
        return;
    };
    let port = home.port();
    let script = "while true; do \"$0\" -e \"$1\"; done";
    let command = crate::common::apps::toml_command(&["/bin/sh", "-c", script, node, crate::NODE]);
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"0.0.0.0:{port}\"\nuser = \"nobody\"\n"
    ));
    home.ok(&["start"]);
    let server = || get(local(port), "/").map(|answer| answer.pid());
    let before = server().expect("an answer");
    home.kill_daemon();
    signal(before, Signal::SIGKILL);
    let after = wait_for("the next server's answer", || {
        server().and_then(|pid| {
            if pid == before {
                Err("the old".into())
            } else {
                Ok(pid)
            }
        })
    });
    assert!(is_alive(after));
    assert!(
        !home.daemon_log().contains("could not be looked at"),
        "{}",
        home.daemon_log()
    );
}
