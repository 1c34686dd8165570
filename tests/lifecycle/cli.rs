//! The verbs: what they do, what they print and how they end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::apps::{node, python};
use crate::common::http::{get, local};
use crate::common::{Home, RSUP, Run, is_ready, pids, signal, try_run, wait_for, wait_until};
use crate::support::Life;

const SLEEPER: &str = "command = [\"sleep\", \"1000\"]\nrestart.min_uptime = \"20ms\"";

/// With these variables beside the test's own.
fn run_with(home: &Home, env: &[(&str, &str)], args: &[&str]) -> Run {
    let mut command = home.rsup();
    command.args(args).envs(env.iter().copied());
    try_run(command).unwrap()
}

fn environ(pid: u32) -> BTreeMap<String, String> {
    let block = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let entries = block
        .split(|b| *b == 0)
        .filter(|e| !e.is_empty())
        .map(|e| String::from_utf8_lossy(e).into_owned());
    entries
        .filter_map(|e| e.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())))
        .collect()
}

#[test]
fn without_a_daemon_every_verb_says_so() {
    let home = Home::new();
    for args in [
        &["stop", "x"][..],
        &["reload", "x"],
        &["describe", "x"],
        &["logs"],
        &["scale", "x", "2"],
        &["ping"],
        &["env", "x"],
        &["signal", "HUP", "x"],
        &["delete", "x"],
        &["restart", "x"],
    ] {
        let run = home.run(args);
        assert_eq!(run.code, 1, "{args:?}: {run:?}");
        assert!(
            run.err.contains("no daemon") && run.err.contains("rsup start"),
            "{args:?}: {run:?}"
        );
        let mut json = args.to_vec();
        json.push("--json");
        let run = home.run(&json).code(1);
        assert_eq!(run.json()["code"], "no_daemon", "{args:?}");
        assert_eq!(run.err, "", "{args:?}");
    }
    home.ok(&["list"]).says(&["no daemon runs", "rsup start"]);
    assert_eq!(home.list(), json!([]));
    home.run(&["start", "api"])
        .code(1)
        .says(&["no file `api`", "no daemon"]);
    // None of this started one.
    assert!(!home.rsup_home().join("run/control.sock").exists());
}

#[test]
fn usage_errors_have_their_own_code() {
    let home = Home::new();
    for args in [
        &["frobnicate"][..],
        &["scale", "x", "many"],
        &["scale", "x", "0"],
        &["signal", "NOSUCH", "x"],
        &["start", "missing.toml"],
        &["start", "-n", "x"],
        &["stop"],
        &["start", "a.toml", "b.toml"],
        &[],
    ] {
        let run = home.run(args);
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
    }
    home.run(&["--version"]).code(0);
    home.run(&["--help"]).code(0).says(&["reload"]);
}

#[test]
fn unknown_names_are_told_with_a_hint() {
    let home = Home::new();
    home.app("web-app", SLEEPER);
    home.ok(&["start"]);
    for args in [
        &["stop", "web-ap"][..],
        &["reload", "web-ap"],
        &["describe", "web-ap"],
        &["restart", "web-ap"],
        &["delete", "web-ap"],
        &["env", "web-ap"],
        &["logs", "web-ap"],
        &["signal", "HUP", "web-ap"],
    ] {
        home.run(args)
            .code(1)
            .says(&["web-ap", "did you mean `web-app`"]);
    }
    home.run(&["scale", "web-ap", "2"])
        .code(1)
        .says(&["web-ap"]);
    home.run(&["describe", "web-app:7"])
        .code(1)
        .says(&["no worker 7"]);
    home.run(&["stop", "web-app:0"])
        .code(2)
        .says(&["whole app"]);
    // One unknown name among known ones: nothing is done.
    home.run(&["stop", "web-app", "other"]).code(1);
    assert!(is_ready(&home.view("web-app")));
}

