//! The kernel's list of TCP sockets, by `NETLINK_SOCK_DIAG` (sock_diag(7)).
//!
//! Hand-written because it is one request and two fixed structures; the layouts are those of
//! `include/uapi/linux/inet_diag.h` and `netlink.h`, in the machine's byte order except for
//! addresses and ports.
//!
//! A minimal kernel has no `inet_diag` (`ENOENT`), a sandbox may refuse netlink: then the same is
//! read as text from `/proc/net/tcp` and `tcp6` (proc(5)), for listening sockets only, which come
//! first.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::{raw, steer};

/// A listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Its address; an IPv4-mapped one as IPv4.
    pub local: SocketAddr,
    /// Whether it is an IPv6 socket that takes no IPv4; false where the kernel does not say.
    pub v6only: bool,
    /// Whether `local` is the IPv4 address of an IPv6 socket: to the kernel, another family.
    pub mapped: bool,
    /// Its inode, as in the links `/proc/PID/fd/N -> socket:[INODE]`.
    pub inode: u64,
    /// The user who opened it.
    pub uid: u32,
}

/// The connections to local port `port` whose handshake is under way: (local, remote), mapped
/// addresses as IPv4. The kernel does not report which listening socket they belong to. It walks
/// its whole table of connections: milliseconds on a big machine, so this is called while draining
/// only.
///
/// # Errors
/// When the kernel refuses: `/proc/net` is no substitute, because it shows every connection of the machine as
/// text, which takes too long where there are many.
pub fn half_open(port: u16) -> io::Result<HashSet<(SocketAddr, SocketAddr)>> {
    Ok(find(Side::Local, port, 1 << TCP_SYN_RECV)?
        .into_iter()
        .map(|socket| (socket.local, socket.remote))
        .collect())
}

/// The number of connections between processes of this machine at local port `port` that wait in an
/// accept queue, and that their client has closed without sending anything.
///
/// # Errors
/// As [`half_open`].
pub fn abandoned(port: u16) -> io::Result<u32> {
    // An accepted one has an inode; the end of the connection counts as an octet.
    let is_one =
        |socket: &&Entry| socket.inode == 0 && socket.unread <= 1 && on_this_machine(socket);
    let count = find(Side::Local, port, 1 << TCP_CLOSE_WAIT)?
        .iter()
        .filter(is_one)
        .count();
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Whether a process of this machine has closed a connection of its own to `port` of this machine
/// within the last minute (`TCP_TIMEWAIT_LEN`).
///
/// # Errors
/// As [`half_open`].
pub fn closed_by_clients(port: u16) -> io::Result<bool> {
    let states = 1 << TCP_FIN_WAIT1 | 1 << TCP_FIN_WAIT2 | 1 << TCP_TIME_WAIT;
    Ok(find(Side::Remote, port, states)?
        .iter()
        .any(on_this_machine))
}

/// Whether both ends are on this machine, and none of them is a probe of rsup.
fn on_this_machine(socket: &Entry) -> bool {
    let (a, b) = (socket.local.ip(), socket.remote.ip());
    (a == b || (a.is_loopback() && b.is_loopback())) && !steer::is_probe(a) && !steer::is_probe(b)
}

/// All sockets that listen on TCP port `port` in this network namespace.
///
/// # Errors
/// As [`half_open`].
pub fn listeners(port: u16) -> io::Result<Vec<ListeningSocket>> {
    let of = |socket: Entry| ListeningSocket {
        local: socket.local,
        v6only: socket.v6only,
        mapped: socket.is_v6 && socket.local.is_ipv4(),
        inode: socket.inode,
        uid: socket.uid,
    };
    let found = match find(Side::Local, port, 1 << TCP_LISTEN) {
        Ok(found) => found,
        Err(error) => from_proc(port).map_err(|why| {
            io::Error::new(
                error.kind(),
                format!("sock_diag: {error}; /proc/net/tcp: {why}"),
            )
        })?,
    };
    Ok(found.into_iter().map(of).collect())
}

/// `states` has a bit for each state.
fn find(side: Side, port: u16, states: u32) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, side, port, states, |socket| found.push(socket))?;
    }
    Ok(found)
}

