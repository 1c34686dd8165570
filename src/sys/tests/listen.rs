//! Groups of listening sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::localhost;
use crate::sys::holder;
use crate::sys::listen::{
    Backlog, Family, Group, ListenError, Ownership, Repaired, accept_nonblocking, backlog,
    is_nonblocking, open_unix, own_unix, set_nonblocking,
};
use crate::sys::sockdiag;
use crate::sys::steer::{Balance, Table};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

fn sole(len: usize, slot: usize) -> Table {
    let mut weights = vec![0; len];
    weights[slot] = 1;
    Table {
        weights,
        balance: Balance::Random,
        hold: 0,
    }
}

#[test]
fn a_holder_is_named_even_if_it_would_share() {
    let holder = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    holder.set_reuse_address(true).unwrap();
    holder.set_reuse_port(true).unwrap();
    holder.bind(&localhost().into()).unwrap();
    holder.listen(1).unwrap();
    let addr = holder.local_addr().unwrap().as_socket().unwrap();
    for wanted in [
        addr,
        SocketAddr::new("0.0.0.0".parse().unwrap(), addr.port()),
    ] {
        match Group::open(wanted, false, 2) {
            Err(ListenError::InUse {
                holder: Some(found),
                ..
            }) => {
                assert_eq!(found.pid, std::process::id());
                assert!(!found.name.is_empty() && !found.command.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
    let dual = SocketAddr::new("::".parse().unwrap(), addr.port());
    let text = Group::open(dual, false, 1).unwrap_err().to_string();
    assert!(
        text.contains(&format!("pid {}", std::process::id())),
        "{text}"
    );
    // IPv6 alone does not overlap.
    Group::open(dual, true, 1).unwrap();
}

#[test]
fn addresses_that_cannot_be_had() {
    let error = Group::open("192.0.2.1:0".parse().unwrap(), false, 1).unwrap_err();
    assert!(matches!(error, ListenError::NotAvailable { .. }), "{error}");
    let error = Group::open(localhost(), false, 0).unwrap_err();
    assert!(matches!(error, ListenError::TooMany { .. }), "{error}");
}

#[test]
fn joiners_are_seen() {
    let group = Group::open(localhost(), false, 2).unwrap();
    assert_eq!(group.foreign_listeners().unwrap(), []);
    let joiner = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    joiner.set_reuse_address(true).unwrap();
    joiner.set_reuse_port(true).unwrap();
    joiner.bind(&group.addr().into()).unwrap();
    joiner.listen(1).unwrap();
    let foreign = group.foreign_listeners().unwrap();
    assert_eq!(foreign.len(), 1);
    assert_eq!(foreign[0].pid, std::process::id());
    assert_eq!(sockdiag::listeners(group.addr().port()).unwrap().len(), 3);
}

#[test]
fn growing_and_shrinking_keep_the_order() {
    let mut group = Group::open(localhost(), false, 2).unwrap();
    group.grow(5).unwrap();
    for slot in 0..5 {
        group.steer(&sole(5, slot)).unwrap();
        let _client = TcpStream::connect(group.addr()).unwrap();
        assert!(accept_nonblocking(group.fd(slot)).unwrap().is_some());
    }
    group.steer(&sole(2, 1)).unwrap();
    // A worker's leftover copy must not keep its place in the group.
    let copy = group.dup(4).unwrap();
    group.shrink(2);
    assert_eq!(backlog(&copy).unwrap(), Backlog::NotListening);
    group.grow(3).unwrap();
    group.steer(&sole(3, 2)).unwrap();
    let _client = TcpStream::connect(group.addr()).unwrap();
    assert!(accept_nonblocking(group.fd(2)).unwrap().is_some());
    assert!(group.steer(&sole(4, 0)).is_err());
    assert!(group.dup(3).is_err() && group.backlog(3).is_err());
}

#[test]
fn a_group_survives_its_process_state() {
    for (addr, family) in [
        ("127.0.0.1:0", Family::V4),
        ("[::]:0", Family::V6 { only: false }),
        ("[::]:0", Family::V6 { only: true }),
        ("127.0.0.1:0", Family::V6Mapped),
    ] {
        let only = family == Family::V6 { only: true };
        let mut group = Group::open(addr.parse().unwrap(), only, 3).unwrap();
        if family == Family::V6Mapped {
            group.change_family(family).unwrap();
        }
        let fds = (0..3).map(|slot| group.dup(slot).ok()).collect();
        let same = Group::adopt(fds).unwrap();
        assert_eq!(
            (same.addr(), same.family(), same.len()),
            (group.addr(), family, 3)
        );
    }
    assert!(Group::adopt(Vec::new()).is_err());
    let one = Group::open(localhost(), false, 1).unwrap();
    let two = Group::open(localhost(), false, 1).unwrap();
    assert!(Group::adopt(vec![None, None]).is_err());
    assert!(Group::adopt(vec![one.dup(0).ok(), two.dup(0).ok()]).is_err());
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Group::adopt(vec![Some(file.into())]).is_err());
}

/// Every slot gets the connections that are meant for it.
fn assert_steered(group: &Group) {
    for slot in 0..group.len() {
        group.steer(&sole(group.len(), slot)).unwrap();
        let _client = TcpStream::connect(group.addr()).unwrap();
        assert!(
            accept_nonblocking(group.fd(slot)).unwrap().is_some(),
            "slot {slot} of {group:?}"
        );
    }
}

#[test]
fn what_is_left_of_a_group_becomes_whole_again() {
    for left in [
        [false, true, true, false, true],
        [true, false, false, false, false],
        [false, false, false, false, true],
    ] {
        let group = Group::open(localhost(), false, 5).unwrap();
        group.steer(&sole(5, 4)).unwrap();
        // As workers hold them: of the others, the kernel moves the last into each hole.
        let copies: Vec<_> = left
            .iter()
            .enumerate()
            .map(|(slot, held)| held.then(|| group.dup(slot).unwrap()))
            .collect();
        drop(group);
        let mut again = Group::adopt(copies).unwrap();
        again.steer(&sole(5, 0)).unwrap();
        again.find_order().unwrap();
        assert_steered(&again);
    }
}

#[test]
fn a_group_beside_sockets_that_cannot_be_had() {
    let group = Group::open(localhost(), false, 3).unwrap();
    group.steer(&sole(3, 2)).unwrap();
    let beyond_reach: Vec<_> = [1, 2].map(|slot| group.dup(slot).unwrap()).into();
    let addr = group.addr();
    drop(group);
    let mut ours = Group::join(addr, false, 4).unwrap();
    ours.steer(&sole(4, 0)).unwrap();
    ours.find_order().unwrap();
    assert_steered(&ours);
    // When those workers end, the kernel moves rsup's sockets into their places.
    drop(beyond_reach);
    assert_eq!(ours.repair().unwrap(), Repaired::Again);
    assert_steered(&ours);
    assert_eq!(ours.repair().unwrap(), Repaired::Whole);
}

/// One socket beyond reach leaves, which changes the order, while another takes no connection, so that the probes
/// for the order fail.
#[test]
fn an_order_that_cannot_be_found_at_once_is_found_later() {
    let group = Group::open(localhost(), false, 3).unwrap();
    group.steer(&sole(3, 2)).unwrap();
    let addr = group.addr();
    let [leaves, busy] = [1, 2].map(|slot| Socket::from(group.dup(slot).unwrap()));
    drop(group);
    let mut ours = Group::join(addr, false, 4).unwrap();
    ours.steer(&sole(4, 0)).unwrap();
    ours.find_order().unwrap();
    let target = crate::sys::steer::probe_target(addr, ours.family());
    while accept_nonblocking(busy.as_fd()).unwrap().is_some() {}
    busy.listen(0).unwrap();
    let at = (0..6)
        .find(|index| {
            let client = crate::sys::steer::probe_socket(target, *index).unwrap();
            client.connect_timeout(&target.into(), PATIENCE).unwrap();
            accept_nonblocking(busy.as_fd()).unwrap().is_some()
        })
        .unwrap();
    let waits = crate::sys::steer::probe_socket(target, at).unwrap();
    waits.connect_timeout(&target.into(), PATIENCE).unwrap();
    drop(leaves);
    // The last socket moves to the place of the one that left.
    assert_eq!(ours.repair().unwrap_err().kind(), ErrorKind::TimedOut);
    // No panic: the order is that of before, or said to be unknown.
    let _ = ours.steer(&sole(4, 1));
    assert!(ours.repair().is_err(), "it is tried again");
    busy.listen(128).unwrap();
    assert_eq!(ours.repair().unwrap(), Repaired::Again);
    assert_steered(&ours);
    assert_eq!(ours.repair().unwrap(), Repaired::Whole);
}

#[test]
fn such_a_group_is_found_in_the_family_that_it_changed_to() {
    for (addr, changes) in [
        ("127.0.0.1:0", &[Family::V6Mapped][..]),
        ("[::]:0", &[Family::V4]),
        ("[::]:0", &[Family::V4, Family::V6Mapped]),
        ("[::]:0", &[]),
    ] {
        let mut group = Group::open(addr.parse().unwrap(), false, 3).unwrap();
        let configured = group.addr();
        for want in changes {
            group.change_family(*want).unwrap();
        }
        group.steer(&sole(3, 2)).unwrap();
        let (actual, family) = (group.addr(), group.family());
        let _beyond_reach: Vec<_> = [1, 2].map(|slot| group.dup(slot).unwrap()).into();
        drop(group);
        let mut ours = Group::join(configured, false, 4).unwrap();
        assert_eq!(
            (ours.addr(), ours.family()),
            (actual, family),
            "{addr} {changes:?}"
        );
        ours.steer(&sole(4, 0)).unwrap();
        ours.find_order().unwrap();
        assert_steered(&ours);
    }
}

#[test]
fn a_connection_is_counted_taken_and_alive() {
    let group = Group::open(localhost(), false, 1).unwrap();
    assert!(accept_nonblocking(group.fd(0)).unwrap().is_none());
    let mut client = TcpStream::connect(group.addr()).unwrap();
    let Backlog::Listening { queued: 1, max } = group.backlog(0).unwrap() else {
        panic!()
    };
    assert!(max >= 128);
    let (connection, peer) = accept_nonblocking(group.fd(0)).unwrap().unwrap();
    assert_eq!(peer, Some(client.local_addr().unwrap()));
    assert!(is_nonblocking(&connection).unwrap());
    assert!(!is_nonblocking(group.fd(0)).unwrap(), "as it was");
    let mut connection = TcpStream::from(connection);
    client.write_all(b"x").unwrap();
    connection.set_nonblocking(false).unwrap();
    let mut byte = [0];
    connection.read_exact(&mut byte).unwrap();
    let copy = group.dup(0).unwrap();
    set_nonblocking(&copy, true).unwrap();
    assert!(
        is_nonblocking(group.fd(0)).unwrap(),
        "shared by all holders"
    );
    socket2::SockRef::from(&copy)
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    assert_eq!(group.backlog(0).unwrap(), Backlog::NotListening);
}

#[test]
fn nothing_is_lost_when_the_family_changes() {
    for (addr, want, client) in [
        ("0.0.0.0:0", Family::V6Mapped, "127.0.0.1"),
        ("127.0.0.1:0", Family::V6Mapped, "127.0.0.1"),
        ("[::]:0", Family::V4, "127.0.0.1"),
    ] {
        let mut group = Group::open(addr.parse().unwrap(), false, 3).unwrap();
        let client = SocketAddr::new(client.parse().unwrap(), group.addr().port());
        // What a worker inherited.
        let inherited: Vec<_> = (0..3).map(|slot| group.dup(slot).unwrap()).collect();
        let before: Vec<_> = (0..20)
            .map(|_| TcpStream::connect(client).unwrap())
            .collect();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let (during, mut accepted) = std::thread::scope(|scope| {
            let clients = scope.spawn(|| {
                let mut all = Vec::new();
                while !stop.load(relaxed) && all.len() < 2000 {
                    all.push(TcpStream::connect(client).expect("never refused"));
                }
                all
            });
            let accepted = group.change_family(want).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
            stop.store(true, relaxed);
            (clients.join().unwrap(), accepted)
        });
        assert_eq!(group.family(), want);
        assert!(
            inherited
                .iter()
                .all(|fd| backlog(fd).unwrap() == Backlog::NotListening)
        );
        assert!(accepted.len() >= before.len());
        for slot in 0..3 {
            while let Some((connection, _)) = accept_nonblocking(group.fd(slot)).unwrap() {
                accepted.push(connection);
            }
        }
        assert_eq!(accepted.len(), before.len() + during.len());
        assert_eq!(group.change_family(want).unwrap().len(), 0);
    }
    let mut group = Group::open("[::1]:0".parse().unwrap(), false, 1).unwrap();
    let error = group.change_family(Family::V4).unwrap_err();
    assert!(matches!(error, ListenError::Family { .. }), "{error}");
    assert_eq!(group.family(), Family::V6 { only: false });
}

#[test]
fn paths() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b.sock");
    let want = |mode: u32| Ownership {
        mode,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    };
    let open_unix = |path: &Path| open_unix(path, want(0o777));
    let mode = || path.metadata().unwrap().permissions().mode() & 0o7777;
    let first = open_unix(&path).unwrap();
    assert_eq!(mode(), 0o777, "whatever the umask is");
    own_unix(&path, want(0o620)).unwrap();
    assert_eq!(mode(), 0o620);
    let text = open_unix(&path).unwrap_err().to_string();
    assert!(
        text.contains(&format!("pid {}", std::process::id())),
        "{text}"
    );
    let _client = UnixStream::connect(&path).unwrap();
    let (_connection, peer) = accept_nonblocking(first.as_fd()).unwrap().unwrap();
    assert_eq!(peer, None);
    drop(first);
    // Stale now.
    let _second = open_unix(&path).unwrap();
    assert_eq!(holder::of_unix(&path).unwrap().len(), 1);
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "precious").unwrap();
    assert!(
        open_unix(&plain)
            .unwrap_err()
            .to_string()
            .contains("no socket")
    );
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), "precious");
    assert!(
        own_unix(&plain, want(0o600))
            .unwrap_err()
            .to_string()
            .contains("not the socket")
    );
    // A link at the end of the path is not followed, nor is a second name accepted.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(
        open_unix(&link)
            .unwrap_err()
            .to_string()
            .contains("no socket")
    );
    assert!(own_unix(&link, want(0o600)).is_err());
    std::fs::hard_link(&path, dir.path().join("twice")).unwrap();
    assert!(own_unix(&path, want(0o600)).is_err());
    assert_eq!(mode(), 0o777);
    own_unix(&dir.path().join("removed"), want(0o600)).unwrap();
    assert!(open_unix(&dir.path().join("no/where")).is_err());
    assert!(open_unix(&dir.path().join("x".repeat(120))).is_err());
}

