//! The listening sockets of one app, by address and slot.
//!
//! Index 0 of every group is the *holding slot* (the lobby): no worker ever has it. Connections go
//! there while no worker is ready, wait in its accept queue, and are relayed once one is. Slot `n`
//! is index `n + 1`.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{getegid, geteuid};

use crate::config::{self, Listen, SocketFile};
use crate::core::Steering;
use crate::sys::holder::Holder;
use crate::sys::listen::{self, Family, Given, Group, ListenError, Lookup, Ownership, Repaired};
use crate::sys::process;
use crate::sys::steer::{self, Balance, Table};
use crate::sys::takeover::Bind;

const LOBBY: usize = 0;

/// How long a killed keeper may take until its sockets are closed.
const DYING: Duration = Duration::from_secs(2);

fn index(slot: u16) -> usize {
    usize::from(slot) + 1
}

/// The saved state of an address that an earlier daemon had.
pub struct Adopted<'a> {
    pub slots: u16,
    pub file: SocketFile,
    /// The weights in force.
    pub steering: &'a [Steering],
    /// Workers live whose sockets cannot be taken back, so the address is in use all the same.
    pub others_live: bool,
}

#[derive(Default)]
pub struct Sockets {
    bound: BTreeMap<Listen, Bound>,
    /// Some worker has been ready: from then on groups keep their family.
    served: bool,
    /// By generation: the live workers that have a socket of the group in place of their own.
    handed: BTreeMap<Listen, HashSet<u64>>,
    /// Sockets of `.socket` units.
    given: Arc<Given>,
}

enum Bound {
    Tcp {
        group: Group,
        table: Table,
        /// The program in force is not that of the table: it could not be applied.
        stale: bool,
    },
    /// One descriptor for all workers.
    Unix {
        fd: OwnedFd,
        path: PathBuf,
        /// The socket and its file belong to a `.socket` unit.
        given: bool,
    },
}

/// An accept queue that rsup itself serves.
pub struct Queue {
    pub address: Listen,
    /// `None` is the holding slot.
    pub slot: Option<u16>,
    pub fd: OwnedFd,
    /// The address for a connection to a ready worker.
    pub target: SocketAddr,
}

/// The address for a probe of one slot.
#[derive(Clone, Copy, Debug)]
pub struct ProbeTarget {
    pub address: SocketAddr,
    pub index: usize,
}

/// A group that was made again in the family that the app asked for.
pub struct Changed {
    pub address: Listen,
    /// Connections that were queued in the old group.
    pub accepted: Vec<OwnedFd>,
}

impl Sockets {
    pub fn new(given: Arc<Given>) -> Self {
        Self {
            given,
            ..Self::default()
        }
    }

