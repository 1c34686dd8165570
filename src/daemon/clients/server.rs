//! The daemon's side of the control socket: which clients are heard, and how much each may use.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::control::{self, Answer, Call, Failure, FailureCode};
use crate::daemon::{Event, Events};
use crate::sys::process;

/// A request must arrive within this time: a stuck client costs a descriptor, not more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients that have not sent a request yet. An honest one sends it at once, so when there are
/// more, those that have waited longest are disconnected.
const MOST_SILENT: usize = 32;

/// Above this number, disconnected clients get no grace.
const MOST_CONNECTED: usize = 256;

/// Clients that wait for answers, or do not read them.
const MOST_WAITING: usize = 256;

/// The control sockets that the daemon listens on: one, and for a while those that it has replaced.
pub struct ControlSockets {
    connections: Connections,
    events: Events,
    /// Each connection holds a clone until its last answer is written.
    open: mpsc::Sender<()>,
    /// The task of each socket, and the sender that makes it end once its queue is empty.
    tasks: Vec<(JoinHandle<()>, oneshot::Sender<()>)>,
}

impl ControlSockets {
    pub fn new(events: Events, open: mpsc::Sender<()>) -> Self {
        Self {
            connections: Connections::default(),
            events,
            open,
            tasks: Vec::new(),
        }
    }

    /// Listens on a socket from now on. On those before it, only clients that have connected
    /// already are still served.
    ///
    /// # Errors
    /// When it is not a listening socket.
    pub fn open(&mut self, socket: OwnedFd) -> io::Result<()> {
        let before = std::mem::take(&mut self.tasks);
        if let Err(why) = self.open_too(socket) {
            self.tasks = before;
            return Err(why);
        }
        for (_, close) in before {
            let _ = close.send(());
        }
        Ok(())
    }

    /// Listens on one more socket.
    ///
    /// # Errors
    /// When it is not a listening socket.
    pub fn open_too(&mut self, socket: OwnedFd) -> io::Result<()> {
        let listener = UnixListener::from_std(socket.into())?;
        let (close, closed) = oneshot::channel();
        let (events, open, connections) = (
            self.events.clone(),
            self.open.clone(),
            self.connections.clone(),
        );
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                Ok(()) = closed => {}
                () = accept(&listener, &events, &open, &connections) => {}
            }
            let last = accept(&listener, &events, &open, &connections);
            let _ = tokio::time::timeout(LAST_CLIENTS, last).await;
        });
        self.tasks.push((task, close));
        Ok(())
    }
}

impl Drop for ControlSockets {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(task, _)| task.abort());
    }
}

/// How long a replaced socket is still listened on: no new client can find it.
const LAST_CLIENTS: Duration = Duration::from_millis(200);

async fn accept(
    listener: &UnixListener,
    events: &Events,
    open: &mpsc::Sender<()>,
    connections: &Connections,
) {
    let mut spare = spare();
    let mut refusing = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                refusing = false;
                spare = spare.or_else(self::spare);
                let (events, open, connections) =
                    (events.clone(), open.clone(), connections.clone());
                let place = connections.enter();
                tokio::spawn(async move {
                    converse(stream, events, place, &connections).await;
                    drop(open);
                });
            }
            Err(why) => {
                // Most likely out of descriptors: other connections will end.
                if !std::mem::replace(&mut refusing, true) {
                    warn!(
                        "cannot accept a client: {why}; `rsup` commands are refused until descriptors are free again"
                    );
                }
                // The spare descriptor serves to tell waiting clients why they are refused.
                drop(spare.take());
                if let Ok(Ok((mut stream, _))) =
                    tokio::time::timeout(Duration::from_millis(1), listener.accept()).await
                {
                    let message = format!("the daemon cannot take this call: {why}");
                    let hint = "its limit of open files is reached; its apps go on. Raise `ulimit -n`, or stop an app by signalling its workers";
                    let refusal =
                        Answer::Failed(Failure::new(FailureCode::Busy, message).hint(hint));
                    let _ = tokio::time::timeout(
                        Duration::from_millis(100),
                        send(&mut stream, &refusal),
                    )
                    .await;
                }
                spare = self::spare();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A descriptor to free when there is no other.
fn spare() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}

/// The connected clients.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<Clients>>);

#[derive(Default)]
struct Clients {
    /// In the order of arrival; those at the front, beyond [`MOST_SILENT`], have been told to
    /// leave.
    silent: VecDeque<Arc<Notify>>,
    waiting: usize,
}

