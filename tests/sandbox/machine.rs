//! Machines and containers that are smaller than others.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::libc;

use super::Sandbox;
use super::refuse::with;
use crate::common::apps::missing;
use crate::common::{Home, RSUP, http, try_run, wait_for};

/// A cgroup of the test's own with a limit, in the hierarchy of v1 or v2 that has the controller; taken away at the
/// end.
struct Group(PathBuf);

impl Group {
    fn new(home: &Home, controller: &str) -> Option<Self> {
        let name = home.folder().file_name()?.to_string_lossy().into_owned();
        let (v1, v2) = (
            Path::new("/sys/fs/cgroup").join(controller),
            Path::new("/sys/fs/cgroup"),
        );
        let of_v2 = fs::read_to_string(v2.join("cgroup.subtree_control")).unwrap_or_default();
        let base = if v1.is_dir() { v1.as_path() } else { v2 };
        let path = base.join(format!("rsup-test-{name}"));
        if (v1.is_dir() || of_v2.contains(controller)) && fs::create_dir(&path).is_ok() {
            return Some(Self(path));
        }
        missing("a cgroup of one's own", controller);
        None
    }

    /// Writes the first of these files that there is.
    fn set(&self, files: &[&str], value: &str) {
        let file = files
            .iter()
            .map(|file| self.0.join(file))
            .find(|file| file.exists())
            .expect("a file for the limit");
        fs::write(&file, value).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    }

    /// `rsup` with these arguments, begun in the group.
    fn rsup(&self, home: &Home, args: &[&str]) -> Command {
        let mut command = home.command("/bin/sh");
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"",
            self.0.display()
        );
        command.args(["-c", &script, RSUP]).args(args);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // rsup's own are below it where it is v2. Those who were in it have been waited for, but the kernel may still
        // be at their end.
        wait_for("the end of the test's cgroup", || {
            match fs::remove_dir(&self.0) {
                Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                    fs::read_dir(&self.0)
                        .into_iter()
                        .flatten()
                        .flatten()
                        .for_each(|entry| drop(fs::remove_dir(entry.path())));
                    Err(why)
                }
                _ => Ok(()),
            }
        });
    }
}

#[test]
fn a_worker_killed_at_the_containers_memory_limit_says_so() {
    let Some(Sandbox { home, port, .. }) = Sandbox::new(None, "listen = \"127.0.0.1:PORT\"") else {
        return;
    };
    let Some(group) = Group::new(&home, "memory") else {
        return;
    };
    group.set(&["memory.max", "memory.limit_in_bytes"], "150M");
    // Eats 400 MiB at the first request.
    let source =
        fs::read_to_string(crate::common::apps::sources().join("tiny.py")).expect("tiny.py");
    let source = source.replace(
        "        if connection.recv(65536):\n",
        "        if connection.recv(65536):\n            eaten = [bytearray(1 << 22) for _ in range(100)]\n",
    );
    let script = home.write("greedy.py", &source);
    let python = crate::common::apps::python().expect("python3");
    let command = crate::common::apps::toml_command(&[python, script.to_str().expect("UTF-8")]);
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"127.0.0.1:{port}\"\n"
    ));
    try_run(group.rsup(&home, &["start"]))
        .expect("rsup runs")
        .ok();
    let _ = http::get(http::local(port), "/");
    wait_for("the reason in the log", || {
        let log = home.daemon_log();
        let words = "killed by the kernel for want of memory: the container's (or unit's) limit of 150.0 MiB was reached";
        if log.contains(words) {
            Ok(())
        } else {
            Err(log)
        }
    });
    // A kill that has nothing to do with it.
    let before = home.wait_view("web", "the next worker is ready", crate::common::is_ready);
    let pid = *crate::common::pids(&before).first().expect("a worker");
    crate::common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    wait_for("the other reason in the log", || {
        let log = home.daemon_log();
        if log.contains(&format!("(pid {pid}) killed by SIGKILL")) {
            Ok(())
        } else {
            Err(log)
        }
    });
    home.ok(&["kill"]);
    drop(home);
    drop(group);
}

#[test]
fn a_full_limit_of_processes_is_named_with_its_place() {
    let Some(Sandbox { home, .. }) = Sandbox::new(None, "listen = \"127.0.0.1:PORT\"") else {
        return;
    };
    let Some(group) = Group::new(&home, "pids") else {
        return;
    };
    let place = format!("in {} (pids.max", group.0.display());
    // rsup itself has no room for a thread.
    group.set(&["pids.max"], "1");
    let run = try_run(group.rsup(&home, &["start"]))
        .expect("rsup runs")
        .code(1)
        .says(&["the limit of processes is reached: 1 ", &place]);
    assert!(run.err.starts_with("error: "), "{}", run.err);
    group.set(&["pids.max"], "max");
    try_run(group.rsup(&home, &["start"]))
        .expect("rsup runs")
        .ok();
    // And none for another worker.
    let now = fs::read_to_string(group.0.join("pids.current")).expect("pids.current");
    group.set(&["pids.max"], now.trim());
    let run = home.run(&["scale", "web", "3"]).code(1);
    let first = run
        .err
        .lines()
        .find(|line| line.starts_with("error: "))
        .unwrap_or_default();
    assert!(
        first.contains("the limit of processes is reached") && first.contains(&place),
        "{}",
        run.err
    );
    assert!(!run.err.contains("takeover"), "{}", run.err);
    group.set(&["pids.max"], "max");
    home.ok(&["kill"]);
    drop(home);
    drop(group);
}