    /// Opens missing sockets, closes those of addresses that are not listed, grows groups that are
    /// too small. Addresses that stay are not touched. A socket of a `.socket` unit is used instead
    /// of a new one: it becomes the holding slot. `file` is for unix sockets, also for those that
    /// stay: only the file's owner and mode change. The file of a `.socket` unit's socket stays as
    /// that unit says.
    ///
    /// # Errors
    /// Names the address and its holder; what was newly opened is closed again.
    pub fn hold(
        &mut self,
        addresses: &[Listen],
        slots: u16,
        file: SocketFile,
    ) -> Result<(), ListenError> {
        let size = index(slots);
        let mut opened = Vec::new();
        for address in addresses {
            let bound = match address {
                Listen::Tcp { addr, v6only } => match self.bound.get_mut(address) {
                    Some(Bound::Tcp { group, .. }) => {
                        if group.len() < size {
                            // Another process's socket in the group would shift the indexes of new
                            // sockets.
                            if let Some(holder) =
                                group.foreign_listeners().unwrap_or_default().pop()
                            {
                                return Err(ListenError::InUse {
                                    addr: *addr,
                                    holder: Some(holder),
                                });
                            }
                            group.grow(size)?;
                        }
                        continue;
                    }
                    Some(Bound::Unix { .. }) | None => {
                        let group = open(*addr, *v6only, size, &self.given)?;
                        let table = Table {
                            weights: vec![0; size],
                            balance: Balance::Random,
                            hold: LOBBY,
                        };
                        if let Err(source) = group.steer(&table) {
                            return Err(ListenError::Other {
                                addr: group.addr(),
                                step: "steering",
                                source,
                            });
                        }
                        Bound::Tcp {
                            group,
                            table,
                            stale: false,
                        }
                    }
                },
                Listen::Unix(path) if self.bound.contains_key(address) => {
                    if let Some(Bound::Unix { given: false, .. }) = self.bound.get(address) {
                        listen::own_unix(path, ownership(path, file))?;
                    }
                    continue;
                }
                Listen::Unix(path) => {
                    let fail = |why: io::Error| ListenError::Path {
                        path: path.clone(),
                        reason: why.to_string(),
                    };
                    match self.given.unix(path).map_err(fail)? {
                        Some(fd) => Bound::Unix {
                            fd,
                            path: path.clone(),
                            given: true,
                        },
                        None => Bound::Unix {
                            fd: listen::open_unix(path, ownership(path, file))?,
                            path: path.clone(),
                            given: false,
                        },
                    }
                }
            };
            opened.push((address.clone(), bound));
        }
        for (_, bound) in self
            .bound
            .extract_if(.., |address, _| !addresses.contains(address))
        {
            bound.end();
        }
        self.bound.extend(opened);
        Ok(())
    }

    /// Takes back existing sockets of an address, instead of opening it: `kept` has sockets by
    /// their position in the group, `of_worker` those of live workers. Returns whether the weights are in force.
    ///
    /// # Errors
    /// As for [`Self::hold`].
    pub fn adopt(
        &mut self,
        address: &Listen,
        adopted: &Adopted<'_>,
        kept: impl Fn(usize) -> Option<OwnedFd>,
        of_worker: impl Fn(u16) -> Option<OwnedFd>,
    ) -> Result<io::Result<()>, String> {
        let Adopted {
            slots,
            file,
            steering,
            others_live,
        } = *adopted;
        let Listen::Tcp { addr, v6only } = address else {
            let fd = kept(LOBBY).or_else(|| (0..slots).find_map(of_worker));
            return self.adopt_unix(address, file, fd).map(Ok);
        };
        let mut fds: Vec<Option<OwnedFd>> = (0..).map(&kept).take_while(Option::is_some).collect();
        fds.resize_with(fds.len().max(index(slots)), || None);
        for slot in 0..slots {
            let place = &mut fds[index(slot)];
            if place.is_none() {
                *place = kept(index(slot)).or_else(|| of_worker(slot));
            }
        }
        if fds[LOBBY].is_none()
            && let Ok(Lookup::Same(first)) = self.given.tcp(*addr, *v6only)
        {
            fds[LOBBY] = Some(first);
        }
        let mut group = if fds.iter().any(Option::is_some) {
            let mut group = Group::adopt(fds)
                .map_err(|why| format!("cannot take back the sockets of {address}: {why}"))?;
            group.recognise(&self.given);
            group
        } else if others_live {
            Group::join(*addr, *v6only, index(slots)).map_err(|why| why.to_string())?
        } else {
            open_after_a_death(*addr, *v6only, index(slots), &self.given)
                .map_err(|why| why.to_string())?
        };
        let mut weights = vec![0; group.len()];
        let before = steering
            .iter()
            .find(|s| s.address == *address)
            .map_or(&[][..], |s| &s.weights);
        for (place, weight) in weights.iter_mut().skip(1).zip(before) {
            *place = *weight;
        }
        let table = Table {
            weights,
            balance: Balance::Random,
            hold: LOBBY,
        };
        // The order that the kernel reports. The program in force lets the probes for it through,
        // and is right as well: one that follows a guess would send connections to wrong slots for
        // a moment. A guess is used only where there is no program yet.
        let steered =
            put_in_force(&mut group, &table).or_else(|_| put_in_force(&mut group, &table));
        self.served |= table.weights.iter().any(|w| *w > 0);
        self.bound.insert(
            address.clone(),
            Bound::Tcp {
                group,
                table,
                stale: steered.is_err(),
            },
        );
        Ok(steered)
    }

