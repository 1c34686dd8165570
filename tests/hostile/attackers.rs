//! Apps of another user that attack rsup, which runs as root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::common::apps::{missing, python_for_all, toml_command};
use crate::common::{Home, is_alive, wait_until};
use crate::support::Life;

/// A command of rsup's that takes longer than this was held up.
const PROMPT: Duration = Duration::from_secs(2);

/// A home that other users can pass; `None` where a test that takes root cannot run.
pub fn open_home() -> Option<Home> {
    if !nix::unistd::geteuid().is_root() {
        missing("root", "only root can run workers as another user");
        return None;
    }
    let home = Home::new();
    let open = |path| fs::set_permissions(path, fs::Permissions::from_mode(0o711));
    open(home.folder()).expect("chmod");
    fs::create_dir(home.rsup_home()).expect("a folder");
    open(&home.rsup_home()).expect("chmod");
    Some(home)
}

/// The app `evil`: this program in Python, as the user nobody. False where there is no Python.
pub fn evil(home: &Home, program: &str, keys: &str) -> bool {
    let Some(python) = python_for_all() else {
        return false;
    };
    let file = home.write("evil.py", program);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    let command = toml_command(&[python, file.to_str().expect("UTF-8")]);
    home.app("evil", &format!("{command}\nuser = \"nobody\"\n{keys}"));
    true
}

/// Waits until `enough`, with `list` answered promptly all the while.
#[track_caller]
pub fn answers_until(home: &Home, what: &str, mut enough: impl FnMut() -> bool) {
    wait_until(what, || {
        let asked = Instant::now();
        home.ok(&["list"]);
        assert!(
            asked.elapsed() < PROMPT,
            "`list` took {:?}",
            asked.elapsed()
        );
        enough()
    });
}

/// The attack ends with its app.
#[track_caller]
pub fn ends(home: &Home) {
    let pids = home.pids("evil");
    home.ok(&["delete", "evil"]);
    for pid in pids {
        assert!(!is_alive(pid), "{pid}");
    }
}
