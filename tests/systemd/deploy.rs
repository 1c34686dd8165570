//! `rsup start` from inside a service that is not rsup's: a webhook, a CI runner.

use crate::common::{is_ready, wait_for};
use crate::machine::{Machine, PROGRAM};

#[test]
fn rsup_outlives_the_service_that_started_it() {
    let Some(machine) = Machine::boot() else {
        return;
    };
    machine.write(
        "/srv/app/supervisor.toml",
        "[app.job]\ncommand = [\"sleep\", \"100000\"]\n",
    );
    let deploy = format!("cd /srv/app && {PROGRAM} start && {PROGRAM} list");
    // Its end is the end of all that is in its cgroup (systemd.kill(5)).
    machine.ok(&[
        "systemd-run",
        "--wait",
        "--quiet",
        "--unit=webhook",
        "sh",
        "-c",
        &deploy,
    ]);
    let pid = || {
        let pong = machine.run(&[PROGRAM, "ping", "--json"]);
        pong.code
            .eq(&0)
            .then(|| pong.json()["pid"].as_u64())
            .flatten()
    };
    let daemon = pid().expect("the daemon runs");
    let list = machine.ok(&[PROGRAM, "list", "--json"]).json();
    assert!(is_ready(&list[0]), "{list:#}");
    let group = machine.read(&format!("/proc/{daemon}/cgroup"));
    assert!(
        group.contains("/system.slice/rsup-") && group.contains(".scope"),
        "{group}"
    );
    // Nothing is in the way of the next one, and the same rsup is found.
    machine.ok(&[
        "systemd-run",
        "--wait",
        "--quiet",
        "--unit=webhook",
        "sh",
        "-c",
        &deploy,
    ]);
    assert_eq!(pid(), Some(daemon));
    machine.ok(&[PROGRAM, "kill"]);
    wait_for("the scope is gone", || {
        let units = machine
            .ok(&[
                "systemctl",
                "list-units",
                "--plain",
                "--no-legend",
                "rsup-*",
            ])
            .out;
        if units.trim().is_empty() {
            Ok(())
        } else {
            Err(units)
        }
    });
    // A service whose very command it is keeps it.
    let own = [
        "systemd-run",
        "--quiet",
        "--unit=apps",
        "--working-directory=/srv/app",
        "-p",
        "Type=forking",
    ];
    machine.ok(&[&own[..], &[PROGRAM, "start"]].concat());
    let daemon = pid().expect("the daemon runs");
    let group = machine.read(&format!("/proc/{daemon}/cgroup"));
    assert!(group.contains("/apps.service"), "{group}");
    machine.ok(&["systemctl", "stop", "apps"]);
    assert_eq!(pid(), None);
}
