//! Clients that are not ours, or broken, or slow.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::bystander::{Bystander, open_files, resident};
use crate::common::{Home, PATIENCE, wait_until};
use crate::support::Life;

fn connect(home: &Home) -> UnixStream {
    let stream = UnixStream::connect(home.rsup_home().join("run/control.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn frame(body: &str) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body.as_bytes()].concat()
}

/// What comes back, without its length.
fn answer(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(bytes.get(4..).unwrap_or_default()).into_owned()
}

/// Sends these bytes and no more, and reads the answer.
fn converse(home: &Home, bytes: &[u8]) -> String {
    let mut stream = connect(home);
    // It may answer before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    answer(stream)
}

#[test]
fn garbage_by_the_thousand() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let honest = [
        r#"{"version":2,"request":{"query":"list"},"wait":true}"#,
        r#"{"version":2,"request":{"action":{"id":7,"action":{"scale":{"app":"none","to":{"by":-1}}}}},"wait":true}"#,
        r#"{"version":2,"request":{"query":{"describe":{"targets":[{"worker":["calm",7]}]}}},"wait":false}"#,
        r#"{"version":2,"request":{"signal":{"targets":[{"app":"none"}],"signal":9}},"wait":true}"#,
        r#"{"version":1,"request":{"await":{"actions":[{"op":3,"app":"calm","kind":"reload"}],"kill":false}},"wait":true}"#,
    ];
    let mut random = fastrand::Rng::with_seed(7);
    for n in 0..2000 {
        let mut bytes = frame(honest[n % honest.len()]);
        match n % 4 {
            // All of it nonsense.
            0 => bytes.iter_mut().for_each(|b| *b = random.u8(..)),
            // Cut off anywhere.
            1 => bytes.truncate(random.usize(..bytes.len())),
            // A few bytes of the text are others.
            2 => (0..3).for_each(|_| {
                let at = random.usize(4..bytes.len());
                bytes[at] = random.u8(..);
            }),
            // The length says something else.
            _ => {
                let lie = random.u32(..200);
                bytes[..4].copy_from_slice(&lie.to_be_bytes());
            }
        }
        // Whatever it says to that, it says it in one frame, or ends the connection.
        let answer = converse(&home, &bytes);
        assert!(
            answer.is_empty() || serde_json::from_str::<serde_json::Value>(&answer).is_ok(),
            "{bytes:?}: {answer}"
        );
    }
    calm.untouched(&home);
}

#[test]
fn specs_that_no_check_has_seen() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let description = home.describe("calm");
    let spec = &description["spec"];
    let refused = |place: &str, value: serde_json::Value, words: &str| {
        let mut spec = spec.clone();
        spec["name"] = "other".into();
        spec["listen"] = serde_json::json!([]);
        *spec
            .pointer_mut(place)
            .unwrap_or_else(|| panic!("no {place}")) = value;
        let start = serde_json::json!({"start": {"apps": [spec], "base_env": {}}});
        let request = serde_json::json!({"action": {"id": 7, "action": start}});
        let call = serde_json::json!({"version": 2, "request": request, "wait": true});
        let answer = converse(&home, &frame(&call.to_string()));
        assert!(
            answer.contains("bad_request") && answer.contains(words),
            "{place}: {answer}"
        );
    };
    refused("/instances", 65535.into(), "65535 instances");
    refused("/instances", 0.into(), "0 instances");
    refused("/command", serde_json::json!([]), "no command");
    refused("/command", serde_json::json!([""]), "no command");
    refused(
        "/name",
        "../../../etc/cron.d/x".into(),
        "cannot be in a name",
    );
    refused("/stop/signal", 1000.into(), "signal 1000");
    refused("/reload/max_surge", 0.into(), "max_surge of 0");
    refused("/listen_timeout/secs", u64::MAX.into(), "more than a year");
    refused(
        "/restart/backoff_max/secs",
        u64::MAX.into(),
        "more than a year",
    );
    refused(
        "/liveness/failure_threshold",
        0.into(),
        "a check that cannot be made",
    );
    assert_eq!(home.list().as_array().unwrap().len(), 1);
    calm.untouched(&home);
}

