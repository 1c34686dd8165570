//! The accept queue of a listening socket: its length, taking from it, and steering into it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libc::{sock_filter, sock_fprog};
use socket2::{SockAddr, Socket};

use crate::sys::{needs, raw};

/// The accept queue of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backlog {
    /// It listens.
    Listening {
        /// Connections that wait for `accept(2)`. Half-open handshakes do not count: see
        /// [`crate::sys::sockdiag::half_open`].
        queued: u32,
        /// The most that can wait; SYNs beyond are dropped and sent again by the client.
        max: u32,
    },
    /// A holder shut it down: a worker can, by `shutdown(2)`, for all holders.
    NotListening,
}

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const TCP_LISTEN: u8 = 10;

/// The accept queue of `fd`, a TCP socket. On a listening socket, `tcpi_unacked` is the length of
/// the queue and `tcpi_sacked` its limit (`net/ipv4/tcp.c`, `tcp_get_info`).
///
/// # Errors
/// When `fd` is no TCP socket.
pub fn backlog(fd: impl AsFd) -> io::Result<Backlog> {
    let info: libc::tcp_info = raw::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok(if info.tcpi_state == TCP_LISTEN {
        Backlog::Listening {
            queued: info.tcpi_unacked,
            max: info.tcpi_sacked,
        }
    } else {
        Backlog::NotListening
    })
}

/// The time since the other side of a connection last sent something; if it never has, the age of
/// the connection (`tcpi_last_data_recv`; `tcp_create_openreq_child` in
/// `net/ipv4/tcp_minisocks.c`).
///
/// # Errors
/// When `fd` is no TCP socket.
pub fn silent_for(fd: impl AsFd) -> io::Result<Duration> {
    let info: libc::tcp_info = raw::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok(Duration::from_millis(info.tcpi_last_data_recv.into()))
}

/// Takes one connection off the queue of a listening socket, TCP or unix; never waits. The
/// connection is non-blocking and close-on-exec. The address is `None` for unix sockets.
///
/// `Ok(None)` when there is none; also when the client gave up after the handshake.
///
/// When the description is in blocking mode and a connection is queued, it is non-blocking for the
/// duration of the call: a worker that calls `accept(2)` in that instant and finds nothing would
/// get `EAGAIN`. So it is used for slots whose worker is gone, or that are non-blocking.
/// # Errors
/// `EMFILE` and the like; `EINVAL` when the socket does not listen any more.
pub fn accept_nonblocking(fd: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, Option<SocketAddr>)>> {
    let blocking = !is_nonblocking(fd)?;
    if blocking {
        if raw::poll(fd, libc::POLLIN, Duration::ZERO)? == 0 {
            return Ok(None);
        }
        set_nonblocking(fd, true)?;
    }
    let accepted = raw::retry(|| accept(fd));
    if blocking {
        set_nonblocking(fd, false)?;
    }
    match accepted {
        Ok((connection, peer)) => Ok(Some((connection, peer.as_socket()))),
        Err(error) if is_none(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes one connection off the queue of a listening socket, if one is queued. The connection is
/// non-blocking and close-on-exec.
///
/// This may wait, for threads that can be [interrupted](crate::sys::interrupt): other processes have
/// the description too, and may take the connection, or change its mode, between the look and the
/// call. `Ok(None)` when none is queued, the client gave up, or a signal ended the wait.
///
/// # Errors
/// `EMFILE` and the like; `EINVAL` when the socket does not listen any more.
pub fn accept_if_queued(fd: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    if raw::poll(fd, libc::POLLIN, Duration::ZERO)? == 0 {
        return Ok(None);
    }
    match accept(fd) {
        Ok((connection, _)) => Ok(Some(connection)),
        Err(error) if is_none(&error) || error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there was no connection, or one that the client has given up.
fn is_none(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
    )
}

fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, SockAddr)> {
    // SAFETY: the storage and its length are those that SockAddr provides for such a call.
    let (connection, peer) = unsafe {
        SockAddr::try_init(|storage, len| {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let new = raw::check(libc::accept4(fd.as_raw_fd(), storage.cast(), len, flags))?;
            Ok(raw::own(new))
        })
    }?;
    Ok((connection, peer))
}

/// Whether the open file description of `fd` is non-blocking.
///
/// # Errors
/// As `fcntl(2)`.
pub fn is_nonblocking(fd: impl AsFd) -> io::Result<bool> {
    Ok(raw::status_flags(fd)? & libc::O_NONBLOCK != 0)
}

/// Sets `O_NONBLOCK` of the open file description: for **every** holder of it, including the worker
/// that inherited the socket. A slot's socket is blocking when an app inherits it, and has the mode
/// of the app's own socket when it takes the place of that one.
///
/// # Errors
/// As `fcntl(2)`.
pub fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<()> {
    let fd = fd.as_fd();
    let old = raw::status_flags(fd)?;
    let new = if nonblocking {
        old | libc::O_NONBLOCK
    } else {
        old & !libc::O_NONBLOCK
    };
    if new != old {
        // SAFETY: F_SETFL takes an integer; the descriptor is borrowed for the call.
        raw::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, new) })?;
    }
    Ok(())
}

/// `SO_ATTACH_REUSEPORT_CBPF`, for the group that `socket` is in (socket(7)).
pub(super) fn attach_program(socket: &Socket, program: &[sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "program too long"))?;
    let fprog = sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `fprog` and the instructions it points to live through the call, and the kernel
    // only reads them.
    raw::check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const fprog).cast(),
            size_of::<sock_fprog>() as libc::socklen_t,
        )
    })
    .map(|_| ())
    .map_err(|error| {
        if raw::is_errno(&error, libc::ENOMEM) {
            let text = format!("a steering program of {len} instructions does not fit: raise net.core.optmem_max");
            return io::Error::new(io::ErrorKind::OutOfMemory, text);
        }
        if needs::is_refused(&error) {
            let text = format!(
                "the container or sandbox refuses SO_ATTACH_REUSEPORT_CBPF, by which connections are steered to ready workers \
                 ({error}); rsup does not serve without it\n{}",
                needs::ALLOW
            );
            return io::Error::new(error.kind(), text);
        }
        raw::context("SO_ATTACH_REUSEPORT_CBPF", &error)
    })
}
