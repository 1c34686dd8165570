//! All commands of one user mean one daemon, whatever their environment and whatever was removed; it is never two.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{
    self, Home, PATIENCE, Run, http, install, is_alive, remove_folder, try_run, wait_until,
};
use crate::supervisors::Supervisors;
use crate::support::Life;

/// The daemon that answers is still `daemon`, and apps go on.
#[track_caller]
fn is_found(home: &Home, daemon: u32, workers: &std::collections::BTreeSet<u32>) {
    assert_eq!(home.daemon(), daemon);
    assert_eq!(&home.pids("web"), workers);
    home.ok(&["start"]);
    assert_eq!(home.daemon(), daemon, "a start makes no second daemon");
    let others: Vec<_> = home
        .processes()
        .into_iter()
        .filter(|(_, line)| line.starts_with("rsup daemon"))
        .collect();
    assert_eq!(others.len(), 1, "{others:?}");
}

#[test]
fn a_daemon_whose_files_are_removed_is_found_all_the_same() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let (daemon, workers) = (home.daemon(), home.pids("web"));
    let (run, state) = (home.rsup_home().join("run"), home.rsup_home().join("state"));
    let remove = |path| fs::remove_file(path).unwrap();
    let removals: [(&str, &dyn Fn()); 7] = [
        ("socket", &|| remove(run.join("control.sock"))),
        ("run folder", &|| remove_folder(&run)),
        ("lock", &|| remove(state.join("daemon.lock"))),
        ("both locks", &|| {
            remove(state.join("daemon.lock"));
            remove(run.join("daemon.lock"));
        }),
        ("state", &|| remove_folder(&state)),
        ("all", &|| remove_folder(home.rsup_home())),
        ("run folder, moved", &|| {
            fs::rename(&run, home.path("elsewhere")).unwrap();
        }),
    ];
    for (what, remove) in removals {
        eprintln!("{what}");
        remove();
        let began = Instant::now();
        is_found(&home, daemon, &workers);
        assert!(began.elapsed() < PATIENCE / 2);
        assert_eq!(
            fs::metadata(&run).unwrap().permissions().mode() & 0o777,
            0o700
        );
        for name in ["run/state.json", "run/daemon.lock", "state/daemon.lock"] {
            let path = home.rsup_home().join(name);
            wait_until(&format!("{name} is back"), || path.exists());
        }
        wait_until("the saved state is back", || {
            state.join("state.json").exists()
        });
    }
    assert!(
        home.daemon_log().contains("was made again"),
        "{}",
        home.daemon_log()
    );
    home.ok(&["reload", "web"]);
    // What was made again is enough for the next daemon.
    let workers = home.pids("web");
    remove_folder(&run);
    home.ok(&["ping"]);
    wait_until("the live state is back", || run.join("state.json").exists());
    home.kill_keeper_and_daemon();
    assert_eq!(home.pids("web"), workers);
    // And what `kill` says is true.
    let daemon = home.daemon();
    remove_folder(&run);
    home.ok(&["kill"]);
    assert!(workers.iter().all(|pid| !is_alive(*pid)));
    assert!(http::get(http::local(port), "/").is_err());
    wait_until("the end of the daemon", || !is_alive(daemon));
}

#[test]
fn a_daemon_that_was_killed_after_its_folder_was_removed_is_back() {
    let home = Home::new();
    home.web("web", "");
    home.ok(&["start"]);
    let workers = home.pids("web");
    remove_folder(home.rsup_home().join("run"));
    home.kill_daemon();
    assert_eq!(home.pids("web"), workers);
}