#[test]
fn json_of_every_verb() {
    let home = Home::new();
    home.web("web", "instances = 2");
    let outcome = |run: Run, kind: &str| {
        let document = run.json();
        assert_eq!(document[0]["app"], "web", "{document:#}");
        assert_eq!(document[0]["kind"], kind, "{document:#}");
        assert_eq!(document[0]["failure"], Value::Null, "{document:#}");
        assert!(document[0]["took_ms"].is_u64(), "{document:#}");
        assert_eq!(run.err, "");
        document[0]["view"].clone()
    };
    let view = outcome(home.ok(&["start", "--json"]), "start");
    assert!(is_ready(&view), "{view:#}");
    let worker = &view["workers"][0];
    for key in [
        "pid",
        "instance",
        "slot",
        "generation",
        "revision",
        "uptime_ms",
        "restarts",
        "memory",
    ] {
        assert!(worker[key].is_u64(), "{key}: {worker:#}");
    }
    assert_eq!(home.list()[0]["workers"].as_array().unwrap().len(), 2);
    let description = home.describe("web");
    assert_eq!(description["spec"]["name"], "web");
    assert!(
        description["events"]
            .as_array()
            .unwrap()
            .iter()
            .all(|e| e["age_ms"].is_u64() && e["text"].is_string())
    );
    assert!(
        description["out_log"]
            .as_str()
            .unwrap()
            .ends_with("web-out.log")
    );
    let env = home.ok(&["env", "web", "--json"]).json();
    assert_eq!(env[1]["env"]["RSUP_APP"], "web");
    let ping = home.ok(&["ping", "--json"]).json();
    for key in ["pid", "protocol", "uptime_ms", "memory"] {
        assert!(ping[key].is_u64(), "{ping:#}");
    }
    assert_eq!(ping["version"], env!("CARGO_PKG_VERSION"));
    let signalled = home.ok(&["signal", "CONT", "web", "--json"]).json();
    assert_eq!(signalled.as_array().unwrap().len(), 2);
    for line in home.ok(&["logs", "--json"]).out.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["app"], "web");
    }
    assert_eq!(
        outcome(home.ok(&["scale", "web", "1", "--json"]), "scale")["instances"],
        1
    );
    assert_eq!(
        outcome(home.ok(&["reload", "web", "--json"]), "reload")["revision"],
        2
    );
    assert_eq!(
        outcome(home.ok(&["restart", "web", "--json"]), "restart")["revision"],
        3
    );
    assert_eq!(
        outcome(home.ok(&["stop", "web", "--json"]), "stop")["phase"],
        "stopped"
    );
    assert!(is_ready(&outcome(
        home.ok(&["start", "web", "--json"]),
        "start"
    )));
    assert_eq!(
        outcome(home.ok(&["delete", "web", "--json"]), "delete"),
        Value::Null
    );
    assert_eq!(home.list(), json!([]));
    let unknown = home.run(&["stop", "web", "--json"]).code(1);
    assert_eq!(unknown.json()["code"], "unknown_app");
    assert_eq!(
        home.ok(&["kill", "--json"]).json(),
        json!({ "killed": true })
    );
}

#[test]
fn verbs_again_and_on_stopped_apps() {
    let home = Home::new();
    home.app("job", SLEEPER);
    home.ok(&["start"]);
    let pid = home.pid("job");
    home.ok(&["start"]).says(&["runs already"]);
    home.ok(&["start", "job"]);
    assert_eq!(home.pid("job"), pid);
    home.ok(&["stop", "job"]);
    home.ok(&["stop", "job"]);
    assert_eq!(home.view("job")["phase"], "stopped");
    home.run(&["signal", "HUP", "job"])
        .code(1)
        .says(&["no running worker"]);
    home.ok(&["scale", "job", "2"]);
    home.ok(&["start", "job"]);
    assert_eq!(home.pids("job").len(), 2);
    home.ok(&["stop", "all"]);
    home.ok(&["start", "all"]);
    home.ok(&["delete", "all"]);
    home.ok(&["list"]);
    home.ok(&["logs"]);
}

