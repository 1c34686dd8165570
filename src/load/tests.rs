//! The load client against tiny servers that misbehave in one way each.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// Serves each connection with `serve`, which gets the connection's number.
async fn server<F, S>(serve: F) -> Target
where
    F: Fn(TcpStream, usize) -> S + Send + 'static,
    S: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let target = Target::Tcp(listener.local_addr().expect("address"));
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, number));
            number += 1;
        }
    });
    target
}

/// Reads one request; `false` at the connection's end.
async fn request(stream: &mut TcpStream) -> std::io::Result<bool> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await? == 0 {
            return Ok(false);
        }
        head.push(byte[0]);
    }
    Ok(true)
}

/// A server that answers the first request of each connection with `answer` and closes.
async fn answers(answer: &'static [u8]) -> Target {
    server(move |mut stream, _| async move {
        request(&mut stream).await?;
        stream.write_all(answer).await
    })
    .await
}

fn plan(target: Target, requests: u64) -> Plan {
    Plan {
        connections: 4,
        max_requests: Some(requests),
        max_time: Duration::from_secs(20),
        ..Plan::new(target, "/")
    }
}

async fn run(target: Target) -> Report {
    start(plan(target, 20)).finish().await
}

/// Asserts that all 20 requests failed in this way.
#[track_caller]
fn assert_all(report: &Report, kind: FailureKind, detail: &str) {
    assert_eq!(report.requests, 20);
    assert_eq!(report.before.failures, [(kind, 20)].into());
    assert_eq!(report.failures.len(), 20);
    assert!(
        report.failures[0].detail.contains(detail),
        "{}",
        report.failures[0].detail
    );
    assert_eq!(report.before.p50_us, None);
    assert_eq!(
        report.series.buckets.iter().map(|b| b.failed).sum::<u64>(),
        20
    );
}

#[tokio::test]
async fn complete_answers_of_every_framing_succeed() {
    for answer in [
        OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let report = run(answers(answer).await).await;
        assert_eq!((report.requests, report.failed), (20, 0), "{:?}", report.failures);
        assert_eq!(report.connections_opened, 20);
        assert!(report.is_lossless() && report.before.p99_us.is_some());
        assert_eq!(report.series.buckets.iter().map(|b| b.requests).sum::<u64>(), 20);
    }
}

#[tokio::test]
async fn refused_connection_is_a_failure() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let target = Target::Tcp(listener.local_addr().expect("address"));
    drop(listener);
    assert_all(&run(target).await, FailureKind::Connect, "refused");
}

#[tokio::test]
async fn early_closes_are_failures() {
    for (answer, detail) in [
        (&b""[..], "without an answer"),
        (b"HTTP/1.1 200", "within the answer's head"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",
            "body, after 2 bytes",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "within the answer's body",
        ),
        (
            b"HTTP/1.1 103 Early Hints\r\n\r\n",
            "within the answer's head",
        ),
    ] {
        assert_all(
            &run(answers(answer).await).await,
            FailureKind::Closed,
            detail,
        );
    }
}

#[tokio::test]
async fn reset_is_a_failure() {
    for sent in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi"] {
        let target = server(move |mut stream, _| async move {
            request(&mut stream).await?;
            stream.write_all(sent).await?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        });
        assert_all(&run(target.await).await, FailureKind::Read, "reset");
    }
}

