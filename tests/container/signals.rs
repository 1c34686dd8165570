//! What signals mean to the first process of a container.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::common::apps::{node, python, sources, toml_command};
use crate::common::http::{get, local};
use crate::common::{Home, RSUP, quoted, signal, wait_for};
use crate::support::{Container, app, edit, said, up, wait_said, web};

fn ends_gracefully_with(which: Signal) {
    let home = Home::new();
    web(&home, "web", "instances = 2\nkill_timeout = \"60s\"");
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    container.signal(which);
    container.ends_with(&home, 0);
    assert_eq!(
        home.logs("web").matches(": done").count(),
        2,
        "{}",
        said(&home)
    );
    assert!(home.processes().is_empty());
}

#[test]
fn sigterm_ends_it_gracefully() {
    ends_gracefully_with(Signal::SIGTERM);
}

#[test]
fn sigint_ends_it_gracefully() {
    ends_gracefully_with(Signal::SIGINT);
}

#[test]
fn sigquit_ends_it_gracefully() {
    ends_gracefully_with(Signal::SIGQUIT);
}

/// Of a container that a second signal has ended.
fn forced() -> Option<Home> {
    let home = Home::new();
    web(
        &home,
        "web",
        "kill_timeout = \"1h\"\nenv = { IGNORE_SIGTERM = \"1\" }",
    );
    let container = Container::start(&home, &[])?;
    up(&home, "web");
    container.signal(Signal::SIGTERM);
    home.wait_log("web", "SIGTERM: ignored");
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 128 + Signal::SIGTERM as i32);
    Some(home)
}

#[test]
fn a_second_signal_forces_the_stop_and_the_exit_code_tells_so() {
    let Some(home) = forced() else { return };
    assert!(said(&home).contains("told again to stop"));
}

