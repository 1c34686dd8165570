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

impl Channel {
    /// Opens them; the descriptor is the worker's end of Node's channel.
    pub fn open(paths: &Paths, id: &WorkerId, events: Events) -> io::Result<(Self, OwnedFd)> {
        let path = paths.notify(id.generation);
        let _ = std::fs::remove_file(&path);
        let datagrams = UnixDatagram::bind(&path)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let tasks =
            [tokio::spawn(sd_notify(datagrams, id.clone(), events.clone())), tokio::spawn(node(ours, id.clone(), events))];
        Ok((Self { path, tasks }, theirs.into()))
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
