//! Reads what a trapped call is about: its arguments in the caller's memory, and the caller's
//! socket.
//!
//! Each fact can be read in two ways, and the second is tried where the first is refused: sandboxes
//! refuse single system calls (Docker's default seccomp profile `pidfd_getfd(2)`, that of Docker
//! 20.10 and older `process_vm_readv(2)` as well), while `/proc` has the same facts. All of it
//! needs the rights of ptrace(2); [`owner`] explains how root without `CAP_SYS_PTRACE` reads
//! processes of another user.
//!
//! The caller of these functions checks *after* all of them that the call still waits
//! (`SECCOMP_IOCTL_NOTIF_ID_VALID`): only then is what was read of the right process.

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::FileExt;

use super::AppSocket;
use crate::sys::owner::{self, refused};
use crate::sys::{listen, process, raw, rescue};

/// The internet address that a trapped call got as pointer and length, as `bind(2)` and
/// `connect(2)` do; `None` for another family.
///
/// # Errors
/// When the memory of the thread cannot be read, or is not mapped.
pub(super) fn address(thread: u32, pointer: u64, len: u64) -> io::Result<Option<SocketAddr>> {
    let mut bytes = [0u8; 28];
    let want = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    let got = read_memory(thread, pointer, &mut bytes[..want])?;
    Ok(bytes.get(..got).and_then(parse_address))
}

/// Reads memory of another process; fewer bytes where the rest is not mapped.
fn read_memory(thread: u32, pointer: u64, into: &mut [u8]) -> io::Result<usize> {
    let first = match process_vm_readv(thread, pointer, into) {
        Err(error) if refused(&error) => error,
        result => return result.map_err(|error| raw::context("process_vm_readv", &error)),
    };
    // The right to read is checked when the file is opened (proc(5), ptrace(2): PTRACE_MODE_ATTACH_FSCREDS).
    let path = format!("/proc/{thread}/mem");
    let memory = owner::with_access(thread, || File::open(&path)).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("process_vm_readv: {first}; /proc/PID/mem: {error}"),
        )
    })?;
    memory
        .read_at(into, pointer)
        .map_err(|error| raw::context("/proc/PID/mem", &error))
}

fn process_vm_readv(thread: u32, pointer: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: pointer as *mut _,
        iov_len: into.len(),
    };
    // SAFETY: the local vector is `into` and its length; the kernel checks the remote one.
    let got = unsafe {
        libc::process_vm_readv(thread as i32, &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// The layouts of ip(7) and ipv6(7).
fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let (ip, _) = rest.split_first_chunk::<4>()?;
            Some((Ipv4Addr::from(*ip), port).into())
        }
        libc::AF_INET6 => {
            let (flow, rest) = rest.split_first_chunk::<4>()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            // RFC 2133 had no scope id, and the kernel still takes addresses without.
            let scope = rest
                .split_first_chunk::<4>()
                .map_or(0, |(s, _)| u32::from_ne_bytes(*s));
            let flow = u32::from_be_bytes(*flow);
            Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, flow, scope).into())
        }
        _ => None,
    }
}

/// The process that a thread belongs to.
pub(super) fn thread_group(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

/// The socket that is number `fd` of a thread.
///
/// # Errors
/// `EBADF` or `ENOENT` when there is none; when neither way is permitted.
pub(super) fn socket(thread: u32, process: u32, fd: c_int) -> io::Result<AppSocket> {
    let flags = || owner::with_access(thread, || descriptor_flags(thread, fd));
    let first = match by_duplicate(thread, process, fd) {
        Ok(Duplicate {
            nonblocking,
            v6only,
            is_stream,
            is_v6,
        }) => {
            let cloexec = flags()? & libc::O_CLOEXEC != 0;
            return Ok(AppSocket {
                nonblocking,
                cloexec,
                v6only: Some(v6only),
                is_stream,
                is_v6,
            });
        }
        Err(error) if refused(&error) => error,
        Err(error) => return Err(raw::context("pidfd_getfd", &error)),
    };
    let beside = |what: &'static str| {
        move |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("pidfd_getfd: {first}; {what}: {error}"),
            )
        }
    };
    let path = CString::new(format!("/proc/{thread}/fd/{fd}"))?;
    let name = match owner::with_access(thread, || protocol_name(&path)) {
        Ok(name) => name,
        Err(error) => return Err(beside("/proc/PID/fd")(error)),
    };
    let flags = flags()?;
    let (is_stream, is_v6) = kind(&name);
    Ok(AppSocket {
        nonblocking: flags & libc::O_NONBLOCK != 0,
        cloexec: flags & libc::O_CLOEXEC != 0,
        v6only: if is_v6 { None } else { Some(false) },
        is_stream,
        is_v6,
    })
}

/// What a duplicate of a socket shows.
struct Duplicate {
    nonblocking: bool,
    v6only: bool,
    is_stream: bool,
    is_v6: bool,
}

