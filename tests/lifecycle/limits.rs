//! Ordinary limits of the shell that starts rsup, and of what one address can have.

use std::fs;

use crate::common::{Home, RSUP, Run, try_run};
use crate::support::Life;

/// `rsup start` from a shell with this limit of open files, in the words of ulimit.
fn start_with(home: &Home, ulimit: &str) -> Run {
    let mut shell = home.command("sh");
    let script = format!("ulimit {ulimit} && exec \"$0\" start");
    shell.args(["-c", &script, RSUP]);
    try_run(shell).unwrap()
}

fn soft_files(pid: u32) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = files.and_then(|line| line.split_whitespace().nth(3));
    soft.unwrap_or_default().to_owned()
}

/// The soft limit is the workers' alone: they get it back, and rsup has the hard one.
#[test]
fn a_low_soft_limit_of_open_files_is_that_of_the_workers() {
    let home = Home::new();
    home.web("web", "instances = 8");
    start_with(&home, "-Sn 64").ok();
    let pids = home.pids("web");
    assert_eq!(pids.len(), 8);
    for pid in pids {
        assert_eq!(soft_files(pid), "64");
    }
    assert_ne!(soft_files(home.daemon()), "64");
    home.ok(&["reload", "web"]);
    for pid in home.pids("web") {
        assert_eq!(soft_files(pid), "64");
    }
}

#[test]
fn a_hard_limit_that_does_not_do_is_named() {
    let home = Home::new();
    home.web("web", "instances = 8");
    let run = start_with(&home, "-n 64");
    assert_ne!(run.code, 0, "{run:?}");
    run.says(&["open files", "64", "ulimit -Hn"]);
}

#[test]
fn more_workers_than_an_address_can_have_are_told_by_check() {
    let home = Home::new();
    let config = |listen: &str| {
        home.config(&format!(
            "[app.web]\ncommand = \"server\"\ninstances = 64\nlisten = \"{listen}\"\n"
        ));
        home.run(&["check"])
    };
    let run = config("[::1]:3000");
    assert_ne!(run.code, 0, "{run:?}");
    run.says(&[
        "64 instances",
        "[::1]:3000",
        "no IPv4",
        "write `instances = ",
    ]);
    config("127.0.0.1:3000").ok();
}
