//! Why a listening socket could not be opened, as messages for the user.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use super::Family;
use crate::sys::holder::{self, Holder};
use crate::sys::needs;

/// A listening socket could not be opened.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another socket listens there, or on an overlapping address.
    #[error("{addr} is in use{}", by(holder.as_ref()))]
    InUse {
        /// The address asked for.
        addr: SocketAddr,
        /// The process that listens, if it can be found (one of another user may be hidden).
        holder: Option<Holder>,
    },
    /// A process listens on the unix socket.
    #[error("{} is in use{}", path.display(), by(holder.as_ref()))]
    PathInUse {
        /// The path asked for.
        path: PathBuf,
        /// The process that listens, if it can be found.
        holder: Option<Holder>,
    },
    /// `EACCES`.
    #[error("no permission to listen on {addr}{}", privileged(*addr))]
    Denied {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// `EADDRNOTAVAIL` or `EAFNOSUPPORT`.
    #[error("{addr} is not an address of this machine{}", ipv6_hint(*addr))]
    NotAvailable {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// No group of this size.
    #[error("{addr} cannot have {slots} slots: 1 to {limit} can be steered here")]
    TooMany {
        /// The address asked for.
        addr: SocketAddr,
        /// Slots asked for.
        slots: usize,
        /// The most that are possible.
        limit: usize,
    },
    /// The address is not available in the wanted family.
    #[error("{addr} is not available as {}", family_words(*want))]
    Family {
        /// The group's address.
        addr: SocketAddr,
        /// The family wanted.
        want: Family,
    },
    /// The socket belongs to a `.socket` unit and cannot be made again in the wanted family.
    #[error("{addr} is the socket of a .socket unit, and the app wants {}: {}", family_words(*want), given_hint(*want, addr.port()))]
    Given {
        /// The group's address.
        addr: SocketAddr,
        /// The family wanted.
        want: Family,
    },
    /// A socket from the service manager is in the way.
    #[error(
        "the .socket unit listens on {given}, not on {addr}: write ListenStream={addr} there, or listen = \"{given}\" here"
    )]
    GivenElsewhere {
        /// The address asked for.
        addr: SocketAddr,
        /// The address of that socket.
        given: SocketAddr,
    },
    /// The path exists and is no socket, or cannot be one.
    #[error("cannot listen on {}: {reason}", path.display())]
    Path {
        /// The path asked for.
        path: PathBuf,
        /// What stands in the way.
        reason: String,
    },
    /// Anything else.
    #[error("cannot listen on {addr}: {step}: {source}{}", refused_hint(source))]
    Other {
        /// The address asked for.
        addr: SocketAddr,
        /// The call that failed.
        step: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl ListenError {
    pub(super) fn new(addr: SocketAddr, step: &'static str, source: io::Error) -> ListenError {
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => ListenError::InUse {
                addr,
                holder: holder::of_tcp(addr)
                    .ok()
                    .and_then(|holders| holders.into_iter().next()),
            },
            Some(libc::EACCES | libc::EPERM) if step == "bind" => {
                ListenError::Denied { addr, source }
            }
            Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {
                ListenError::NotAvailable { addr, source }
            }
            _ => ListenError::Other { addr, step, source },
        }
    }
}

fn by(holder: Option<&Holder>) -> String {
    holder.map_or_else(
        || " by another process (of another user, perhaps)".to_owned(),
        |holder| format!(" by {holder}"),
    )
}

fn privileged(addr: SocketAddr) -> &'static str {
    if addr.port() < 1024 {
        ": ports below 1024 are for root. Choose a higher one, lower \
         net.ipv4.ip_unprivileged_port_start, or give rsup the capability: \
         setcap cap_net_bind_service=+ep $(command -v rsup)"
    } else {
        ""
    }
}

fn ipv6_hint(addr: SocketAddr) -> &'static str {
    if addr.is_ipv6() {
        " (is IPv6 enabled?)"
    } else {
        ""
    }
}

fn refused_hint(source: &io::Error) -> String {
    let refused = needs::is_refused(source);
    if refused {
        format!(": the container or sandbox refuses it\n{}", needs::ALLOW)
    } else {
        String::new()
    }
}

fn given_hint(want: Family, port: u16) -> String {
    match want {
        Family::V4 => format!("let both the unit and the app's `listen` name 0.0.0.0:{port}"),
        Family::V6 { .. } | Family::V6Mapped => {
            format!("let both the unit and the app's `listen` name [::]:{port}")
        }
    }
}

fn family_words(family: Family) -> &'static str {
    match family {
        Family::V4 => "an IPv4 socket",
        Family::V6 { only: true } => "an IPv6-only socket",
        Family::V6 { only: false } => "an IPv6 socket that takes IPv4 too",
        Family::V6Mapped => "an IPv6 socket for IPv4 connections",
    }
}