#[tokio::test]
async fn wrong_status_and_nonsense_are_failures() {
    let target = answers(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
    assert_all(&run(target).await, FailureKind::Status(503), "503");
    assert_all(
        &run(answers(b"hello\r\n\r\n").await).await,
        FailureKind::BadResponse,
        "not an HTTP",
    );
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let target = server(|mut stream, _| async move {
        request(&mut stream).await?;
        stream.read_u8().await.map(|_| ())
    });
    let timeout = Duration::from_millis(20);
    let report = start(Plan {
        timeout,
        ..plan(target.await, 20)
    })
    .finish()
    .await;
    assert_all(
        &report,
        FailureKind::Timeout,
        "no complete answer within 20ms",
    );
}

/// Answers `n` requests of each connection, then behaves as `end` says.
async fn keep_alive_server(n: usize, end: fn(&TcpStream), after_request: bool) -> Target {
    server(move |mut stream, _| async move {
        for _ in 0..n {
            if !request(&mut stream).await? {
                return Ok(());
            }
            stream.write_all(OK).await?;
        }
        if after_request {
            request(&mut stream).await?;
        }
        end(&stream);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn keep_alive_uses_connections_again() {
    let target = keep_alive_server(usize::MAX, |_| {}, false).await;
    let report = start(Plan {
        keep_alive: true,
        ..plan(target, 200)
    })
    .finish()
    .await;
    assert_eq!(
        (report.requests, report.failed, report.connections_opened),
        (200, 0, 4)
    );
}

#[tokio::test]
async fn close_on_a_reused_connection_is_its_own_kind() {
    let reset = |stream: &TcpStream| {
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    };
    for end in [|_: &TcpStream| {}, reset] {
        let target = keep_alive_server(3, end, true).await;
        let report = start(Plan {
            keep_alive: true,
            connections: 1,
            ..plan(target, 20)
        })
        .finish()
        .await;
        assert_eq!(
            (report.requests, report.failed, report.keep_alive_races),
            (20, 0, 5)
        );
        assert_eq!(
            report.before.failures,
            [(FailureKind::KeepAliveRace, 5)].into()
        );
        assert!(report.failures.iter().all(|f| f.reused));
        assert_eq!(report.before.requests, 20);
        assert!(!report.is_lossless());
    }
}

#[tokio::test]
async fn half_an_answer_on_a_reused_connection_is_no_race() {
    let target = server(|mut stream, _| async move {
        request(&mut stream).await?;
        stream.write_all(OK).await?;
        request(&mut stream).await?;
        stream.write_all(&OK[..20]).await
    });
    let plan = Plan {
        keep_alive: true,
        connections: 1,
        ..plan(target.await, 20)
    };
    let report = start(plan).finish().await;
    assert_eq!((report.failed, report.keep_alive_races), (10, 0));
    assert_eq!(report.before.failures, [(FailureKind::Closed, 10)].into());
}

#[tokio::test]
async fn connection_that_was_closed_while_idle_is_replaced() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let target = server(move |mut stream, _| {
        let count = count.clone();
        async move {
            request(&mut stream).await?;
            stream.write_all(OK).await?;
            drop(stream);
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    });
    // 10 ms between requests: the close has long arrived when the next is due.
    let plan = Plan {
        keep_alive: true,
        connections: 1,
        rate: Some(100.0),
        ..plan(target.await, 10)
    };
    let report = start(plan).finish().await;
    assert_eq!((report.requests, report.connections_opened), (10, 10));
    assert!(report.is_lossless(), "{:?}", report.failures);
    assert_eq!(closed.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn pace_is_kept_and_a_stall_is_not_hidden() {
    // The 10th connection waits for 300 ms; a single client's later requests wait behind it.
    let target = server(|mut stream, number| async move {
        request(&mut stream).await?;
        if number == 10 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        stream.write_all(OK).await
    });
    let plan = Plan {
        connections: 1,
        rate: Some(200.0),
        ..plan(target.await, 100)
    };
    let report = start(plan).finish().await;
    assert!(report.is_lossless());
    // 100 requests at 200/s: the last is due after 495 ms.
    assert!(report.duration_ms >= 495, "{} ms", report.duration_ms);
    // 60 requests were due while the server stalled: more than half waited for over 20 ms, though
    // only one answer was slow.
    let p50 = report.before.p50_us.unwrap_or(0);
    assert!(p50 > 20_000, "{p50} µs");
    assert!(report.before.max_us.unwrap_or(0) >= 300_000);
}

#[tokio::test]
async fn requests_are_booked_to_the_phase_they_start_in() {
    let target = server(|mut stream, _| async move {
        request(&mut stream).await?;
        tokio::time::sleep(Duration::from_millis(30)).await;
        let body = br#"{"pid":7,"version":"v1"}"#;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        stream.write_all(body).await
    });
    let load = start(Plan {
        connections: 3,
        max_requests: None,
        ..plan(target.await, 0)
    });
    while load.snapshot().in_flight < 3 {
        tokio::task::yield_now().await;
    }
    load.mark(Phase::During);
    load.marker("reload");
    assert_eq!(load.snapshot().requests, 0);
    while load.snapshot().requests < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(load.snapshot().phase, Phase::During);
    let report = load.stop().await;
    assert_eq!(report.before.requests, 3);
    assert!(report.during.requests >= 3);
    assert_eq!(
        report.before.requests + report.during.requests,
        report.requests
    );
    assert_eq!(report.after.requests, 0);
    assert_eq!(report.before.pids, [(7, 3)].into());
    assert_eq!(report.before.versions, [("v1".to_owned(), 3)].into());
    assert_eq!(report.markers.len(), 1);
    assert!(report.is_lossless());
}

#[tokio::test]
async fn stop_waits_for_requests_under_way_and_drop_ends_the_clients() {
    let target = server(|mut stream, _| async move {
        request(&mut stream).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(OK).await
    });
    let load = start(plan(target.await, 1_000_000));
    let shared = load.snapshot();
    assert_eq!(shared.requests, 0);
    while load.snapshot().in_flight < 4 {
        tokio::task::yield_now().await;
    }
    let report = load.stop().await;
    assert_eq!((report.requests, report.failed), (4, 0));
}

#[tokio::test]
async fn sources_rotate_and_stay_clear_of_the_probes() {
    let sources = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let seen = sources.clone();
    let target = server(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            let peer = stream.peer_addr()?;
            seen.lock().expect("lock").insert(peer.ip().to_string());
            request(&mut stream).await?;
            stream.write_all(OK).await
        }
    });
    let report = start(plan(target.await, 200)).finish().await;
    assert!(report.is_lossless());
    let sources = sources.lock().expect("lock");
    assert_eq!(sources.len(), 80);
    assert!(sources.contains("127.1.0.1") && sources.contains("127.80.0.1"));
    assert!(sources.iter().all(|s| !s.starts_with("127.83.")));
}

#[tokio::test]
async fn unix_sockets_and_ipv6_are_served_too() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).expect("bind");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let n = stream.read(&mut request).await?;
                assert!(request[..n].ends_with(b"\r\n\r\n"));
                stream.write_all(OK).await
            });
        }
    });
    let report = run(Target::Unix(path)).await;
    assert!(report.is_lossless(), "{:?}", report.failures);

    let Ok(listener) = TcpListener::bind(("::1", 0)).await else {
        return;
    };
    let target = Target::Tcp(listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                request(&mut stream).await?;
                stream.write_all(OK).await
            });
        }
    });
    let report = run(target).await;
    assert!(report.is_lossless(), "{:?}", report.failures);
}

#[test]
fn urls_name_local_targets() {
    let plan = Plan::for_url("http://localhost:3001/health?x=1").expect("valid");
    assert_eq!(plan.target, Target::Tcp(([127, 0, 0, 1], 3001).into()));
    assert_eq!(
        (plan.host.as_str(), plan.path.as_str()),
        ("localhost:3001", "/health?x=1")
    );
    assert!(
        Plan::for_url("http://[::1]:1/")
            .expect("valid")
            .target
            .is_loopback()
    );
    assert!(
        !Plan::for_url("http://10.0.0.1/")
            .expect("valid")
            .target
            .is_loopback()
    );
    assert!(Plan::for_url("https://localhost/").is_err());
    assert!(Plan::for_url("http://example.com/").is_err());
}
