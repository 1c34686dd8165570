//! `rsup demo` and `rsup verify` as their users run them.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const RSUP: &str = env!("CARGO_BIN_EXE_rsup");

/// A daemon of this test alone; its end is the daemon's.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().expect("a temporary folder"))
    }

    fn rsup(&self, words: &[&str]) -> Command {
        let mut command = Command::new(RSUP);
        command
            .args(words)
            .env("RSUP_HOME", self.0.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.rsup(words).output().expect("rsup runs")
    }

    /// The sample app as `name`, with two workers.
    fn start(&self, name: &str, env: &[&str]) {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut words = vec![
            "start",
            "-n",
            name,
            "-i",
            "2",
            "--listen",
            &listen,
            "--readiness",
            "/readiness",
            "--env",
            "WARM_MS=50",
        ];
        words.extend(env.iter().flat_map(|variable| ["--env", *variable]));
        words.extend(["--", RSUP, "sample-app"]);
        let output = self.run(&words);
        assert!(output.status.success(), "{}", told(&output));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.run(&["kill"]);
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn told(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", told(output)))
}

/// Processes that run in a folder, or whose environment speaks of it.
fn processes_of(folder: &Path) -> Vec<PathBuf> {
    let name = folder.as_os_str().as_encoded_bytes();
    let process = |entry: std::io::Result<std::fs::DirEntry>| {
        Some(entry.ok()?.path()).filter(|path| path.join("task").exists())
    };
    let of_folder = |path: &PathBuf| {
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        let cwd = std::fs::read_link(path.join("cwd")).unwrap_or_default();
        cwd.starts_with(folder) || memchr::memmem::find(&environment, name).is_some()
    };
    std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(process)
        .filter(of_folder)
        .collect()
}

fn assert_nothing_left(tmp: &Path) {
    let left: Vec<_> = std::fs::read_dir(tmp).expect("the folder").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_of(tmp), Vec::<PathBuf>::new());
}

fn demo(tmp: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(RSUP);
    command
        .arg("demo")
        .args(words)
        .env("TMPDIR", tmp)
        .env_remove("RSUP_HOME")
        .stdin(Stdio::null());
    command
}

#[test]
fn demo_loses_nothing_and_leaves_nothing() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let output = demo(tmp.path(), &["--duration", "3s", "--rps", "200", "--json"])
        .output()
        .expect("rsup runs");
    assert!(output.status.success(), "{}", told(&output));
    let verdict = json(&output);
    assert_eq!(verdict["passed"], true);
    assert_eq!(verdict["load"]["failed"], 0);
    assert!(
        verdict["load"]["requests"].as_u64() > Some(100),
        "{}",
        verdict["load"]["requests"]
    );
    let reloads: Vec<_> = verdict["reloads"]
        .as_array()
        .expect("reloads")
        .iter()
        .map(|r| (&r["label"], &r["expected"], &r["as_expected"]))
        .collect();
    let (done, refused, yes) = (
        Value::from("done"),
        Value::from("refused"),
        Value::from(true),
    );
    assert_eq!(
        reloads,
        [
            (&"v2".into(), &done, &yes),
            (&"broken".into(), &refused, &yes),
            (&"v3".into(), &done, &yes)
        ]
    );
    let versions = |phase: &str| {
        verdict["load"][phase]["versions"]
            .as_object()
            .expect("versions")
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(versions("before"), ["v1"]);
    assert_eq!(versions("after"), ["v3"]);
    assert_nothing_left(tmp.path());
}

#[test]
fn demo_tells_what_it_does() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let output = demo(tmp.path(), &["--duration", "2s", "--rps", "100"])
        .output()
        .expect("rsup runs");
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    assert!(output.status.success(), "{}", told(&output));
    for part in [
        "2 workers ready after",
        "reload to version 2",
        "✓ refused after",
        "the old workers go on",
        "├",
        "✓ 0 of ",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
    assert!(output.stderr.is_empty(), "{}", told(&output));
}

#[test]
fn interrupted_demo_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let tmp = tempfile::tempdir().expect("a temporary folder");
        let mut child = demo(tmp.path(), &["--duration", "30s", "--rps", "50"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("rsup runs");
        let mut out = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        while !line.contains("the load begins") {
            line.clear();
            assert!(out.read_line(&mut line).expect("text") > 0, "ended early");
        }
        assert!(!processes_of(tmp.path()).is_empty());
        kill(Pid::from_raw(child.id() as i32), signal).expect("signal");
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("text");
        assert_eq!(child.wait().expect("its end").code(), Some(130), "{rest}");
        assert!(rest.contains("interrupted"), "{rest}");
        assert_nothing_left(tmp.path());
    }
}

#[test]
fn killed_demo_leaves_no_process() {
    let tmp = tempfile::tempdir().expect("a temporary folder");
    let mut child = demo(tmp.path(), &["--duration", "30s", "--rps", "50"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("rsup runs");
    let out = BufReader::new(child.stdout.take().expect("its output"));
    assert!(
        out.lines()
            .map_while(Result::ok)
            .any(|line| line.contains("the load begins"))
    );
    assert!(!processes_of(tmp.path()).is_empty());
    child.kill().expect("signal");
    child.wait().expect("its end");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !processes_of(tmp.path()).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", processes_of(tmp.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn verify_passes_what_loses_nothing() {
    let home = Home::new();
    home.start("api", &[]);
    let output = home.run(&[
        "verify",
        "api",
        "--duration",
        "1500ms",
        "--path",
        "/",
        "--json",
    ]);
    assert!(output.status.success(), "{}", told(&output));
    let verdict = json(&output);
    assert_eq!(
        (&verdict["passed"], &verdict["interrupted"]),
        (&true.into(), &false.into())
    );
    assert_eq!(verdict["reasons"], Value::Array(vec![]));
    assert_eq!(verdict["reloads"][0]["revision"], 2);
    assert_eq!(verdict["load"]["failed"], 0);
    for phase in ["before", "during", "after"] {
        assert!(
            verdict["load"][phase]["requests"].as_u64() > Some(0),
            "{phase}: {}",
            verdict["load"]
        );
    }

    // The sample app lets idle connections live for a while: no race is lost.
    let output = home.run(&[
        "verify",
        "api",
        "--duration",
        "1500ms",
        "--path",
        "/",
        "--keep-alive",
    ]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("✓ 0 of "), "{}", told(&output));
}

#[test]
fn verify_counts_what_a_reload_loses() {
    let home = Home::new();
    home.start("api", &["DROP_AT_STOP=1"]);
    // Half of some 60 requests under way are at the worker that drops its connections.
    let words = [
        "verify",
        "api",
        "--duration",
        "1500ms",
        "--rps",
        "200",
        "--connections",
        "100",
        "--path",
        "/slow?ms=300",
    ];
    let output = home.run(&[&words[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let verdict = json(&output);
    let failed = verdict["load"]["failed"].as_u64().expect("a number");
    assert!(failed > 0);
    assert_eq!(verdict["passed"], false);
    assert_eq!(verdict["reloads"][0]["as_expected"], true);
    let reason = verdict["reasons"][0].as_str().expect("a reason");
    assert!(
        reason.starts_with(&format!("{failed} of ")) && reason.contains("failed"),
        "{reason}"
    );

    let output = home.run(&words);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let text = told(&output);
    assert!(
        text.contains("✗ ") && text.contains(" requests failed (") && text.contains("what failed"),
        "{text}"
    );
}

#[test]
fn verify_reports_a_reload_that_fails() {
    let home = Home::new();
    let file = home.0.path().join("supervisor.toml");
    let config = |env: &str| {
        let text = format!(
            "[app.api]\ncommand = [{}, \"sample-app\"]\ninstances = 2\nlisten = \"127.0.0.1:{}\"\n\
             readiness = \"/readiness\"\nlisten_timeout = \"500ms\"\nenv = {{ {env} }}\n",
            toml::Value::from(RSUP),
            free_port()
        );
        std::fs::write(&file, text).expect("written");
    };
    config("WARM_MS = \"50\"");
    let output = home.run(&["start", file.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", told(&output));

    let moved = || {
        std::fs::read_to_string(&file)
            .expect("read")
            .replace("WARM_MS = \"50\"", "NEVER_READY = \"1\"")
    };
    std::fs::write(&file, moved()).expect("written");
    let output = home.run(&["verify", "api", "--duration", "1s", "--path", "/"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let text = told(&output);
    for part in [
        "✗ failed after",
        "listen_timeout 500 ms",
        "✓ 0 of ",
        "✗ the reload failed (reload); the old workers go on serving",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }

    // Another address would lose every request.
    config("WARM_MS = \"50\"");
    let output = home.run(&["verify", "api", "--duration", "1s"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(
        told(&output).contains("its file says another address"),
        "{}",
        told(&output)
    );
}

#[test]
fn verify_refuses_what_cannot_be_tried() {
    let home = Home::new();
    let output = home.run(&["verify", "api"]);
    assert!(
        output.status.code() == Some(1) && told(&output).contains("no daemon runs"),
        "{}",
        told(&output)
    );

    home.start("api", &[]);
    let idle = home.run(&["start", "-n", "idle", "--", "sleep", "1000"]);
    assert!(idle.status.success(), "{}", told(&idle));
    for (words, code, parts) in [
        (
            &["verify", "apu"][..],
            1,
            &["no app is called `apu`", "did you mean `api`"][..],
        ),
        (
            &["verify", "api", "--path", "/nope"],
            1,
            &["answered 404", "before any reload", "--path"],
        ),
        (
            &["verify", "api", "--path", "nope"],
            2,
            &["begins with a slash"],
        ),
        (
            &["verify", "api", "--path", "/a b"],
            2,
            &["percent-encoded"],
        ),
        (&["verify", "idle"], 1, &["idle has no address", "listen"]),
        (&["verify", "all"], 2, &["one app at a time"]),
    ] {
        let output = home.run(words);
        let text = told(&output);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{words:?}: no `{part}` in {text}");
        }
    }
    let output = home.run(&["--json", "verify", "api", "--path", "/nope"]);
    assert_eq!(json(&output)["code"], "bad_answer");

    let stopped = home.run(&["stop", "api"]);
    assert!(stopped.status.success(), "{}", told(&stopped));
    let output = home.run(&["verify", "api"]);
    assert!(
        output.status.code() == Some(1) && told(&output).contains("api is stopped"),
        "{}",
        told(&output)
    );
}
