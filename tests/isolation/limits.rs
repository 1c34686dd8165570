//! Cgroups: limits where they can be had, a plain word where not, and the end of a whole tree.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::common::{Home, apps, is_alive, signal, wait_for, wait_until};
use crate::{texts, the_pid};

/// The folder of a worker's own cgroup; `None` where rsup has none to give, which is then said.
fn cgroup(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/")
        .to_owned();
    if !path.contains("/app.") {
        eprintln!("SKIPPED: cgroup v2 is not delegated here");
        return None;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let point = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .and_then(|line| line.split(' ').nth(1));
    Some(Path::new(point.expect("cgroup2 is mounted")).join(path.trim_start_matches('/')))
}

#[test]
fn limits_are_enforced_or_it_is_said_that_they_are_not() {
    let home = Home::new();
    // Takes memory without end; a python, for a shell cannot.
    let Some(python) = apps::python() else { return };
    let eater = "x = []\nwhile True: x.append(bytearray(1 << 20))";
    home.config(&format!(
        "[app.eater]\n{}\nlimits = {{ memory = \"64M\" }}\nrestart = {{ policy = \"never\" }}\n\
         [app.calm]\ncommand = [\"sleep\", \"1000\"]\nlimits = {{ memory = \"64M\", cpu = 0.5, tasks = 7 }}\n",
        apps::toml_command(&[python, "-c", eater])
    ));
    let started = home.ok(&["start", "--only", "calm"]);
    let notes = texts(&home.describe("calm")["notes"]);
    let pid = the_pid(&home, "calm");
    if notes.is_empty() {
        let folder = cgroup(pid).expect("without a cgroup, there would be a note");
        let read = |file: &str| {
            fs::read_to_string(folder.join(file))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        assert_eq!(
            (read("memory.max"), read("cpu.max"), read("pids.max")),
            ("67108864".into(), "50000 100000".into(), "7".into())
        );
        home.run(&["start", "--only", "eater"]);
        home.wait_view("eater", "its end", |view| {
            view["phase"] != "starting" && view["phase"] != "ready"
        });
        let events = wait_for("the reason", || {
            let events = format!("{}", home.describe("eater")["events"]);
            if events.contains("at its memory limit") {
                Ok(events)
            } else {
                Err(events)
            }
        });
        assert!(
            home.daemon_log().contains("at its memory limit"),
            "{events}"
        );
    } else {
        let word = "limits that need cgroup v2";
        assert!(notes[0].contains(word), "{notes:?}");
        assert!(
            started.err.contains(word),
            "the answer says it: {}",
            started.err
        );
        assert_eq!(
            home.daemon_log().matches(word).count(),
            1,
            "the log says it once"
        );
        let again = home.ok(&["reload", "calm", "--json"]);
        assert!(
            again.json()[0]["notes"][0]
                .as_str()
                .is_some_and(|note| note.contains(word)),
            "{}",
            again.out
        );
        assert_eq!(home.daemon_log().matches(word).count(), 1, "and not again");
    }
}

/// Becomes an orphan, in a session of its own, without output, environment or name.
const SHEDS: &str = r#"
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 100)
        os.execve("/bin/sleep", ["sleep", "987654"], {})
    os._exit(0)
os.wait()
time.sleep(1000)
"#;

#[test]
fn a_process_that_shed_every_mark_dies_with_its_worker() {
    let home = Home::new();
    let Some(python) = apps::python() else { return };
    home.config(&format!(
        "[app.a]\n{}\nkill_timeout = \"2s\"\n",
        apps::toml_command(&[python, "-c", SHEDS])
    ));
    home.ok(&["start"]);
    let Some(folder) = cgroup(the_pid(&home, "a")) else {
        return;
    };
    let members = || -> Vec<u32> {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    let worker = the_pid(&home, "a");
    let orphan = wait_for("the orphan", || {
        let named = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|text| text.contains("987654"))
        };
        members()
            .into_iter()
            .find(named)
            .ok_or_else(|| format!("{:?}", members()))
    });
    // No bystander is hit: the neighbour lives on.
    home.ok(&["start", "-n", "neighbour", "--", "sleep", "1000"]);
    signal(worker, Signal::SIGKILL);
    wait_until("the end of what it left behind", || !is_alive(orphan));
    wait_until("its cgroup is taken away", || !folder.exists());
    assert!(is_alive(the_pid(&home, "neighbour")));
    home.ok(&["delete", "a"]);
    wait_until("the app's cgroup is taken away", || {
        !folder.parent().expect("of the app").exists()
    });
    let base = folder.ancestors().nth(2).expect("of rsup").to_owned();
    home.ok(&["kill"]);
    wait_until("all of it is taken away", || !base.exists());
}

#[test]
fn a_cgroup_outlives_the_daemon_with_its_worker() {
    let home = Home::new();
    let Some(python) = apps::python() else { return };
    home.config(&format!(
        "[app.a]\n{}\nkill_timeout = \"2s\"\n",
        apps::toml_command(&[python, "-c", SHEDS])
    ));
    home.ok(&["start"]);
    let pid = the_pid(&home, "a");
    let Some(folder) = cgroup(pid) else { return };
    let members = || fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    wait_until("the orphan", || members().lines().count() == 2);
    let before = members();
    let daemon = home.ok(&["ping", "--json"]).json()["pid"]
        .as_u64()
        .expect("a pid") as u32;
    signal(daemon, Signal::SIGKILL);
    wait_until("the daemon's end", || !is_alive(daemon));
    let next = home.ok(&["ping", "--json"]).json()["pid"]
        .as_u64()
        .expect("a pid") as u32;
    assert_ne!(daemon, next);
    assert_eq!(
        the_pid(&home, "a"),
        pid,
        "nobody may kill the workers of a dead daemon"
    );
    assert_eq!(members(), before);
    // The next one knows it again: with the worker goes what it left behind.
    home.ok(&["stop", "a"]);
    assert!(
        before
            .lines()
            .all(|pid| !is_alive(pid.parse().expect("a pid"))),
        "{before}"
    );
    let base = folder.ancestors().nth(2).expect("of rsup").to_owned();
    home.ok(&["kill"]);
    wait_until("all of it is taken away", || !base.exists());
}