    fn adopt_unix(
        &mut self,
        address: &Listen,
        file: SocketFile,
        kept: Option<OwnedFd>,
    ) -> Result<(), String> {
        let Listen::Unix(path) = address else {
            return Ok(());
        };
        let theirs = self.given.unix(path).map_err(|why| why.to_string())?;
        let given = theirs.is_some();
        let fd = match theirs.or(kept) {
            Some(fd) => fd,
            None => {
                listen::open_unix(path, ownership(path, file)).map_err(|why| why.to_string())?
            }
        };
        self.bound.insert(
            address.clone(),
            Bound::Unix {
                fd,
                path: path.clone(),
                given,
            },
        );
        Ok(())
    }

    /// Every socket, with its position in the group of its address.
    pub fn all(&self) -> impl Iterator<Item = (&Listen, usize, BorrowedFd<'_>)> {
        self.bound.iter().flat_map(|(address, bound)| {
            let fds: Vec<BorrowedFd<'_>> = match bound {
                Bound::Tcp { group, .. } => (0..group.len()).map(|place| group.fd(place)).collect(),
                Bound::Unix { fd, .. } => vec![fd.as_fd()],
            };
            fds.into_iter()
                .enumerate()
                .map(move |(place, fd)| (address, place, fd))
        })
    }

    pub fn close(&mut self) {
        for bound in std::mem::take(&mut self.bound).into_values() {
            bound.end();
        }
        self.served = false;
    }

    /// The sockets that a worker in the slot inherits, in the order of its configuration.
    pub fn inherit(&self, slot: u16, order: &[Listen]) -> io::Result<Vec<OwnedFd>> {
        let copy = |address: &Listen| match self.bound.get(address)? {
            Bound::Tcp { group, .. } => Some(group.dup(index(slot))),
            Bound::Unix { fd, .. } => Some(fd.try_clone()),
        };
        order.iter().filter_map(copy).collect()
    }

    /// Applies weights.
    pub fn steer(&mut self, balance: config::Balance, tables: &[Steering]) -> io::Result<()> {
        // What goes wrong with one address is nothing to the others.
        let mut how = Ok(());
        for Steering { address, weights } in tables {
            let Some(Bound::Tcp {
                group,
                table,
                stale,
            }) = self.bound.get_mut(address)
            else {
                continue;
            };
            let mut by_index = vec![0];
            by_index.extend(weights);
            by_index.resize(group.len(), 0);
            table.weights = by_index;
            table.balance = match balance {
                config::Balance::Random => Balance::Random,
                config::Balance::SourceIp => Balance::SourceIp,
            };
            let steered = put_in_force(group, table);
            *stale = steered.is_err();
            how = how.and(steered);
        }
        self.served |= self.serves();
        how
    }

    /// Makes sockets listen again that a worker shut down, and applies the weights for the group's
    /// new order, or that could not be applied before.
    pub fn repair(&mut self) -> io::Result<()> {
        let mut how = Ok(());
        for bound in self.bound.values_mut() {
            let Bound::Tcp {
                group,
                table,
                stale,
            } = bound
            else {
                continue;
            };
            let steered = match group.repair() {
                Ok(Repaired::Whole) if !*stale => Ok(()),
                Ok(Repaired::Again | Repaired::Whole) => group.steer(table),
                // By the best order that is known.
                Err(why) => group.steer(table).and(Err(why)),
            };
            *stale = steered.is_err();
            how = how.and(steered);
        }
        how
    }

    /// Whether any worker is to take traffic.
    pub fn serves(&self) -> bool {
        self.bound.values().any(|bound| match bound {
            Bound::Tcp { table, .. } => table.weights.iter().any(|weight| *weight > 0),
            Bound::Unix { .. } => false,
        })
    }

    /// Whether the weights that were asked for last are in force.
    pub fn is_steered(&self) -> bool {
        self.bound.values().all(|bound| match bound {
            Bound::Tcp { stale, .. } => !stale,
            Bound::Unix { .. } => true,
        })
    }

    /// The accept queues of a slot, or of the holding slot.
    pub fn queues(&self, slot: Option<u16>) -> io::Result<Vec<Queue>> {
        let at = slot.map_or(LOBBY, index);
        let mut queues = Vec::new();
        for (address, bound) in &self.bound {
            let Bound::Tcp { group, .. } = bound else {
                continue;
            };
            let target = steer::probe_target(group.addr(), group.family());
            queues.push(Queue {
                address: address.clone(),
                slot,
                fd: group.dup(at)?,
                target,
            });
        }
        Ok(queues)
    }

    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self
            .bound
            .keys()
            .filter_map(|l| l.tcp().map(|a| a.port()))
            .collect();
        ports.dedup();
        ports
    }

    /// The address for a probe of the slot: the first TCP address in the order of the
    /// configuration.
    pub fn probe_target(&self, slot: u16, order: &[Listen]) -> Option<ProbeTarget> {
        order
            .iter()
            .find_map(|address| match self.bound.get(address)? {
                Bound::Tcp { group, .. } => Some(ProbeTarget {
                    address: steer::probe_target(group.addr(), group.family()),
                    index: group.index_of(index(slot)),
                }),
                Bound::Unix { .. } => None,
            })
    }

    /// Other processes that listen on one of the addresses: SO_REUSEPORT allows that to processes
    /// of the same user.
    pub fn foreign_listeners(&self) -> Vec<Holder> {
        let of = |bound: &Bound| match bound {
            Bound::Tcp { group, .. } => group.foreign_listeners().unwrap_or_default(),
            Bound::Unix { .. } => Vec::new(),
        };
        self.bound.values().flat_map(of).collect()
    }

    /// A copy of the slot's first TCP socket, for looking at its accept queue.
    pub fn probe_queue(&self, slot: u16, order: &[Listen]) -> Option<OwnedFd> {
        order
            .iter()
            .find_map(|address| match self.bound.get(address)? {
                Bound::Tcp { group, .. } => group.dup(index(slot)).ok(),
                Bound::Unix { .. } => None,
            })
    }

    /// The app's own address that a bind means: the very same one, or one of the same port.
    pub fn matching(&self, bind: &Bind, order: &[Listen]) -> Option<Listen> {
        if !bind.socket.is_stream {
            return None;
        }
        let of_port = || {
            order.iter().filter(|l| {
                l.tcp().is_some_and(|a| a.port() == bind.addr.port()) && self.bound.contains_key(l)
            })
        };
        let exact = of_port().find(|l| l.tcp().is_some_and(|a| a.ip() == bind.addr.ip()));
        let same_family =
            || of_port().find(|l| l.tcp().is_some_and(|a| a.is_ipv6() == bind.socket.is_v6));
        exact
            .or_else(same_family)
            .or_else(|| of_port().next())
            .cloned()
    }

    /// Records that a worker has the group's socket.
    pub fn handed(&mut self, address: &Listen, generation: u64) {
        self.handed
            .entry(address.clone())
            .or_default()
            .insert(generation);
    }

    /// Records that the worker is gone.
    pub fn taken_back(&mut self, generation: u64) {
        self.handed.values_mut().for_each(|of| {
            of.remove(&generation);
        });
    }

    /// Before any worker has a socket of it, a group takes the family that the app asked for, so
    /// that the app gets the kind of socket that it made. Later the group stays as it is: an app
    /// that binds both families would lose its first socket, or that of a worker beside it.
    pub fn adapt(&mut self, address: &Listen, bind: &Bind) -> Result<Option<Changed>, ListenError> {
        let Some(Bound::Tcp { group, table, .. }) = self.bound.get_mut(address) else {
            return Ok(None);
        };
        let want = match (group.family(), bind.socket.is_v6) {
            (Family::V4, true) => Family::V6Mapped,
            (Family::V6 { only: false }, false) => Family::V4,
            (Family::V4 | Family::V6Mapped | Family::V6 { .. }, _) => return Ok(None),
        };
        if self.served || self.handed.get(address).is_some_and(|of| !of.is_empty()) {
            return Ok(None);
        }
        let accepted = group.change_family(want)?;
        if let Err(source) = group.steer(table) {
            return Err(ListenError::Other {
                addr: group.addr(),
                step: "steering",
                source,
            });
        }
        Ok(Some(Changed {
            address: address.clone(),
            accepted,
        }))
    }

    /// The served address where it is less than the configured one: its IPv4 half, because the app
    /// makes IPv4 sockets. (An IPv6 socket with IPv4-mapped addresses in its place breaks apps that
    /// pass accept(2) a `sockaddr_in`: Python then shows parts of its memory as the client's
    /// address.)
    pub fn served_otherwise(&self, address: &Listen) -> Option<SocketAddr> {
        match (address, self.bound.get(address)?) {
            (Listen::Tcp { addr, .. }, Bound::Tcp { group, .. })
                if addr.is_ipv6() && group.family() == Family::V4 =>
            {
                Some(group.addr())
            }
            (Listen::Tcp { .. } | Listen::Unix(_), Bound::Tcp { .. } | Bound::Unix { .. }) => None,
        }
    }

    pub fn socket(&self, address: &Listen, slot: u16) -> Option<BorrowedFd<'_>> {
        match self.bound.get(address)? {
            Bound::Tcp { group, .. } => Some(group.fd(index(slot))),
            Bound::Unix { .. } => None,
        }
    }
}

