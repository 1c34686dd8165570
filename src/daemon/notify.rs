//! Workers that say themselves when they are ready: sd_notify(3) and Node's IPC channel.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::task::JoinHandle;

use super::{Event, Events};
use crate::paths::Paths;
use crate::supervisor::{Input, WorkerId};

/// Longer messages are no notifications.
const LONGEST: usize = 4096;

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

impl Ends {
    /// Opens them; the other descriptor is the worker's end of Node's channel.
    pub fn open(paths: &Paths, id: &WorkerId) -> io::Result<(Self, OwnedFd)> {
        let path = paths.notify(id.generation);
        let _ = std::fs::remove_file(&path);
        let datagrams = std::os::unix::net::UnixDatagram::bind(&path)?;
        datagrams.set_nonblocking(true)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Self { datagrams: datagrams.into(), node: ours.into() }, theirs.into()))
    }
}

impl Channel {
    /// Listens to both.
    pub fn listen(ends: Ends, paths: &Paths, id: &WorkerId, events: Events) -> io::Result<Self> {
        let datagrams = UnixDatagram::from_std(ends.datagrams.into())?;
        let stream = UnixStream::from_std(ends.node.into())?;
        let tasks =
            [tokio::spawn(sd_notify(datagrams, id.clone(), events.clone())), tokio::spawn(node(stream, id.clone(), events))];
        Ok(Self { path: paths.notify(id.generation), tasks })
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

async fn sd_notify(socket: UnixDatagram, worker: WorkerId, events: Events) {
    let mut buffer = [0; LONGEST];
    while let Ok(length) = socket.recv(&mut buffer).await {
        if buffer[..length].split(|b| *b == b'\n').any(|line| line == b"READY=1") {
            let _ = events.send(Event::Input(Input::Notified { worker: worker.clone() }));
        }
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
            let Ok(available) = reader.fill_buf().await else { return };
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
        if ended && serde_json::from_slice::<String>(&line).is_ok_and(|message| message == "ready") {
            let _ = events.send(Event::Input(Input::Notified { worker: worker.clone() }));
        }
    }
}
