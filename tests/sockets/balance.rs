//! How new connections find their worker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use crate::common::{Home, apps, http};

fn ask_from(source: Ipv4Addr, port: u16) -> u32 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .bind(&SocketAddr::from((source, 0)).into())
        .expect("a source address");
    socket
        .connect(&http::local(port).into())
        .expect("a connection");
    http::get_over(std::net::TcpStream::from(socket), "/health")
        .expect("an answer")
        .pid()
}

fn site(balance: &str) -> (Home, u16) {
    let home = Home::new();
    let port = home.port();
    home.config(&format!(
        "[app.web]\n{}\ninstances = 3\nlisten = {port}\nbalance = \"{balance}\"\nreadiness = \"/readiness\"\n",
        apps::sample()
    ));
    home.ok(&["start"]);
    (home, port)
}

fn sources() -> impl Iterator<Item = Ipv4Addr> {
    (1..=60).map(|n| Ipv4Addr::new(127, 7, n, n))
}

#[test]
fn the_same_source_finds_the_same_worker() {
    let (home, port) = site("source-ip");
    for _ in 0..2 {
        let first: BTreeMap<Ipv4Addr, u32> = sources()
            .map(|source| (source, ask_from(source, port)))
            .collect();
        for (source, pid) in &first {
            for _ in 0..3 {
                assert_eq!(ask_from(*source, port), *pid, "{source}");
            }
        }
        let used: BTreeSet<u32> = first.values().copied().collect();
        assert_eq!(
            used,
            home.pids("web"),
            "the sources are spread over all workers"
        );
        home.ok(&["reload", "web"]);
    }
}

#[test]
fn random_is_fair() {
    let (home, port) = site("random");
    let mut served: BTreeMap<u32, u32> = BTreeMap::new();
    for _ in 0..300 {
        *served
            .entry(ask_from(Ipv4Addr::LOCALHOST, port))
            .or_default() += 1;
    }
    assert_eq!(
        served.keys().copied().collect::<BTreeSet<_>>(),
        home.pids("web")
    );
    // 100 each; less than 60 has a chance of one in a million.
    assert!(served.values().all(|count| *count >= 60), "{served:?}");
}