#[test]
fn two_daemons_never_have_one_state() {
    let home = Home::new();
    home.web("web", "");
    home.ok(&["start"]);
    let daemon = home.daemon();
    let state = home.rsup_home().join("state");
    // Its lock alone is enough, and without it its socket; each is made again meanwhile.
    for gone in ["run/control.sock", "state/daemon.lock", "run/daemon.lock"] {
        fs::remove_file(home.rsup_home().join(gone)).unwrap();
        home.run(&["daemon"]).code(1).says(&["runs already"]);
        assert_eq!(home.daemon(), daemon);
    }
    // Nor if they call the folder of their sockets differently.
    let other = home.path("other");
    fs::create_dir(&other).unwrap();
    fs::set_permissions(&other, PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&state, other.join("state")).unwrap();
    let mut second = home.rsup();
    second.env("RSUP_HOME", &other).args(["start"]);
    try_run(second).unwrap().code(1).says(&["is at work"]);
    assert_eq!(home.daemon(), daemon);
}

/// A user with an entry in passwd(5), in a mount namespace that has it.
struct Account {
    home: Home,
    uid: u32,
}

impl Account {
    fn new(uid: u32) -> Option<Self> {
        let home = Home::of_user(uid)?;
        install(common::RSUP, home.path("rsup"));
        fs::create_dir(home.path("u")).unwrap();
        chown(home.path("u"), Some(uid), Some(uid)).unwrap();
        home.write(
            "passwd",
            &format!(
                "root:x:0:0::/root:/bin/sh\nu:x:{uid}:{uid}::{}:/bin/sh\n",
                home.path("u").display()
            ),
        );
        home.write("app", "exec sleep 1000\n");
        home.config("[app.web]\ncommand = [\"sh\", \"app\"]\n");
        Some(Self { home, uid })
    }

    /// With these variables and no others.
    fn run(&self, env: &[(&str, &str)], args: &[&str]) -> Run {
        let mut command = Command::new("unshare");
        let script = "mount --bind passwd /etc/passwd && uid=$1 && shift && exec setpriv --reuid=$uid --regid=$uid --clear-groups env -i \"$@\"";
        command
            .args(["--mount", "sh", "-c", script, "sh", &self.uid.to_string()])
            .arg("PATH=/usr/bin:/bin")
            .arg(format!("TEST_HOME={}", self.home.folder().display()))
            .args(env.iter().map(|(name, value)| format!("{name}={value}")))
            .arg(self.home.path("rsup"))
            .args(args)
            .current_dir(self.home.folder());
        try_run(command).unwrap()
    }

    fn daemon(&self, env: &[(&str, &str)]) -> u64 {
        self.run(env, &["ping", "--json"]).ok().json()["pid"]
            .as_u64()
            .unwrap()
    }
}

#[test]
fn every_environment_of_a_user_means_one_daemon() {
    let Some(user) = Account::new(54_331) else {
        return;
    };
    let home = user.home.path("u").display().to_string();
    let runtime = user.home.path("runtime");
    fs::create_dir(&runtime).unwrap();
    chown(&runtime, Some(user.uid), Some(user.uid)).unwrap();
    fs::set_permissions(&runtime, PermissionsExt::from_mode(0o700)).unwrap();
    let runtime = runtime.display().to_string();
    let login = [("HOME", home.as_str()), ("XDG_RUNTIME_DIR", &runtime)];
    user.run(&login, &["start"]).ok();
    let daemon = user.daemon(&login);
    let environments: [&[(&str, &str)]; 5] = [
        &[],
        &[("HOME", &home)],
        &[("HOME", "/root"), ("USER", "root")],
        &[("HOME", "/nonexistent"), ("XDG_STATE_HOME", "/tmp")],
        &[
            ("HOME", &home),
            ("XDG_RUNTIME_DIR", "/run/user/0"),
            ("TMPDIR", "/var/tmp"),
        ],
    ];
    for env in environments {
        assert_eq!(user.daemon(env), daemon, "{env:?}");
        user.run(env, &["start"]).ok();
        assert_eq!(user.daemon(env), daemon, "{env:?}");
    }
    // As logind does at a logout.
    remove_folder(&runtime);
    assert_eq!(user.daemon(&login), daemon);
    user.run(&[], &["kill"]).ok();
    let deadline = Instant::now() + PATIENCE;
    while is_alive(u32::try_from(daemon).unwrap()) {
        assert!(Instant::now() < deadline, "the daemon ends");
        std::thread::sleep(Duration::from_millis(10));
    }
}