#[test]
fn signals_without_a_meaning_do_no_harm() {
    let home = Home::new();
    web(&home, "web", "");
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    let before = home.pids("web");
    for which in [
        Signal::SIGUSR2,
        Signal::SIGWINCH,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGPIPE,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGURG,
        Signal::SIGCONT,
        Signal::SIGCHLD,
        Signal::SIGUSR1,
    ] {
        container.signal(which);
    }
    // Whoever answers now has survived them: they were delivered in no later order.
    for _ in 0..3 {
        home.ok(&["ping"]);
    }
    assert_eq!(home.pids("web"), before);
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

#[test]
fn sigusr1_opens_the_log_files_anew() {
    let home = Home::new();
    let port = web(&home, "web", "");
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    let log = home.rsup_home().join("state/logs/web-out.log");
    fs::rename(&log, home.path("moved")).unwrap();
    container.signal(Signal::SIGUSR1);
    wait_for("a new file with new lines", || {
        get(local(port), "/log?n=1")?;
        fs::metadata(&log).map(drop).map_err(|why| why.to_string())
    });
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

#[test]
fn sighup_reads_the_configuration_again() {
    let home = Home::new();
    let port = web(
        &home,
        "web",
        "instances = 2\nenv = { APP_VERSION = \"v1\" }",
    );
    web(&home, "idle", "");
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    up(&home, "idle");
    home.ok(&["stop", "idle"]);
    let first = home.pids("web");
    // A file with mistakes changes nothing.
    edit(&home, "instances = 2", "instnces = 2");
    container.signal(Signal::SIGHUP);
    wait_said(&home, "unknown key `instnces`");
    wait_said(&home, "nothing was reloaded");
    assert_eq!(home.pids("web"), first);
    edit(&home, "instnces = 2", "instances = 2");
    edit(&home, "v1", "v2");
    app(&home, "late", "command = [\"sleep\", \"1000\"]");
    container.signal(Signal::SIGHUP);
    wait_said(&home, "web is reloaded");
    wait_said(&home, "late is new in its file and not started");
    wait_said(&home, "idle is stopped and stays so");
    let view = home.wait_view("web", "the new revision alone", |v| {
        v["revision"] == 2 && crate::common::is_ready(v)
    });
    assert!(crate::common::pids(&view).is_disjoint(&first));
    assert_eq!(get(local(port), "/").unwrap().json()["version"], "v2");
    assert_eq!(
        home.view("idle")["phase"],
        "stopped",
        "who was stopped by a command stays so"
    );
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

/// Takeover, probes and reloads work inside a pid namespace, for apps that know nothing of it.
#[test]
fn apps_in_other_languages_live_in_it() {
    let (Some(python), Some(node)) = (python(), node()) else {
        return;
    };
    let home = Home::new();
    let (one, two) = (home.port(), home.port());
    let server = sources().join("server.py");
    let script = "require('http').createServer((q, r) => r.end('hello')).listen(process.env.PORT, '127.0.0.1')";
    app(
        &home,
        "py",
        &format!(
            "{}\nlisten = \"127.0.0.1:{one}\"\ninstances = 2",
            toml_command(&[python, server.to_str().unwrap()])
        ),
    );
    app(
        &home,
        "js",
        &format!(
            "{}\nlisten = \"127.0.0.1:{two}\"\ninstances = 2",
            toml_command(&[node, "-e", script])
        ),
    );
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "py");
    up(&home, "js");
    home.ok(&["reload", "all"]);
    for port in [one, two] {
        assert_eq!(get(local(port), "/").unwrap().status, 200);
    }
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

/// Outside of a container, where a terminal can go away.
#[test]
fn sighup_stops_what_has_lost_its_terminal_and_reloads_what_has_none() {
    let home = Home::new();
    web(&home, "web", "");
    // `script` gives it a terminal.
    let with = format!("{} start --foreground", quoted(RSUP));
    let mut command = home.command("script");
    command
        .args([
            "--quiet",
            "--flush",
            "--return",
            "--command",
            &with,
            "stdout",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut script = command.spawn().unwrap();
    up(&home, "web");
    let daemon = home.ok(&["ping", "--json"]).json()["pid"].as_u64().unwrap() as u32;
    signal(daemon, Signal::SIGHUP);
    let status = wait_for("the end", || {
        script.try_wait().unwrap().ok_or("still there")
    });
    assert!(
        status.success() && said(&home).contains("told to stop"),
        "{status} {}",
        said(&home)
    );

    let mut command = home.command("setsid");
    let file = |name: &str| Stdio::from(fs::File::create(home.path(name)).unwrap());
    command
        .args(["--wait", RSUP, "start", "--foreground"])
        .stdout(file("stdout"))
        .stderr(file("stderr"));
    let mut without = command.spawn().unwrap();
    up(&home, "web");
    let daemon = home.ok(&["ping", "--json"]).json()["pid"].as_u64().unwrap() as u32;
    signal(daemon, Signal::SIGHUP);
    wait_said(&home, "web is reloaded");
    signal(daemon, Signal::SIGTERM);
    let status = wait_for("the end", || {
        without.try_wait().unwrap().ok_or("still there")
    });
    assert!(status.success(), "{status} {}", said(&home));
}

/// The engine kills it, and starts it again with the same volume: what the state says of the dead must not
/// keep it down, though the pids are given out anew.
#[test]
fn a_container_that_was_killed_comes_up_again_as_its_file_says_now() {
    let home = Home::new();
    let port = web(
        &home,
        "web",
        "instances = 2\nenv = { APP_VERSION = \"v0\" }",
    );
    for run in 0..3 {
        let version = format!("v{run}");
        edit(&home, &format!("v{}", run.max(1) - 1), &version);
        let Some(container) = Container::start(&home, &[]) else {
            return;
        };
        // Nobody asks from outside before: whoever finds a dead daemon's state alone brings it to life.
        wait_said(&home, "rsup is up");
        wait_for("the new version alone", || match get(local(port), "/") {
            Ok(answer) if answer.json()["version"] == *version => Ok(()),
            other => Err(format!("{other:?}\n{}", said(&home))),
        });
        home.wait_view("web", "all are ready", crate::common::is_ready);
        if run == 2 {
            container.signal(Signal::SIGTERM);
            return container.ends_with(&home, 0);
        }
        container.signal(Signal::SIGKILL);
        container.end(); // the code is what `unshare` makes of it
        wait_for("everything is gone with it", || {
            if home.processes().is_empty() {
                Ok(())
            } else {
                Err("not yet")
            }
        });
    }
}

/// The new program has the same pid, the same output and the same ways to end.
#[test]
fn an_upgrade_leaves_everything_as_it_was() {
    let home = Home::new();
    let port = web(&home, "web", "instances = 2");
    let address = crate::support::admin(&home);
    let Some(container) = Container::start(&home, &["--log-format", "json", "--no-log-files"])
    else {
        return;
    };
    up(&home, "web");
    let before = home.pids("web");
    home.ok(&["upgrade", RSUP]);
    assert_eq!(home.pids("web"), before);
    crate::support::wait_status(address, "/readiness", 200);
    get(local(port), "/log?n=1000").unwrap();
    // The sample app says who it is in front of each line.
    wait_for("its lines are on stdout as before", || {
        let text = fs::read_to_string(home.path("stdout")).unwrap();
        let count = text
            .lines()
            .filter(|line| line.contains(r#""app":"web","instance":"#))
            .count();
        if count >= 1000 {
            Ok(())
        } else {
            Err(format!("{count} lines"))
        }
    });
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
    let text = fs::read_to_string(home.path("stdout")).unwrap();
    assert!(
        text.lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        "{text}"
    );
}

/// As `docker stop -t 2` with requests that take longer, and then `docker start`: everything in the namespace is
/// killed in the midst of the stop, and the folders stay.
fn cut_short(home: &Home, begin: impl FnOnce(&Container)) -> Option<()> {
    web(
        home,
        "web",
        "instances = 2\nkill_timeout = \"1h\"\nenv = { IGNORE_SIGTERM = \"1\" }",
    );
    app(home, "other", "command = [\"sleep\", \"1000\"]");
    let container = Container::start(home, &[])?;
    up(home, "web");
    up(home, "other");
    // The operator stopped one: that, too, is no more than a finished stop would leave of it.
    home.ok(&["stop", "other"]);
    begin(&container);
    home.wait_log("web", "SIGTERM: ignored");
    container.signal(Signal::SIGKILL);
    container.end();
    assert!(
        home.rsup_home().join("run/state.json").exists(),
        "it was cut short"
    );
    let before = fs::read_to_string(home.path("supervisor.toml")).unwrap();
    home.config(&before.replace("IGNORE_SIGTERM", "ENDS_AT_SIGTERM"));
    Some(())
}

fn starts_what_is_configured(home: &Home) {
    let Some(container) = Container::start(home, &[]) else {
        return;
    };
    up(home, "web");
    up(home, "other");
    assert_eq!(home.pids("web").len(), 2);
    container.signal(Signal::SIGTERM);
    container.ends_with(home, 0);
    // And a stop that was finished is followed by the same.
    let Some(container) = Container::start(home, &[]) else {
        return;
    };
    up(home, "web");
    up(home, "other");
    container.signal(Signal::SIGTERM);
    container.ends_with(home, 0);
}

#[test]
fn after_a_stop_that_was_cut_short_the_next_start_starts_everything() {
    let home = Home::new();
    let Some(()) = cut_short(&home, |container| container.signal(Signal::SIGTERM)) else {
        return;
    };
    starts_what_is_configured(&home);
}

#[test]
fn so_it_does_after_rsup_kill_was() {
    let home = Home::new();
    let mut kill = None;
    let cut = cut_short(&home, |_| kill = Some(home.background(&["kill"])));
    let Some(()) = cut else { return };
    // Nothing says that everything is stopped.
    kill.unwrap().wait().code(1);
    starts_what_is_configured(&home);
}

#[test]
fn so_it_does_after_a_second_signal() {
    let Some(home) = forced() else { return };
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    container.signal(Signal::SIGTERM);
    wait_for("it is told", || {
        match home.logs("web").matches("SIGTERM: ignored").count() {
            2 => Ok(()),
            count => Err(count),
        }
    });
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 128 + Signal::SIGTERM as i32);
}

/// What a file that is gone had started is not there after a stop of everything, be it finished or cut short.
#[test]
fn what_is_not_given_any_more_is_gone_after_a_stop_that_was_cut_short() {
    let home = Home::new();
    let Some(()) = cut_short(&home, |container| container.signal(Signal::SIGTERM)) else {
        return;
    };
    let text = fs::read_to_string(home.path("supervisor.toml")).unwrap();
    let at = text.find("[app.other]").unwrap();
    home.config(&text[..at]);
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "web");
    wait_for("the other is forgotten", || {
        let view = home.view("other");
        if view.is_null() { Ok(()) } else { Err(view) }
    });
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}
