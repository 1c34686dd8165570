//! The daemon's end of its connection to the keeper.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::wire::{self, FromKeeper, ToKeeper};
use super::{SOCKET, pair};
use crate::exit::Exit;
use crate::sys::readiness::readable;
use crate::sys::{fdpass, inherit, process};

/// How long a keeper may take to answer while the starting daemon waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pause before the next attempt to send what the keeper had no room for.
const PAUSE: Duration = Duration::from_millis(20);

/// A keeper that is at work. Only the functions that say so wait: what the keeper has no room for
/// stays in a queue.
pub struct Link {
    socket: AsyncFd<OwnedFd>,
    unsent: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    asked: Vec<(u32, oneshot::Sender<Exit>)>,
}

/// What came from the keeper.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing of interest, or an answer that has gone to its caller.
    Nothing,
    /// The keeper is dead.
    Gone,
}

impl Link {
    /// Connects to the keeper at the other end of `socket`, and takes back what it holds. Waits for
    /// its answers.
    ///
    /// # Errors
    /// `TimedOut`; `BrokenPipe` if it is dead; `InvalidData` if it is of another version.
    pub fn resume(socket: OwnedFd) -> io::Result<(Link, BTreeMap<String, OwnedFd>)> {
        nix::fcntl::fcntl(
            &socket,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )?;
        let mut link = Link {
            socket: readable(socket)?,
            unsent: VecDeque::new(),
            asked: Vec::new(),
        };
        link.send(&ToKeeper::Hello(wire::VERSION), None);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match link.next(deadline)? {
                (FromKeeper::Hello(wire::VERSION), _) => break,
                (FromKeeper::Hello(other), _) => {
                    // It is replaced by a keeper of this version.
                    link.send(&ToKeeper::Bye, None);
                    let text = format!(
                        "the keeper speaks version {other}, this daemon version {}",
                        wire::VERSION
                    );
                    return Err(io::Error::new(ErrorKind::InvalidData, text));
                }
                (FromKeeper::Kept(_) | FromKeeper::AllKept | FromKeeper::Ended(..), _) => {}
            }
        }
        link.send(&ToKeeper::GiveBack, None);
        let mut kept = BTreeMap::new();
        loop {
            match link.next(deadline)? {
                (FromKeeper::Kept(name), Some(fd)) => drop(kept.insert(name, fd)),
                (FromKeeper::AllKept, _) => return Ok((link, kept)),
                (FromKeeper::Kept(_) | FromKeeper::Hello(_) | FromKeeper::Ended(..), _) => {}
            }
        }
    }

    /// Starts a keeper for this daemon, in place of one that died.
    ///
    /// # Errors
    /// When there are no descriptors or processes left.
    pub fn make(program: &std::path::Path) -> io::Result<(Link, u32)> {
        let (ours, theirs) = pair()?;
        let number = inherit::leave_open(&theirs)?;
        let mut command = Command::new(program);
        command.envs(process::nofile_found().map(|soft| (process::NOFILE, soft)));
        let child = command
            .arg("keeper")
            .env(SOCKET, number.to_string())
            .stdin(Stdio::null())
            .spawn();
        drop(theirs);
        let mut link = Link {
            socket: readable(ours)?,
            unsent: VecDeque::new(),
            asked: Vec::new(),
        };
        link.send(&ToKeeper::Hello(wire::VERSION), None);
        Ok((link, child?.id()))
    }

    /// The socket, for the next program of this process.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }

    /// Sends in order; [`Self::turn`] sends what has to wait.
    pub fn send(&mut self, message: &ToKeeper, fd: Option<BorrowedFd<'_>>) {
        let packet = message.encode();
        if self.unsent.is_empty() && !full(fdpass::send_message(self.socket(), &packet, fd)) {
            return;
        }
        // Without a spare descriptor the message goes alone, and the keeper logs that.
        self.unsent
            .push_back((packet, fd.and_then(|fd| fd.try_clone_to_owned().ok())));
    }

    /// Reports that the daemon ends; what is still queued to be kept is dropped. Waits for room.
    pub fn bye(&mut self) {
        self.unsent.clear();
        let deadline = Instant::now() + PATIENCE;
        while full(fdpass::send_message(
            self.socket(),
            &ToKeeper::Bye.encode(),
            None,
        )) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut room = [PollFd::new(self.socket(), PollFlags::POLLOUT)];
            if left.is_zero()
                || poll(
                    &mut room,
                    PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
                )
                .is_err()
            {
                return;
            }
        }
    }

    /// Asks how a process ended that became the keeper's child; `answer` is dropped if the keeper
    /// dies.
    pub fn how_ended(&mut self, pid: u32, answer: oneshot::Sender<Exit>) {
        self.send(&ToKeeper::HowEnded(pid), None);
        self.asked.push((pid, answer));
    }

    /// As [`Self::how_ended`]; waits for the answer.
    pub fn how_ended_now(&mut self, pid: u32) -> Exit {
        self.send(&ToKeeper::HowEnded(pid), None);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next(deadline) {
                Ok((FromKeeper::Ended(of, exit), _)) if of == pid => return exit,
                Ok(_) => {}
                Err(_) => return Exit::Unknown,
            }
        }
    }

    /// Waits for something to do, and does it. Cancel-safe.
    pub async fn turn(&mut self) -> Heard {
        let heard = if self.unsent.is_empty() {
            self.hear().await
        } else {
            tokio::time::timeout(PAUSE, self.hear())
                .await
                .unwrap_or(Ok(None))
        };
        while let Some((packet, fd)) = self.unsent.front() {
            if full(fdpass::send_message(
                self.socket(),
                packet,
                fd.as_ref().map(AsFd::as_fd),
            )) {
                break;
            }
            self.unsent.pop_front();
        }
        match heard {
            Ok(Some(FromKeeper::Ended(pid, exit))) => {
                if let Some(at) = self.asked.iter().position(|(of, _)| *of == pid) {
                    let _ = self.asked.swap_remove(at).1.send(exit);
                }
                Heard::Nothing
            }
            Ok(Some(FromKeeper::Hello(_) | FromKeeper::Kept(_) | FromKeeper::AllKept) | None) => {
                Heard::Nothing
            }
            Err(_) => Heard::Gone,
        }
    }

    async fn hear(&self) -> io::Result<Option<FromKeeper>> {
        let mut guard = self.socket.readable().await?;
        let message = receive(guard.get_inner().as_fd())?;
        if message.is_none() {
            guard.clear_ready();
        }
        Ok(message.map(|(message, _)| message))
    }

    /// Waits for the next message.
    fn next(&mut self, deadline: Instant) -> io::Result<(FromKeeper, Option<OwnedFd>)> {
        loop {
            if let Some(message) = receive(self.socket())? {
                return Ok(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let mut wanted = [PollFd::new(self.socket(), PollFlags::POLLIN)];
            let _ = poll(
                &mut wanted,
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            );
        }
    }
}

/// The next message if there is one. An invalid one is skipped.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(FromKeeper, Option<OwnedFd>)>> {
    let mut packet = [0; wire::LONGEST + 1];
    loop {
        match fdpass::receive(socket, &mut packet) {
            Ok((0, _)) => return Err(ErrorKind::BrokenPipe.into()),
            Ok((length, fd)) => {
                if let Some(message) = FromKeeper::parse(&packet[..length]) {
                    return Ok(Some((message, fd)));
                }
            }
            Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(why) => return Err(why),
        }
    }
}

fn full(sent: io::Result<()>) -> bool {
    // A dead keeper is noticed by its silence.
    sent.is_err_and(|why| why.kind() == ErrorKind::WouldBlock)
}
