//! rsup talks to nobody: watched by strace.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::apps::sample;
use crate::common::{Home, RSUP, is_ready, try_run, wait_until};

/// Whether there is strace; or says why the test is skipped.
fn strace() -> bool {
    let there = Command::new("strace")
        .arg("-V")
        .output()
        .is_ok_and(|run| run.status.success());
    if !there {
        assert!(
            std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"),
            "strace is needed"
        );
        eprintln!("SKIPPED: there is no strace");
    }
    there
}

/// The address in a line of strace, if it is one of a network.
fn network_address(line: &str) -> Option<&str> {
    let (_, after) = line
        .split_once("inet_addr(\"")
        .or_else(|| line.split_once("inet_pton(AF_INET6, \""))?;
    after.split('"').next()
}

#[test]
fn nothing_is_connected_to_but_the_machine_itself() {
    if !strace() {
        return;
    }
    let home = Home::new();
    let port = home.port();
    home.config(&format!(
        "[app.web]\n{}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\nliveness = \"/liveness\"\n",
        sample()
    ));
    let trace = home.path("trace");
    let strace = |args: &[&str]| {
        let mut command = home.command("strace");
        command
            .args(["-q", "-ff", "-e", "trace=connect,sendto,sendmsg", "-o"])
            .arg(&trace)
            .arg(RSUP)
            .args(args);
        command
    };
    // The daemon with its workers, for as long as it lives; then the clients.
    let mut daemon = strace(&["daemon"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace");
    fs::create_dir_all(home.rsup_home()).expect("a folder");
    wait_until("the daemon", || home.run(&["ping"]).code == 0);
    let traced = |args: &[&str]| try_run(strace(args)).expect("it runs");
    for args in [
        &["start"] as &[&str],
        &["list"],
        &["reload", "web"],
        &["describe", "web"],
        &["check"],
        &["logs", "web", "--lines", "1"],
    ] {
        traced(args).ok();
    }
    assert!(is_ready(&home.view("web")));
    traced(&["kill"]).ok();
    daemon.wait().expect("strace ends with the daemon");
    let mut local = 0;
    for entry in fs::read_dir(home.folder()).expect("the folder").flatten() {
        if !entry.file_name().to_string_lossy().starts_with("trace.") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines() {
            let Some(address) = network_address(line) else {
                continue;
            };
            let address: std::net::IpAddr = address.parse().expect("an address");
            assert!(address.is_loopback(), "{line}");
            local += 1;
        }
    }
    assert!(
        local > 4,
        "the probes at the least were to be seen, {local} were"
    );
}
