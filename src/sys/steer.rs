//! Which listening socket of a group gets a new connection: a classic BPF program, built here and
//! attached by [`super::listen::Group::steer`].
//!
//! The kernel runs the program of a reuseport group for each SYN
//! (`net/core/sock_reuseport.c`, `run_bpf_filter`), with the packet's data pointer at the TCP
//! payload; the IP header is reached by negative offsets from [`libc::SKF_NET_OFF`]. What it
//! returns is an index into the group, in the order of `listen(2)`. An index beyond the group
//! makes the kernel fall back to a hash over *all* members, gated or not, so the programs built
//! here never return one.
//!
//! **Probes** choose their slot: an IPv4 connection from `127.83.hi.lo` goes to slot
//! `hi * 256 + lo`; an IPv6 connection from `::1` with a non-zero DSCP goes to slot `DSCP - 1`.
//! Both sources exist only on the machine itself (packets with a loopback source that come in by
//! another device are dropped, `ip_route_input_slow` and `ip6_rcv_core`), so no client can reach
//! a slot that is gated from it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libc::sock_filter;
use socket2::{Domain, Protocol, Socket, Type};

use super::listen::Family;
use super::raw;

/// How traffic is spread over the slots that take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Each connection draws its slot anew.
    #[default]
    Random,
    /// Connections from one address go to one slot as long as the weights stay as they are.
    SourceIp,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// One weight per slot of a group ([`super::listen::Group::steer`] puts them in index order). A
    /// slot with weight 0 gets no traffic, only probes.
    pub weights: Vec<u32>,
    /// How a slot with a weight is chosen.
    pub balance: Balance,
    /// The slot that gets everything while all weights are 0. Out of range means the last one.
    pub hold: usize,
}

/// The table cannot become a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManySlots {
    /// Slots asked for.
    pub slots: usize,
    /// The most that fit; see [`max_slots`].
    pub limit: usize,
}

impl std::error::Error for TooManySlots {}
impl fmt::Display for TooManySlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.slots == 0 {
            return f.write_str("a group needs at least one slot");
        }
        write!(
            f,
            "{} slots on one address are more than the {} that can be steered",
            self.slots, self.limit
        )?;
        if self.limit < HARD_LIMIT && self.limit > MAX_PROBED_V6 {
            f.write_str(" (sysctl net.core.optmem_max sets the limit)")?;
        } else if self.limit == MAX_PROBED_V6 {
            f.write_str(" on an address without IPv4")?;
        }
        Ok(())
    }
}

/// First two octets of the source address of an IPv4 probe.
const PROBE_NET_V4: u32 = 0x7f53; // 127.83

/// DSCP has six bits, and its value 0 means "not a probe".
const MAX_PROBED_V6: usize = 63;

/// `BPF_MAXINSNS` of `include/uapi/linux/bpf_common.h`.
const MAX_INSTRUCTIONS: usize = 4096;
/// Instructions beside the ladder, with a margin: probes of both families, and the hash.
const OVERHEAD: usize = 96;
/// The most slots whose ladder (two instructions each) fits the longest program.
const HARD_LIMIT: usize = (MAX_INSTRUCTIONS - OVERHEAD) / 2;

/// The most slots that one group can have here, by the length of a program and by
/// `net.core.optmem_max`, which the *translated* program must fit
/// (`net/core/filter.c`, `sk_reuseport_attach_filter`).
#[must_use]
pub fn max_slots() -> usize {
    std::fs::read_to_string("/proc/sys/net/core/optmem_max")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map_or(HARD_LIMIT, max_slots_within)
}

/// As [`max_slots`], for groups that can be probed only by IPv6 as well: see [`probe_target`].
#[must_use]
pub fn max_slots_of(addr: SocketAddr, family: Family) -> usize {
    if probe_target(addr, family).is_ipv6() {
        max_slots().min(MAX_PROBED_V6)
    } else {
        max_slots()
    }
}

