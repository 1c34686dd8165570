//! Workers that say themselves when they are ready: sd_notify(3) and Node's IPC channel.
//!
//! The socket of sd_notify is one that the worker's user alone can reach, and the kernel says which
//! process sent a message: what comes from none of the worker's own is ignored.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use nix::unistd::{Uid, chown, geteuid};
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::task::JoinHandle;

use tracing::warn;

use super::{Event, Events, Fleet};
use crate::core::{Input, WorkerId};
use crate::paths::Paths;
use crate::sys::procfs;
use crate::sys::spawn::Credentials;

/// Longer messages are no notifications.
const LONGEST: usize = 4096;
/// Messages of other processes are logged this often at the most, for each worker.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Both ways to notify, open for as long as the worker lives.
pub struct Channel {
    path: PathBuf,
    tasks: [JoinHandle<()>; 2],
}

/// The daemon's ends, before anybody listens to them.
pub struct Ends {
    pub datagrams: OwnedFd,
    pub node: OwnedFd,
}

/// Where the worker finds its socket: out of reach of every other user.
fn place(paths: &Paths, id: &WorkerId, owner: Option<&Credentials>) -> PathBuf {
    match owner.filter(|owner| owner.uid != geteuid().as_raw()) {
        None => paths.notify(id.generation),
        Some(_) => paths.notify_of_others().join(id.generation.to_string()),
    }
}

impl Ends {
    /// Opens them for a worker of this user, or of our own; the other descriptor is the worker's end of
    /// Node's channel.
    pub fn open(
        paths: &Paths,
        id: &WorkerId,
        owner: Option<&Credentials>,
    ) -> Result<(Self, OwnedFd), String> {
        let other = owner.filter(|owner| owner.uid != geteuid().as_raw());
        if let Some(other) = other {
            let folder = paths.create_notify_of_others()?;
            if let Some(closed) = other.first_closed(&folder) {
                return Err(format!(
                    "NOTIFY_SOCKET in {} would be out of reach of user {}: {} is closed to it",
                    folder.display(),
                    other.uid,
                    closed.display()
                ));
            }
        }
        Self::at(&place(paths, id, owner), other).map_err(|why| why.to_string())
    }

    fn at(path: &Path, other: Option<&Credentials>) -> io::Result<(Self, OwnedFd)> {
        let _ = std::fs::remove_file(path);
        let datagrams = std::os::unix::net::UnixDatagram::bind(path)?;
        datagrams.set_nonblocking(true)?;
        setsockopt(&datagrams, sockopt::PassCred, &true)?;
        // To send takes the permission to write.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(other) = other {
            chown(path, Some(Uid::from_raw(other.uid)), None)?;
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((
            Self {
                datagrams: datagrams.into(),
                node: ours.into(),
            },
            theirs.into(),
        ))
    }
}

impl Channel {
    /// Listens to both.
    pub fn listen(
        ends: Ends,
        paths: &Paths,
        id: &WorkerId,
        owner: Option<&Credentials>,
        events: Events,
    ) -> io::Result<Self> {
        let datagrams = UnixDatagram::from_std(ends.datagrams.into())?;
        let stream = UnixStream::from_std(ends.node.into())?;
        let from = owner.map_or(geteuid().as_raw(), |owner| owner.uid);
        let tasks = [
            tokio::spawn(sd_notify(datagrams, id.clone(), from, events.clone())),
            tokio::spawn(node(stream, id.clone(), events)),
        ];
        Ok(Self {
            path: place(paths, id, owner),
            tasks,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn sd_notify(socket: UnixDatagram, worker: WorkerId, from: u32, events: Events) {
    let mut buffer = [0; LONGEST];
    loop {
        let Ok((length, sender)) = socket
            .async_io(Interest::READABLE, || receive(&socket, &mut buffer))
            .await
        else {
            return;
        };
        // Root may do as it likes anyway, a wrapper that changes its user for one.
        let may = sender.is_some_and(|sender| sender.uid() == from || sender.uid() == 0);
        if may
            && buffer[..length]
                .split(|b| *b == b'\n')
                .any(|line| line == b"READY=1")
        {
            let by = sender
                .and_then(|sender| u32::try_from(sender.pid()).ok())
                .filter(|pid| *pid != 0);
            let _ = events.send(Event::Notified {
                worker: worker.clone(),
                by,
            });
        }
    }
}

/// One message, and who sent it (`SCM_CREDENTIALS`, unix(7)).
fn receive(
    socket: &UnixDatagram,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<UnixCredentials>)> {
    let mut control = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(buffer)];
    // Descriptors that come along have no room and are closed: a barrier of sd_notify(3) is passed.
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let sender = message.cmsgs()?.find_map(|control| {
        if let ControlMessageOwned::ScmCredentials(sender) = control {
            Some(sender)
        } else {
            None
        }
    });
    Ok((message.bytes, sender))
}

impl Fleet {
    /// A message of the worker itself or of a process below it counts. A sender that has ended
    /// meanwhile cannot be looked at any more; it was of the right user.
    pub fn on_notified(&mut self, worker: &WorkerId, by: Option<u32>) -> Option<Input> {
        let running = self.running.get_mut(&worker.generation)?;
        if let Some(pid) = by.filter(|pid| !running.owns(*pid) && procfs::start_time(*pid).is_ok())
        {
            // Any process of the worker's user can send as many as it likes.
            let is_time = running
                .stranger_logged
                .is_none_or(|logged| logged.elapsed() >= LOGGED_EVERY);
            if is_time {
                running.stranger_logged = Some(Instant::now());
                warn!(
                    "{worker}: process {pid}, which is none of its own, said that it is ready: ignored"
                );
            }
            return None;
        }
        Some(Input::Notified {
            worker: worker.clone(),
        })
    }
}

/// Node writes each message as a line of JSON (child_process, serialization "json"); PM2's apps send
/// the string `ready`. The channel stays open: an app may take its end for the loss of its parent.
async fn node(stream: UnixStream, worker: WorkerId, events: Events) {
    let (read, _write) = stream.into_split();
    let mut reader = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        // An endless line must not fill the memory: it is read and dropped piece by piece.
        let ended = loop {
            let Ok(available) = reader.fill_buf().await else {
                return;
            };
            if available.is_empty() {
                return;
            }
            let (taken, ended) = match available.iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (available.len(), false),
            };
            if line.len() + taken <= LONGEST {
                line.extend_from_slice(&available[..taken]);
            }
            reader.consume(taken);
            if ended {
                break true;
            }
        };
        if ended && serde_json::from_slice::<String>(&line).is_ok_and(|message| message == "ready")
        {
            let _ = events.send(Event::Input(Input::Notified {
                worker: worker.clone(),
            }));
        }
    }
}
