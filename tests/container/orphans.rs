//! Whoever loses its parent in a container comes to the first process, which has to take it away.

use std::fs;

use nix::sys::signal::Signal;

use crate::common::{Home, all_pids, wait_for};
use crate::support::{Container, app, up};

/// Children of this process that have ended and were not waited for.
fn zombies(parent: u32) -> usize {
    let is_one = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        fields.first() == Some(&"Z") && fields.get(1) == Some(&parent.to_string().as_str())
    };
    all_pids().iter().filter(|pid| is_one(pid)).count()
}

#[track_caller]
fn all_are_taken_away(container: &Container) {
    wait_for("no zombie is left", || match zombies(container.pid()) {
        0 => Ok(()),
        count => Err(format!("{count} zombies")),
    });
}

#[test]
fn many_at_once_and_of_all_kinds() {
    let home = Home::new();
    // Plain ones, some in a session of their own and without any mark, some killed; all end at the same time.
    home.write(
        "app",
        "i=0\n\
         while [ $i -lt 200 ]; do\n\
           (sh -c 'while [ ! -e go ]; do sleep 0.1; done; exit 7' &)\n\
           [ $((i % 10)) -eq 0 ] && (env -i /usr/bin/setsid sh -c 'while [ ! -e go ]; do sleep 0.1; done' > /dev/null 2>&1 &)\n\
           [ $((i % 10)) -eq 5 ] && (sh -c 'while [ ! -e go ]; do sleep 0.1; done; kill -9 $$' &)\n\
           i=$((i+1))\n\
         done\n\
         echo spawned\n\
         while [ ! -e again ]; do sleep 0.1; done\n\
         i=0; while [ $i -lt 2000 ]; do (: &); i=$((i+1)); done\n\
         echo done\n\
         exec sleep 1000\n",
    );
    app(
        &home,
        "job",
        "command = [\"sh\", \"app\"]\nrestart.min_uptime = \"50ms\"",
    );
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    home.wait_log("job", "spawned");
    up(&home, "job");
    home.write("go", "");
    // No child of the first process is left but the worker; its children are its own.
    wait_for("only the worker is left", || {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", container.pid())).unwrap();
        let count = children.split_whitespace().count();
        if count == 1 {
            Ok(())
        } else {
            Err(format!("{count} children"))
        }
    });
    home.write("again", "");
    home.wait_log("job", "done");
    all_are_taken_away(&container);
    let view = home.view("job");
    assert_eq!(
        view["workers"][0]["restarts"], 0,
        "the worker has nothing to do with it: {view}"
    );
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

/// As `docker exec` does.
#[test]
fn of_a_process_that_came_from_outside() {
    let home = Home::new();
    app(
        &home,
        "job",
        "command = [\"sleep\", \"1000\"]\nrestart.min_uptime = \"50ms\"",
    );
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "job");
    let pid = container.pid().to_string();
    let mut enter = home.command("nsenter");
    enter.args(["--target", &pid, "--pid", "--mount"]);
    if !nix::unistd::geteuid().is_root() {
        enter.args(["--user", "--preserve-credentials"]);
    }
    enter.args([
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8; do (sleep 0.2; exit 9) & done; echo $$",
    ]);
    let run = crate::common::try_run(enter).unwrap().ok();
    assert_ne!(run.out.trim(), "", "{run:?}");
    wait_for("they are gone", || {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", container.pid())).unwrap();
        let count = children.split_whitespace().count();
        if count == 1 {
            Ok(())
        } else {
            Err(format!("{count} children"))
        }
    });
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}