#[test]
fn half_open_handshakes_are_seen() {
    // TCP_DEFER_ACCEPT keeps a connection half open until data comes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    crate::sys::raw::setsockopt_int(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5)
        .unwrap();
    let addr = listener.local_addr().unwrap();
    assert!(sockdiag::half_open(addr.port()).unwrap().is_empty());
    let mut client = TcpStream::connect(addr).unwrap();
    let found = sockdiag::half_open(addr.port()).unwrap();
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [(addr, client.local_addr().unwrap())]
    );
    client.write_all(b"x").unwrap();
    super::until("complete", || {
        sockdiag::half_open(addr.port())
            .unwrap()
            .is_empty()
            .then_some(())
    });
}

/// The traces of a program that tests whether its port is taken, and what must not be mistaken for
/// them.
#[test]
fn traces_of_a_test_by_connecting() {
    for ip in ["127.0.0.1", "::1"] {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let traces = || {
            (
                sockdiag::abandoned(addr.port()).unwrap(),
                sockdiag::closed_by_clients(addr.port()).unwrap(),
            )
        };
        assert_eq!(traces(), (0, false));
        let waits = TcpStream::connect(addr).unwrap();
        let mut asks = TcpStream::connect(addr).unwrap();
        asks.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(traces(), (0, false));
        for _ in 0..3 {
            drop(TcpStream::connect(addr).unwrap());
        }
        super::until("the ends", || (traces() == (3, true)).then_some(()));
        // A client that gave up after it had sent something.
        drop(asks);
        assert_eq!(sockdiag::abandoned(addr.port()).unwrap(), 3);
        // Accepted connections are not abandoned.
        let accepted: Vec<_> = (0..5).map(|_| listener.accept().unwrap()).collect();
        assert_eq!(traces(), (0, true));
        drop((waits, accepted));
    }
}