#[test]
fn check_and_init() {
    let home = Home::new();
    home.ok(&["init"]);
    let before = fs::read_to_string(home.path("supervisor.toml")).unwrap();
    home.run(&["init"])
        .code(2)
        .says(&["exists already", "--force"]);
    assert_eq!(
        fs::read_to_string(home.path("supervisor.toml")).unwrap(),
        before
    );
    home.ok(&["check"]);
    let good = home.ok(&["check", "--json"]).json();
    assert!(good.is_object(), "{good:#}");
    home.ok(&["init", "--force"]);

    home.config("[app.web]\ncommand = \"sleep 1000\"\ninstanses = 2\nkill_timeout = \"soon\"\n");
    home.run(&["check"])
        .code(2)
        .says(&["instanses", "instances", "soon", "2 errors"]);
    let bad = home.run(&["check", "--json"]).code(2);
    assert_eq!(bad.json()["code"], "config");
    assert_eq!(bad.json()["findings"][0]["line"], 3, "{:#}", bad.json());
    assert_eq!(bad.err, "");
    home.run(&["start"]).code(2).says(&["instanses"]);
    home.run(&["check", "missing.toml"])
        .code(2)
        .says(&["missing.toml"]);
    // Nothing was started for any of it.
    assert!(!home.rsup_home().join("run/control.sock").exists());
}

#[test]
fn a_script_without_a_file() {
    let Some(_) = node() else { return };
    let home = Home::new();
    home.write(
        "server.js",
        "const server = require('http').createServer((q, a) => a.end(JSON.stringify({ pid: process.pid, color: process.env.COLOR, args: process.argv.slice(2) })));
server.listen(process.env.PORT);
process.on('SIGTERM', () => server.close(() => process.exit(0)));
",
    );
    let port = home.port();
    home.ok(&[
        "start",
        "server.js",
        "-i",
        "2",
        "-n",
        "api",
        "--listen",
        &port.to_string(),
        "--env",
        "COLOR=red",
        "--",
        "--deep",
        "x y",
    ]);
    assert_eq!(home.pids("api").len(), 2);
    let answer = get(local(port), "/").unwrap().json();
    assert_eq!(
        (&answer["color"], &answer["args"]),
        (&json!("red"), &json!(["--deep", "x y"]))
    );
    home.ok(&["reload", "api"]);
    assert_eq!(home.revision("api"), 2);
    home.ok(&["scale", "api", "3"]);
    home.ok(&["reload", "api"]);
    // It has no file that could say otherwise.
    assert_eq!(home.pids("api").len(), 3);
}

#[test]
fn a_command_with_flags_of_its_own() {
    let home = Home::new();
    home.script("cmd", "#!/bin/sh\necho \"args: $*\"\nexec sleep 1000\n");
    home.ok(&["start", "-n", "x", "--", "./cmd", "--flag", "-n", "--json"]);
    home.wait_log("x", "args: --flag -n --json");
    home.run(&["start", "-n", "x", "--", "sleep", "77"])
        .code(1)
        .says(&["another app called x"]);
}

#[test]
fn scale() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.ok(&["start"]);
    let first = home.pids("web");
    for (to, count) in [("4", 4), ("+1", 5), ("-3", 2), ("2", 2)] {
        home.ok(&["scale", "web", to]);
        let now = home.pids("web");
        assert_eq!(now.len(), count, "{to}");
        assert!(first.is_subset(&now), "{to}: {first:?} {now:?}");
    }
    home.run(&["scale", "web", "-2"])
        .code(1)
        .says(&["cannot have 0 workers"]);
    for many in ["60000", "100000", "99999999999"] {
        home.run(&["scale", "web", many])
            .code(2)
            .says(&[&format!("{many} workers are more than the 250")]);
    }
    home.run(&["scale", "web", "+249"])
        .code(1)
        .says(&["1 to 250 are possible", "rsup scale web 250"]);
    assert_eq!(home.pids("web"), first);
}

