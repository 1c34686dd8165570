//! rsup where a container or a kernel refuses it something: single system calls, as the default profiles of
//! Docker do, `CAP_SYS_PTRACE`, `inet_diag`, or takeover altogether.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "not all of it is used here")]
#[path = "../survival/supervisors.rs"]
mod supervisors;
#[path = "../lifecycle/support.rs"]
mod support;

mod deaths;
mod profiles;
mod refusals;
mod users;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::load::Load;
use common::{Home, apps};

/// What Docker's default profile refuses, today's and that of Docker 20.10 and older.
const TODAY: &[&str] = &["pidfd_getfd"];
const OLD: &[&str] = &["pidfd_getfd", "process_vm_readv"];

/// A home that other users can pass.
fn open_home(words: &[&str]) -> Option<Home> {
    let home = Home::restricted(words)?;
    open(home.folder(), 0o711);
    fs::create_dir(home.rsup_home()).expect("a folder");
    open(&home.rsup_home(), 0o711);
    Some(home)
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Only root can start workers of other users.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        apps::missing("root", "only root can run workers as another user");
    }
    root
}

const NODE: &str = "const s = require('http').createServer((q, a) => a.end(JSON.stringify({pid: process.pid}))).listen(process.env.PORT); \
     process.on('SIGTERM', () => s.close(() => process.exit(0)))";

fn node() -> Option<String> {
    Some(apps::toml_command(&[apps::node()?, "-e", NODE]))
}

/// Below a shell, as under `npm start`.
fn node_under_a_shell() -> Option<String> {
    Some(apps::toml_command(&[
        "/bin/sh",
        "-c",
        "\"$0\" -e \"$1\"; true",
        apps::node()?,
        NODE,
    ]))
}

/// Two reloads under load, with no request lost; nothing is said to be missing.
#[track_caller]
fn serves(home: &Home, command: &str, listen: &str, keys: &str) {
    let port = home.port();
    let listen = listen.replace('P', &port.to_string());
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"{listen}\"\ninstances = 2\n{keys}"
    ));
    home.ok(&["start"]);
    let load = Load::start(port, "/");
    load.more(50);
    for _ in 0..2 {
        home.ok(&["reload", "web"]);
        load.more(50);
    }
    load.lossless();
    let notes = home.describe("web")["notes"].to_string();
    assert!(!notes.contains("bind(2)"), "{notes}");
    assert!(!home.daemon_log().contains("WARN"), "{}", home.daemon_log());
}
