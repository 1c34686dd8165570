//! `rsup upgrade`.

use std::fs;
use std::path::PathBuf;

use crate::common::load::Load;
use crate::common::{Home, RSUP, install, is_ready, quoted};
use crate::supervisors::Supervisors;
use crate::support::Life;

/// A program that is this rsup, but for what the script does first.
fn wrapped(home: &Home, name: &str, first: &str) -> PathBuf {
    let rsup = quoted(RSUP);
    home.script(name, &format!("#!/bin/sh\n{first}\nexec {rsup} \"$@\"\n"))
}

fn exe(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

#[test]
fn the_same_process_becomes_the_new_program_and_nobody_notices() {
    let home = Home::new();
    let port = home.web("web", "instances = 2\nenv = { WARM_MS = \"50\" }");
    home.app(
        "printer",
        "command = ['sh', '-c', 'i=0; while sleep 0.01; do i=$((i+1)); echo line $i; done']\nlog.timestamps = false",
    );
    home.ok(&["start"]);
    let (daemon, keeper) = (home.daemon(), home.keeper());
    let before = home.pids("web");
    let load = Load::start(port, "/");
    let new = home.path("rsup-new");
    install(RSUP, &new);
    for _ in 0..3 {
        home.ok(&["upgrade", new.to_str().unwrap()])
            .says(&["no worker was touched"]);
        assert_eq!((home.daemon(), home.keeper()), (daemon, keeper));
        assert_eq!(exe(daemon), new);
        let view = home.wait_view("web", "ready", is_ready);
        assert_eq!(crate::common::pids(&view), before);
        load.more(100);
    }
    // A reload that is under way goes on, and its client with it.
    let reload = home.background(&["reload", "web"]);
    home.wait_view("web", "the reload", |view| {
        view["operation"]["kind"] == "reload"
    });
    home.ok(&["upgrade"]);
    reload.wait().ok();
    assert!(home.pids("web").is_disjoint(&before));
    // The keeper starts the new program from now on.
    home.kill_daemon();
    assert_ne!(home.daemon(), daemon);
    assert_eq!(
        exe(home.daemon()),
        PathBuf::from(RSUP),
        "the last upgrade was to the rsup of the command"
    );
    load.more(100);
    load.lossless();
    let text = home.log("printer-out");
    let expected: String = (1..=text.lines().count())
        .map(|n| format!("line {n}\n"))
        .collect();
    assert_eq!(text, expected, "no line is lost or doubled");
}

#[test]
fn what_cannot_run_changes_nothing() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.ok(&["start"]);
    let (daemon, before) = (home.daemon(), home.pids("web"));
    let text = home.write("text", "no program");
    home.run(&["upgrade", text.to_str().unwrap()])
        .code(1)
        .says(&["cannot run", "not executable"]);
    home.run(&["upgrade", "/no/such/rsup"])
        .code(1)
        .says(&["cannot run", "/no/such/rsup"]);
    home.run(&["upgrade", "/bin/true"])
        .code(1)
        .says(&["cannot run", "no rsup"]);
    let future = wrapped(
        &home,
        "future",
        "[ \"$2\" = --try-state ] && { echo 'the state is too old for me' >&2; exit 1; }",
    );
    home.run(&["upgrade", future.to_str().unwrap()])
        .code(1)
        .says(&["cannot run", "the state is too old for me"]);
    let slow = wrapped(&home, "garbage", "printf '\\177ELF' ; exit 0");
    home.run(&["upgrade", slow.to_str().unwrap()])
        .code(1)
        .says(&["cannot run"]);
    assert_eq!((home.daemon(), home.pids("web")), (daemon, before));
    assert_eq!(exe(daemon), PathBuf::from(RSUP));
}

/// It passed the trial, and fails when it begins: the old program goes on, in the same process.
#[test]
fn a_program_that_cannot_begin_gives_back() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let (daemon, before) = (home.daemon(), home.pids("web"));
    let load = Load::start(port, "/");
    let lost = wrapped(
        &home,
        "lost",
        "[ \"$2\" = --try-state ] || export RSUP_FAIL_AT_START=1",
    );
    let run = home.run(&["upgrade", lost.to_str().unwrap()]).code(1);
    assert!(
        run.err.contains("could not begin") && run.err.contains("went on"),
        "{run:?}"
    );
    assert_eq!((home.daemon(), home.pids("web")), (daemon, before));
    assert_eq!(exe(daemon), PathBuf::from(RSUP));
    home.ok(&["reload", "web"]);
    load.lossless();
}

/// It dies at once: the keeper starts the old one.
#[test]
fn a_program_that_dies_is_replaced_by_the_old_one() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    let crashing = wrapped(
        &home,
        "crashing",
        "[ \"$2\" = --try-state ] || kill -SEGV $$",
    );
    let run = home.run(&["upgrade", crashing.to_str().unwrap()]).code(1);
    assert!(run.err.contains("died before it was up"), "{run:?}");
    assert_eq!(home.pids("web"), before);
    assert_eq!(exe(home.daemon()), PathBuf::from(RSUP));
    home.ok(&["reload", "web"]);
    load.lossless();
}

/// An earlier rsup says of this one's state that it cannot take it over: it gets it as version 1 wrote it, in the
/// midst of a reload too.
#[test]
fn a_program_of_an_earlier_version_goes_on_with_a_state_that_it_reads() {
    let home = Home::new();
    let port = home.web(
        "web",
        "instances = 2\nreload.min_ready = \"5s\"\nenv = { WARM_MS = \"50\" }",
    );
    home.ok(&["start"]);
    let daemon = home.daemon();
    let load = Load::start(port, "/");
    let reload = home.background(&["reload", "web"]);
    let three = |view: &serde_json::Value| crate::common::pids(view).len() == 3;
    let before = crate::common::pids(&home.wait_view("web", "the first new worker", three));
    let left = home.path("left.json");
    let first = format!(
        "if [ \"$2\" = --try-state ]; then
    case \"$(head -c 12 /proc/self/fd/$RSUP_STATE_FD)\" in
        *1) ;;
        *) echo 'error: the state cannot be taken over: in a form that this rsup does not know' >&2; exit 1;;
    esac
elif [ \"$1\" = daemon ]; then
    cat \"$RSUP_HOME/run/state.json\" \"$RSUP_HOME/state/state.json\" > {}
fi",
        quoted(left.to_str().unwrap())
    );
    let older = wrapped(&home, "older", &first);
    home.ok(&["upgrade", older.to_str().unwrap()])
        .says(&["no worker was touched"]);
    assert_eq!(home.daemon(), daemon);
    let text = fs::read_to_string(&left).unwrap();
    assert_eq!(text.matches("{\"version\":1,").count(), 2, "{text}");
    assert_eq!(home.pids("web"), before);
    reload.wait().ok();
    home.wait_view("web", "ready", is_ready);
    assert_eq!(home.revision("web"), 2);
    load.more(100);
    load.lossless();
    // One that reads no state at all is refused, with what it says of both.
    let none = wrapped(
        &home,
        "none",
        "[ \"$2\" = --try-state ] && echo 'error: the state cannot be taken over: never' >&2 && exit 1",
    );
    let refused = home.run(&["upgrade", none.to_str().unwrap()]).code(1);
    refused.says(&["never", "nor in version 1 of the state"]);
    assert_eq!(home.daemon(), daemon);
}