/// The listening sockets from `/proc/net`. It shows neither `IPV6_V6ONLY` nor the interface of a
/// link-local address.
fn from_proc(port: u16) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let file = match File::open(path) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {
                continue;
            }
            result => result?,
        };
        for line in BufReader::new(file).lines().skip(1) {
            match line_of_proc(&line?) {
                Some((TCP_LISTEN, entry)) if entry.local.port() == port => found.push(entry),
                // Listening sockets come first (net/ipv4/tcp_ipv4.c, tcp_seek_last_pos); the
                // connections of a busy machine are not read.
                Some((state, _)) if state != TCP_LISTEN => break,
                Some(_) | None => {}
            }
        }
    }
    Ok(found)
}

/// The state of a socket, and the rest: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`.
fn line_of_proc(line: &str) -> Option<(u32, Entry)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    let is_v6 = local.len() > "0100007F:0BB9".len();
    let (local, remote) = (address_of_proc(local)?, address_of_proc(fields.next()?)?);
    let state = u32::from_str_radix(fields.next()?, 16).ok()?;
    let unread = u32::from_str_radix(fields.next()?.split_once(':')?.1, 16).ok()?;
    let (uid, inode) = (fields.nth(2)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    Some((
        state,
        Entry {
            local,
            remote,
            uid,
            inode,
            unread,
            is_v6,
            v6only: false,
        },
    ))
}

/// Words of 32 bits in the machine's byte order, and the port, all in hexadecimal digits. IPv4-mapped
/// addresses as IPv4.
fn address_of_proc(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        Some(
            u32::from_str_radix(ip.get(at..at + 8)?, 16)
                .ok()?
                .to_ne_bytes(),
        )
    };
    Some(match ip.len() {
        8 => (Ipv4Addr::from(word(0)?), port).into(),
        32 => {
            let mut all = [0u8; 16];
            for (place, at) in all.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                place.copy_from_slice(&word(at)?);
            }
            (Ipv6Addr::from(all).to_canonical(), port).into()
        }
        _ => return None,
    })
}

