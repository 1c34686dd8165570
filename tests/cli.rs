//! The program as a whole, against a daemon made of a thread.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rsup::config::AppName;
use rsup::control::{
    self, Answer, Call, Failure, FailureCode, Listing, Outcome, Pong, Query, Reply, Request,
};
use rsup::core::{AppPhase, AppView, OperationKind, Progress, Step};
use rsup::paths::Paths;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn paths(&self) -> Paths {
        Paths::in_home(self.0.path()).unwrap()
    }

    /// A home whose daemon answers each call with what `answers` makes of it.
    fn with_daemon(answers: impl Fn(&Call) -> Vec<Answer> + Send + 'static) -> Self {
        let home = Self::new();
        home.paths().create().unwrap();
        let listener = UnixListener::bind(home.paths().socket()).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let Ok(Some(call)) = control::read::<Call>(&stream) else {
                    continue;
                };
                let answers = answers(&call);
                for answer in &answers {
                    let _ = control::write(&stream, answer);
                }
                if answers.is_empty() {
                    // Never answered: the connection stays until the other side ends it.
                    std::thread::spawn(move || stream.read_to_end(&mut Vec::new()));
                }
            }
        });
        home
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rsup"));
        command
            .args(line.split_whitespace())
            .env("RSUP_HOME", self.0.path())
            .env_remove("NO_COLOR")
            .env_remove("COLUMNS")
            .current_dir(self.0.path());
        command
    }

    fn rsup(&self, line: &str) -> Said {
        Said::from(self.command(line).stdin(Stdio::null()).output().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[derive(Debug, PartialEq)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

impl Said {
    fn json(&self) -> serde_json::Value {
        assert_eq!(self.err, "", "with --json stderr is silent");
        serde_json::from_str(&self.out).unwrap()
    }
}

fn api(phase: AppPhase) -> AppView {
    AppView {
        name: AppName::new("api"),
        phase,
        revision: 2,
        instances: 1,
        listen: vec![],
        workers: vec![],
        operation: None,
        reason: None,
        held: 0,
        relayed: 0,
    }
}

fn scaled(failure: Option<Failure>) -> Vec<Answer> {
    let app = AppName::new("api");
    let ready = Step::Ready { after_ms: 512 };
    let step = Progress {
        app: app.clone(),
        instance: 0,
        revision: 2,
        pid: Some(123),
        step: ready,
        done: 1,
        total: 1,
    };
    let outcome = Outcome {
        app,
        kind: OperationKind::Scale,
        took_ms: 900,
        view: Some(api(AppPhase::Ready)),
        failure,
        untouched: None,
        notes: Vec::new(),
    };
    vec![
        Answer::Progress(step),
        Answer::Done(Reply::Finished(vec![outcome])),
    ]
}

fn broken() -> Failure {
    let mut failure = Failure::new(
        FailureCode::NotReady,
        "worker 0 of api was not ready within 10 s\nit exited with code 3",
    );
    failure.hint = Some("look at `rsup logs api`".into());
    failure.log = vec!["boom".into()];
    failure
}

#[test]
fn help() {
    let home = Home::new();
    let said = home.rsup("--help");
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    insta::assert_snapshot!(said.out);
    insta::assert_snapshot!("help_of_start", home.rsup("start --help").out);
}

#[test]
fn a_wrong_command_line_is_code_2() {
    let home = Home::new();
    for line in ["", "nonsense", "stop", "scale api x", "list --nope"] {
        let said = home.rsup(line);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{line}");
    }
}

#[test]
fn without_a_daemon() {
    let home = Home::new();
    let list = home.rsup("list");
    assert_eq!(
        (list.code, list.out.as_str(), list.err.as_str()),
        (0, "", "note: no daemon runs; `rsup start` starts one\n")
    );
    assert_eq!(
        home.rsup("list --json"),
        Said {
            code: 0,
            out: "[]\n".into(),
            err: String::new()
        }
    );
    for line in [
        "ping",
        "stop api",
        "delete api",
        "reload api",
        "logs",
        "describe api",
    ] {
        let said = home.rsup(line);
        assert_eq!(
            (said.code, said.err.as_str()),
            (
                1,
                "error: no daemon runs\n  hint: `rsup start` starts one\n"
            ),
            "{line}"
        );
    }
    // What is asked for is so already.
    for (line, json) in [
        ("stop all", "[]\n"),
        ("delete all", "[]\n"),
        ("kill", "{\n  \"killed\": false\n}\n"),
    ] {
        let said = home.rsup(line);
        assert_eq!(
            (said.code, said.out.as_str(), said.err.as_str()),
            (0, "", "note: no daemon runs, so there is nothing to do\n"),
            "{line}"
        );
        let said = home.rsup(&format!("{line} --json"));
        assert_eq!(
            (said.code, said.out.as_str(), said.err.as_str()),
            (0, json, ""),
            "{line}"
        );
    }
    let ping = home.rsup("ping --json");
    assert_eq!((ping.code, &ping.json()["code"]), (1, &"no_daemon".into()));
    assert!(
        !home.paths().runtime.exists(),
        "asking must not leave folders behind"
    );
}

#[test]
fn an_open_runtime_folder_is_code_2() {
    let home = Home::with_daemon(|_| vec![Answer::Done(Reply::List(Listing::default()))]);
    assert_eq!(home.rsup("list").code, 0);
    std::fs::set_permissions(home.paths().runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = home.rsup("list");
    assert_eq!(said.code, 2);
    assert!(
        said.err.contains("open to others") && said.err.contains("chmod 700"),
        "{}",
        said.err
    );
}

#[test]
fn ping() {
    let pong = || {
        Reply::Pong(Pong {
            pid: 7,
            version: "9.9.9".into(),
            protocol: control::VERSION,
            uptime_ms: 65_000,
            memory: Some(9 << 20),
            admin: None,
            troubles: Vec::new(),
        })
    };
    let home = Home::with_daemon(move |call| {
        assert_eq!(call.request, Request::Ping);
        vec![Answer::Done(pong())]
    });
    assert_eq!(
        home.rsup("ping").out,
        "the daemon runs: pid 7, rsup 9.9.9, up 1m 5s, 9.0 MB\n"
    );
    let json = home.rsup("--json ping").json();
    assert_eq!(
        (&json["pid"], &json["protocol"], &json["uptime_ms"]),
        (&7.into(), &control::VERSION.into(), &65_000.into())
    );
}

#[test]
fn list_tells_what_is_wrong_with_the_daemon_itself() {
    let home = Home::with_daemon(move |call| {
        let troubles = vec!["its messages are lost".into()];
        vec![Answer::Done(match call.request {
            Request::Query(Query::List) => Reply::List(Listing {
                apps: Vec::new(),
                troubles,
            }),
            _ => Reply::Pong(Pong {
                pid: 7,
                version: "9.9.9".into(),
                protocol: control::VERSION,
                uptime_ms: 1,
                memory: None,
                admin: None,
                troubles,
            }),
        })]
    });
    let said = home.rsup("list");
    assert_eq!((said.code, said.out.as_str()), (0, ""));
    assert!(
        said.err.contains("warning: its messages are lost"),
        "{}",
        said.err
    );
    assert!(home.rsup("ping").out.contains("its messages are lost"));
    assert_eq!(
        home.rsup("ping --json").json()["troubles"][0],
        "its messages are lost"
    );
    assert_eq!(
        home.rsup("list --json"),
        Said {
            code: 0,
            out: "[]\n".into(),
            err: String::new()
        }
    );
}

#[test]
fn an_action_that_succeeds() {
    let home = Home::with_daemon(|_| scaled(None));
    let said = home.rsup("scale api 1");
    assert_eq!(
        said,
        Said {
            code: 0,
            out: "api scaled in 900 ms\n".into(),
            err: "api:0 ready after 512 ms (pid 123)\n".into()
        }
    );
    let json = home.rsup("scale api 1 --json").json();
    assert_eq!(
        (&json[0]["app"], &json[0]["failure"]),
        (&"api".into(), &serde_json::Value::Null)
    );
}

#[test]
fn an_action_that_fails() {
    let home = Home::with_daemon(|_| scaled(Some(broken())));
    let said = home.rsup("scale api +1");
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    insta::assert_snapshot!(said.err);
    let json = home.rsup("scale api +1 --json");
    assert_eq!(
        (json.code, &json.json()[0]["failure"]["code"]),
        (1, &"not_ready".into())
    );
}

#[test]
fn a_refusal_with_json_is_a_document_too() {
    let home = Home::with_daemon(|_| vec![Answer::Failed(broken())]);
    let said = home.rsup("scale api 3 --json");
    assert_eq!(
        (said.code, &said.json()["hint"]),
        (1, &"look at `rsup logs api`".into())
    );
}

#[test]
fn ctrl_c_ends_the_wait_and_says_so() {
    let home = Home::with_daemon(|_| vec![]);
    let child = home
        .command("scale api 3")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    // Until it waits, its Ctrl-C is the ordinary one.
    let begin = Instant::now();
    let held = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status
            .lines()
            .any(|line| line.starts_with("SigBlk:") && line.ends_with('2'))
    };
    while !held() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (130, ""));
    assert_eq!(
        said.err.trim(),
        "still going on in the background; `rsup list` shows it"
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let home = Home::with_daemon(|_| {
        let apps = vec![api(AppPhase::Ready)];
        let troubles = Vec::new();
        vec![Answer::Done(Reply::List(Listing { apps, troubles }))]
    });
    let to_nobody = |argument: &str| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = home.command(argument);
        command.stdout(writer).stderr(Stdio::piped());
        Said::from(command.spawn().unwrap().wait_with_output().unwrap())
    };
    for argument in ["list", "--help"] {
        let said = to_nobody(argument);
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{argument}");
    }
}

/// With stdout on a full disk, and, where it may matter, with a reader that has gone.
fn unheard(home: &Home, line: &str) -> [Said; 2] {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    [Stdio::from(full), Stdio::from(writer)].map(|stdout| {
        let mut command = home.command(line);
        command.stdout(stdout).stderr(Stdio::piped());
        Said::from(command.spawn().unwrap().wait_with_output().unwrap())
    })
}

#[test]
fn a_result_that_cannot_be_printed_is_not_that_of_the_action() {
    const LOST: &str = "its result alone is lost: cannot write to stdout: No space left on device";
    let home = Home::with_daemon(|_| scaled(None));
    for line in ["scale api 1", "scale api 1 --json"] {
        let [full, gone] = unheard(&home, line);
        assert_eq!((full.code, gone.code), (0, 0), "{line}: {full:?} {gone:?}");
        let lost = format!("warning: scale of api is done; {LOST}");
        assert!(full.err.contains(&lost), "{line}: {}", full.err);
        assert!(!gone.err.contains("warning"), "{line}: {}", gone.err);
    }
    // A failure is one, whatever else fails.
    let home = Home::with_daemon(|_| scaled(Some(broken())));
    for line in ["scale api 1", "scale api 1 --json"] {
        let [full, gone] = unheard(&home, line);
        assert_eq!((full.code, gone.code), (1, 1), "{line}: {full:?} {gone:?}");
        assert!(full.err.contains("it exited with code 3"), "{}", full.err);
    }
    let home = Home::with_daemon(|_| vec![Answer::Failed(broken())]);
    let [full, gone] = unheard(&home, "scale api 1 --json");
    assert_eq!((full.code, gone.code), (1, 1));
    assert!(
        full.err.contains("it exited with code 3") && full.err.contains("cannot write to stdout"),
        "{}",
        full.err
    );

    let home = Home::with_daemon(|call| {
        vec![Answer::Done(match call.request {
            Request::Kill { .. } => Reply::Killed,
            Request::Query(_) => Reply::Snapshot(Vec::new()),
            _ => Reply::Signalled(vec![1]),
        })]
    });
    for (line, what) in [
        ("kill", "`rsup kill` is done"),
        ("signal HUP all", "`rsup signal` is done"),
        ("init", "`rsup init` is done"),
    ] {
        let [full, gone] = unheard(&home, line);
        assert_eq!(full.code, 0, "{line}: {}", full.err);
        assert!(
            full.err.contains(&format!("warning: {what}; {LOST}")),
            "{line}: {}",
            full.err
        );
        // `init` again finds its file.
        assert_eq!(gone.code == 0, line != "init", "{line}: {}", gone.err);
    }
    assert!(home.file("supervisor.toml").is_file());

    // What only tells has told nothing.
    let [full, _] = unheard(&home, "check supervisor.toml");
    assert_eq!(full.code, 1, "{}", full.err);
}

#[test]
fn a_file_that_is_not_there_is_no_app() {
    let daemon = || Home::with_daemon(|_| vec![Answer::Done(Reply::Snapshot(Vec::new()))]);
    for home in [Home::new(), daemon()] {
        std::fs::write(home.file("server.js"), "").unwrap();
        for (line, hint) in [
            ("start servr.js", "did you mean `server.js`?"),
            ("start server.mjs", "did you mean `server.js`?"),
            ("start other.py", "rsup start SCRIPT"),
        ] {
            let said = home.rsup(line);
            let word = line.trim_start_matches("start ");
            assert_eq!(said.code, 1, "{line}: {}", said.err);
            assert!(
                said.err.contains(&format!("there is no file `{word}` in"))
                    && said.err.contains(hint),
                "{line}: {}",
                said.err
            );
        }
    }
}

#[test]
fn init_does_not_overwrite() {
    let home = Home::new();
    assert_eq!(home.rsup("init").code, 0);
    std::fs::write(home.file("supervisor.toml"), "mine").unwrap();
    let said = home.rsup("init");
    assert_eq!(said.code, 2);
    assert!(said.err.contains("--force"), "{}", said.err);
    assert_eq!(
        std::fs::read_to_string(home.file("supervisor.toml")).unwrap(),
        "mine"
    );
    assert_eq!(home.rsup("init --force").code, 0);
    assert_ne!(
        std::fs::read_to_string(home.file("supervisor.toml")).unwrap(),
        "mine"
    );
}

#[test]
fn a_start_that_has_nothing_to_start_starts_no_daemon() {
    let home = Home::new();
    for line in [
        "start",
        "start missing.toml",
        "start ecosystem.config.js",
        "start -n api",
    ] {
        let said = home.rsup(line);
        assert_eq!(said.code, 2, "{line}: {}", said.err);
    }
    assert_eq!(home.rsup("start api").code, 1);
    assert!(!home.paths().runtime.exists());
}
