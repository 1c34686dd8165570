//! Clients of the admin listener that mean no good.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::http::{connect, local};
use crate::common::{Home, wait_for};
use crate::support::{admin, page, web};

#[test]
fn slow_clients_cost_a_bounded_number_of_descriptors_and_nobody_waits_for_them() {
    let home = Home::new();
    let port = web(&home, "web", "");
    let address = admin(&home);
    home.ok(&["start"]);
    let daemon = home.ok(&["ping", "--json"]).json()["pid"].as_u64().unwrap();
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{daemon}/fd"))
            .unwrap()
            .count()
    };
    let before = descriptors();
    // Some say nothing, some speak slowly, some do not read their answers.
    let mut clients: Vec<TcpStream> = (0..150)
        .map(|number| {
            let mut client = connect(address).unwrap();
            match number % 3 {
                0 => {}
                1 => client.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap(),
                _ => client
                    .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .unwrap(),
            }
            client
        })
        .collect();
    for _ in 0..20 {
        assert!(
            descriptors() <= before + 64 + 8,
            "{} descriptors",
            descriptors()
        );
        home.ok(&["list"]);
        assert_eq!(page(local(port), "/").status, 200);
    }
    home.ok(&["reload", "web"]);
    // They are turned out in time, and others get their turn though nobody hung up.
    for client in clients.iter_mut().take(3) {
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
    }
    wait_for("an honest client is answered", || {
        let answer = crate::common::http::get(address, "/health")?;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.body)
        }
    });
    drop(clients);
}

#[test]
fn garbage_is_turned_away() {
    let home = Home::new();
    web(&home, "web", "");
    let address = admin(&home);
    home.ok(&["start"]);
    let seed = 42;
    let mut random = Garbage(seed);
    for _ in 0..200 {
        let mut client = connect(address).unwrap();
        let length = (random.next() % 20_000) as usize;
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        // It may hang up in the middle.
        let _ = client.write_all(&bytes);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "seed {seed}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(page(address, "/health").status, 200);
}

/// xorshift64.
struct Garbage(u64);

impl Garbage {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn many_honest_ones_at_once_are_all_answered() {
    let home = Home::new();
    web(&home, "web", "instances = 2");
    let address = admin(&home);
    home.ok(&["start"]);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|number| {
                scope.spawn(move || {
                    (0..10).all(|turn| {
                        let path =
                            ["/health", "/readiness", "/liveness", "/metrics"][(number + turn) % 4];
                        page(address, path).status == 200
                    })
                })
            })
            .collect();
        assert!(clients.into_iter().all(|client| client.join().unwrap()));
    });
}

#[test]
fn only_what_reads_is_allowed() {
    let home = Home::new();
    web(&home, "web", "");
    let address = admin(&home);
    home.ok(&["start"]);
    let ask = |request: &str| {
        let mut client = connect(address).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "KILL"] {
        let answer = ask(&format!(
            "{method} /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}"
        ));
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"),
            "{answer}"
        );
    }
    let head = ask("HEAD /readiness HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200 ")
            && head.ends_with("\r\n\r\n")
            && head.contains("content-length: "),
        "{head}"
    );
    assert!(ask("GET /health HTTP/1.0\r\n\r\n").contains(" 200 OK"));
    for path in [
        "/",
        "/readiness/",
        "//health",
        "/health/../metrics",
        "/%68ealth",
    ] {
        assert!(
            ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
                .starts_with("HTTP/1.1 404 "),
            "{path}"
        );
    }
    assert!(
        ask("GET /liveness?verbose HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .starts_with("HTTP/1.1 200 ")
    );
}