/// The kernel moves sockets when some leave the group; the group finds their new indexes.
#[test]
fn sockets_that_were_shut_down_listen_again_where_they_are_found() {
    for addr in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", "[::1]:0"] {
        let mut group = Group::open(addr.parse().unwrap(), false, 7).unwrap();
        group.steer(&sole(7, 0)).unwrap();
        assert_eq!(group.repair().unwrap(), Repaired::Whole);
        for shut in [
            &[3][..],
            &[6],
            &[1, 2],
            &[5, 2, 4],
            &[1, 6, 2, 3],
            &[6, 5, 4, 3, 2, 1],
            &[2],
        ] {
            for slot in shut {
                let socket = Socket::from(group.dup(*slot).unwrap());
                socket.shutdown(std::net::Shutdown::Both).unwrap();
            }
            assert_eq!(group.repair().unwrap(), Repaired::Again, "{addr} {shut:?}");
            for slot in 0..7 {
                // Removes what the probes of mending left.
                while accept_nonblocking(group.fd(slot)).unwrap().is_some() {}
            }
            for slot in 0..7 {
                group.steer(&sole(7, slot)).unwrap();
                let target = crate::sys::steer::probe_target(group.addr(), group.family());
                let _client = TcpStream::connect(target).unwrap();
                assert!(
                    accept_nonblocking(group.fd(slot)).unwrap().is_some(),
                    "{addr} {shut:?}: slot {slot}"
                );
            }
            group.steer(&sole(7, 0)).unwrap();
        }
    }
}
