//! The steering program: in an interpreter of our own, and in the kernel.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::sock_filter;
use proptest::prelude::*;
use socket2::{Domain, Socket, Type};

use super::{PATIENCE, until};
use crate::sys::listen::{Backlog, Family, Group, accept_nonblocking};
use crate::sys::steer::{
    Balance, Table, max_slots, probe_socket, probe_source_v4, probe_target, probe_tclass_v6,
    program,
};

/// Runs a program as the kernel would, for a packet with this IP header.
fn run(program: &[sock_filter], header: &[u8], random: u32) -> u32 {
    let (mut a, mut x, mut pc) = (0u32, 0u32, 0usize);
    loop {
        let sock_filter { code, jt, jf, k } = program[pc];
        pc += 1;
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match u32::from(code) {
            0x20 if k == (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32 => a = random,
            0x20 => {
                let at = (k as i32 - libc::SKF_NET_OFF) as usize;
                a = u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            }
            0x30 => a = u32::from(header[(k as i32 - libc::SKF_NET_OFF) as usize]),
            0x07 => x = a,
            0x87 => a = x,
            0x74 => a >>= k,
            0x54 => a &= k,
            0x14 => a = a.wrapping_sub(k),
            0x24 => a = a.wrapping_mul(k),
            0x94 => a %= k,
            0xac => a ^= x,
            0x15 => pc += branch(a == k),
            0x35 => pc += branch(a >= k),
            0x05 => pc += k as usize,
            0x06 => return k,
            0x16 => return a,
            other => panic!("opcode {other:#x}"),
        }
    }
}

fn packet_v4(source: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0u8; 20];
    header[0] = 0x45;
    header[12..16].copy_from_slice(&source.octets());
    header
}

fn packet_v6(source: Ipv6Addr, tclass: u32) -> Vec<u8> {
    let mut header = vec![0u8; 40];
    header[0..4].copy_from_slice(&(6 << 28 | tclass << 20 | 0xabcde).to_be_bytes());
    header[8..24].copy_from_slice(&source.octets());
    header
}

fn table(weights: &[u32]) -> Table {
    Table {
        weights: weights.to_vec(),
        balance: Balance::Random,
        hold: 0,
    }
}

fn any_table() -> impl Strategy<Value = Table> {
    let weight = prop_oneof![2 => Just(0u32), 4 => 1u32..100, 1 => any::<u32>()];
    let weights = prop_oneof![
        proptest::collection::vec(weight.clone(), 1..12),
        proptest::collection::vec(weight, 100..400),
    ];
    let balance = prop_oneof![Just(Balance::Random), Just(Balance::SourceIp)];
    (weights, balance, 0usize..500).prop_map(|(weights, balance, hold)| Table {
        weights,
        balance,
        hold,
    })
}

const FAMILIES: [Family; 4] = [
    Family::V4,
    Family::V6 { only: true },
    Family::V6 { only: false },
    Family::V6Mapped,
];

fn takes(family: Family) -> (bool, bool) {
    match family {
        Family::V4 | Family::V6Mapped => (true, false),
        Family::V6 { only } => (!only, true),
    }
}

