//! Values of an environment are in no listing, log or file that others can read.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::{Home, wait_until};
use crate::mode;

const SECRET: &str = "hunter2-a5c1";

fn app(home: &Home) {
    home.write(".env", &format!("FROM_FILE={SECRET}\n"));
    home.config(&format!(
        "[app.a]\ncommand = [\"sh\", \"-c\", \"while :; do echo a line of output that fills the log; sleep 0.001; done\"]\n\
         env_file = \".env\"\nenv = {{ API_KEY = \"{SECRET}\", DATABASE_URL = \"postgres://u:{SECRET}@h/db\" }}\n\
         liveness = {{ exec = [\"true\"], interval = \"50ms\" }}\n\
         log = {{ max_size = \"4K\", keep = 3 }}\n\
         [app.web]\ncommand = [\"sleep\", \"1000\"]\nlisten = {}\n\
         readiness = {{ path = \"/\", headers = {{ Authorization = \"{SECRET}\" }} }}\nlisten_timeout = \"300ms\"\nrestart = {{ max_restarts = 1 }}\n",
        home.port()
    ));
}

/// Everything below a folder.
fn all(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        if entry.path().is_dir() {
            found.extend(all(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found
}

#[test]
fn no_listing_log_or_open_file_holds_a_secret() {
    let home = Home::new();
    app(&home);
    let with = |args: &[&str]| {
        let mut command = home.rsup();
        // Of the caller, for all its apps.
        command
            .args(args)
            .env("CALLERS_TOKEN", SECRET)
            .env("RUST_LOG", "trace");
        let run = crate::common::try_run(command).expect("it runs");
        assert!(
            !run.out.contains(SECRET) && !run.err.contains(SECRET),
            "{args:?} shows it:\n{}\n{}",
            run.out,
            run.err
        );
        run
    };
    with(&["check"]).ok();
    assert!(
        with(&["check", "--json"]).ok().out.contains("API_KEY"),
        "the names are there"
    );
    with(&["start", "--only", "a"]).ok();
    with(&["start", "--json", "--only", "web"]).code(1);
    with(&["reload", "a", "--update-env"]);
    for args in [
        &["list"] as &[&str],
        &["list", "--json"],
        &["describe", "a", "web"],
        &["describe", "a", "web", "--json"],
        &["env", "a"],
        &["env", "a", "--json"],
        &["logs", "a", "--lines", "5"],
        &["ping", "--json"],
        &["restart", "a"],
    ] {
        with(args).ok();
    }
    let env = home.ok(&["env", "a", "--json"]).json()[0]["env"].clone();
    assert!(
        env["API_KEY"].is_null() && env["CALLERS_TOKEN"].is_null() && env["RSUP_APP"] == "a",
        "{env:#}"
    );
    let shown = home.ok(&["env", "a", "--show-values"]).out;
    assert_eq!(shown.matches(SECRET).count(), 4, "{shown}");
    // The reload sends what describe does not show: the app still has it.
    let pid = *home.pids("a").first().expect("a worker");
    let environ = fs::read(format!("/proc/{pid}/environ")).expect("environ");
    assert!(String::from_utf8_lossy(&environ).contains(&format!("API_KEY={SECRET}")));

    let rsup = home.rsup_home();
    wait_until("a compressed log", || {
        rsup.join("state/logs/a-out.log.2.gz").exists()
    });
    for path in all(&rsup) {
        // A rotation may be under way.
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        let mode = found.permissions().mode() & 0o7777;
        let shown = path
            .strip_prefix(&rsup)
            .expect("below")
            .display()
            .to_string();
        let most = match shown.as_str() {
            // What the caller made: as he made it.
            "" => continue,
            log if log.starts_with("state/logs/") => 0o640,
            _ if found.is_dir() => 0o700,
            _ => 0o600,
        };
        assert_eq!(mode & !most, 0, "{shown} has mode {mode:o}");
        if found.is_file() && !found.file_type().is_socket() {
            let bytes = fs::read(&path).unwrap_or_default();
            // What is saved for the next daemon has to hold it, and is for nobody else.
            let may_hold =
                mode & 0o077 == 0 && !shown.ends_with(".log") && shown.contains("/state.json")
                    || shown.contains("/.state");
            assert!(
                may_hold || !String::from_utf8_lossy(&bytes).contains(SECRET),
                "{shown} holds it"
            );
        }
    }
    for log in ["a-out.log", "a-out.log.1", "a-out.log.2.gz"] {
        let path = rsup.join("state/logs").join(log);
        wait_until("the log, between two rotations", || path.exists());
        assert_eq!(mode_of(&path), 0o640, "{log}");
    }
}

/// Of a file that may be renamed at any moment.
fn mode_of(path: &Path) -> u32 {
    crate::common::wait_for("the file", || {
        fs::metadata(path)
            .map(|found| found.permissions().mode() & 0o7777)
            .map_err(|why| why.to_string())
    })
}

#[test]
fn a_value_that_cannot_be_passed_on_is_not_quoted() {
    let home = Home::new();
    home.write(".env", &format!("OK=1\nBROKEN=\"{SECRET}\n"));
    home.config("[app.a]\ncommand = [\"true\"]\nenv_file = \".env\"\n");
    for args in [&["check"] as &[&str], &["check", "--json"], &["start"]] {
        let run = home.run(args).code(2);
        assert!(
            !run.err.contains(SECRET) && !run.out.contains(SECRET),
            "{run:?}"
        );
    }
}

#[test]
fn folders_of_logs_elsewhere_are_not_open_to_all() {
    let home = Home::new();
    home.config("[app.a]\ncommand = [\"sh\", \"-c\", \"echo hello; sleep 1000\"]\nlog = { out = \"far/away/out.log\", err = \"far/err.log\" }\n");
    home.ok(&["start"]);
    wait_until("the log", || home.path("far/away/out.log").exists());
    assert_eq!(mode(home.path("far/away/out.log")), 0o640);
    assert_eq!(
        (mode(home.path("far")), mode(home.path("far/away"))),
        (0o750, 0o750)
    );
}

#[test]
fn a_link_that_a_worker_made_is_not_written_through() {
    if !crate::root() {
        return;
    }
    let home = crate::open_home();
    let folder = home.path("of-nobody");
    fs::create_dir(&folder).expect("a folder");
    let victim = home.write("victim", "untouched\n");
    std::os::unix::fs::symlink(&victim, folder.join("out.log")).expect("a link");
    std::os::unix::fs::lchown(
        folder.join("out.log"),
        Some(crate::NOBODY),
        Some(crate::NOBODY),
    )
    .expect("lchown");
    // Root's own link, where only root can have put it.
    std::os::unix::fs::symlink(home.path("mine.log"), home.path("err.log")).expect("a link");
    std::os::unix::fs::chown(&folder, Some(crate::NOBODY), Some(crate::NOBODY)).expect("chown");
    home.config(
        "[app.a]\ncommand = [\"sh\", \"-c\", \"echo forged; echo fine >&2; exec sleep 1000\"]\nuser = \"nobody\"\n\
         log = { out = \"of-nobody/out.log\", err = \"err.log\" }\n",
    );
    home.ok(&["start"]);
    wait_until("the refusal in the log", || {
        home.daemon_log()
            .contains("is a link that another user can change (it is of user 65534")
    });
    wait_until("the line by way of root's own link", || {
        fs::read_to_string(home.path("mine.log")).is_ok_and(|t| t.contains("fine"))
    });
    assert_eq!(
        fs::read_to_string(victim).expect("the victim"),
        "untouched\n"
    );
}
