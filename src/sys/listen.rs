//! Listening TCP sockets: one group of them per address, one socket per worker slot.
//!
//! All sockets of a [`Group`] form one `SO_REUSEPORT` group of the kernel
//! (`net/core/sock_reuseport.c`). Facts that shape this module:
//!
//! * A socket's index in the group is the order of `listen(2)`. When a member leaves, the last one
//!   moves into its hole; so sockets are only ever closed from the tail.
//! * A worker can take its socket out of the group: `shutdown(2)` on a listening socket ends it for
//!   all holders, and some servers (.NET, WEBrick) call it before they close. So the order of the
//!   sockets here and their indexes in the kernel may differ: see [`Group::repair`].
//! * Closing a listening socket resets every connection in its accept queue. Workers hold
//!   inherited copies, so the queue lives as long as this process keeps its own copy.
//! * Blocking mode (`O_NONBLOCK`) belongs to the open file description, which the workers share:
//!   see [`set_nonblocking`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::holder::{self, Holder};
use super::{raw, sockdiag, steer};

mod adopt;
mod error;
mod given;
mod queue;
mod unix;

pub use error::ListenError;
pub use given::{Given, Lookup};
pub use queue::{
    Backlog, accept_if_queued, accept_nonblocking, backlog, is_nonblocking, set_nonblocking,
    silent_for,
};
pub use unix::{Ownership, open_unix, own_unix};

/// The backlog for `listen(2)`; the kernel caps it at `net.core.somaxconn`, whose default is the
/// same.
const BACKLOG: i32 = 4096;

/// The address family of a group's sockets, and the connections that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, with or without IPv4 connections (`IPV6_V6ONLY`).
    V6 {
        /// IPv6 connections alone.
        only: bool,
    },
    /// `AF_INET6` sockets bound to an IPv4-mapped address: they take only IPv4 connections, for an
    /// app that insists on an `AF_INET6` socket.
    V6Mapped,
}

/// All listening sockets of one TCP address.
#[derive(Debug)]
pub struct Group {
    /// As configured, with the actual port; IPv4 for [`Family::V6Mapped`] too.
    addr: SocketAddr,
    family: Family,
    /// By slot.
    sockets: Vec<Socket>,
    /// The kernel's index of each socket.
    indexes: Vec<usize>,
    /// Sockets in the kernel's group that rsup does not hold: see [`Group::join`].
    others: usize,
    /// [`Self::indexes`] are known to be right.
    ordered: bool,
    /// Slot 0 is a socket whose owner listens longer than rsup: see [`Given`].
    given: bool,
}

/// The result of [`Group::repair`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// All sockets listen.
    Whole,
    /// Some had been shut down and listen again; indexes have changed.
    Again,
}

impl Group {
    /// Opens `size` sockets at `addr`. Port 0 lets the first socket pick and the others follow.
    /// `v6only` matters for IPv6 addresses alone.
    ///
    /// The first socket is bound and made to listen *without* `SO_REUSEPORT`, and gets the option
    /// only then: so the kernel itself refuses, without a race, when any other process listens on
    /// an overlapping address, even one that set `SO_REUSEPORT` and would otherwise end up in the
    /// same group. Until the first [`Group::steer`], connections wait in slot 0.
    ///
    /// # Errors
    /// See [`ListenError`]; nothing stays open.
    pub fn open(addr: SocketAddr, v6only: bool, size: usize) -> Result<Group, ListenError> {
        let family = match addr {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6 { only: v6only },
        };
        let limit = steer::max_slots_of(addr, family);
        if size == 0 || size > limit {
            return Err(ListenError::TooMany {
                addr,
                slots: size,
                limit,
            });
        }
        let first = open_socket(addr, family, Sharing::AfterListen)?;
        let actual = first
            .local_addr()
            .map_err(|error| ListenError::new(addr, "getsockname", error))?
            .as_socket()
            .unwrap_or(addr);
        let mut group = Group {
            addr: actual,
            family,
            sockets: vec![first],
            indexes: vec![0],
            others: 0,
            ordered: true,
            given: false,
        };
        group.grow(size)?;
        Ok(group)
    }