proptest! {
    #[test]
    fn traffic_reaches_only_slots_with_a_weight(
        table in any_table(), random: u32, v4: [u8; 4], v6: [u8; 16], tclass in 0u32..256
    ) {
        let len = table.weights.len();
        let gated = table.weights.iter().all(|&weight| weight == 0);
        for family in FAMILIES {
            let program = program(&table, family).unwrap();
            let mut packets = Vec::new();
            if takes(family).0 && v4[..2] != [127, 83] { packets.push(packet_v4(v4.into())); }
            if takes(family).1 { packets.push(packet_v6(v6.into(), tclass)); }
            for packet in packets {
                let slot = run(&program, &packet, random) as usize;
                if gated {
                    prop_assert_eq!(slot, table.hold.min(len - 1));
                } else {
                    prop_assert!(table.weights[slot] > 0);
                }
            }
        }
    }

    #[test]
    fn a_probe_reaches_its_slot_whatever_the_weights(
        table in any_table(), random: u32, index in 0usize..500, ecn in 0u32..4
    ) {
        let len = table.weights.len();
        for family in FAMILIES {
            let program = program(&table, family).unwrap();
            let (v4, v6) = takes(family);
            if v4 {
                let slot = run(&program, &packet_v4(probe_source_v4(index)), random) as usize;
                prop_assert!(slot == index || (index >= len && slot < len));
            }
            if v6 && let Some(tclass) = probe_tclass_v6(index) {
                let packet = packet_v6(Ipv6Addr::LOCALHOST, tclass | ecn);
                let slot = run(&program, &packet, random) as usize;
                prop_assert!(slot == index || (index >= len && slot < len));
            }
        }
    }

    #[test]
    fn every_draw_has_its_share(weights in proptest::collection::vec(0u32..20, 1..30)) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let program = program(&table(&weights), Family::V4).unwrap();
        let mut counts = vec![0u32; weights.len()];
        let packet = packet_v4(Ipv4Addr::new(10, 0, 0, 1));
        // One whole round of the modulus: exact shares.
        for random in 0..total {
            counts[run(&program, &packet, random) as usize] += 1;
        }
        prop_assert_eq!(counts, weights);
    }
}

#[test]
fn neighbouring_addresses_spread_evenly() {
    let table = Table {
        balance: Balance::SourceIp,
        ..table(&[1, 1, 0, 2])
    };
    let program = program(&table, Family::V6 { only: false }).unwrap();
    let mut counts = [0u32; 4];
    for n in 0..8000u32 {
        let v4 = Ipv4Addr::from(0x0a00_0000 + n);
        let v6 = Ipv6Addr::from((0x2001_0db8_u128 << 96) + (u128::from(n) << 64) + u128::from(n));
        counts[run(&program, &packet_v4(v4), 7) as usize] += 1;
        counts[run(&program, &packet_v6(v6, 0), 9) as usize] += 1;
    }
    assert_eq!(counts[2], 0);
    for (count, share) in [(counts[0], 4000), (counts[1], 4000), (counts[3], 8000)] {
        assert!(count.abs_diff(share) < 400, "{counts:?}");
    }
}

#[test]
fn tables_that_cannot_be() {
    assert!(program(&table(&[]), Family::V4).is_err());
    let limit = program(&table(&vec![1; 100_000]), Family::V4).unwrap_err();
    assert!(limit.to_string().contains("100000 slots"), "{limit}");
    let longest = program(&table(&vec![1; limit.limit]), Family::V6 { only: false }).unwrap();
    assert!(longest.len() <= 4096);
    let huge = table(&[u32::MAX; 64]);
    assert!(program(&huge, Family::V4).is_ok());
}

// ---- in the kernel ----

fn group(addr: &str, v6only: bool, size: usize) -> Group {
    Group::open(addr.parse().unwrap(), v6only, size).unwrap()
}

/// Which slot a connection from a plain client reaches.
fn arrivals(group: &Group) -> HashMap<usize, usize> {
    (0..group.len())
        .filter_map(|slot| match group.backlog(slot).unwrap() {
            Backlog::Listening { queued: 0, .. } => None,
            Backlog::Listening { queued, .. } => Some((slot, queued as usize)),
            Backlog::NotListening => panic!("slot {slot} does not listen"),
        })
        .collect()
}

fn clear(group: &Group) {
    for slot in 0..group.len() {
        while accept_nonblocking(group.fd(slot)).unwrap().is_some() {}
    }
}

fn probe(group: &Group, index: usize) -> TcpStream {
    let target = probe_target(group.addr(), group.family());
    let socket = probe_socket(target, index).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.connect_timeout(&target.into(), PATIENCE).unwrap();
    socket.into()
}

