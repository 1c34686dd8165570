//! No takeover at all: the reason is the first thing that is said, and it is the right one.

use crate::common::Home;
use crate::{node, open_home, root};

/// An app that binds its port itself fails; its stack comes after the reason.
#[track_caller]
fn says_first(home: &Home, command: &str, keys: &str, words: &[&str]) {
    let port = home.port();
    home.config(&format!("[app.web]\n{command}\nlisten = \"0.0.0.0:{port}\"\n{keys}[app.web.restart]\nmax_restarts = 1\n"));
    let run = home.run(&["start"]).code(1);
    let first = run
        .err
        .find("takeover of bind(2) is not possible here")
        .unwrap_or_else(|| panic!("{}", run.err));
    let stack = run.err.find("EADDRINUSE").unwrap_or(usize::MAX);
    assert!(first < stack, "{}", run.err);
    let notes = home.describe("web")["notes"].to_string();
    let log = home.daemon_log();
    for word in words {
        assert!(
            run.err.contains(word) && notes.contains(word) && log.contains(word),
            "{word}\n{}\n{notes}\n{log}",
            run.err
        );
    }
    assert_eq!(log.matches("WARN takeover").count(), 1, "{log}");
}

#[test]
fn a_sandbox_without_seccomp() {
    let Some(command) = node() else { return };
    let Some(home) = Home::restricted(&["seccomp"]) else {
        return;
    };
    says_first(&home, &command, "", &["forbids seccomp filters"]);
}

#[test]
fn another_listener_is_there_already() {
    let Some(command) = node() else { return };
    let Some(home) = Home::restricted(&["listener"]) else {
        return;
    };
    says_first(&home, &command, "", &["the kernel allows one"]);
}

/// Nobody can look into a program that its user may execute and not read; the trial cannot know that.
#[test]
fn a_program_that_is_closed_to_every_reader() {
    let Some(node) = crate::common::apps::node().filter(|_| root()) else {
        return;
    };
    let Some(home) = open_home(&["no-ptrace"]) else {
        return;
    };
    let program = home.path("node");
    crate::common::install(node, &program);
    crate::open(&program, 0o711);
    let command =
        crate::common::apps::toml_command(&[program.to_str().expect("UTF-8"), "-e", crate::NODE]);
    let port = home.port();
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"0.0.0.0:{port}\"\nuser = \"nobody\"\n[app.web.restart]\nmax_restarts = 1\n"
    ));
    let run = home.run(&["start"]).code(1).says(&[
        "a bind(2) of the app could not be looked at",
        "--cap-add SYS_PTRACE",
    ]);
    assert!(
        run.err.find("could not be looked at") < run.err.find("EADDRINUSE"),
        "{}",
        run.err
    );
    assert_eq!(
        home.daemon_log()
            .matches("a bind(2) could not be looked at")
            .count(),
        1,
        "{}",
        home.daemon_log()
    );
    assert!(
        home.describe("web")["notes"]
            .to_string()
            .contains("could not be looked at")
    );
}