fn max_slots_within(optmem: usize) -> usize {
    // A slot's pair of instructions becomes three of eight bytes: the jump, and the return that
    // is translated into a load and an exit. struct bpf_prog itself stays below 256 bytes.
    const PER_SLOT: usize = 3 * 8;
    (optmem.saturating_sub(256 + OVERHEAD * 2 * 8) / PER_SLOT).clamp(1, HARD_LIMIT)
}

/// The source address that makes an IPv4 connection reach slot `index`: `127.83.hi.lo`.
/// Indexes beyond 65535 do not exist ([`max_slots`]).
#[must_use]
pub fn probe_source_v4(index: usize) -> Ipv4Addr {
    let [hi, lo] = u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes();
    Ipv4Addr::new(127, 83, hi, lo)
}

/// Whether an IPv4 peer (or its IPv4-mapped form) is a prober.
#[must_use]
pub fn is_probe(peer: IpAddr) -> bool {
    matches!(peer.to_canonical(), IpAddr::V4(v4) if v4.octets()[..2] == (PROBE_NET_V4 as u16).to_be_bytes())
}

/// The value of `IPV6_TCLASS` that makes a connection from `::1` reach slot `index`: the DSCP
/// `index + 1` in the upper six bits of the octet. The lower two belong to ECN, which TCP sets
/// itself. `None` for indexes that six bits cannot name.
#[must_use]
pub fn probe_tclass_v6(index: usize) -> Option<u32> {
    (index < MAX_PROBED_V6).then(|| (index as u32 + 1) << 2)
}

/// The address a prober on this machine connects to, for a group at `group_addr`.
///
/// An unspecified address is probed by loopback, by IPv4 wherever the group takes it (its probes
/// reach more slots); any other address is probed as it is.
#[must_use]
pub fn probe_target(group_addr: SocketAddr, family: Family) -> SocketAddr {
    let port = group_addr.port();
    let ip = match group_addr.ip().to_canonical() {
        ip if !ip.is_unspecified() => {
            return match (ip, group_addr) {
                // Keeps the scope of a link-local address.
                (IpAddr::V6(_), SocketAddr::V6(_)) => group_addr,
                (ip, _) => SocketAddr::new(ip, port),
            };
        }
        _ => match family {
            Family::V6 { only: true } => IpAddr::V6(Ipv6Addr::LOCALHOST),
            Family::V4 | Family::V6Mapped | Family::V6 { only: false } => {
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            }
        },
    };
    SocketAddr::new(ip, port)
}