/// Gating, probing, holding: with all sockets of `group`, reached by `client`.
fn behaves(group: &Group, client: SocketAddr) {
    for open in 0..group.len() {
        let mut weights = vec![0; group.len()];
        weights[open] = 3;
        group.steer(&table(&weights)).unwrap();
        let _client = TcpStream::connect_timeout(&client, PATIENCE).unwrap();
        assert_eq!(arrivals(group), HashMap::from([(open, 1)]));
        clear(group);
        for index in 0..group.len() {
            let _probe = probe(group, index);
            assert_eq!(
                arrivals(group),
                HashMap::from([(index, 1)]),
                "gate at {open}"
            );
            clear(group);
        }
    }
    let held = Table {
        hold: 1,
        ..table(&vec![0; group.len()])
    };
    group.steer(&held).unwrap();
    let clients: Vec<_> = (0..10)
        .map(|_| TcpStream::connect(client).unwrap())
        .collect();
    assert_eq!(arrivals(group), HashMap::from([(1, clients.len())]));
    clear(group);
}

fn at(ip: &str, group: &Group) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), group.addr().port())
}

#[test]
fn ipv4() {
    for addr in ["127.0.0.1:0", "0.0.0.0:0", "127.4.5.6:0"] {
        let group = group(addr, false, 4);
        let target = probe_target(group.addr(), group.family());
        behaves(&group, target);
    }
}

#[test]
fn dual_stack() {
    let group = group("[::]:0", false, 4);
    behaves(&group, at("127.0.0.1", &group));
    behaves(&group, at("::1", &group));
}

#[test]
fn ipv6_only() {
    for addr in ["[::]:0", "[::1]:0"] {
        let group = group(addr, true, 4);
        behaves(&group, at("::1", &group));
    }
}

#[test]
fn mapped() {
    for addr in ["127.0.0.1:0", "0.0.0.0:0"] {
        let mut group = group(addr, false, 3);
        assert!(group.change_family(Family::V6Mapped).unwrap().is_empty());
        assert_eq!(group.family(), Family::V6Mapped);
        let target = probe_target(group.addr(), group.family());
        assert!(target.is_ipv4());
        behaves(&group, target);
        // Exactly what was configured: no IPv6.
        assert!(TcpStream::connect(at("::1", &group)).is_err());
    }
}

#[test]
fn shares_and_stickiness() {
    let group = group("127.0.0.1:0", false, 3);
    group.steer(&table(&[1, 0, 3])).unwrap();
    let clients: Vec<_> = (0..400)
        .map(|_| TcpStream::connect(group.addr()).unwrap())
        .collect();
    let found = arrivals(&group);
    // Six standard deviations.
    assert!(
        found[&0].abs_diff(100) < 52 && found[&0] + found[&2] == clients.len(),
        "{found:?}"
    );
    drop(clients);
    clear(&group);
    let sticky = Table {
        balance: Balance::SourceIp,
        ..table(&[1, 1, 1])
    };
    group.steer(&sticky).unwrap();
    let mut used = HashMap::new();
    for host in 1..40u8 {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                let source: SocketAddr = (Ipv4Addr::new(127, 0, 7, host), 0).into();
                socket.bind(&source.into()).unwrap();
                socket.connect(&group.addr().into()).unwrap();
                socket
            })
            .collect();
        let found = arrivals(&group);
        assert_eq!(found.len(), 1, "one address, one slot");
        *used.entry(*found.keys().next().unwrap()).or_insert(0) += clients.len();
        clear(&group);
    }
    assert_eq!(used.len(), 3, "{used:?}");
}

