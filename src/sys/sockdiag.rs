//! The kernel's list of TCP sockets, by `NETLINK_SOCK_DIAG` (sock_diag(7)).
//!
//! Written out here because the job is one request and two fixed structures; the layouts are those
//! of `include/uapi/linux/inet_diag.h` and `netlink.h`, in the machine's byte order but for
//! addresses and ports.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::raw;

/// A listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Its address; an IPv4-mapped one as IPv4.
    pub local: SocketAddr,
    /// Whether it is an IPv6 socket that takes no IPv4.
    pub v6only: bool,
    /// Its inode, as in the links `/proc/PID/fd/N -> socket:[INODE]`.
    pub inode: u64,
    /// The user who opened it.
    pub uid: u32,
}

/// The connections to local port `port` whose handshake is under way: (local, remote), mapped
/// addresses as IPv4. The kernel does not say to which listening socket they belong. It walks its
/// whole table of connections for this: milliseconds on a big machine, so ask while draining only.
///
/// # Errors
/// When the kernel refuses (a sandbox without netlink).
pub fn half_open(port: u16) -> io::Result<HashSet<(SocketAddr, SocketAddr)>> {
    let mut found = HashSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, port, 1 << TCP_SYN_RECV, |socket| {
            found.insert((socket.local, socket.remote));
        })?;
    }
    Ok(found)
}

/// All sockets that listen on TCP port `port` in this network namespace.
///
/// # Errors
/// As [`half_open`].
pub fn listeners(port: u16) -> io::Result<Vec<ListeningSocket>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family, port, 1 << TCP_LISTEN, |socket| {
            found.push(ListeningSocket {
                local: socket.local,
                v6only: socket.v6only,
                inode: u64::from(socket.inode),
                uid: socket.uid,
            });
        })?;
    }
    Ok(found)
}

const TCP_SYN_RECV: u32 = 3;
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
    inode: u32,
    v6only: bool,
}

fn dump(family: i32, port: u16, states: u32, mut each: impl FnMut(Entry)) -> io::Result<()> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(libc::NETLINK_SOCK_DIAG)))?;
    let request = request(family as u8, port, states);
    let sent = socket.send(&request)?;
    if sent != request.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "short netlink request"));
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
                    if let Some(entry) = entry(body).filter(|entry| entry.local.port() == port) {
                        each(entry);
                    }
                }
            }
            rest = next;
        }
    }
}

fn request(family: u8, port: u16, states: u32) -> [u8; HEADER + REQUEST] {
    let mut out = [0; HEADER + REQUEST];
    let len = out.len() as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    out[0..4].copy_from_slice(&len.to_ne_bytes());
    out[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    out[16] = family;
    out[17] = libc::IPPROTO_TCP as u8;
    out[20..24].copy_from_slice(&states.to_ne_bytes());
    out[24..26].copy_from_slice(&port.to_be_bytes());
    out
}

/// Splits off the first netlink message: its type, its body, and the messages after it.
fn message(data: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32_at(data, 0)? as usize;
    let kind = u16_at(data, 4)?;
    let body = data.get(HEADER..len)?;
    Some((kind, body, data.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn entry(body: &[u8]) -> Option<Entry> {
    let family = i32::from(*body.first()?);
    let mut entry = Entry {
        local: address(family, body, 4, 8)?,
        remote: address(family, body, 6, 24)?,
        uid: u32_at(body, 64)?,
        inode: u32_at(body, 68)?,
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
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
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
        IpAddr::V6(ip) if ip.is_unicast_link_local() => SocketAddrV6::new(ip, port, 0, u32_at(body, 40)?).into(),
        IpAddr::V6(ip) => (ip, port).into(),
    })
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}
