//! Finds the processes that listen on a port or a path.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::sockdiag::{self, ListeningSocket};
use super::{owner, procfs};

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its short name (`/proc/PID/comm`), harmless on a terminal, as its arguments are.
    pub name: String,
    /// Its arguments, joined by spaces; empty when it hides them.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}", self.name, self.pid)?;
        if !self.command.is_empty() && self.command != self.name {
            // Enough to recognise it by.
            let shown: String = self.command.chars().take(120).collect();
            let cut = if shown.len() < self.command.len() {
                "…"
            } else {
                ""
            };
            write!(f, ": {shown}{cut}")?;
        }
        f.write_str(")")
    }
}

/// The processes that listen on an address that overlaps `addr` (a wildcard overlaps every address
/// of its family). Processes that this one may not inspect are left out.
///
/// # Errors
/// When neither the kernel's list of sockets nor `/proc` can be read.
pub fn of_tcp(addr: SocketAddr) -> io::Result<Vec<Holder>> {
    let found = sockdiag::listeners(addr.port())?;
    let mut inodes: Vec<u64> = found
        .iter()
        .filter(|other| overlap(addr, other))
        .map(|other| other.inode)
        .collect();
    if inodes.is_empty() {
        // A rule not known here makes them conflict: any listener of the port is then the better
        // answer.
        inodes = found.iter().map(|other| other.inode).collect();
    }
    of_inodes(&inodes)
}

fn overlap(addr: SocketAddr, other: &ListeningSocket) -> bool {
    let (ours, theirs) = (addr.ip().to_canonical(), other.local.ip());
    match (ours, theirs) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
        (IpAddr::V6(a), IpAddr::V6(b)) => a == b || a.is_unspecified() || b.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V6(b)) => b.is_unspecified() && !other.v6only,
        (IpAddr::V6(a), IpAddr::V4(_)) => a.is_unspecified(),
    }
}

/// The processes that listen on the unix socket at `path`.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of_unix(path: &Path) -> io::Result<Vec<Holder>> {
    let absolute = std::path::absolute(path)?;
    // Num RefCount Protocol Flags Type St Inode Path; flag 00010000 is __SO_ACCEPTCON.
    let table = fs::read(Path::new("/proc/net/unix"))?;
    let table = String::from_utf8_lossy(&table);
    let inodes: Vec<u64> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let listens = fields.nth(3)? == "00010000";
            let inode = fields.nth(2)?.parse().ok()?;
            // The fields before have no slash; a path may have spaces.
            let name = Path::new(line.get(line.find('/')?..)?);
            (listens && (name == path || name == absolute)).then_some(inode)
        })
        .collect();
    of_inodes(&inodes)
}

/// The inode number of a socket of this process.
pub(super) fn inode_of(fd: BorrowedFd<'_>) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    socket_inode(&link).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a socket"))
}

fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The processes that have one of these sockets open, by id.
pub(super) fn of_inodes(inodes: &[u64]) -> io::Result<Vec<Holder>> {
    let mut holders = Vec::new();
    if inodes.is_empty() {
        return Ok(holders);
    }
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Gone meanwhile, or not accessible.
        let holds = owner::with_access(pid, || has_one_of(pid, inodes)).unwrap_or(false);
        if holds {
            holders.push(describe(pid));
        }
    }
    holders.sort_by_key(|holder: &Holder| holder.pid);
    Ok(holders)
}

fn has_one_of(pid: u32, inodes: &[u64]) -> io::Result<bool> {
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        match fs::read_link(fd.path()) {
            Ok(link) if socket_inode(&link).is_some_and(|inode| inodes.contains(&inode)) => {
                return Ok(true);
            }
            Err(error) if owner::refused(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(false)
}

fn describe(pid: u32) -> Holder {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let arguments = procfs::memory::read(pid, "cmdline").unwrap_or_default();
    let command: Vec<_> = arguments
        .split(|&byte| byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    // A process names itself as it likes.
    let harmless = |text: &str| crate::human::one_line(text).into_owned();
    let name = read("comm");
    Holder {
        pid,
        name: harmless(String::from_utf8_lossy(&name).trim_end()),
        command: harmless(&command.join(" ")),
    }
}