/// Programs swapped as fast as possible while clients connect: none is refused, and once a swap
/// is done no new connection reaches a slot that it closed.
#[test]
fn swaps_under_load_lose_nothing() {
    let group = group("127.0.0.1:0", false, 4);
    group.steer(&table(&[1, 0, 0, 0])).unwrap();
    let (addr, stop) = (group.addr(), AtomicBool::new(false));
    let (made, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for slot in 0..group.len() {
            let (group, stop, taken) = (&group, &stop, &taken);
            scope.spawn(move || {
                loop {
                    match accept_nonblocking(group.fd(slot)).unwrap() {
                        Some(_) => _ = taken.fetch_add(1, Ordering::Relaxed),
                        None if stop.load(Ordering::Relaxed) => break,
                        None => std::thread::sleep(std::time::Duration::from_millis(1)),
                    }
                }
            });
        }
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..300 {
                        TcpStream::connect(addr).expect("no connection is refused");
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut swaps = 0usize;
        while !clients
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            let mut weights = [1, 1, 1, 1];
            weights[swaps % 4] = 0;
            group.steer(&table(&weights)).unwrap();
            swaps += 1;
            std::thread::yield_now();
        }
        until("all taken", || {
            (taken.load(Ordering::Relaxed) == made.load(Ordering::Relaxed)).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        assert_eq!(made.load(Ordering::Relaxed), 600);
    });
}

#[test]
fn as_many_slots_as_promised() {
    let limit = max_slots();
    let error = Group::open("127.0.0.1:0".parse().unwrap(), false, limit + 1).unwrap_err();
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
    // The program of all of them is taken by the kernel, on a group however small: the length
    // alone matters.
    let group = group("[::]:0", false, 1);
    let weights: Vec<u32> = (1..).take(limit).collect();
    let balance = Balance::SourceIp;
    let program = program(
        &Table {
            weights,
            balance,
            hold: 0,
        },
        group.family(),
    )
    .unwrap();
    crate::sys::listen::attach_for_test(&group, &program).unwrap();
    assert!(
        Group::open("[::1]:0".parse().unwrap(), true, 64).is_err(),
        "63 can be probed"
    );
}

/// Runs `test` on a thread in a network namespace of its own, where addresses and limits may be
/// set; skipped where that is not allowed.
fn in_own_network(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("skipped: no network namespace without root");
                return;
            }
            let Some(ip) = super::program("ip") else {
                return;
            };
            // Forked from this thread, so in its namespace.
            let ip = |line: &str| {
                std::process::Command::new(&ip)
                    .args(line.split(' '))
                    .status()
                    .unwrap()
                    .success()
            };
            assert!(ip("link set lo up"));
            if !ip("link add name net0 type bridge") {
                eprintln!("skipped: no network bridges");
                return;
            }
            assert!(ip("link set net0 up"));
            assert!(ip("addr add 10.83.0.1/24 dev net0"));
            assert!(ip("addr add fd83::1/64 dev net0 nodad"));
            // IPv6 sets up its addresses in the background.
            until("addresses", || {
                let listener = std::net::TcpListener::bind("[fd83::1]:0").ok()?;
                TcpStream::connect(listener.local_addr().ok()?).ok()
            });
            test();
        });
        thread.join().unwrap();
    });
}

#[test]
fn addresses_of_other_interfaces_are_probed_too() {
    in_own_network(|| {
        let mut v4 = group("10.83.0.1:3001", false, 3);
        behaves(&v4, v4.addr());
        v4.change_family(Family::V6Mapped).unwrap();
        behaves(&v4, v4.addr());
        for only in [true, false] {
            let v6 = group("[fd83::1]:3001", only, 3);
            assert!(probe_target(v6.addr(), v6.family()).is_ipv6());
            behaves(&v6, v6.addr());
        }
        // From outside the loopback, a wildcard is one address like the others.
        let any = group("[::]:3002", false, 3);
        behaves(&any, at("10.83.0.1", &any));
        behaves(&any, at("fd83::1", &any));
    });
}

#[test]
fn a_small_optmem_is_respected() {
    in_own_network(|| {
        let file = "/proc/sys/net/core/optmem_max";
        if std::fs::write(file, "20480").is_err() || max_slots() > 1000 {
            eprintln!("skipped: the limit is not one of the namespace (before Linux 6.9)");
            return;
        }
        let limit = max_slots();
        assert!(limit > 700, "{limit}");
        let group = group("[::]:0", false, 1);
        let fits = |slots: usize| {
            let weights: Vec<u32> = (1..).take(slots).collect();
            let table = Table {
                weights,
                balance: Balance::SourceIp,
                hold: 0,
            };
            let program = program(&table, group.family()).unwrap();
            crate::sys::listen::attach_for_test(&group, &program)
        };
        fits(limit).unwrap();
        let error = fits(1000).unwrap_err();
        assert!(error.to_string().contains("net.core.optmem_max"), "{error}");
        assert!(Group::open("[::]:0".parse().unwrap(), false, limit + 1).is_err());
    });
}
