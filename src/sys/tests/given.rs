//! Sockets that another process listens with and passes to rsup.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use super::localhost;
use crate::sys::listen::{Family, Given, Group, ListenError, Lookup, accept_nonblocking};
use crate::sys::steer::{self, Balance, Table};

/// As systemd's: listens without SO_REUSEPORT, and its owner keeps a copy.
fn theirs(addr: SocketAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(addr).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn given(listener: &TcpListener) -> Given {
    let (given, rest) = Given::new(vec![OwnedFd::from(listener.try_clone().unwrap())]);
    assert!(rest.is_empty());
    given
}

fn group(listener: &TcpListener, addr: SocketAddr, size: usize) -> Group {
    match given(listener).tcp(addr, false).unwrap() {
        Lookup::Same(fd) => Group::open_given(fd, size).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn sole(size: usize, slot: usize) -> Table {
    let mut weights = vec![0; size];
    weights[slot] = 1;
    Table {
        weights,
        balance: Balance::Random,
        hold: 0,
    }
}

/// Where a connection arrives.
fn arrives_at(group: &Group, connect: impl FnOnce() -> TcpStream) -> usize {
    let _client = connect();
    let took: Vec<usize> = (0..group.len())
        .filter(|slot| accept_nonblocking(group.fd(*slot)).unwrap().is_some())
        .collect();
    assert_eq!(took.len(), 1, "{took:?}");
    took[0]
}

fn nonblocking(group: &Group) {
    (0..group.len())
        .for_each(|slot| crate::sys::listen::set_nonblocking(group.fd(slot), true).unwrap());
}

#[test]
fn a_given_socket_is_index_0_of_the_kernels_group() {
    let (listener, addr) = theirs(localhost());
    let group = group(&listener, addr, 4);
    nonblocking(&group);
    assert!(group.is_given() && group.addr() == addr && group.family() == Family::V4);
    group.steer(&sole(4, 2)).unwrap();
    assert_eq!(arrives_at(&group, || TcpStream::connect(addr).unwrap()), 2);
    let target = steer::probe_target(addr, group.family());
    for slot in [0, 3, 1, 2] {
        let probe = || {
            let socket = steer::probe_socket(target, slot).unwrap();
            socket
                .connect_timeout(&target.into(), super::PATIENCE)
                .unwrap();
            socket.into()
        };
        assert_eq!(arrives_at(&group, probe), slot);
    }
}

#[test]
fn what_was_queued_before_is_kept() {
    let (listener, addr) = theirs(localhost());
    let mut early = TcpStream::connect(addr).unwrap();
    early.write_all(b"early").unwrap();
    let group = group(&listener, addr, 3);
    nonblocking(&group);
    let (connection, _) = accept_nonblocking(group.fd(0))
        .unwrap()
        .expect("in the queue of slot 0");
    let mut text = [0; 5];
    TcpStream::from(connection).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"early");
}

#[test]
fn its_owner_goes_on_listening_after_us_and_can_give_it_again() {
    let (listener, addr) = theirs(localhost());
    for _ in 0..3 {
        let group = group(&listener, addr, 3);
        nonblocking(&group);
        group.steer(&sole(3, 2)).unwrap();
        assert_eq!(arrives_at(&group, || TcpStream::connect(addr).unwrap()), 2);
        group.end();
        // The program of the group is still attached and names a socket that does not exist.
        let waits = TcpStream::connect(addr).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, waits.local_addr().unwrap());
    }
}

#[test]
fn an_ipv6_socket_for_both_families_can_be_given() {
    let (listener, addr) = theirs("[::]:0".parse().unwrap());
    let group = group(&listener, addr, 2);
    nonblocking(&group);
    assert_eq!(group.family(), Family::V6 { only: false });
    group.steer(&sole(2, 1)).unwrap();
    for client in ["127.0.0.1", "::1"] {
        let to = SocketAddr::new(client.parse().unwrap(), addr.port());
        assert_eq!(arrives_at(&group, || TcpStream::connect(to).unwrap()), 1);
    }
}

#[test]
fn a_given_socket_stays_in_its_family() {
    let (listener, addr) = theirs(localhost());
    let mut group = group(&listener, addr, 2);
    let error = group.change_family(Family::V6Mapped).unwrap_err();
    assert!(matches!(error, ListenError::Given { .. }), "{error}");
    assert!(error.to_string().contains(".socket unit"), "{error}");
}

#[test]
fn strangers_in_its_group_are_refused() {
    let (listener, addr) = theirs(localhost());
    let first = group(&listener, addr, 2);
    match given(&listener).tcp(addr, false).unwrap() {
        Lookup::Same(fd) => {
            let error = Group::open_given(fd, 2).unwrap_err();
            assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        }
        other => panic!("{other:?}"),
    }
    drop(first);
}

#[test]
fn a_group_taken_back_knows_that_its_first_socket_is_given() {
    let (listener, addr) = theirs(localhost());
    let group = group(&listener, addr, 2);
    let copies = (0..2).map(|slot| group.dup(slot).ok()).collect();
    let mut again = Group::adopt(copies).unwrap();
    assert!(!again.is_given());
    again.recognise(&given(&listener));
    assert!(again.is_given());
    again.end();
    assert!(TcpStream::connect(addr).is_ok());
}

#[test]
fn given_sockets_are_found_by_address_alone() {
    let (listener, addr) = theirs(localhost());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let unix = UnixListener::bind(&path).unwrap();
    let (read, _write) = std::io::pipe().unwrap();
    let (given, rest) = Given::new(vec![listener.into(), unix.into(), read.into()]);
    assert_eq!(rest.len(), 1, "a pipe does not listen");
    assert!(
        given
            .unix(&path)
            .unwrap()
            .is_some_and(|fd| fd.as_fd().try_clone_to_owned().is_ok())
    );
    assert!(given.unix(&folder.path().join("other")).unwrap().is_none());
    let any = SocketAddr::new("0.0.0.0".parse().unwrap(), addr.port());
    assert!(matches!(given.tcp(any, false).unwrap(), Lookup::Other(found) if found == addr));
    let elsewhere = SocketAddr::new("127.0.0.1".parse().unwrap(), addr.port() ^ 1);
    assert!(matches!(
        given.tcp(elsewhere, false).unwrap(),
        Lookup::Nothing
    ));
    assert_eq!(
        given.addresses(),
        [addr.to_string(), format!("unix:{}", path.display())]
    );
}