/// Examines the app's socket through a short-lived duplicate.
fn by_duplicate(thread: u32, process: u32, fd: c_int) -> io::Result<Duplicate> {
    let pidfd = match process::pidfd_open_thread(thread) {
        // Before Linux 6.9 only whole processes have pidfds; threads share descriptors, as a rule.
        Err(error) if raw::is_errno(&error, libc::EINVAL) => process::pidfd_open(process),
        result => result,
    }?;
    let copy = rescue::getfd(&pidfd, fd)?;
    let option = |name| raw::getsockopt::<c_int>(&copy, libc::SOL_SOCKET, name);
    let is_v6 = option(libc::SO_DOMAIN)? == libc::AF_INET6;
    Ok(Duplicate {
        nonblocking: listen::is_nonblocking(&copy)?,
        v6only: is_v6
            && raw::getsockopt::<c_int>(&copy, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0,
        is_stream: option(libc::SO_TYPE)? == libc::SOCK_STREAM,
        is_v6,
    })
}

/// `O_NONBLOCK` of the description and `O_CLOEXEC` of the descriptor, which a duplicate does not show:
/// proc(5), fdinfo.
pub(super) fn descriptor_flags(thread: u32, fd: c_int) -> io::Result<c_int> {
    let text = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{fd}"))?;
    let flags = text
        .lines()
        .find_map(|line| c_int::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    Ok(flags.unwrap_or(0))
}

/// The name of a socket's protocol, an attribute of every socket file (`net/socket.c`,
/// `sockfs_xattr_get`).
fn protocol_name(path: &CString) -> io::Result<Vec<u8>> {
    let mut name = vec![0u8; 64];
    // SAFETY: both strings end with a zero, and the buffer is valid for writes of its length.
    let got = unsafe {
        libc::getxattr(
            path.as_ptr(),
            c"system.sockprotoname".as_ptr(),
            name.as_mut_ptr().cast(),
            name.len(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    name.truncate(got);
    name.retain(|byte| *byte != 0);
    Ok(name)
}

/// Whether a protocol is one of TCP's, and of IPv6. Go's servers use MPTCP where the kernel has it.
fn kind(name: &[u8]) -> (bool, bool) {
    (
        matches!(name, b"TCP" | b"TCPv6" | b"MPTCP" | b"MPTCPv6"),
        name.ends_with(b"v6"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_the_kernel_lays_them_out() {
        let v4 = [2, 0, 0x0b, 0xb9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_address(&v4), Some("127.0.0.1:3001".parse().unwrap()));
        let mut v6 = [0u8; 28];
        v6[0] = 10;
        v6[2..4].copy_from_slice(&443u16.to_be_bytes());
        v6[23] = 1;
        assert_eq!(parse_address(&v6), Some("[::1]:443".parse().unwrap()));
        assert_eq!(parse_address(&v6[..24]), Some("[::1]:443".parse().unwrap()));
        assert_eq!(parse_address(b"\x01\0/run/x.sock\0\0\0"), None);
        assert_eq!(parse_address(&v4[..6]), None);
        assert_eq!(parse_address(&[]), None);
    }

    /// Both ways, on sockets of this very process.
    #[test]
    fn the_second_way_sees_what_the_first_sees() {
        use socket2::{Domain, Socket, Type};
        use std::os::fd::AsRawFd;
        let me = std::process::id();
        for (domain, kind_of, nonblocking, cloexec) in [
            (Domain::IPV4, Type::STREAM, true, true),
            (Domain::IPV6, Type::STREAM, false, false),
            (Domain::IPV4, Type::DGRAM, false, true),
            (Domain::IPV6, Type::DGRAM, true, false),
            (Domain::UNIX, Type::STREAM, false, true),
        ] {
            let Ok(socket) = Socket::new(domain, kind_of, None) else {
                continue;
            };
            socket.set_nonblocking(nonblocking).unwrap();
            socket.set_cloexec(cloexec).unwrap();
            let fd = socket.as_raw_fd();
            let path = CString::new(format!("/proc/{me}/fd/{fd}")).unwrap();
            let flags = descriptor_flags(me, fd).unwrap();
            assert_eq!(
                (flags & libc::O_NONBLOCK != 0, flags & libc::O_CLOEXEC != 0),
                (nonblocking, cloexec)
            );
            let (is_stream, is_v6) = kind(&protocol_name(&path).unwrap());
            let inet_stream = kind_of == Type::STREAM && domain != Domain::UNIX;
            assert_eq!(
                (is_stream, is_v6),
                (inet_stream, domain == Domain::IPV6),
                "{domain:?} {kind_of:?}"
            );
        }
    }

    #[test]
    fn memory_by_both_ways() {
        let me = std::process::id();
        let secret = *b"sixteen bytes ok";
        let pointer = secret.as_ptr() as u64;
        let mut first = [0u8; 16];
        let mut second = [0u8; 16];
        assert_eq!(process_vm_readv(me, pointer, &mut first).unwrap(), 16);
        let memory = File::open(format!("/proc/{me}/mem")).unwrap();
        memory.read_at(&mut second, pointer).unwrap();
        assert_eq!((first, second), (secret, secret));
        assert!(read_memory(me, 0, &mut first).is_err());
    }
}