/// The owner for a socket file; what the settings leave out is as the bind(2) of a process with
/// rsup's own user, group and umask has it.
fn ownership(path: &Path, file: SocketFile) -> Ownership {
    // inode(7), S_ISGID of a folder.
    let of_folder = || {
        path.parent()?
            .metadata()
            .ok()
            .filter(|folder| folder.mode() & 0o2000 != 0)
            .map(|folder| folder.gid())
    };
    let gid = file
        .gid
        .or_else(of_folder)
        .or(file.app_gid)
        .unwrap_or(getegid().as_raw());
    let mode = file.mode.unwrap_or_else(|| 0o777 & !process::own_umask());
    Ownership {
        mode,
        uid: file.uid.unwrap_or(geteuid().as_raw()),
        gid,
    }
}

fn open(addr: SocketAddr, v6only: bool, size: usize, given: &Given) -> Result<Group, ListenError> {
    let found = given
        .tcp(addr, v6only)
        .map_err(|source| ListenError::Other {
            addr,
            step: "dup",
            source,
        })?;
    match found {
        Lookup::Same(first) => Group::open_given(first, size),
        Lookup::Other(other) => match Group::open(addr, v6only, size) {
            // The error would name this very process as the holder.
            Err(ListenError::InUse { addr, .. }) => {
                Err(ListenError::GivenElsewhere { addr, given: other })
            }
            result => result,
        },
        Lookup::Nothing => Group::open(addr, v6only, size),
    }
}

/// As [`open`], once the sockets of a killed keeper are closed: it may take time to die, and a
/// group that has them too would change its order when they go.
fn open_after_a_death(
    addr: SocketAddr,
    v6only: bool,
    size: usize,
    given: &Given,
) -> Result<Group, ListenError> {
    let deadline = Instant::now() + DYING;
    loop {
        match open(addr, v6only, size, given) {
            Err(ListenError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            // A worker has it whose bind was not seen.
            Err(ListenError::InUse { .. }) => return Group::join(addr, v6only, size),
            result => return result,
        }
    }
}

/// Applies the weights by the best order that is known; after an error they are applied again later.
fn put_in_force(group: &mut Group, table: &Table) -> io::Result<()> {
    let ordered = group.repair();
    group.steer(table)?;
    ordered.map(drop)
}

impl Bound {
    /// Closes the address for good.
    fn end(self) {
        match self {
            Self::Tcp { group, .. } => group.end(),
            Self::Unix { given: true, .. } => {}
            // A unix socket leaves its file behind.
            Self::Unix {
                path, given: false, ..
            } => drop(std::fs::remove_file(path)),
        }
    }
}
