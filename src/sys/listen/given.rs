//! Listening sockets that another process opened, passed to rsup, and keeps: systemd with its
//! `.socket` units (systemd.socket(5), sd_listen_fds(3)).
//!
//! Such a socket becomes slot 0 of its group. It listens already, without `SO_REUSEPORT`; rsup sets
//! the option, and the kernel makes it the first member of a group when a second socket joins
//! (`net/ipv4/inet_hashtables.c`, `inet_reuseport_add_sock`). It is never shut down: its owner
//! continues to listen when rsup ends, and passes it to the next rsup.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use socket2::{SockRef, Socket};

use super::{Family, Group, ListenError, identity};
use crate::sys::{holder, raw, sockdiag, steer};

/// Sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct Given(Vec<OwnedFd>);

/// What [`Given::tcp`] found.
#[derive(Debug)]
pub enum Lookup {
    /// A copy of the socket that listens on just this address.
    Same(OwnedFd),
    /// One of the same port, on another address.
    Other(SocketAddr),
    /// None.
    Nothing,
}

impl Given {
    /// Keeps those that are listening stream sockets and returns the rest.
    #[must_use]
    pub fn new(fds: Vec<OwnedFd>) -> (Given, Vec<OwnedFd>) {
        let listens = |fd: &OwnedFd| {
            let socket = SockRef::from(fd);
            socket.is_listener().unwrap_or(false)
                && socket
                    .r#type()
                    .is_ok_and(|kind| kind == socket2::Type::STREAM)
        };
        let (kept, rest) = fds.into_iter().partition(listens);
        (Given(kept), rest)
    }

    /// The socket for a TCP address of the configuration.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub fn tcp(&self, addr: SocketAddr, v6only: bool) -> io::Result<Lookup> {
        let wanted = match addr {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6 { only: v6only },
        };
        let mut other = Lookup::Nothing;
        for fd in &self.0 {
            let Ok((local, family)) = identity(&SockRef::from(fd)) else {
                continue;
            };
            if local == addr && family == wanted {
                return Ok(Lookup::Same(raw::dup_from(fd, 0)?));
            }
            if local.port() == addr.port()
                && (local.ip().is_unspecified() || addr.ip().is_unspecified())
            {
                other = Lookup::Other(local);
            }
        }
        Ok(other)
    }

    /// The socket for the path of a unix socket.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub fn unix(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let at = |fd: &&OwnedFd| {
            SockRef::from(*fd)
                .local_addr()
                .is_ok_and(|addr| addr.as_pathname().is_some_and(|found| found == path))
        };
        self.0
            .iter()
            .find(at)
            .map(|fd| raw::dup_from(fd, 0))
            .transpose()
    }

    /// Their addresses, for messages.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let name = |fd: &OwnedFd| {
            let addr = SockRef::from(fd).local_addr().ok()?;
            let inet = addr.as_socket().map(|addr| addr.to_string());
            inet.or_else(|| {
                addr.as_pathname()
                    .map(|path| format!("unix:{}", path.display()))
            })
        };
        self.0.iter().filter_map(name).collect()
    }

    /// The sockets, for a program that replaces this one.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    fn has(&self, fd: impl AsFd) -> bool {
        let Ok(inode) = holder::inode_of(fd.as_fd()) else {
            return false;
        };
        self.0
            .iter()
            .any(|given| holder::inode_of(given.as_fd()).is_ok_and(|other| other == inode))
    }
}

impl Group {
    /// As [`Group::open`], with `first`, which listens already, as slot 0 (see [`Given`]).
    ///
    /// From the moment the second socket listens to the first [`Group::steer`] the kernel spreads
    /// connections over both; they wait in their queues like all others.
    ///
    /// # Errors
    /// [`ListenError::InUse`] when others listen on that very address; otherwise as for opening.
    pub fn open_given(first: OwnedFd, size: usize) -> Result<Group, ListenError> {
        let first = Socket::from(first);
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let (addr, family) =
            identity(&first).map_err(|error| ListenError::new(unknown, "getsockname", error))?;
        let limit = steer::max_slots_of(addr, family);
        if size == 0 || size > limit {
            return Err(ListenError::TooMany {
                addr,
                slots: size,
                limit,
            });
        }
        let mut group = Group {
            addr,
            family,
            sockets: vec![first],
            indexes: vec![0],
            others: 0,
            ordered: true,
            given: true,
        };
        // Sockets of other processes in the group would precede rsup's.
        let joined = group
            .foreign_listeners()
            .map_err(|error| ListenError::new(addr, "the list of sockets", error))?;
        let listeners = sockdiag::listeners(addr.port())
            .map_err(|error| ListenError::new(addr, "the list of sockets", error))?;
        if listeners
            .iter()
            .filter(|other| other.local == group.addr)
            .count()
            > 1
        {
            return Err(ListenError::InUse {
                addr,
                holder: joined.into_iter().next(),
            });
        }
        group.sockets[0]
            .set_reuse_port(true)
            .map_err(|error| ListenError::new(addr, "SO_REUSEPORT", error))?;
        group.grow(size)?;
        Ok(group)
    }

    /// For a group taken back by [`Group::adopt`]: records that slot 0 is one of these sockets, if
    /// it is.
    pub fn recognise(&mut self, given: &Given) {
        self.given = self.sockets.first().is_some_and(|socket| given.has(socket));
    }

    /// Whether slot 0 is a socket of the service manager.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given
    }
}
