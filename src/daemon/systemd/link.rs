//! The socket to the service manager: sd_notify(3) and its file descriptor store.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// The prefix of rsup's names in the store; others are not rsup's.
const PREFIX: &str = "rsup.";
/// Sockets have the name of their unit, and rsup's may be called `rsup.socket`.
const UNIT: &str = ".socket";
/// The longest name that systemd takes (`FDNAME_MAX`), in bytes.
const LONGEST_NAME: usize = 255;
/// How long the loop waits for a systemd that is busy or hangs.
const PATIENCE: Duration = Duration::from_millis(100);

/// Sends messages to the manager of this service.
#[derive(Debug)]
pub struct Link(UnixDatagram);

impl Link {
    /// Opens the value of `NOTIFY_SOCKET`: a path, or `@name` in the abstract namespace.
    ///
    /// # Errors
    /// When there is no such socket, or it is of a kind that a service does not have (`vsock:`).
    pub fn open(address: &str) -> io::Result<Self> {
        let to = match address.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None if Path::new(address).is_absolute() => SocketAddr::from_pathname(address)?,
            None => {
                let what =
                    format!("NOTIFY_SOCKET={address} is neither a path nor an abstract socket");
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&to)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends assignments, one a line.
    ///
    /// # Errors
    /// `WouldBlock` when the manager does not read; nothing was sent then.
    pub fn send(&self, message: &str) -> io::Result<()> {
        self.0.send(message.as_bytes()).map(drop)
    }

    /// Puts a copy of a descriptor into the store, where it outlives this process. systemd keeps a
    /// descriptor of the same open file only once, under its first name; under one name it keeps
    /// any number.
    ///
    /// # Errors
    /// For a name that is too long or reserved by systemd; otherwise as [`Self::send`]. A full
    /// store (`FileDescriptorStoreMax=`) is reported only in systemd's own log.
    pub fn store(&self, name: &str, fd: impl AsFd) -> io::Result<()> {
        // A pipe whose other end is closed must stay: its last lines are still in it.
        let message = format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", fd_name(name)?);
        let fds = [fd.as_fd().as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(message.as_bytes())],
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Takes all descriptors of this name out of the store.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={}", fd_name(name)?))
    }
}

/// Encodes a name for systemd: what is not printable ASCII, and `:` and `%`, become `%XX`.
fn fd_name(name: &str) -> io::Result<String> {
    let mut text = PREFIX.to_owned();
    for byte in name.bytes() {
        match byte {
            b':' | b'%' => text.push_str(&format!("%{byte:02X}")),
            b' '..=b'~' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    let refused = |why: &str| {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{name}` {why}"),
        ))
    };
    if text.len() > LONGEST_NAME {
        return refused("is too long a name for systemd's store of descriptors");
    }
    if text.ends_with(UNIT) {
        return refused("looks like the name of a .socket unit");
    }
    Ok(text)
}

/// The name that [`fd_name`] encoded; `None` for descriptors that rsup did not store.
fn own_name(text: &str) -> Option<String> {
    let text = text
        .strip_prefix(PREFIX)
        .filter(|_| !text.ends_with(UNIT))?;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (hex, tail) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// Sorts the descriptors: those from the store by their names there, and the rest, which are
/// sockets of `.socket` units.
pub fn sort(fds: Vec<(String, OwnedFd)>) -> (BTreeMap<String, OwnedFd>, Vec<OwnedFd>) {
    let (mut stored, mut rest) = (BTreeMap::new(), Vec::new());
    for (name, fd) in fds {
        match own_name(&name) {
            Some(name) => drop(stored.insert(name, fd)),
            None => rest.push(fd),
        }
    }
    (stored, rest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn manager() -> (tempfile::TempDir, UnixDatagram, Link) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let link = Link::open(&path.display().to_string()).unwrap();
        (folder, socket, link)
    }

    #[test]
    fn a_message_arrives_whole() {
        let (_folder, socket, link) = manager();
        link.send("READY=1\nSTATUS=well").unwrap();
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=well");
    }

    #[test]
    fn abstract_sockets_are_known_and_others_refused() {
        let name = format!("rsup-test-{}", std::process::id());
        let _socket =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Link::open(&format!("@{name}"))
            .unwrap()
            .send("READY=1")
            .unwrap();
        assert_eq!(
            Link::open("vsock:2:1").unwrap_err().kind(),
            io::ErrorKind::Unsupported
        );
        assert!(Link::open("/nowhere/at/all").is_err());
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let (_folder, _socket, link) = manager();
        let begin = std::time::Instant::now();
        let error = (0..100_000)
            .find_map(|_| link.send("STATUS=x").err())
            .expect("its queue is full one day");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn names_come_back_as_they_were() {
        for name in ["api/3", "listen [::]:8080 0", "100%", "é", "a\nb"] {
            let text = fd_name(name).unwrap();
            assert!(
                text.starts_with(PREFIX)
                    && text
                        .bytes()
                        .all(|b| (b' '..=b'~').contains(&b) && b != b':'),
                "{text}"
            );
            assert_eq!(own_name(&text).as_deref(), Some(name));
        }
        for name in ["x.socket", &"x".repeat(251)] {
            assert!(fd_name(name).is_err(), "{name}");
        }
        assert!(fd_name(&"x".repeat(250)).is_ok());
        for other in [
            "rsup.socket",
            "stored",
            "",
            "unknown",
            "rsup.%zz",
            "rsup.%4",
        ] {
            assert_eq!(own_name(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_handed_over_is_sorted() {
        let fd = || OwnedFd::from(std::io::pipe().unwrap().0);
        let (stored, rest) = sort(vec![
            ("rsup.socket".into(), fd()),
            ("rsup.api%3A0".into(), fd()),
            (String::new(), fd()),
        ]);
        assert_eq!(stored.keys().collect::<Vec<_>>(), ["api:0"]);
        assert_eq!(rest.len(), 2);
    }
}
