//! The sample app as a process: this test binary, started again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Plan, Target, start};

/// Not a test: the code of the child. Passes at once outside the child.
#[test]
fn child() {
    if std::env::var_os("RSUP_TEST_SAMPLE").is_some() {
        let done = super::sample::run();
        std::process::exit(if done.is_ok() { 0 } else { 1 });
    }
}

struct Sample {
    child: Child,
    addr: SocketAddr,
    out: BufReader<std::process::ChildStdout>,
}

fn command(env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command
        .args([
            "--exact",
            "load::sample_tests::child",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("RSUP_TEST_SAMPLE", "1")
        .env("PORT", "0")
        .env("WARM_MS", "0")
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Sample {
    fn start(env: &[(&str, &str)]) -> Sample {
        let mut child = command(env).spawn().expect("spawn");
        let mut out = BufReader::new(child.stdout.take().expect("stdout"));
        let line = line_with(&mut out, "listening on ");
        let port = line
            .rsplit(':')
            .next()
            .and_then(|p| p.trim().parse().ok())
            .expect("port");
        Sample {
            child,
            addr: ([127, 0, 0, 1], port).into(),
            out,
        }
    }

    /// The status of one answer, and whether it ends its connection.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = self.connect();
        ask(&mut stream, path, "close");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        let status = answer
            .get(9..12)
            .and_then(|s| s.parse().ok())
            .expect("status");
        (status, answer)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("timeout");
        stream
    }

    fn sigterm(&mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("kill");
        line_with(&mut self.out, "SIGTERM");
    }

    fn exit_code(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("has not exited");
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_with(out: &mut impl BufRead, what: &str) -> String {
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        assert_ne!(
            out.read_line(&mut line).expect("stdout"),
            0,
            "ended before it said {what:?}"
        );
    }
    line
}

fn ask(stream: &mut TcpStream, path: &str, connection: &str) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n"
    )
    .expect("write");
}

/// Reads one answer with a Content-Length from a connection that stays open.
fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"}\n") {
        stream.read_exact(&mut byte).expect("answer");
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).expect("UTF-8")
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

#[test]
fn paths_answer_as_documented() {
    let app = Sample::start(&[("APP_VERSION", "v\"2")]);
    let (status, answer) = app.get("/health");
    let json = answer
        .lines()
        .last()
        .and_then(|l| serde_json::from_str(l).ok());
    let json: serde_json::Value = json.expect("JSON");
    assert_eq!(
        (status, &json["version"], &json["pid"]),
        (200, &"v\"2".into(), &app.child.id().into())
    );
    assert_eq!(app.get("/readiness").0, 200);
    assert_eq!(app.get("/liveness").0, 200);
    assert_eq!(app.get("/wedge").0, 200);
    assert_eq!(app.get("/liveness").0, 503);
    assert_eq!(app.get("/leak?mb=2").0, 200);
    assert_eq!(app.get("/slow?ms=1").0, 200);
    assert_eq!(app.get("/nowhere").0, 404);
}

#[test]
fn client_that_has_said_all_is_still_answered() {
    let app = Sample::start(&[]);
    let mut stream = app.connect();
    ask(&mut stream, "/slow?ms=50", "close");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    assert!(answer(&mut stream).contains("200 OK"));
}

#[test]
fn log_writes_lines() {
    let mut app = Sample::start(&[]);
    assert_eq!(app.get("/log?n=3").0, 200);
    for n in 1..=3 {
        line_with(&mut app.out, &format!("line {n} of 3"));
    }
}

#[test]
fn warms_up_or_never() {
    let app = Sample::start(&[("WARM_MS", "400")]);
    assert_eq!(app.get("/readiness").0, 503);
    let until = Instant::now() + Duration::from_secs(20);
    while app.get("/readiness").0 == 503 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(app.get("/readiness").0, 200);
    assert_eq!(
        Sample::start(&[("NEVER_READY", "1")]).get("/readiness").0,
        503
    );
}

#[test]
fn crashes_when_asked() {
    let mut app = Sample::start(&[]);
    let mut stream = app.connect();
    ask(&mut stream, "/crash", "close");
    assert_eq!(app.exit_code(), Some(3));
    let output = command(&[("CRASH_AT_START", "1")]).output().expect("run");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect to the database"));
}

#[test]
fn sigterm_finishes_all_that_was_accepted() {
    let mut app = Sample::start(&[]);
    let mut idle = app.connect();
    ask(&mut idle, "/", "keep-alive");
    answer(&mut idle);
    let mut slow = app.connect();
    ask(&mut slow, "/slow?ms=300", "keep-alive");
    let mut unread = app.connect();
    // Connections are accepted in order: an answer on a later one shows that `unread` was.
    assert_eq!(app.get("/").0, 200);
    app.sigterm();
    assert!(TcpStream::connect(app.addr).is_err(), "still accepts");
    ask(&mut unread, "/readiness", "keep-alive");
    let text = answer(&mut unread);
    assert!(
        text.contains("503") && text.contains("connection: close"),
        "{text}"
    );
    ask(&mut idle, "/", "keep-alive");
    assert!(answer(&mut idle).contains("connection: close"));
    assert!(answer(&mut slow).contains("connection: close"));
    assert!(is_closed(&mut idle) && is_closed(&mut slow) && is_closed(&mut unread));
    assert_eq!(app.exit_code(), Some(0));
}

#[test]
fn idle_connections_are_closed_at_once_where_told_so() {
    let mut app = Sample::start(&[("IDLE_MS", "0")]);
    let mut idle = app.connect();
    ask(&mut idle, "/", "keep-alive");
    answer(&mut idle);
    let mut slow = app.connect();
    ask(&mut slow, "/slow?ms=300", "keep-alive");
    let mut unread = app.connect();
    assert_eq!(app.get("/").0, 200);
    app.sigterm();
    assert!(is_closed(&mut idle));
    ask(&mut unread, "/", "keep-alive");
    assert!(answer(&mut unread).contains("connection: close"));
    assert!(answer(&mut slow).contains("200 OK"));
    assert_eq!(app.exit_code(), Some(0));
}

#[test]
fn sigterm_can_be_ignored() {
    let mut app = Sample::start(&[("IGNORE_SIGTERM", "1")]);
    app.sigterm();
    assert_eq!(app.get("/readiness").0, 200);
}

/// Load without pause until the app is gone: what fails was never accepted, but refused or reset in
/// the queue of the listener, which no other process holds here.
#[tokio::test]
async fn keep_alive_load_over_sigterm_meets_no_race() {
    let mut app = Sample::start(&[]);
    let plan = Plan {
        keep_alive: true,
        max_time: Duration::from_secs(20),
        ..Plan::new(Target::Tcp(app.addr), "/")
    };
    let load = start(plan);
    while load.snapshot().requests < 500 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    kill(Pid::from_raw(app.child.id() as i32), Signal::SIGTERM).expect("kill");
    while load.snapshot().failed == 0 && !load.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let report = load.stop().await;
    assert_eq!(report.keep_alive_races, 0);
    assert_eq!(app.exit_code(), Some(0));
}
