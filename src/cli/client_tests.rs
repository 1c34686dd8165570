//! The client against daemons that behave, and daemons that don't.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::client::*;
use super::error::CliError;
use super::fixtures::{app, name};
use crate::control::{
    self, Act, Action, ActionId, Answer, Call, Failure, FailureCode, List, Listing, Outcome, Ping,
    Pong, Query, Reply, Request, Target,
};
use crate::core::{AppPhase, OperationKind, Progress, Step};
use crate::model::Cause;
use crate::paths::Paths;

/// A daemon that listens until it is joined.
struct Fake {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Fake {
    fn join(self) -> std::thread::Result<()> {
        self.ends.store(true, Ordering::SeqCst);
        self.thread.join()
    }
}

/// Answers the first connection with `first`, all others as a ping of protocol `protocol`.
fn daemon(
    first: impl FnOnce(UnixStream) + Send + 'static,
    protocol: u32,
) -> (tempfile::TempDir, Client, Fake) {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::in_home(home.path()).unwrap();
    paths.create().unwrap();
    let listener = UnixListener::bind(paths.socket()).unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let told = ends.clone();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        first(stream);
        listener.set_nonblocking(true).unwrap();
        while !told.load(Ordering::SeqCst) {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                let _: Option<Call> = control::read(&stream).unwrap();
                let _ = control::write(&stream, &Answer::Done(pong(protocol)));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let fake = Fake { ends, thread };
    (home, Client::new(&paths).unwrap(), fake)
}

fn pong(protocol: u32) -> Reply {
    Reply::Pong(Pong {
        pid: 7,
        version: "9.9.9".into(),
        protocol,
        uptime_ms: 1,
        memory: None,
        admin: None,
        troubles: Vec::new(),
    })
}

fn ask(first: impl FnOnce(UnixStream) + Send + 'static) -> Result<Listing, CallError> {
    let (_home, client, thread) = daemon(first, control::VERSION);
    let reply = client.try_ask(&List);
    thread.join().unwrap();
    reply
}

fn hear(stream: &UnixStream) -> Call {
    control::read(stream).unwrap().unwrap()
}

#[test]
fn a_call_is_answered() {
    let reply = ask(|stream| {
        let call = hear(&stream);
        assert_eq!(
            (call.version, call.request, call.wait),
            (control::VERSION, Request::Query(Query::List), true)
        );
        control::write(&stream, &Answer::Done(Reply::List(Listing::default()))).unwrap();
    });
    assert_eq!(reply.unwrap(), Listing::default());
}

#[test]
fn progress_comes_before_the_end_however_the_bytes_are_cut() {
    let step = Progress {
        app: name("api"),
        instance: 1,
        revision: 2,
        pid: Some(5),
        step: Step::Ready { after_ms: 512 },
        done: 1,
        total: 2,
    };
    let outcome = Outcome {
        app: name("api"),
        kind: OperationKind::Stop,
        took_ms: 3,
        view: Some(app("api", AppPhase::Stopped, vec![])),
        failure: None,
        untouched: None,
        notes: Vec::new(),
    };
    let frames: Vec<u8> = [
        Answer::Progress(step.clone()),
        Answer::Progress(step.clone()),
        Answer::Done(Reply::Finished(vec![outcome.clone()])),
    ]
    .iter()
    .flat_map(|answer| control::encode(answer).unwrap())
    .collect();
    for size in [1, 7, frames.len()] {
        let frames = frames.clone();
        let first = move |mut stream: UnixStream| {
            hear(&stream);
            for piece in frames.chunks(size) {
                stream.write_all(piece).unwrap();
            }
        };
        let (_home, client, thread) = daemon(first, control::VERSION);
        let seen = Mutex::new(Vec::new());
        let stop = Act {
            id: ActionId::new(),
            action: Action::Stop {
                targets: vec![Target::All],
            },
            settings: Vec::new(),
            cause: Cause::Command,
        };
        let reply = client.act(&stop, true, &Interrupt::hold(), &|meanwhile| {
            if let Meanwhile::Progress(step) = meanwhile {
                seen.lock().unwrap().push(step);
            }
        });
        assert_eq!(reply.unwrap(), std::slice::from_ref(&outcome));
        assert_eq!(*seen.lock().unwrap(), [step.clone(), step.clone()]);
        thread.join().unwrap();
    }
}

#[test]
fn a_refusal_is_passed_on() {
    let reply = ask(|stream| {
        let refusal = Failure::new(FailureCode::BadRequest, "this daemon speaks version 7");
        control::write(&stream, &Answer::Failed(refusal)).unwrap();
    });
    assert!(
        matches!(reply, Err(CallError::Failed(failure)) if failure.message.contains("version 7"))
    );
}

/// It was told to end just before: a start then begins with the next one.
#[test]
fn a_daemon_that_ends_without_an_answer_is_none() {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::in_home(home.path()).unwrap();
    paths.create().unwrap();
    let listener = UnixListener::bind(paths.socket()).unwrap();
    let socket = paths.socket();
    let ends = std::thread::spawn(move || {
        drop(listener.accept().unwrap());
        std::fs::remove_file(socket).unwrap();
    });
    let reply = Client::new(&paths).unwrap().try_ask(&List);
    ends.join().unwrap();
    assert!(matches!(reply, Err(CallError::NoDaemon)), "{reply:?}");
}

#[test]
fn broken_answers_are_told_apart_from_none() {
    let cases: [(&[u8], &str); 4] = [
        (b"", "without one"),
        (b"\0\0", "after 2 bytes"),
        (b"\0\0\0\x20{\"done\":", "after 12 bytes"),
        (b"\0\0\0\x04oops", "makes no sense"),
    ];
    for (bytes, words) in cases {
        let reply = ask(move |mut stream| {
            hear(&stream);
            stream.write_all(bytes).unwrap();
        });
        assert!(
            matches!(&reply, Err(CallError::Broken(what)) if what.contains(words)),
            "{bytes:?}: {reply:?}"
        );
    }
    let reply = ask(|mut stream| {
        hear(&stream);
        stream.write_all(&[255; 64]).unwrap();
    });
    assert!(
        matches!(&reply, Err(CallError::Broken(what)) if what.contains("larger than")),
        "{reply:?}"
    );
}

#[test]
fn another_version_is_named() {
    let first = |mut stream: UnixStream| {
        hear(&stream);
        stream.write_all(b"\0\0\0\x0a{\"new\": 1}").unwrap();
    };
    let (_home, client, thread) = daemon(first, 99);
    let error = client.try_ask(&List).unwrap_err();
    thread.join().unwrap();
    assert!(
        matches!(&error, CallError::Version { daemon, protocol: 99 } if daemon == "9.9.9"),
        "{error:?}"
    );
    let CliError::Report { exit: 1, report } = client.explain(error) else {
        panic!()
    };
    assert!(
        report.message.contains("rsup 9.9.9 (protocol 99)"),
        "{report:?}"
    );
}

#[test]
fn silence_has_an_end() {
    let (_home, client, thread) = daemon(
        |mut stream| {
            // Until the client gives up.
            let _ = stream.read_to_end(&mut Vec::new());
        },
        control::VERSION,
    );
    let client = client.patience(std::time::Duration::from_millis(50));
    assert!(matches!(client.try_ask(&Ping), Err(CallError::Silent)));
    thread.join().unwrap();
}

#[test]
fn no_socket_and_a_dead_socket_mean_no_daemon() {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::in_home(home.path()).unwrap();
    let client = Client::new(&paths).unwrap();
    assert!(matches!(client.try_ask(&Ping), Err(CallError::NoDaemon)));
    paths.create().unwrap();
    drop(UnixListener::bind(paths.socket()).unwrap());
    assert!(matches!(client.try_ask(&Ping), Err(CallError::NoDaemon)));
}