impl Connections {
    fn clients<T>(&self, act: impl FnOnce(&mut Clients) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a client that has sent nothing yet; the oldest such client may have to leave.
    fn enter(&self) -> Arc<Notify> {
        let place = Arc::new(Notify::new());
        self.clients(|clients| {
            clients.silent.push_back(place.clone());
            if let Some(last) = clients.silent.len().checked_sub(MOST_SILENT + 1) {
                clients.silent[last].notify_one();
            }
        });
        place
    }

    /// Removes a client that has sent its request, or is gone.
    fn leave(&self, place: &Arc<Notify>) {
        self.clients(|clients| clients.silent.retain(|other| !Arc::ptr_eq(other, place)));
    }

    /// How long a client that must leave may stay.
    fn grace(&self) -> Duration {
        let crowded = self.clients(|clients| clients.silent.len() > MOST_CONNECTED);
        if crowded {
            Duration::ZERO
        } else {
            Duration::from_millis(200)
        }
    }

    /// Lets one more client wait for answers, if the limit allows it.
    fn wait(&self) -> Option<Waiting> {
        self.clients(|clients| {
            (clients.waiting < MOST_WAITING).then(|| {
                clients.waiting += 1;
                Waiting(self.clone())
            })
        })
    }
}

/// A client that waits for answers.
struct Waiting(Connections);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.clients(|clients| clients.waiting -= 1);
    }
}

async fn converse(
    mut stream: UnixStream,
    events: Events,
    place: Arc<Notify>,
    connections: &Connections,
) {
    if let Err(why) = may_speak(&stream) {
        connections.leave(&place);
        let answer = Answer::Failed(Failure::new(FailureCode::BadRequest, why));
        return refuse(&mut stream, answer).await;
    }
    let call = {
        let mut heard = std::pin::pin!(tokio::time::timeout(PATIENCE, receive(&mut stream)));
        tokio::select! {
            call = &mut heard => Some(call),
            // Its request may have arrived without having been read yet.
            () = place.notified() => tokio::time::timeout(connections.grace(), heard).await.ok(),
        }
    };
    connections.leave(&place);
    let call = match call {
        None => {
            let answer = Failure::new(
                FailureCode::Busy,
                "too many clients are connected and say nothing; this one waited longest",
            );
            return refuse(&mut stream, Answer::Failed(answer)).await;
        }
        Some(call) => call,
    };
    let call = match call {
        Ok(Ok(call)) => call,
        Ok(Err(why)) => {
            return refuse(
                &mut stream,
                Answer::Failed(Failure::new(FailureCode::BadRequest, why)),
            )
            .await;
        }
        Err(_) => {
            let why = format!("no whole request came within {} s", PATIENCE.as_secs());
            return refuse(
                &mut stream,
                Answer::Failed(Failure::new(FailureCode::BadRequest, why)),
            )
            .await;
        }
    };
    let Some(_waiting) = connections.wait() else {
        let why = format!("{MOST_WAITING} clients wait for answers already");
        return refuse(
            &mut stream,
            Answer::Failed(Failure::new(FailureCode::Busy, why)),
        )
        .await;
    };
    let (answer, mut answers) = mpsc::unbounded_channel();
    if events.send(Event::Call { call, answer }).is_err() {
        return;
    }
    while let Some(answer) = answers.recv().await {
        // A client that disconnected or does not read loses its answers; the action goes on.
        match tokio::time::timeout(PATIENCE, send(&mut stream, &answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Sends the last answer, with a short timeout: a client with an invalid request may not read
/// either.
async fn refuse(stream: &mut UnixStream, answer: Answer) {
    let _ = tokio::time::timeout(Duration::from_secs(1), send(stream, &answer)).await;
}

/// Checks that the client is of the same user, or root.
fn may_speak(stream: &UnixStream) -> Result<(), String> {
    let me = nix::unistd::geteuid().as_raw();
    match process::peer_credentials(stream) {
        Ok(peer) if peer.uid == me || peer.uid == 0 => Ok(()),
        Ok(_) => Err("this rsup belongs to another user".into()),
        Err(why) => Err(format!(
            "rsup cannot see who speaks to it: getsockopt(SO_PEERCRED): {why}"
        )),
    }
}

async fn receive(stream: &mut UnixStream) -> Result<Call, String> {
    let broken = |why: io::Error| format!("the request could not be read: {why}");
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let length = control::length(head).map_err(|why| why.to_string())?;
    // Grows as bytes arrive: a false length costs nothing.
    let mut body = Vec::new();
    stream
        .take(length as u64)
        .read_to_end(&mut body)
        .await
        .map_err(broken)?;
    if body.len() < length {
        return Err(format!(
            "the request ended after {} of {length} bytes",
            body.len()
        ));
    }
    Call::decode(&body)
}

async fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let frame = match control::encode(answer) {
        Ok(frame) => frame,
        // A refusal is better than a connection that just ends.
        Err(why) => control::encode(&Answer::Failed(Failure::new(
            FailureCode::Internal,
            format!("the answer: {why}"),
        )))?,
    };
    stream.write_all(&frame).await
}