const TCP_SYN_RECV: u32 = 3;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LISTEN: u32 = 10;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_SKV6ONLY`, an attribute of one octet.
const ATTR_V6ONLY: u16 = 11;

const HEADER: usize = 16; // struct nlmsghdr
const REQUEST: usize = 56; // struct inet_diag_req_v2
const REPLY: usize = 72; // struct inet_diag_msg

struct Entry {
    local: SocketAddr,
    remote: SocketAddr,
    uid: u32,
    inode: u64,
    is_v6: bool,
    /// Octets in the receive queue.
    unread: u32,
    v6only: bool,
}

/// The end of a connection that has the given port.
#[derive(Clone, Copy)]
enum Side {
    Local,
    Remote,
}

impl Side {
    fn port(self, entry: &Entry) -> u16 {
        match self {
            Self::Local => entry.local.port(),
            Self::Remote => entry.remote.port(),
        }
    }
}

fn dump(
    family: i32,
    side: Side,
    port: u16,
    states: u32,
    mut each: impl FnMut(Entry),
) -> io::Result<()> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM,
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    let request = request(family as u8, side, port, states);
    let sent = socket.send(&request)?;
    if sent != request.len() {
        return Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "short netlink request",
        ));
    }
    // The kernel fills messages of at most 32 KiB (net/netlink/af_netlink.c).
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let got = raw::retry(|| {
            let (start, len) = (buffer.as_mut_ptr().cast(), buffer.len());
            // SAFETY: the buffer is valid for writes of its length.
            let got = unsafe { libc::recv(socket.as_raw_fd(), start, len, 0) };
            usize::try_from(got).map_err(|_| io::Error::last_os_error())
        })?;
        let mut rest = buffer.get(..got).unwrap_or_default();
        while let Some((kind, body, next)) = message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let errno = u32_at(body, 0).map_or(libc::EPROTO, |n| -(n as i32));
                    // No handler for the family: a kernel without IPv6 has no such sockets.
                    return match errno {
                        libc::ENOENT if family == libc::AF_INET6 => Ok(()),
                        errno => Err(io::Error::from_raw_os_error(errno)),
                    };
                }
                _ => {
                    if let Some(entry) = entry(body).filter(|entry| side.port(entry) == port) {
                        each(entry);
                    }
                }
            }
            rest = next;
        }
    }
}

fn request(family: u8, side: Side, port: u16, states: u32) -> [u8; HEADER + REQUEST] {
    let mut out = [0; HEADER + REQUEST];
    let len = out.len() as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    out[0..4].copy_from_slice(&len.to_ne_bytes());
    out[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    out[16] = family;
    out[17] = libc::IPPROTO_TCP as u8;
    out[20..24].copy_from_slice(&states.to_ne_bytes());
    let at = match side {
        Side::Local => 24,
        Side::Remote => 26,
    };
    out[at..at + 2].copy_from_slice(&port.to_be_bytes());
    out
}

/// Splits off the first netlink message: its type, its body, and the messages after it.
fn message(data: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32_at(data, 0)? as usize;
    let kind = u16_at(data, 4)?;
    let body = data.get(HEADER..len)?;
    Some((
        kind,
        body,
        data.get(len.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

fn entry(body: &[u8]) -> Option<Entry> {
    let family = i32::from(*body.first()?);
    let mut entry = Entry {
        local: address(family, body, 4, 8)?,
        remote: address(family, body, 6, 24)?,
        uid: u32_at(body, 64)?,
        inode: u32_at(body, 68)?.into(),
        is_v6: family == libc::AF_INET6,
        unread: u32_at(body, 56)?,
        v6only: false,
    };
    let mut attributes = body.get(REPLY..).unwrap_or_default();
    while let (Some(len), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let len = usize::from(len);
        if len < 4 {
            break;
        }
        if kind == ATTR_V6ONLY {
            entry.v6only = attributes.get(4).is_some_and(|&only| only != 0);
        }
        attributes = attributes
            .get(len.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some(entry)
}

fn address(family: i32, body: &[u8], port_at: usize, ip_at: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(body.get(port_at..port_at + 2)?.try_into().ok()?);
    if family == libc::AF_INET {
        let ip: [u8; 4] = body.get(ip_at..ip_at + 4)?.try_into().ok()?;
        return Some((Ipv4Addr::from(ip), port).into());
    }
    let ip: [u8; 16] = body.get(ip_at..ip_at + 16)?.try_into().ok()?;
    Some(match Ipv6Addr::from(ip).to_canonical() {
        IpAddr::V4(ip) => (ip, port).into(),
        // idiag_if is the interface a link-local address belongs to.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            SocketAddrV6::new(ip, port, 0, u32_at(body, 40)?).into()
        }
        IpAddr::V6(ip) => (ip, port).into(),
    })
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn lines_of_the_kernel() {
        let line = "   3: 0100007F:0BB9 0200007F:C350 03 00000000:00000012 01:00000064 00000000  1000        0 0 3 0000000000000000";
        let (state, entry) = line_of_proc(line).unwrap();
        assert_eq!(state, TCP_SYN_RECV);
        assert_eq!(
            (entry.local, entry.remote),
            (
                "127.0.0.1:3001".parse().unwrap(),
                "127.0.0.2:50000".parse().unwrap()
            )
        );
        assert_eq!((entry.uid, entry.inode, entry.unread), (1000, 0, 0x12));
        let six = |text| address_of_proc(text).map(|addr| addr.to_string());
        assert_eq!(
            six("0000000000000000FFFF00000100007F:0050").unwrap(),
            "127.0.0.1:80"
        );
        assert_eq!(
            six("B80D0120000000000000000001000000:01BB").unwrap(),
            "[2001:db8::1]:443"
        );
        for odd in [
            "",
            ":",
            "0100007F",
            "0100007F:",
            "0100007:0050",
            "é100007F0:0050",
            "00000000000000000000000000000000:zz",
        ] {
            assert_eq!(six(odd), None, "{odd}");
        }
        assert!(line_of_proc("  sl  local_address rem_address   st").is_none());
    }

    /// Both lists, of sockets of both families.
    #[test]
    fn the_text_says_what_netlink_says() {
        for addr in ["127.0.0.1:0", "[::1]:0", "[::]:0", "[::ffff:127.0.0.1]:0"] {
            let Ok(listener) = TcpListener::bind(addr) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let _connection = TcpStream::connect(listener.local_addr().unwrap());
            let netlink = listeners(port).unwrap();
            assert_eq!(netlink.len(), 1, "{addr}");
            let text = from_proc(port).unwrap();
            let [one] = text.as_slice() else {
                panic!("{addr}: {}", text.len())
            };
            assert_eq!(
                (one.local, one.inode, one.uid),
                (netlink[0].local, netlink[0].inode, netlink[0].uid),
                "{addr}"
            );
            assert_eq!(one.is_v6, addr.starts_with('['));
            assert_eq!(netlink[0].mapped, addr.contains("ffff"));
        }
    }
}