#[test]
fn signals() {
    let home = Home::new();
    home.write(
        "app",
        "trap 'echo got-usr2' USR2\necho up-$RSUP_INSTANCE\nwhile :; do sleep 0.05; done\n",
    );
    home.app(
        "job",
        "command = [\"sh\", \"app\"]\ninstances = 2\nrestart.min_uptime = \"100ms\"",
    );
    home.ok(&["start"]);
    home.wait_log("job", "up-0");
    home.wait_log("job", "up-1");
    home.ok(&["signal", "USR2", "job:1"]);
    home.wait_log("job", "got-usr2");
    home.ok(&["signal", "sigusr2", "job"]);
    wait_until("both", || {
        home.log("job-out").matches("got-usr2").count() == 3
    });
}

#[test]
fn env_is_what_the_worker_really_has() {
    let home = Home::new();
    home.write(".env", "FROM_FILE=1\n");
    home.web(
        "web",
        "socket_activation = true\nenv = { OWN = \"with ' and \\\" and $x\" }\nenv_file = \".env\"",
    );
    run_with(&home, &[("FOO", "one")], &["start"]).ok();
    let shown = home.ok(&["env", "web", "--json", "--show-values"]).json();
    let real = environ(home.pid("web"));
    let shown: BTreeMap<String, String> = serde_json::from_value(shown[0]["env"].clone()).unwrap();
    // What concerns descriptors is added at the very start.
    let rest = |env: &BTreeMap<String, String>| {
        env.iter()
            .filter(|(n, _)| !n.starts_with("LISTEN_"))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(rest(&shown), rest(&real));
    assert_eq!(
        (
            real["FOO"].as_str(),
            real["FROM_FILE"].as_str(),
            real["OWN"].as_str()
        ),
        ("one", "1", "with ' and \" and $x")
    );
    assert_eq!(real["LISTEN_PID"], home.pid("web").to_string());
    assert_eq!(real["LISTEN_FDS"], "1");
    // And a shell can read it.
    let text = home.ok(&["env", "web", "--show-values"]).out;
    let mut shell = home.command("sh");
    shell.args(["-c", &format!("{text}\nprintf %s \"$OWN\"")]);
    assert_eq!(try_run(shell).unwrap().ok().out, "with ' and \" and $x");
}

#[test]
fn the_environment_is_the_callers_not_the_daemons() {
    let home = Home::new();
    home.app("first", SLEEPER);
    home.app("second", SLEEPER);
    run_with(
        &home,
        &[("FOO", "daemon"), ("ONLY_DAEMON", "1")],
        &["start", "--only", "first"],
    )
    .ok();
    run_with(&home, &[("FOO", "caller")], &["start", "--only", "second"]).ok();
    let of = |app: &str| environ(home.pid(app));
    assert_eq!(of("first")["FOO"], "daemon");
    assert_eq!(of("second")["FOO"], "caller");
    assert!(!of("second").contains_key("ONLY_DAEMON"));
    assert!(!of("first").contains_key("RSUP_HOME"));
    // A reload keeps it, unless told otherwise; a crash too.
    run_with(&home, &[("FOO", "later")], &["reload", "second"]).ok();
    assert_eq!(of("second")["FOO"], "caller");
    run_with(
        &home,
        &[("FOO", "later")],
        &["reload", "second", "--update-env"],
    )
    .ok();
    assert_eq!(of("second")["FOO"], "later");
    let old = home.pid("second");
    signal(old, Signal::SIGKILL);
    home.wait_view("second", "a new worker", |v| {
        is_ready(v) && !pids(v).contains(&old)
    });
    assert_eq!(of("second")["FOO"], "later");
}

#[test]
fn many_starts_at_once_make_one_daemon() {
    let home = Home::new();
    let starts: Vec<_> = (0..5)
        .map(|i| home.background(&["start", "-n", &format!("app{i}"), "--", "sleep", "1000"]))
        .collect();
    for start in starts {
        start.wait().ok();
    }
    assert_eq!(home.list().as_array().unwrap().len(), 5);
    let daemons = || {
        home.processes()
            .into_iter()
            .filter(|(_, words)| words.trim_end().ends_with("rsup daemon"))
            .count()
    };
    wait_until("one daemon is left", || daemons() == 1);
}

#[test]
fn no_wait_returns_at_once() {
    let home = Home::new();
    home.web("web", "env = { WARM_MS = \"1500\" }");
    home.ok(&["start", "--no-wait"]).says(&["under way"]);
    assert_ne!(home.view("web")["phase"], "ready");
    home.wait_view("web", "it is ready", is_ready);
    let old = home.pids("web");
    home.ok(&["reload", "web", "--no-wait"]);
    assert_eq!(home.view("web")["phase"], "reloading");
    home.run(&["reload", "web"])
        .code(1)
        .says(&["busy", "reload in progress"]);
    home.wait_view("web", "it is reloaded", |v| {
        is_ready(v) && pids(v).is_disjoint(&old)
    });
    home.run(&["reload", "nothing", "--no-wait"]).code(1);
}

#[test]
fn ctrl_c_ends_the_wait_and_nothing_else() {
    let home = Home::new();
    home.web("web", "env = { WARM_MS = \"2000\" }");
    let mut child = home
        .rsup()
        .arg("start")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the start is under way", || {
        home.run(&["list"]).code == 0 && home.view("web")["phase"] == "starting"
    });
    signal(child.id(), Signal::SIGINT);
    let status = wait_for("its end", || child.try_wait().unwrap().ok_or("still there"));
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("still going on"), "{said}");
    home.wait_view("web", "it is ready", is_ready);
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let home = Home::new();
    home.app("job", SLEEPER);
    home.ok(&["start"]);
    let folder = home.rsup_home().join("run");
    let socket = folder.join("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    if !nix::unistd::geteuid().is_root() {
        return; // only root can be somebody else
    }
    let Some(python) = python() else { return };
    // Even if every door were open.
    for path in [home.folder(), &home.rsup_home(), &folder, &socket] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let script = "
