//! `rsup up`: the one command for the first deploy and every later one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::load::Load;
use crate::common::{Home, apps::sample, is_ready};

fn web(port: u16, more: &str) -> String {
    format!(
        "[app.web]\n{}\nlisten = \"0.0.0.0:{port}\"\nreadiness = \"/readiness\"\nenv = {{ WARM_MS = \"50\" }}\n{more}\n",
        sample()
    )
}

const JOB: &str = "[app.job]\ncommand = [\"sleep\", \"1000\"]\n";

#[test]
fn it_starts_reloads_and_says_what_is_no_longer_there() {
    let home = Home::new();
    let port = home.port();
    home.config(&(web(port, "") + JOB));
    // No daemon yet.
    home.ok(&["up"]).says(&["web started", "job started"]);
    let load = Load::start(port, "/");
    let before = home.pids("web");
    // Nothing in the file has changed; the code may have.
    home.ok(&["up"]).says(&[
        "web reloaded to revision 2",
        "job reloaded to revision 2",
        "web: its folder is the same as before",
        "job: its folder is the same as before",
    ]);
    assert!(home.pids("web").is_disjoint(&before));
    // One has other settings, one is new, one is gone, and one was stopped.
    home.config(&(web(port, "instances = 2") + "[app.new]\ncommand = [\"sleep\", \"1000\"]\n"));
    let run = home.ok(&["up"]);
    for words in [
        "web: new settings: instances",
        "web reloaded to revision 3",
        "new started",
        "job is no longer in the file and goes on",
    ] {
        assert!(
            (run.out.clone() + &run.err).contains(words),
            "{words}: {run:?}"
        );
    }
    assert_eq!(home.pids("web").len(), 2);
    assert_eq!(home.view("job")["phase"], "ready");
    home.ok(&["stop", "new"]);
    let run = home.ok(&["up", "--prune"]);
    assert!(run.out.contains("new started"), "{run:?}");
    assert!(run.out.contains("job deleted"), "{run:?}");
    assert_eq!(home.list().as_array().unwrap().len(), 2);
    // Only some of it.
    home.ok(&["up", "--only", "new"]).says(&["new reloaded"]);
    assert_eq!(home.revision("web"), 4);
    load.more(100);
    load.lossless();
}

/// A release in a folder of its own, with a file of its own.
fn release(home: &Home, number: u32, text: &str) -> String {
    let folder = home.path(&format!("releases/{number}"));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("supervisor.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn cwd(pid: u32) -> std::path::PathBuf {
    fs::read_link(format!("/proc/{pid}/cwd")).unwrap()
}

#[test]
fn an_app_moves_to_another_release_without_an_outage() {
    let home = Home::new();
    let port = home.port();
    let first = release(&home, 1, &(web(port, "") + JOB));
    home.ok(&["up", &first]);
    let load = Load::start(port, "/");
    let second = release(&home, 2, &web(port, ""));
    // A start is no way there, and says what is.
    home.run(&["start", &second]).code(1).says(&[
        "another app called web runs already",
        &format!("rsup up {second}"),
    ]);
    let run = home.ok(&["up", &second, "--prune"]);
    assert!(
        run.err.contains(&format!("web is here from {first}")),
        "{run:?}"
    );
    assert!(run.out.contains("job deleted"), "{run:?}");
    let pid = *home.pids("web").first().unwrap();
    assert_eq!(cwd(pid), Path::new(&second).parent().unwrap());
    load.more(100);
    load.lossless();
    // From here on the new file counts.
    fs::remove_dir_all(Path::new(&first).parent().unwrap()).unwrap();
    home.ok(&["reload", "web"]);
}

#[test]
fn a_release_that_fails_changes_nothing() {
    let home = Home::new();
    let port = home.port();
    let first = release(&home, 1, &web(port, ""));
    home.ok(&["up", &first]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    let broken =
        web(port, "listen_timeout = \"1s\"").replace("WARM_MS = \"50\"", "NEVER_READY = \"1\"");
    let second = release(&home, 2, &broken);
    let run = home.run(&["up", &second]).code(1);
    let run = run.says(&["listen_timeout"]);
    assert!(!run.err.contains("the same as before"), "{}", run.err);
    home.wait_view("web", "as before", is_ready);
    assert_eq!(home.pids("web"), before);
    load.more(50);
    load.lossless();
    home.ok(&["reload", "web"]);
    assert_eq!(
        cwd(*home.pids("web").first().unwrap()),
        Path::new(&first).parent().unwrap()
    );
}

#[test]
fn a_start_says_what_differs_from_what_runs() {
    let home = Home::new();
    home.config("[app.job]\ncommand = [\"sleep\", \"1000\"]\nenv = { KEY = \"secret-1\" }\n");
    home.ok(&["start"]);
    home.ok(&["start"]).says(&["job runs already"]);
    home.config(
        "[app.job]\ncommand = [\"sleep\", \"1000\"]\ninstances = 2\nenv = { KEY = \"secret-2\" }\n",
    );
    let run = home.run(&["start"]).code(1);
    for words in [
        "other settings than its file says: env (KEY), instances",
        "rsup up ",
    ] {
        assert!(run.err.contains(words), "{run:?}");
    }
    assert!(!run.err.contains("secret"), "{run:?}");
    assert_eq!(home.revision("job"), 1);
    home.ok(&["up"]);
    home.ok(&["start"]).says(&["job runs already"]);
    assert_eq!(home.pids("job").len(), 2);
    // Scaling by hand is no change of the file.
    home.ok(&["scale", "job", "3"]);
    home.ok(&["start"]);
    // The same file, and a link that leads elsewhere.
    fs::create_dir(home.path("a")).unwrap();
    fs::create_dir(home.path("b")).unwrap();
    symlink("a", home.path("current")).unwrap();
    home.config("[app.job]\ncommand = [\"sleep\", \"1000\"]\ncwd = \"current\"\n");
    home.ok(&["up"]);
    fs::remove_file(home.path("current")).unwrap();
    symlink("b", home.path("current")).unwrap();
    let run = home.run(&["start"]).code(1);
    assert!(run.err.contains("/b now)"), "{run:?}");
    home.ok(&["up"]);
    home.ok(&["start"]);
}