/// A non-blocking, close-on-exec TCP socket whose connection to `target` will reach slot `index`.
/// The caller connects it, once.
///
/// # Errors
/// `InvalidInput` when no probe can name the slot; otherwise what the system said, for instance
/// `EADDRNOTAVAIL` where `::1` or `127/8` is not configured.
pub fn probe_socket(target: SocketAddr, index: usize) -> io::Result<Socket> {
    let unnamed = || {
        let text = format!("slot {index} is beyond what a probe of {target} can name");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // The port is then chosen at connect(2), per destination, so that probes in TIME_WAIT do not
    // use up the source address's ports (ip(7)).
    raw::setsockopt_int(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    let source: SocketAddr = if target.is_ipv4() {
        if index > usize::from(u16::MAX) {
            return Err(unnamed());
        }
        (probe_source_v4(index), 0).into()
    } else {
        socket.set_tclass_v6(probe_tclass_v6(index).ok_or_else(unnamed)?)?;
        (Ipv6Addr::LOCALHOST, 0).into()
    };
    socket.bind(&source.into())?;
    Ok(socket)
}

/// Builds the program for a group whose sockets are of `family`.
///
/// # Errors
/// When the table is empty or has more slots than [`HARD_LIMIT`]. The kernel decides at attach
/// whether the program fits `net.core.optmem_max`.
pub fn program(table: &Table, family: Family) -> Result<Vec<sock_filter>, TooManySlots> {
    let slots = table.weights.len();
    if slots == 0 || slots > HARD_LIMIT {
        return Err(TooManySlots {
            slots,
            limit: HARD_LIMIT,
        });
    }
    let mut traffic_v4 = Vec::new();
    let mut traffic_v6 = Vec::new();
    let ladder = ladder(table);
    // With one slot there is nothing to draw or to hash.
    if ladder.len() > 1 {
        match table.balance {
            Balance::Random => {
                traffic_v4.push(ld_word(libc::SKF_AD_OFF + libc::SKF_AD_RANDOM));
                traffic_v6.clone_from(&traffic_v4);
            }
            Balance::SourceIp => {
                traffic_v4.push(ld_net(IPV4_SOURCE));
                traffic_v6.extend(fold_source_v6());
                traffic_v4.extend(mix());
                traffic_v6.extend(mix());
            }
        }
    }
    let path =
        |probe: Vec<sock_filter>, key: Vec<sock_filter>| [probe, key, ladder.clone()].concat();
    let v4 = || path(probe_v4(slots), traffic_v4.clone());
    let v6 = || path(probe_v6(slots), traffic_v6.clone());
    Ok(match family {
        // Packets to a mapped address are IPv4 packets.
        Family::V4 | Family::V6Mapped => v4(),
        Family::V6 { only: true } => v6(),
        Family::V6 { only: false } => {
            // The ladder, the long part, is shared: the IPv6 half ends in a jump to it.
            let tail = ladder.clone();
            let v4 = [probe_v4(slots), traffic_v4].concat();
            let mut v6 = [probe_v6(slots), traffic_v6].concat();
            v6.push(stmt(libc::BPF_JMP | libc::BPF_JA, v4.len() as u32));
            let mut all = vec![
                stmt(
                    libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
                    libc::SKF_NET_OFF as u32,
                ),
                stmt(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 4),
                jump(libc::BPF_JEQ, 4, 0, 1),
                stmt(libc::BPF_JMP | libc::BPF_JA, v6.len() as u32),
            ];
            all.extend(v6);
            all.extend(v4);
            all.extend(tail);
            all
        }
    })
}

/// Offset of the source address in an IPv4 header.
const IPV4_SOURCE: i32 = 12;
/// Offset of the source address in an IPv6 header.
const IPV6_SOURCE: i32 = 8;

fn stmt(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(op: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | op | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    }
}

fn ld_word(offset: i32) -> sock_filter {
    stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32)
}

fn ld_net(offset: i32) -> sock_filter {
    ld_word(libc::SKF_NET_OFF + offset)
}

fn ret(index: u32) -> sock_filter {
    stmt(libc::BPF_RET | libc::BPF_K, index)
}

fn alu(op: u32, k: u32) -> sock_filter {
    stmt(libc::BPF_ALU | op | libc::BPF_K, k)
}

/// `BPF_RET | BPF_A`; the constant is not in every libc.
const RET_A: u32 = libc::BPF_RET | 0x10;
/// `BPF_MISC | BPF_TAX`
const TAX: u32 = libc::BPF_MISC;
/// `BPF_MISC | BPF_TXA`
const TXA: u32 = libc::BPF_MISC | 0x80;
/// `BPF_ALU | BPF_XOR | BPF_X`
const XOR_X: u32 = libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X;

/// Returns the slot of an IPv4 probe; falls through for everything else.
fn probe_v4(slots: usize) -> Vec<sock_filter> {
    vec![
        ld_net(IPV4_SOURCE),
        stmt(TAX, 0),
        alu(libc::BPF_RSH, 16),
        jump(libc::BPF_JEQ, PROBE_NET_V4, 0, 4),
        stmt(TXA, 0),
        alu(libc::BPF_AND, 0xffff),
        jump(libc::BPF_JGE, slots as u32, 1, 0),
        stmt(RET_A, 0),
    ]
}

/// Returns the slot of an IPv6 probe; falls through for everything else.
fn probe_v6(slots: usize) -> Vec<sock_filter> {
    let reachable = slots.min(MAX_PROBED_V6) as u32;
    vec![
        ld_net(IPV6_SOURCE),
        jump(libc::BPF_JEQ, 0, 0, 12),
        ld_net(IPV6_SOURCE + 4),
        jump(libc::BPF_JEQ, 0, 0, 10),
        ld_net(IPV6_SOURCE + 8),
        jump(libc::BPF_JEQ, 0, 0, 8),
        ld_net(IPV6_SOURCE + 12),
        jump(libc::BPF_JEQ, 1, 0, 6),
        // Version 4 bits, traffic class 8 (DSCP 6, ECN 2), flow label 20: RFC 8200, RFC 2474.
        ld_net(0),
        alu(libc::BPF_RSH, 22),
        alu(libc::BPF_AND, 0x3f),
        // DSCP 0 wraps round to a number that is out of range.
        alu(libc::BPF_SUB, 1),
        jump(libc::BPF_JGE, reachable, 1, 0),
        stmt(RET_A, 0),
    ]
}

/// The IPv6 source address, folded into one word.
fn fold_source_v6() -> Vec<sock_filter> {
    let mut code = vec![ld_net(IPV6_SOURCE)];
    for word in 1..4 {
        code.extend([stmt(TAX, 0), ld_net(IPV6_SOURCE + 4 * word), stmt(XOR_X, 0)]);
        // Addresses differ mostly in their last bits and in one word: mixing between the words
        // keeps a difference in two of them from cancelling out.
        code.push(alu(libc::BPF_MUL, 0x9e37_79b1));
    }
    code
}

/// Spreads neighbouring addresses: the finalizer of MurmurHash3 (Austin Appleby, public domain).
fn mix() -> Vec<sock_filter> {
    let xor_shift = |bits| [stmt(TAX, 0), alu(libc::BPF_RSH, bits), stmt(XOR_X, 0)];
    let mut code = Vec::new();
    code.extend(xor_shift(16));
    code.push(alu(libc::BPF_MUL, 0x85eb_ca6b));
    code.extend(xor_shift(13));
    code.push(alu(libc::BPF_MUL, 0xc2b2_ae35));
    code.extend(xor_shift(16));
    code
}

/// Reduces the number in the accumulator modulo the sum of the weights and walks the thresholds:
/// one pair of instructions per slot, because a conditional jump reaches only 255 ahead.
fn ladder(table: &Table) -> Vec<sock_filter> {
    let slots = table.weights.len();
    // Thresholds stay positive as the kernel's signed immediates.
    let total: u64 = table.weights.iter().map(|&w| u64::from(w)).sum();
    let excess = (total >> 30).max(1).next_power_of_two().trailing_zeros();
    let scaled = |weight: u32| {
        if weight == 0 {
            0
        } else {
            (weight >> excess).max(1)
        }
    };
    let taking: Vec<(u32, u32)> = (0u32..)
        .zip(&table.weights)
        .filter(|&(_, &weight)| weight > 0)
        .map(|(index, &weight)| (index, scaled(weight)))
        .collect();
    let Some((&(last, _), others)) = taking.split_last() else {
        return vec![ret(table.hold.min(slots - 1) as u32)];
    };
    if others.is_empty() {
        return vec![ret(last)];
    }
    let total: u32 = taking.iter().map(|&(_, weight)| weight).sum();
    let mut code = vec![alu(libc::BPF_MOD, total)];
    let mut threshold = 0;
    for &(index, weight) in others {
        threshold += weight;
        code.extend([jump(libc::BPF_JGE, threshold, 1, 0), ret(index)]);
    }
    code.push(ret(last));
    code
}