import os, socket, struct, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
body = b'{\"version\":1,\"request\":\"kill\",\"wait\":true}'
try: s.sendall(struct.pack('>I', len(body)) + body)
except BrokenPipeError: pass
print(s.recv(65536)[4:].decode())
";
    let mut stranger = home.command(python);
    stranger.args(["-c", script]).arg(&socket);
    let answer = try_run(stranger).unwrap().ok();
    assert!(answer.out.contains("belongs to another user"), "{answer:?}");
    // The owner does not trust such a folder either.
    home.run(&["list"])
        .code(2)
        .says(&["open to others", "chmod 700"]);
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
    assert!(is_ready(&home.view("job")));
}

/// Sends these bytes, and reads the answer to the end.
fn converse(home: &Home, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(home.rsup_home().join("run/control.sock")).unwrap();
    stream
        .set_read_timeout(Some(crate::common::PATIENCE))
        .unwrap();
    // It may answer before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(answer.get(4..).unwrap_or_default()).into_owned()
}

fn frame(body: &str) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body.as_bytes()].concat()
}

/// It waits across `rsup upgrade`, and knows its action by the number that the daemon gave it.
#[test]
fn a_client_of_the_former_version_learns_what_became_of_its_action() {
    let home = Home::new();
    home.app("job", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    home.ok(&["reload", "job"]);
    let ask = |op: u64| {
        let action = format!("{{\"op\":{op},\"app\":\"job\",\"kind\":\"reload\"}}");
        let request = format!("{{\"await\":{{\"actions\":[{action}],\"kill\":false}}}}");
        let call = format!("{{\"version\":1,\"request\":{request},\"wait\":true}}");
        converse(&home, &frame(&call))
    };
    let known = ask(2);
    assert!(
        known.contains("{\"done\":{\"finished\":[") && known.contains("\"failure\":null"),
        "{known}"
    );
    let unknown = ask(77);
    assert!(unknown.contains("before it began"), "{unknown}");
    let stop = "{\"version\":1,\"request\":{\"stop\":{\"target\":\"all\"}},\"wait\":true}";
    let refused = converse(&home, &frame(stop));
    assert!(refused.contains("use the newer rsup"), "{refused}");
}

#[test]
fn nonsense_on_the_socket_gets_an_answer_and_does_no_harm() {
    let home = Home::new();
    home.app("job", SLEEPER);
    home.ok(&["start"]);
    let pid = home.pid("job");
    let cases: [(&[u8], &str); 8] = [
        (b"GET / HTTP/1.1\r\n\r\n", "larger than"),
        (&u32::MAX.to_be_bytes(), "larger than"),
        (b"\0\0\0\x64{\"version\":1", "ended after 12 of 100 bytes"),
        (b"\0\0", "could not be read"),
        (&frame("not json"), "not understood"),
        (
            &frame("{\"version\":2,\"request\":\"explode\",\"wait\":true}"),
            "not understood",
        ),
        (
            &frame("{\"version\":99,\"request\":\"kill\",\"wait\":true}"),
            "version 99",
        ),
        (
            &frame(&format!(
                "{{\"version\":1,\"request\":{}",
                "[".repeat(100_000)
            )),
            "not understood",
        ),
    ];
    for (bytes, words) in cases {
        let answer = converse(&home, bytes);
        assert!(
            answer.contains(words) && answer.contains("bad_request"),
            "{words}: {answer}"
        );
    }
    // Clients that say nothing are in nobody's way.
    let silent: Vec<_> = (0..50)
        .map(|_| UnixStream::connect(home.rsup_home().join("run/control.sock")).unwrap())
        .collect();
    home.ok(&["ping"]);
    drop(silent);
    assert_eq!(home.pid("job"), pid);
}

#[test]
fn restart_and_reload_of_a_file() {
    let home = Home::new();
    let port = home.web("web", "instances = 2\nenv = { APP_VERSION = \"one\" }");
    home.ok(&["start"]);
    let first = home.pids("web");
    let text = fs::read_to_string(home.path("supervisor.toml")).unwrap();
    home.config(&text.replace("\"one\"", "\"two\""));
    home.ok(&["restart", "web"]);
    assert!(home.pids("web").is_disjoint(&first));
    assert_eq!(get(local(port), "/").unwrap().json()["version"], "two");
    home.config(&text.replace("instances = 2", "instances = banana"));
    home.run(&["reload", "web"]).code(2).says(&["banana"]);
    home.config(&text.replace("[app.web]", "[app.other]"));
    home.run(&["reload", "web"])
        .code(2)
        .says(&["no longer in", "rsup delete web"]);
    assert_eq!(get(local(port), "/").unwrap().json()["version"], "two");
}

#[test]
fn a_taken_port_fails_the_start_and_leaves_nothing() {
    let home = Home::new();
    let port = home.web("web", "");
    let holder = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
    let run = home
        .run(&["start"])
        .code(1)
        .says(&[&port.to_string(), &std::process::id().to_string()]);
    assert!(!run.err.contains("panicked"));
    assert_eq!(home.list(), json!([]));
    drop(holder);
    home.ok(&["start"]);
    // Another app of this daemon has it.
    home.run(&[
        "start",
        "-n",
        "late",
        "-l",
        &format!("0.0.0.0:{port}"),
        "--",
        RSUP,
        "sample-app",
    ])
    .code(1)
    .says(&["app `web` has"]);
}