#[test]
fn a_sandbox_without_ipv6_gets_a_bare_port_on_ipv4_with_a_note() {
    let refused = with(
        "socket(AF_INET6)",
        libc::SYS_socket,
        &[(0, libc::AF_INET6 as u32)],
    );
    for errno in [Errno::EPERM, Errno::EAFNOSUPPORT] {
        let Some(sandbox) = Sandbox::new(Some((refused, errno)), "listen = PORT") else {
            return;
        };
        let run = sandbox
            .run(&["start"])
            .ok()
            .says(&["a sandbox refuses IPv6 sockets here", "0.0.0.0:"]);
        assert!(
            run.out
                .contains(&format!("1 worker ready on 0.0.0.0:{}", sandbox.port)),
            "{}",
            run.out
        );
        assert_eq!(
            http::get(http::local(sandbox.port), "/")
                .expect("an answer")
                .status,
            200
        );
    }
}

#[test]
fn folders_that_cannot_be_had_lead_to_rsup_home() {
    let Some(home) = Home::of_user(54_323) else {
        return;
    };
    home.config("[app.web]\ncommand = \"sleep 100\"\n");
    let without = |change: fn(&mut Command) -> &mut Command| {
        let mut command = home.rsup();
        command
            .arg("start")
            .env_remove("RSUP_HOME")
            .env("XDG_RUNTIME_DIR", home.path("runtime"))
            .env_remove("XDG_STATE_HOME");
        change(&mut command);
        try_run(command).expect("rsup runs")
    };
    let hint = ["RSUP_HOME", "-e RSUP_HOME=/tmp/rsup", "--tmpfs"];
    without(|command| command.env_remove("HOME"))
        .code(2)
        .says(&hint)
        .says(&["HOME is not set"]);
    // What a container gives to a uid without an entry.
    without(|command| command.env("HOME", "/"))
        .code(2)
        .says(&hint)
        .says(&["cannot make the folder /.local/state"]);
    without(|command| command.env("HOME", "/").arg("--foreground"))
        .code(2)
        .says(&hint)
        .says(&["cannot make the folder /.local/state"]);
}

#[test]
fn a_read_only_root_leads_to_rsup_home() {
    if !nix::unistd::geteuid().is_root() {
        return missing("root", "for a mount of its own");
    }
    let home = Home::new();
    home.config("[app.web]\ncommand = \"sleep 100\"\n");
    fs::create_dir_all(home.path("ro")).expect("a folder");
    for made in [
        "mkdir -p ro/h/run ro/h/state/logs && chmod -R 700 ro/h",
        "true",
    ] {
        for foreground in ["", "--foreground"] {
            let mut command = home.command("unshare");
            let script = format!(
                "mount -t tmpfs none ro && {made} && mount -o remount,ro none ro && RSUP_HOME=$PWD/ro/h exec \"$0\" start {foreground}"
            );
            command.args(["--mount", "sh", "-c", &script, RSUP]);
            try_run(command).expect("unshare runs").code(2).says(&[
                "ead-only file system",
                "set RSUP_HOME",
                "--tmpfs",
            ]);
        }
    }
}

#[test]
fn a_terminal_without_a_width_gets_the_whole_list() {
    let Some(Sandbox { home, .. }) = Sandbox::new(None, "listen = \"127.0.0.1:PORT\"") else {
        return;
    };
    home.ok(&["start"]);
    let list = |columns: u16| {
        let size = nix::pty::Winsize {
            ws_row: 0,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let ends = nix::pty::openpty(Some(&size), None).expect("a terminal");
        let mut command = home.rsup();
        command
            .arg("list")
            .env("TERM", "vt100")
            .env_remove("COLUMNS")
            .stdout(ends.slave);
        assert!(command.status().expect("rsup runs").success());
        drop(command);
        let (mut text, mut terminal) = (Vec::new(), fs::File::from(ends.master));
        // The end of a terminal is EIO.
        let _ = terminal.read_to_end(&mut text);
        String::from_utf8_lossy(&text)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(list(0), list(250));
    assert_ne!(list(0), list(40), "the width does not matter at all");
}
