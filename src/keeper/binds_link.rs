//! The daemon's end of its connection to the [holder of binds](super::binds).

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use super::binds::{SOCKET, VERB};
use super::wire::{self, FromKeeper, ToKeeper};
use crate::sys::{fdpass, inherit};

/// How long the holder may take to return what it holds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connections of daemons that wait for the holder to accept them.
const BACKLOG: i32 = 4;

/// What the holder should hold. Only [`take_back`] waits.
pub struct Link {
    path: PathBuf,
    socket: Option<OwnedFd>,
    /// By name: whether it was handed over.
    wanted: BTreeMap<String, bool>,
}

impl Link {
    /// Starts no holder yet. `path` is the holder's socket.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            socket: None,
            wanted: BTreeMap::new(),
        }
    }

    /// Hands a descriptor over, and again to the next holder if this one dies.
    ///
    /// # Errors
    /// When no holder can be started, or it has no room; [`Self::tend`] tries again.
    pub fn keep(
        &mut self,
        name: String,
        fd: &impl AsFd,
        get: impl Fn(&str) -> Option<OwnedFd>,
    ) -> io::Result<()> {
        match self.socket.as_ref().filter(|socket| lives(socket)) {
            Some(socket) => {
                let sent = hand_over(socket, &name, fd.as_fd());
                self.wanted.insert(name, sent.is_ok());
                sent
            }
            None => {
                self.wanted.insert(name, false);
                self.tend(get)
            }
        }
    }

    /// Hands over what is not held yet: all of it to a new holder, if the former one is gone. A
    /// name that `get` does not find any more is dropped.
    ///
    /// # Errors
    /// As for [`Self::keep`].
    pub fn tend(&mut self, get: impl Fn(&str) -> Option<OwnedFd>) -> io::Result<()> {
        let mut wanted: Vec<(String, OwnedFd)> = Vec::new();
        // The next daemon could not find a holder whose socket was removed.
        let lost = self.socket.is_some() && !self.path.exists();
        if lost && let Some(socket) = self.socket.take() {
            let _ = fdpass::send_message(&socket, &ToKeeper::Bye.encode(), None);
        }
        let dead = !self.socket.as_ref().is_some_and(lives);
        self.wanted.retain(|name, held| {
            let fd = get(name);
            *held &= !dead;
            let known = fd.is_some();
            wanted.extend(fd.filter(|_| !*held).map(|fd| (name.clone(), fd)));
            known
        });
        if self.wanted.is_empty() {
            self.socket = None;
            return Ok(());
        }
        if dead {
            self.socket = Some(reach(&self.path)?);
        }
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        for (name, fd) in wanted {
            hand_over(socket, &name, fd.as_fd())?;
            self.wanted.insert(name, true);
        }
        Ok(())
    }
}

fn hand_over(socket: &OwnedFd, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let message = ToKeeper::Keep(name.to_owned()).encode();
    fdpass::send_message(socket, &message, Some(fd))
}

/// What an earlier daemon gave to the holder at `path`; nothing where there is no holder. Waits for
/// it.
///
/// # Errors
/// When there is a holder that does not answer.
pub fn take_back(path: &Path) -> io::Result<BTreeMap<String, OwnedFd>> {
    let socket = match connect(path) {
        Ok(socket) => socket,
        Err(why)
            if matches!(
                why.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(BTreeMap::new());
        }
        Err(why) => return Err(why),
    };
    fdpass::send_message(&socket, &ToKeeper::GiveBack.encode(), None)?;
    let deadline = Instant::now() + PATIENCE;
    let mut kept = BTreeMap::new();
    let mut packet = [0; wire::LONGEST + 1];
    loop {
        match fdpass::receive(&socket, &mut packet) {
            Ok((0, _)) => return Err(ErrorKind::BrokenPipe.into()),
            Ok((length, fd)) => match packet.get(..length).and_then(FromKeeper::parse) {
                Some(FromKeeper::Kept(name)) => kept.extend(fd.map(|fd| (name, fd))),
                Some(FromKeeper::AllKept) => return Ok(kept),
                Some(FromKeeper::Hello(_) | FromKeeper::Ended(..)) | None => {}
            },
            Err(why) if why.kind() == ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ErrorKind::TimedOut.into());
                }
                let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                let left = PollTimeout::try_from(left + Duration::from_millis(1));
                poll(&mut wanted, left.unwrap_or(PollTimeout::ZERO))?;
            }
            Err(why) => return Err(why),
        }
    }
}

/// Connects to the holder, and starts one where there is none.
fn reach(path: &Path) -> io::Result<OwnedFd> {
    if let Ok(socket) = connect(path) {
        return Ok(socket);
    }
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != ErrorKind::NotFound => return Err(why),
        Ok(()) | Err(_) => {}
    }
    let listening = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    listening.bind(&SockAddr::unix(path)?)?;
    // No client can connect before it listens.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listening.listen(BACKLOG)?;
    let number = inherit::leave_open(&listening)?;
    // Not the name `rsup`, by which users kill rsup.
    Command::new("/proc/self/exe")
        .arg0("bind-holder")
        .arg(VERB)
        .env_clear()
        .envs(std::env::var_os("RSUP_HOME").map(|home| ("RSUP_HOME", home)))
        .env(SOCKET, number.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    connect(path)
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// Whether the holder lives: it never sends unasked, so readable means closed.
fn lives(socket: &OwnedFd) -> bool {
    let mut packet = [0; 1];
    fdpass::receive(socket, &mut packet).is_err_and(|why| why.kind() == ErrorKind::WouldBlock)
}
