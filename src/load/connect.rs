//! Connections of the load client: their target and their source address.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

/// The target of the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A TCP listener. The wildcard addresses stand for loopback.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Target {
    /// Whether the load stays on this machine's loopback (or on a Unix socket).
    pub fn is_loopback(&self) -> bool {
        match self {
            Target::Tcp(addr) => addr.ip().is_loopback() || addr.ip().is_unspecified(),
            Target::Unix(_) => true,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(addr) => write!(f, "{addr}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Source addresses are `127.1.0.1` to `127.80.0.1`. Others are in use: rsup's probes come from
/// 127.83/16, and the steering program sends them to one worker.
const SOURCES: u32 = 80;

/// Opens connections to one target.
///
/// A client that closes first leaves its port in TIME_WAIT for a minute, and one source address has
/// some 28,000 ports: at 1,000 connections a second they are used up within half a minute. The
/// whole of 127/8 is local, so each connection takes the next of 80 source addresses; `connect`
/// then chooses the port for the whole (source, target) pair (`IP_BIND_ADDRESS_NO_PORT`). That is
/// enough for 37,000 connections a second, and, unlike a reset (`SO_LINGER` 0), the server does not
/// notice.
#[derive(Debug)]
pub(super) struct Connector {
    target: Target,
    rotate: bool,
    next: AtomicU32,
}

impl Connector {
    pub(super) fn new(target: Target) -> Self {
        let target = match target {
            Target::Tcp(mut addr) => {
                match addr.ip() {
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED) => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED) => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
                    _ => {}
                }
                Target::Tcp(addr)
            }
            unix => unix,
        };
        let rotate = matches!(&target, Target::Tcp(a) if a.is_ipv4() && a.ip().is_loopback());
        Connector {
            target,
            rotate,
            next: AtomicU32::new(0),
        }
    }

    /// Whether the server should close a connection that has its answer, so that the TIME_WAIT is
    /// at the server's end. Only where source addresses cannot rotate.
    pub(super) fn server_closes_first(&self) -> bool {
        !self.rotate && matches!(self.target, Target::Tcp(_))
    }

    /// Opens one connection.
    pub(super) async fn connect(&self) -> io::Result<Stream> {
        match &self.target {
            Target::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            Target::Tcp(addr) if self.rotate => {
                let n = self.next.fetch_add(1, Ordering::Relaxed) % SOURCES;
                let source = Ipv4Addr::new(127, n as u8 + 1, 0, 1);
                let socket = TcpSocket::new_v4()?;
                // Where this fails (127/8 not all local, an odd sandbox) the kernel chooses the
                // source, as long as its ports last.
                if setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).is_ok() {
                    let _ = socket.bind(SocketAddr::new(source.into(), 0));
                }
                socket.connect(*addr).await.map(Stream::Tcp)
            }
            Target::Tcp(addr) => TcpStream::connect(addr).await.map(Stream::Tcp),
        }
    }
}

/// A connection of either family.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(super) async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.read(buf).await,
            Stream::Unix(s) => s.read(buf).await,
        }
    }

    pub(super) async fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.write_all(buf).await,
            Stream::Unix(s) => s.write_all(buf).await,
        }
    }

    /// Whether the idle connection can carry another request: neither closed by the server nor
    /// holding unrequested bytes (some servers send 408 before they close).
    ///
    /// Asks the kernel, not tokio's readiness, which may be one turn of the event loop old.
    pub(super) fn is_idle(&self) -> bool {
        let fd = match self {
            Stream::Tcp(s) => s.as_fd(),
            Stream::Unix(s) => s.as_fd(),
        };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(
            recv(fd.as_raw_fd(), &mut [0], flags),
            Err(nix::errno::Errno::EAGAIN)
        )
    }
}
