//! rsup started inside the link to the newest release: what is used is what the link means now.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::common::load::Load;
use crate::common::{Home, Run, apps, try_run, wait_until};

/// Two releases, each with its configuration, and the link.
fn releases(home: &Home, port: u16) {
    for release in ["r1", "r2"] {
        home.write(
            &format!("{release}/supervisor.toml"),
            &format!(
                "[app.web]\n{}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nenv = {{ RELEASE = \"{release}\" }}\n",
                apps::sample()
            ),
        );
    }
    point(home, "r1");
}

fn point(home: &Home, release: &str) {
    symlink(release, home.path("next")).expect("a link");
    fs::rename(home.path("next"), home.path("current")).expect("put in place");
}

/// As a shell would run it after `cd current`.
fn in_current(home: &Home, args: &[&str]) -> Run {
    let mut command = home.rsup();
    let current = home.path("current");
    command.args(args).current_dir(&current).env("PWD", current);
    try_run(command).unwrap_or_else(|why| panic!("{why}"))
}

fn folders(home: &Home) -> Vec<PathBuf> {
    let mut all: Vec<_> = home
        .pids("web")
        .iter()
        .filter_map(|pid| fs::read_link(format!("/proc/{pid}/cwd")).ok())
        .collect();
    all.sort();
    all
}

#[test]
fn the_file_of_the_current_release() {
    let home = Home::new();
    let port = home.port();
    releases(&home, port);
    in_current(&home, &["start"]).ok();
    let load = Load::start(port, "/health");
    let (r1, r2) = (home.path("r1"), home.path("r2"));
    assert_eq!(folders(&home), [r1.clone(), r1.clone()]);
    home.ok(&["reload", "web"])
        .says(&["the same as before", r1.to_str().expect("UTF-8")]);
    point(&home, "r2");
    let run = home.ok(&["reload", "web"]);
    assert!(!run.err.contains("the same as before"), "{}", run.err);
    assert_eq!(folders(&home), [r2.clone(), r2.clone()]);
    let spec = &home.describe("web")["spec"];
    assert_eq!(spec["env"]["RELEASE"], "***");
    home.ok(&["describe", "web"]).says(&[
        &format!("{} → {}", home.path("current").display(), r2.display()),
        &format!(
            "{0}/current/supervisor.toml → {0}/r2/supervisor.toml",
            home.folder().display()
        ),
    ]);
    // Its folder is pruned, but for the link.
    fs::remove_dir_all(&r1).expect("the old release");
    home.ok(&["reload", "web"]);
    // The same app, by whatever way to its file.
    in_current(&home, &["start"]).ok().says(&["runs already"]);
    in_current(&home, &["reload", "supervisor.toml"]).ok();
    home.ok(&["start", "r2/supervisor.toml"])
        .says(&["runs already"]);
    load.lossless();
}

#[test]
fn a_script_in_the_current_release() {
    let home = Home::new();
    let port = home.port();
    releases(&home, port);
    for release in ["r1", "r2"] {
        let rsup = crate::common::quoted(crate::common::RSUP);
        let text = format!("#!/bin/sh\nexec {rsup} sample-app\n");
        home.script(&format!("{release}/run.sh"), &text);
    }
    let listen = format!("127.0.0.1:{port}");
    let args = ["start", "run.sh", "-n", "web", "-i", "2", "-l", &listen];
    in_current(&home, &args).ok();
    let (r1, r2) = (home.path("r1"), home.path("r2"));
    point(&home, "r2");
    // Neither a crash nor more workers are a deployment.
    let pid = home.pids("web").into_iter().next().expect("a worker");
    let killed = home.pids("web");
    crate::common::signal(pid, nix::sys::signal::Signal::SIGKILL);
    wait_until("another worker", || {
        home.pids("web").len() == 2 && home.pids("web") != killed
    });
    home.ok(&["scale", "web", "3"]);
    assert_eq!(folders(&home), [r1.clone(), r1.clone(), r1.clone()]);
    fs::remove_dir_all(&r1).expect("the old release");
    home.ok(&["reload", "web"]);
    assert!(
        folders(&home).iter().all(|folder| *folder == r2),
        "{:?}",
        folders(&home)
    );
}

/// `$PWD` is only a word: where it means another folder, the kernel's answer counts.
#[test]
fn a_stale_pwd_is_not_believed() {
    let home = Home::new();
    let port = home.port();
    releases(&home, port);
    let mut command = home.rsup();
    command
        .arg("start")
        .current_dir(home.path("r2"))
        .env("PWD", home.path("current"));
    try_run(command).expect("it runs").ok();
    let r2 = home.path("r2");
    assert_eq!(folders(&home), [r2.clone(), r2]);
}

/// The folder was named by its own path and is pruned.
#[test]
fn a_folder_that_is_gone() {
    let home = Home::new();
    let port = home.port();
    releases(&home, port);
    home.ok(&["start", "r1/supervisor.toml"]);
    fs::remove_dir_all(home.path("r1")).expect("the release");
    let run = home
        .run(&["reload", "web"])
        .code(2)
        .says(&["r1 does not exist any more", "rsup up FILE"]);
    assert!(!run.err.contains("rsup init"), "{}", run.err);
    assert_eq!(home.pids("web").len(), 2);

    for (words, code) in [
        (&["start"][..], 2),
        (&["up"], 2),
        (&["init"], 2),
        (&["start", "server.js"], 1),
        (&["start", "-n", "x", "--", "sleep", "100"], 2),
    ] {
        let gone = home.path("gone");
        fs::create_dir(&gone).expect("a folder");
        let mut command = home.command("sh");
        command
            .args(["-c", "rmdir \"$PWD\" && exec \"$0\" \"$@\""])
            .arg(crate::common::RSUP)
            .args(words)
            .current_dir(&gone);
        let run = try_run(command).expect("it runs").code(code);
        assert!(
            run.err.contains("has been deleted")
                && run.err.contains("`cd` to the folder")
                && !run.err.contains("rsup init"),
            "{words:?}: {}",
            run.err
        );
    }
}
