//! Workers of other users, what they may use, and what they cannot reach. Most of it takes root.

#[path = "../common/mod.rs"]
mod common;

mod hostile;
mod limits;
mod network;
mod notify;
mod secrets;
mod user;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Home, apps};
use serde_json::Value;

/// `nobody` on Debian and its like; two more that need no entry anywhere.
const NOBODY: u32 = 65534;
const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;

/// Whether we are root; else says why the test is skipped.
///
/// # Panics
/// With `RSUP_TEST_REQUIRE_ALL=1` nothing may be missing.
fn root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"),
        "root is needed"
    );
    eprintln!("SKIPPED: only root can run workers as another user");
    false
}

/// A home that other users can pass, as /run and /var/lib are.
fn open_home() -> Home {
    let home = Home::new();
    open(home.folder(), 0o711);
    fs::create_dir(home.rsup_home()).expect("a folder");
    open(&home.rsup_home(), 0o711);
    home
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn mode(path: impl AsRef<Path>) -> u32 {
    let path = path.as_ref();
    fs::metadata(path)
        .unwrap_or_else(|why| panic!("{}: {why}", path.display()))
        .permissions()
        .mode()
        & 0o7777
}

/// A python script of `tests/apps`, copied to where every user can read it, as the command of an app.
fn script(home: &Home, name: &str) -> Option<String> {
    let python = apps::python_for_all()?;
    let to = home.path(name);
    fs::copy(apps::sources().join(name), &to).expect("copy");
    open(&to, 0o644);
    Some(apps::toml_command(&[python, to.to_str().expect("UTF-8")]))
}

/// Lines of a field in /proc/PID/status, by name.
fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    text.lines()
        .find_map(|line| line.strip_prefix(&format!("{field}:")))
        .expect("the field")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn the_pid(home: &Home, app: &str) -> u32 {
    let pids = home.pids(app);
    assert_eq!(pids.len(), 1, "{:#}", home.view(app));
    *pids.first().expect("one")
}

fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}