#[test]
fn huge_and_slow_frames() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    const MOST: usize = rsup::control::MAX_FRAME;
    // As large as a frame may be, and nothing in it.
    let huge = [&(MOST as u32).to_be_bytes()[..], &vec![b' '; MOST]].concat();
    assert!(converse(&home, &huge).contains("not understood"));
    let deep = [&(MOST as u32).to_be_bytes()[..], &vec![b'['; MOST]].concat();
    assert!(converse(&home, &deep).contains("not understood"));
    // One byte more is not even waited for.
    let mut stream = connect(&home);
    stream.write_all(&(MOST as u32 + 1).to_be_bytes()).unwrap();
    assert!(answer(stream).contains("larger than"));
    // Byte by byte is a way of speaking too, and in nobody's way.
    let mut slow = connect(&home);
    let list = frame(r#"{"version":2,"request":{"query":"list"},"wait":true}"#);
    for byte in &list {
        slow.write_all(&[*byte]).unwrap();
        if byte % 8 == 0 {
            let began = Instant::now();
            home.ok(&["ping"]);
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "a slow client is waited for"
            );
        }
    }
    assert!(answer(slow).contains("calm"));
    // One that stops in the middle is given up, in words.
    let mut stuck = connect(&home);
    stuck.write_all(&list[..10]).unwrap();
    assert!(answer(stuck).contains("no whole request came within 10 s"));
    calm.untouched(&home);
}

#[test]
fn hundreds_of_clients_that_say_nothing() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let before = open_files(calm.daemon());
    let mut silent: Vec<UnixStream> = (0..600).map(|_| connect(&home)).collect();
    // Whoever has something to say gets through at once.
    for _ in 0..3 {
        let run = home.ok(&["list"]);
        assert!(run.took < Duration::from_secs(5), "{run:?}");
    }
    let most = before + 60;
    wait_until(
        "the descriptors of those that wait longest are free again",
        || open_files(calm.daemon()) <= most,
    );
    assert!(
        answer(silent.remove(0)).contains("say nothing"),
        "those that are sent away are told why"
    );
    drop(silent);
    wait_until("all descriptors are free again", || {
        open_files(calm.daemon()) <= before
    });
    calm.untouched(&home);
}

#[test]
fn clients_that_never_read() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    // An answer that no socket's buffer holds.
    let variables: Vec<String> = (0..5)
        .map(|n| format!("V{n} = \"{}\"", "x".repeat(100_000)))
        .collect();
    home.app(
        "big",
        &format!(
            "command = [\"sleep\", \"1000\"]\n[app.big.env]\n{}",
            variables.join("\n")
        ),
    );
    home.ok(&["start"]);
    let (files, memory) = (open_files(calm.daemon()), resident(calm.daemon()));
    let ask = frame(
        r#"{"version":2,"request":{"query":{"env":{"targets":[{"app":"big"}]}}},"wait":true}"#,
    );
    let mut deaf: Vec<UnixStream> = (0..300)
        .map(|_| {
            let mut stream = connect(&home);
            stream.write_all(&ask).unwrap();
            stream
        })
        .collect();
    // The bound on those that wait is told to who comes too late.
    let mut last = deaf.pop().unwrap();
    let mut head = [0; 4];
    last.read_exact(&mut head).unwrap();
    let mut body = vec![0; u32::from_be_bytes(head) as usize];
    last.read_exact(&mut body).unwrap();
    let body = String::from_utf8_lossy(&body);
    assert!(
        body.contains("256 clients wait for answers already"),
        "{}",
        &body[..body.len().min(200)]
    );
    // They are given up, though they never leave.
    wait_until("their descriptors are free again", || {
        open_files(calm.daemon()) <= files + 2
    });
    home.list();
    let after = resident(calm.daemon());
    assert!(after < memory + 220_000, "{memory} KiB, then {after} KiB");
    drop(deaf);
    calm.untouched(&home);
}
