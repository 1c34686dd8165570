//! Groups that an earlier process of rsup opened.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use socket2::Socket;

use super::{Family, Group, ListenError, Sharing, identity, open_socket};
use crate::sys::holder;
use crate::sys::sockdiag::{self, ListeningSocket};

impl Group {
    /// Takes back a group: `fds` by slot. Missing sockets are opened anew, in the same group of the
    /// kernel. The order of the sockets there is a guess until [`Group::find_order`].
    ///
    /// # Errors
    /// When there is none at all, when one belongs to another address or family, and as for opening.
    pub fn adopt(fds: Vec<Option<OwnedFd>>) -> io::Result<Group> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let mut seen: Option<(SocketAddr, Family)> = None;
        for (slot, fd) in fds.iter().enumerate() {
            let Some(fd) = fd else { continue };
            let this = identity(&Socket::from(fd.try_clone()?))?;
            if *seen.get_or_insert(this) != this {
                return Err(invalid(format!(
                    "socket {slot} listens on {} instead",
                    this.0
                )));
            }
        }
        let (addr, family) = seen.ok_or_else(|| invalid("no sockets".to_owned()))?;
        let mut next = fds.iter().flatten().count();
        let mut left = 0..next;
        let (mut sockets, mut indexes) = (Vec::new(), Vec::new());
        for fd in fds {
            match fd {
                Some(fd) => {
                    sockets.push(Socket::from(fd));
                    indexes.extend(left.next());
                }
                None => {
                    sockets.push(
                        open_socket(addr, family, Sharing::FromTheStart)
                            .map_err(io::Error::other)?,
                    );
                    indexes.push(next);
                    next += 1;
                }
            }
        }
        let mut group = Group {
            addr,
            family,
            sockets,
            indexes,
            others: 0,
            ordered: false,
            given: false,
        };
        // Where the kernel does not list sockets there are probably none: they are rare.
        let _ = group.count_others();
        Ok(group)
    }

    /// Opens `size` sockets in the same group of the kernel as those of a dead rsup's workers,
    /// which cannot be taken back; also where that group had changed its family
    /// ([`Group::change_family`]). Once this group is steered, no traffic goes to those any more.
    ///
    /// # Errors
    /// As for opening; nothing stays open.
    pub fn join(addr: SocketAddr, v6only: bool, size: usize) -> Result<Group, ListenError> {
        let there = sockdiag::listeners(addr.port())
            .map_err(|error| ListenError::new(addr, "the list of sockets", error))?;
        let (addr, family) = as_found(addr, v6only, &there);
        let mut group = Group {
            addr,
            family,
            sockets: Vec::new(),
            indexes: Vec::new(),
            others: 0,
            ordered: false,
            given: false,
        };
        group.grow(size)?;
        group
            .count_others()
            .map_err(|error| ListenError::new(addr, "sock_diag", error))?;
        for index in &mut group.indexes {
            *index += group.others;
        }
        Ok(group)
    }

    /// Asks the kernel for the order of the sockets. A program that lets probes through must be in force.
    ///
    /// # Errors
    /// When not every socket was found; the order is then as it was.
    pub fn find_order(&mut self) -> io::Result<()> {
        if self.sockets.len() + self.others > 1 {
            self.indexes = self.identify()?;
        }
        self.ordered = true;
        Ok(())
    }

    /// Counts sockets that share the address and that rsup does not hold.
    pub(super) fn count_others(&mut self) -> io::Result<()> {
        let ours: Vec<u64> = self
            .sockets
            .iter()
            .map(|s| holder::inode_of(s.as_fd()))
            .collect::<io::Result<_>>()?;
        let all = sockdiag::listeners(self.addr.port())?;
        let mapped = self.family == Family::V6Mapped;
        let same = |other: &&ListeningSocket| other.local == self.addr && other.mapped == mapped;
        self.others = all
            .iter()
            .filter(same)
            .filter(|other| !ours.contains(&other.inode))
            .count();
        Ok(())
    }
}

/// Address and family of the group that was opened for `addr`, and may have changed since.
fn as_found(addr: SocketAddr, v6only: bool, there: &[ListeningSocket]) -> (SocketAddr, Family) {
    let at = |addr: SocketAddr, mapped| {
        there
            .iter()
            .any(|it| it.local == addr && it.mapped == mapped)
    };
    let of_v4 = |addr| match (at(addr, false), at(addr, true)) {
        (true, _) => Some((addr, Family::V4)),
        (false, true) => Some((addr, Family::V6Mapped)),
        (false, false) => None,
    };
    match addr {
        SocketAddr::V4(_) => of_v4(addr).unwrap_or((addr, Family::V4)),
        SocketAddr::V6(v6) => {
            let given_up = !v6only && v6.ip().is_unspecified() && !at(addr, false);
            let changed = given_up
                .then(|| of_v4((Ipv4Addr::UNSPECIFIED, addr.port()).into()))
                .flatten();
            changed.unwrap_or((addr, Family::V6 { only: v6only }))
        }
    }
}