    /// The address, with the port that was picked if 0 was asked for. For [`Family::V6Mapped`]
    /// the IPv4 address that was configured.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The family of all its sockets.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The number of sockets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Always false: a group has at least one socket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Adds sockets at the tail until there are `size`. The attached program stays and does not
    /// choose the new ones before the next [`Group::steer`].
    ///
    /// # Errors
    /// See [`ListenError`]; the group is then as it was.
    pub fn grow(&mut self, size: usize) -> Result<(), ListenError> {
        let limit = steer::max_slots_of(self.addr, self.family);
        if size > limit {
            return Err(ListenError::TooMany {
                addr: self.addr,
                slots: size,
                limit,
            });
        }
        let before = self.sockets.len();
        while self.sockets.len() < size {
            match open_socket(self.addr, self.family, Sharing::FromTheStart) {
                Ok(socket) => {
                    self.indexes.push(self.sockets.len() + self.others);
                    self.sockets.push(socket);
                }
                Err(error) => {
                    self.shrink(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Closes sockets from the tail until `size` are left (at least one). The caller guarantees
    /// that the closed slots are parked: no worker, no traffic by the program in force (which must
    /// not name them), nothing queued, no half-open handshake.
    ///
    /// They are shut down first, so that a copy that a leftover process of a worker still holds
    /// leaves the kernel's group too.
    pub fn shrink(&mut self, size: usize) {
        while self.sockets.len() > size.max(1) {
            if let (Some(socket), Some(index)) = (self.sockets.pop(), self.indexes.pop()) {
                retire(&socket);
                let last = self.sockets.len();
                self.indexes
                    .iter_mut()
                    .filter(|i| **i == last)
                    .for_each(|i| *i = index);
            }
        }
    }

    /// The kernel's index of a slot's socket, which is what a steering program returns.
    ///
    /// # Panics
    /// When `slot` is not below [`Group::len`].
    #[must_use]
    pub fn index_of(&self, slot: usize) -> usize {
        self.indexes[slot]
    }

    /// Makes sockets listen again that were shut down. The program in force then names wrong
    /// sockets, as it has since the shutdown: [`Group::steer`] must follow.
    ///
    /// With each that leaves, the kernel moves the last one into its hole
    /// (`__reuseport_detach_sock`); one that listens again comes last. When several leave at the
    /// same time, their order is unknown, so the group is asked: see [`Group::identify`].
    ///
    /// # Errors
    /// When one cannot listen again, or the order could not be found: the next call tries again.
    pub fn repair(&mut self) -> io::Result<Repaired> {
        if self.others > 0 {
            let before = self.others;
            self.count_others()?;
            self.ordered &= self.others >= before;
        }
        let mut repaired = Repaired::Whole;
        // Others may be shut down in the meantime.
        for _ in 0..ROUNDS {
            let mut left = Vec::new();
            for (slot, socket) in self.sockets.iter().enumerate() {
                if !socket.is_listener()? {
                    left.push(slot);
                }
            }
            if left.is_empty() && self.ordered {
                return Ok(repaired);
            }
            repaired = Repaired::Again;
            // What one alone does to the order is known.
            let known = self.ordered && left.len() == 1 && self.others == 0;
            let end = self.sockets.len() - left.len();
            for (gone, slot) in left.iter().enumerate() {
                let (hole, last) = (self.indexes[*slot], self.sockets.len() - gone - 1);
                self.indexes
                    .iter_mut()
                    .filter(|i| **i == last)
                    .for_each(|i| *i = hole);
                self.indexes[*slot] = usize::MAX;
            }
            self.ordered = false;
            for (at, slot) in left.iter().enumerate() {
                self.sockets[*slot].listen(BACKLOG)?;
                self.indexes[*slot] = end + at;
            }
            match self.find_order() {
                Ok(()) => {}
                Err(_) if known => self.ordered = true,
                Err(why) => return Err(why),
            }
        }
        Err(io::Error::other(
            "its sockets are shut down faster than they listen again",
        ))
    }

    /// The kernel's index of every slot, found by probes: each socket temporarily offers a maximum
    /// segment size of its own, and a connection to an index shows that of the socket it reached.
    /// Other clients that connect meanwhile get somewhat smaller segments, nothing worse; workers
    /// see a connection without data, as with probes.
    fn identify(&self) -> io::Result<Vec<usize>> {
        let unknown = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "probes did not tell the sockets of a group apart",
            )
        };
        if self.sockets.len() > MOST_TOLD_APART {
            return Err(unknown());
        }
        let offer = |socket: &Socket, size: usize| {
            raw::setsockopt_int(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, size as i32)
        };
        for (slot, socket) in self.sockets.iter().enumerate() {
            offer(socket, LEAST_SEGMENT + slot * SEGMENT_STEP)?;
        }
        let target = steer::probe_target(self.addr, self.family);
        let connect = |index: usize| {
            let probe = steer::probe_socket(target, index)?;
            probe.connect_timeout(&target.into(), PROBE).map(|()| probe)
        };
        let slot_at = |index: usize| {
            // A SYN that meets a socket which is just leaving is dropped; the next one meets another.
            let probe = connect(index).or_else(|_| connect(index))?;
            let info: libc::tcp_info = raw::getsockopt(&probe, libc::IPPROTO_TCP, libc::TCP_INFO)?;
            // Without the 12 bytes of timestamps, where those are in use.
            Ok(
                (info.tcpi_snd_mss as usize + SEGMENT_STEP - 1).saturating_sub(LEAST_SEGMENT)
                    / SEGMENT_STEP,
            )
        };
        let found: io::Result<Vec<usize>> =
            (0..self.sockets.len() + self.others).map(slot_at).collect();
        for socket in &self.sockets {
            offer(socket, 0)?;
        }
        let mut indexes = vec![usize::MAX; self.sockets.len()];
        for (index, slot) in found?.into_iter().enumerate() {
            match indexes.get_mut(slot) {
                Some(place) => *place = index,
                None if self.others > 0 => {}
                None => return Err(unknown()),
            }
        }
        if indexes.contains(&usize::MAX) {
            Err(unknown())
        } else {
            Ok(indexes)
        }
    }

    /// The socket of a slot.
    ///
    /// # Panics
    /// When `index` is not below [`Group::len`]: a slot that does not exist is a bug of the caller.
    #[must_use]
    pub fn fd(&self, index: usize) -> BorrowedFd<'_> {
        self.sockets[index].as_fd()
    }

    /// A close-on-exec duplicate of the socket of a slot, sharing its description.
    ///
    /// # Errors
    /// `InvalidInput` for a slot that does not exist; `EMFILE` or `ENFILE`.
    pub fn dup(&self, index: usize) -> io::Result<OwnedFd> {
        raw::dup_from(self.get(index)?, 0)
    }

    /// Replaces the program of the whole group, atomically, for every SYN from now on. Handshakes
    /// in flight complete on the slot chosen before.
    ///
    /// # Errors
    /// `InvalidInput` when the table names more slots than there are sockets, or too many for a
    /// program; `OutOfMemory` when the program does not fit `net.core.optmem_max`; `NotFound` after a
    /// [`Group::repair`] that failed midway. The program in force is then as it was.
    pub fn steer(&self, table: &steer::Table) -> io::Result<()> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        if table.weights.len() > self.sockets.len() {
            return Err(invalid(format!(
                "{} weights for the {} sockets of {}",
                table.weights.len(),
                self.sockets.len(),
                self.addr
            )));
        }
        let mut by_index = steer::Table {
            weights: vec![0; self.sockets.len() + self.others],
            hold: self.indexes[table.hold.min(self.sockets.len() - 1)],
            balance: table.balance,
        };
        let unknown = || {
            let text = format!("the order of the sockets of {} is not known", self.addr);
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        if by_index.hold >= by_index.weights.len() {
            return Err(unknown());
        }
        for (weight, index) in table.weights.iter().zip(&self.indexes) {
            *by_index.weights.get_mut(*index).ok_or_else(unknown)? = *weight;
        }
        let program =
            steer::program(&by_index, self.family).map_err(|error| invalid(error.to_string()))?;
        queue::attach_program(self.get(0)?, &program)
    }

    /// How many connections wait on a slot for `accept(2)`.
    ///
    /// # Errors
    /// `InvalidInput` for a slot that does not exist.
    pub fn backlog(&self, index: usize) -> io::Result<Backlog> {
        backlog(self.get(index)?)
    }

    /// Stops listening for good, at once and for all holders of copies: closing alone would take
    /// effect only with the last copy. What is still queued is reset. A socket that the service
    /// manager passed is left to it.
    pub fn end(self) {
        for socket in self.sockets.iter().skip(usize::from(self.given)) {
            // One that a worker has shut down already cannot be shut down again.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Processes with other sockets than this group's that listen on the very same address: these
    /// have joined the kernel's group and shifted its indexes. Only processes of the same user can.
    ///
    /// # Errors
    /// When the kernel's list of sockets cannot be read.
    pub fn foreign_listeners(&self) -> io::Result<Vec<Holder>> {
        let mut ours = Vec::with_capacity(self.sockets.len());
        for socket in &self.sockets {
            ours.push(holder::inode_of(socket.as_fd())?);
        }
        let inodes: Vec<u64> = sockdiag::listeners(self.addr.port())?
            .into_iter()
            .filter(|other| other.local == self.addr && !ours.contains(&other.inode))
            .map(|other| other.inode)
            .collect();
        holder::of_inodes(&inodes)
    }

    /// Makes the whole group again in the family that the app asked for. ONLY while no worker has
    /// ever been ready: workers with the old sockets would get no more connections.
    ///
    /// * an IPv4 address, wanted as [`Family::V6Mapped`] (the app binds `::`): takes exactly the
    ///   same connections, on `AF_INET6` sockets; and back to [`Family::V4`];
    /// * `[::]` with IPv4, wanted as [`Family::V4`]: IPv6 is given up, [`Group::addr`] becomes
    ///   `0.0.0.0`.
    ///
    /// No connection is lost: the new sockets listen before the old ones stop. The old ones are
    /// then bound to a network interface that does not exist, so that every new SYN finds the new
    /// group, while handshakes under way still complete; those are waited for (at most a quarter of
    /// a second). Connections that were queued are returned. Finally the old sockets are shut down,
    /// because workers may hold copies. The new group has no program yet: [`Group::steer`] must
    /// follow.
    ///
    /// # Errors
    /// [`ListenError::Family`] for an impossible change; otherwise as for opening, and the group is
    /// as it was.
    pub fn change_family(&mut self, want: Family) -> Result<Vec<OwnedFd>, ListenError> {
        if want == self.family {
            return Ok(Vec::new());
        }
        if self.given {
            return Err(ListenError::Given {
                addr: self.addr,
                want,
            });
        }
        let addr = match (self.family, want) {
            (Family::V4, Family::V6Mapped) | (Family::V6Mapped, Family::V4) => self.addr,
            (Family::V6 { only: false }, Family::V4) if self.addr.ip().is_unspecified() => {
                (Ipv4Addr::UNSPECIFIED, self.addr.port()).into()
            }
            _ => {
                return Err(ListenError::Family {
                    addr: self.addr,
                    want,
                });
            }
        };
        let mut fresh: Vec<Socket> = Vec::with_capacity(self.sockets.len());
        for _ in 0..self.sockets.len() {
            match open_socket(addr, want, Sharing::FromTheStart) {
                Ok(socket) => fresh.push(socket),
                Err(error) => {
                    fresh.iter().rev().for_each(retire);
                    return Err(error);
                }
            }
        }
        let old = std::mem::replace(&mut self.sockets, fresh);
        self.indexes = (0..self.sockets.len()).collect();
        self.addr = addr;
        self.family = want;
        self.others = 0;
        self.ordered = true;
        Ok(empty(old, addr.port()))
    }

    fn get(&self, index: usize) -> io::Result<&Socket> {
        self.sockets.get(index).ok_or_else(|| {
            let text = format!(
                "slot {index} of {}: there are {}",
                self.addr,
                self.sockets.len()
            );
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })
    }
}

/// How often [`Group::repair`] looks again for sockets that were shut down meanwhile.
const ROUNDS: usize = 8;

/// For [`Group::identify`]: segment sizes that the kernel takes are 88 to 32767.
const LEAST_SEGMENT: usize = 536;
const SEGMENT_STEP: usize = 16;
const MOST_TOLD_APART: usize = (32_767 - LEAST_SEGMENT) / SEGMENT_STEP;
/// The probe stays on this machine. Only a full accept queue delays it.
const PROBE: Duration = Duration::from_millis(50);

/// How long [`Group::change_family`] waits for handshakes under way.
const HANDSHAKES: Duration = Duration::from_millis(250);
/// The same where the kernel does not list them.
const UNSEEN_HANDSHAKES: Duration = Duration::from_millis(50);

/// Takes every connection out of sockets about to be closed, then closes them.
fn empty(sockets: Vec<Socket>, port: u16) -> Vec<OwnedFd> {
    for socket in &sockets {
        // No interface has this index, and the kernel does not check that (net/core/sock.c,
        // sock_bindtoindex_locked). Where it refuses (CAP_NET_RAW before Linux 5.7), SYNs reach the
        // old socket a moment longer, nothing worse.
        let _ = raw::setsockopt_int(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, i32::MAX);
    }
    let began = Instant::now();
    let mut accepted = Vec::new();
    loop {
        // First asked, then accepted: what was half open is then in a queue, or still half open.
        let (half_open, patience) = match sockdiag::half_open(port) {
            Ok(pairs) => (!pairs.is_empty(), HANDSHAKES),
            Err(_) => (true, UNSEEN_HANDSHAKES),
        };
        for socket in &sockets {
            while let Ok(Some((connection, _))) = accept_nonblocking(socket.as_fd()) {
                accepted.push(connection);
            }
        }
        if !half_open || began.elapsed() >= patience {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    sockets.iter().rev().for_each(retire);
    accepted
}

/// Stops listening for all holders of a socket, including inherited copies. An error means that it
/// did not listen any more.
fn retire(socket: &Socket) {
    let _ = socket.shutdown(std::net::Shutdown::Both);
}

/// When a socket becomes open to others at the same address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    FromTheStart,
    AfterListen,
}

fn open_socket(addr: SocketAddr, family: Family, sharing: Sharing) -> Result<Socket, ListenError> {
    let fail = |step| move |error| ListenError::new(addr, step, error);
    let (domain, bind_to) = match family {
        Family::V4 => (Domain::IPV4, addr),
        Family::V6 { .. } => (Domain::IPV6, addr),
        Family::V6Mapped => (Domain::IPV6, mapped(addr)),
    };
    // Close-on-exec from the start, and blocking, as an app expects to inherit it.
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(fail("socket"))?;
    if domain == Domain::IPV6 {
        let only = family == Family::V6 { only: true };
        socket.set_only_v6(only).map_err(fail("IPV6_V6ONLY"))?;
    }
    socket
        .set_reuse_address(true)
        .map_err(fail("SO_REUSEADDR"))?;
    socket.set_reuse_port(true).map_err(fail("SO_REUSEPORT"))?;
    if sharing == Sharing::AfterListen {
        // A socket that listens without SO_REUSEPORT would have no group, and as the only one no
        // program could be attached to it (reuseport_attach_prog: EINVAL). Attached before, the
        // program creates the group; and all that comes before the first real program waits in slot
        // 0.
        let hold = [libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        }];
        queue::attach_program(&socket, &hold).map_err(fail("steering"))?;
        socket.set_reuse_port(false).map_err(fail("SO_REUSEPORT"))?;
    }
    socket
        .bind(&SockAddr::from(bind_to))
        .map_err(fail("bind"))?;
    socket.listen(BACKLOG).map_err(fail("listen"))?;
    if sharing == Sharing::AfterListen {
        socket.set_reuse_port(true).map_err(fail("SO_REUSEPORT"))?;
    }
    Ok(socket)
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(_) => addr,
    }
}

/// The address of a TCP socket; `None` for any other.
#[must_use]
pub fn local_address(fd: impl AsFd) -> Option<SocketAddr> {
    socket2::SockRef::from(&fd).local_addr().ok()?.as_socket()
}

/// Address and family of a listening socket, as [`Group`] names them.
fn identity(socket: &Socket) -> io::Result<(SocketAddr, Family)> {
    let not_inet = || io::Error::new(io::ErrorKind::InvalidInput, "not a TCP socket");
    let addr = socket.local_addr()?.as_socket().ok_or_else(not_inet)?;
    Ok(match addr {
        SocketAddr::V4(_) => (addr, Family::V4),
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => ((ip, addr.port()).into(), Family::V6Mapped),
            None => (
                addr,
                Family::V6 {
                    only: socket.only_v6()?,
                },
            ),
        },
    })
}

#[cfg(test)]
pub(super) fn attach_for_test(group: &Group, program: &[libc::sock_filter]) -> io::Result<()> {
    queue::attach_program(group.get(0)?, program)
}
