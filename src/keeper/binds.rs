//! The holder of binds: a tiny process that outlives daemon and keeper, and holds the listeners of
//! filters (`sys/takeover.rs`) that workers may not hold themselves: those without `no_new_privs`,
//! or of another user, which only a privileged rsup can start (see `sys/takeover/held.rs` for the
//! reason).
//!
//! It listens on a socket in the runtime folder, where a daemon hands over listeners and the next
//! one fetches them, in the messages of [`wire`]. A listener is closed after the last process under
//! its filter has ended; the holder ends when it has none left and no daemon is connected.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::wire::{self, FromKeeper, ToKeeper};
use crate::sys::{fdpass, inherit, process};

/// The verb of rsup that is [`run`].
pub const VERB: &str = "hold-binds";

/// The variable with the number of its listening socket.
pub const SOCKET: &str = "RSUP_BINDS_FD";

/// How long the daemon that started it may take to connect.
const FIRST: Duration = Duration::from_secs(10);

/// How long a daemon may take to read the answer.
const READS: Duration = Duration::from_secs(2);

struct Holder {
    listening: Socket,
    daemons: Vec<OwnedFd>,
    kept: BTreeMap<String, OwnedFd>,
    /// Another holder listens at the path by now.
    replaced: bool,
}

/// Runs until it is not needed any more; returns the exit code.
pub fn run() -> u8 {
    let Some(Ok(listening)) = inherit::take_named(SOCKET) else {
        return 2;
    };
    let _ = nix::unistd::setsid();
    // A command that kills processes named `rsup` must not hit this one.
    let _ = std::fs::write("/proc/self/comm", "bind-holder");
    let _ = process::raise_nofile();
    let mut holder = Holder {
        listening: listening.into(),
        daemons: Vec::new(),
        kept: BTreeMap::new(),
        replaced: false,
    };
    let began = Instant::now();
    let (mut used, mut settled) = (false, false);
    loop {
        if !settled && !holder.kept.is_empty() {
            settled = true;
            // From here on it mostly sleeps.
            process::forget_program_pages();
        }
        used |= !holder.daemons.is_empty();
        let idle = holder.daemons.is_empty() && holder.kept.is_empty();
        let left = FIRST.saturating_sub(began.elapsed());
        if idle && (used || left.is_zero()) {
            holder.remove_path();
            return 0;
        }
        let timeout = if used { None } else { Some(left) };
        if holder.turn(timeout).is_err() {
            return 1;
        }
    }
}

impl Holder {
    /// As long as the socket exists at the path, no other holder can listen there.
    fn remove_path(&self) {
        if self.replaced {
            return;
        }
        let address = self.listening.local_addr().ok();
        if let Some(path) = address.as_ref().and_then(|address| address.as_pathname()) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Waits for something to happen, and handles it.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let mut wanted = vec![PollFd::new(self.listening.as_fd(), PollFlags::POLLIN)];
        wanted.extend(
            self.daemons
                .iter()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        // The end of all processes under a filter is reported even to a poll for no events.
        wanted.extend(
            self.kept
                .values()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty())),
        );
        let timeout = timeout.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut wanted, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(why) => return Err(why.into()),
        }
        let seen: Vec<bool> = wanted.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(wanted);
        let (of_daemons, of_kept) = seen
            .get(1..)
            .unwrap_or_default()
            .split_at(self.daemons.len());
        let mut over = of_kept.iter();
        self.kept
            .retain(|_, _| !over.next().copied().unwrap_or(false));
        let mut talks = of_daemons.iter();
        let mut daemons = std::mem::take(&mut self.daemons);
        daemons.retain(|daemon| !talks.next().copied().unwrap_or(false) || self.hear(daemon));
        self.daemons = daemons;
        if seen.first() == Some(&true) {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Ok((daemon, _)) = self.listening.accept() else {
            return;
        };
        let is_ours = process::peer_credentials(&daemon)
            .is_ok_and(|peer| peer.uid == nix::unistd::geteuid().as_raw());
        if is_ours && daemon.set_nonblocking(true).is_ok() {
            self.daemons.push(daemon.into());
        }
    }

    /// Handles one message. False once the daemon is gone.
    fn hear(&mut self, daemon: &OwnedFd) -> bool {
        let mut packet = [0; wire::LONGEST + 1];
        loop {
            match fdpass::receive(daemon, &mut packet) {
                Ok((0, _)) => return false,
                Ok((length, fd)) => match (packet.get(..length).and_then(ToKeeper::parse), fd) {
                    (Some(ToKeeper::Keep(name)), Some(fd)) => {
                        self.kept.insert(name, fd);
                    }
                    // Another holder takes its place.
                    (Some(ToKeeper::Bye), _) => {
                        self.kept.clear();
                        self.replaced = true;
                    }
                    (Some(ToKeeper::GiveBack), _) => {
                        if self.give_back(daemon).is_err() {
                            return false;
                        }
                    }
                    (Some(_) | None, _) => {}
                },
                Err(why) => return why.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    fn give_back(&self, daemon: &OwnedFd) -> io::Result<()> {
        let deadline = Instant::now() + READS;
        let tell = |message: FromKeeper, fd: Option<&OwnedFd>| {
            while let Err(why) =
                fdpass::send_message(daemon, &message.encode(), fd.map(AsFd::as_fd))
            {
                let left = deadline.saturating_duration_since(Instant::now());
                if why.kind() != io::ErrorKind::WouldBlock || left.is_zero() {
                    return Err(why);
                }
                let mut room = [PollFd::new(daemon.as_fd(), PollFlags::POLLOUT)];
                poll(
                    &mut room,
                    PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
                )?;
            }
            Ok(())
        };
        for (name, fd) in &self.kept {
            tell(FromKeeper::Kept(name.clone()), Some(fd))?;
        }
        tell(FromKeeper::AllKept, None)
    }
}
