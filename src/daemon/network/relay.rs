//! Stragglers: connections that arrive where no worker accepts any more, or not yet. rsup accepts
//! them and relays them to a ready worker, or holds them until there is one, for `hold_timeout` at
//! most.
//!
//! The worker then sees rsup as its peer. This fallback keeps the promise of no lost connection; it
//! is not the data path.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::sockets::Queue;
use super::{Event, Events};
use crate::config::{AppName, hold_timeout};
use crate::sys::interrupt::Interruptible;
use crate::sys::listen::{Backlog, accept_if_queued, backlog, silent_for};
use crate::sys::readiness::readable;
use crate::sys::steer;

/// Connections that rsup holds at the same time, per app; more wait in the kernel's queue.
const MOST: usize = 1024;

/// Of those, so many are accepted at once.
const BATCH: usize = 64;

/// How long taking over a queue may last: a worker that has the socket too can hold accept(2) up.
const TAKE_OVER: Duration = Duration::from_millis(250);

/// Pause between two attempts to end a waiting accept(2).
const INTERRUPT_AGAIN: Duration = Duration::from_millis(5);

/// What becomes of connections that come to rsup instead of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// Some worker takes traffic: they are passed to one.
    Serve,
    /// None does, and one is coming: they wait.
    Hold,
    /// None does, and none is coming: they are reset.
    Refuse,
}

/// What all relays of one app share.
#[derive(Clone)]
pub struct Relays {
    reception: watch::Receiver<Reception>,
    /// Milliseconds for which a connection waits for a worker.
    hold: Arc<AtomicU64>,
    /// Connections that are accepted and wait for a worker.
    held: Arc<AtomicU64>,
    relayed: Arc<AtomicU64>,
    room: Arc<Semaphore>,
    /// Gets the events of sockets that do not listen any more.
    events: Events,
    app: AppName,
}

/// Serves one accept queue until it is stopped.
pub struct Relay {
    fd: Arc<OwnedFd>,
    target: SocketAddr,
    shared: Relays,
    task: JoinHandle<()>,
}

impl Relays {
    pub fn new(app: AppName, reception: watch::Receiver<Reception>, events: Events) -> Self {
        Self {
            reception,
            hold: Arc::new(AtomicU64::new(millis(hold_timeout()))),
            held: Arc::default(),
            relayed: Arc::default(),
            room: Arc::new(Semaphore::new(MOST)),
            events,
            app,
        }
    }

    /// Connections relayed since the app was started.
    pub fn count(&self) -> u64 {
        self.relayed.load(Ordering::Relaxed)
    }

    /// Sets `hold_timeout`.
    pub fn hold_for(&self, timeout: Duration) {
        self.hold.store(millis(timeout), Ordering::Relaxed);
    }

    fn hold(&self) -> Duration {
        Duration::from_millis(self.hold.load(Ordering::Relaxed))
    }

    /// Connections that rsup has accepted and that wait for a worker.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Connections that rsup holds or relays at this moment.
    pub fn under_way(&self) -> usize {
        MOST - self.room.available_permits()
    }

    /// The queue's socket must be non-blocking and stay so.
    pub fn watch(&self, queue: Queue) -> io::Result<Relay> {
        let fd = Arc::new(queue.fd);
        let ours = readable(fd.clone())?;
        let task = tokio::spawn(accept_loop(
            ours,
            queue.target,
            self.clone(),
            queue.slot.is_none(),
        ));
        Ok(Relay {
            fd,
            target: queue.target,
            shared: self.clone(),
            task,
        })
    }

    /// Relays a connection that was accepted elsewhere.
    pub fn pass(&self, connection: OwnedFd, target: SocketAddr) {
        let room = self.room.clone();
        let shared = self.clone();
        tokio::spawn(async move {
            let Ok(_permit) = room.acquire_owned().await else {
                return;
            };
            let hold = shared.hold();
            shared.relay(connection, target, hold).await;
        });
    }

    /// Resets connections that have waited in the queue for `hold`; the others wait here for the
    /// rest of that time.
    async fn take_old(&self, queue: &Arc<OwnedFd>, target: SocketAddr, hold: Duration) {
        loop {
            let mut permits = self.permits();
            if permits.is_empty() {
                return;
            }
            let shared = self.clone();
            let give = move |connection: OwnedFd| {
                let waited = silent_for(connection.as_fd()).unwrap_or(hold);
                let (shared, permit) = (shared.clone(), permits.pop());
                tokio::spawn(async move {
                    let _permit = permit;
                    let left = hold.saturating_sub(waited);
                    shared.relay(connection, target, left).await;
                });
            };
            if !matches!(take(queue, BATCH, give).await, Ok(Taken::Some)) {
                return;
            }
        }
    }

    /// Room for connections, as much as there is for one batch.
    fn permits(&self) -> Vec<OwnedSemaphorePermit> {
        let permits = std::iter::repeat_with(|| self.room.clone().try_acquire_owned());
        permits.take(BATCH).map_while(Result::ok).collect()
    }

    /// Relays the connection to a ready worker. If there is none within `hold`, it is reset.
    async fn relay(mut self, connection: OwnedFd, target: SocketAddr, hold: Duration) {
        let Ok(mut client) = TcpStream::from_std(connection.into()) else {
            return;
        };
        // A probe that no worker accepted: its answer must come from its own slot or not at all.
        if client
            .peer_addr()
            .is_ok_and(|peer| steer::is_probe(peer.ip()))
        {
            return;
        }
        let _ = client.set_nodelay(true);
        self.relayed.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + hold;
        loop {
            let reception = *self.reception.borrow();
            match reception {
                Reception::Serve => {}
                Reception::Refuse => return reset(&client),
                Reception::Hold => {
                    let _held = Held::one(&self.held);
                    let other = self.reception.wait_for(|now| *now != Reception::Hold);
                    match timeout_at(deadline, other).await {
                        Ok(Ok(_)) => continue,
                        Ok(Err(_)) => return,
                        Err(_) => return reset(&client),
                    }
                }
            }
            match TcpStream::connect(target).await {
                Ok(mut worker) => {
                    let _ = worker.set_nodelay(true);
                    let _ = copy_bidirectional(&mut client, &mut worker).await;
                    let _ = client.shutdown().await;
                    return;
                }
                // Out of ports or descriptors: the client continues to wait.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Relay {
    /// Hands the queue over to a worker. Connections that are already in it are taken along and
    /// held, so that a worker that is not ready yet does not get them.
    pub fn stop(self) {
        self.task.abort();
        let (fd, shared, target) = (self.fd.clone(), self.shared.clone(), self.target);
        tokio::spawn(async move {
            let all = async {
                loop {
                    let shared = shared.clone();
                    let give = move |connection| shared.pass(connection, target);
                    if !matches!(take(&fd, BATCH, give).await, Ok(Taken::Some)) {
                        return;
                    }
                }
            };
            let _ = timeout(TAKE_OVER, all).await;
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts a waiting connection until it is dropped.
struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    fn one(held: &'a AtomicU64) -> Self {
        held.fetch_add(1, Ordering::Relaxed);
        Self(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Resets the connection, so that the client learns at once that there is no answer.
fn reset(client: &TcpStream) {
    // An RST instead of a FIN, which would look like an empty answer (socket(7), SO_LINGER).
    let _ = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What was taken off a queue.
enum Taken {
    /// As many as were asked for: there may be more.
    Some,
    /// All that were queued.
    All,
}

/// Takes connections off a queue, at most so many, and gives each away, in a thread: a worker that
/// has the socket too can make accept(2) wait (by switching `O_NONBLOCK` off, or by taking the
/// connection that was seen). That thread then waits for the app's next connection, and the loop
/// for nothing. Dropped, this ends the wait.
///
/// # Errors
/// As for [`accept_if_queued`]; as `pthread_create(3)`.
async fn take(
    queue: &Arc<OwnedFd>,
    most: usize,
    mut give: impl FnMut(OwnedFd) + Send + 'static,
) -> io::Result<Taken> {
    let (queue, stop) = (queue.clone(), Arc::new(AtomicBool::new(false)));
    let (answer, taken) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let work = {
        let stop = stop.clone();
        move || {
            let _runtime = runtime.enter();
            for _ in 0..most {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                match accept_if_queued(queue.as_fd()) {
                    Ok(Some(connection)) => give(connection),
                    Ok(None) => return drop(answer.send(Ok(Taken::All))),
                    Err(why) => return drop(answer.send(Err(why))),
                }
            }
            let _ = answer.send(Ok(Taken::Some));
        }
    };
    let thread = Interruptible::spawn("rsup-accept", work)?;
    let _taking = Taking {
        thread: Some(thread),
        stop,
    };
    taken.await.unwrap_or(Ok(Taken::All))
}

/// A thread that takes connections off a queue.
struct Taking {
    thread: Option<Interruptible>,
    stop: Arc<AtomicBool>,
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().filter(|thread| !thread.is_finished());
        // Without a runtime the process is about to end.
        if let (Some(thread), Ok(runtime)) = (thread, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                while !thread.is_finished() {
                    thread.interrupt();
                    tokio::time::sleep(INTERRUPT_AGAIN).await;
                }
            });
        }
    }
}

async fn accept_loop(
    mut queue: AsyncFd<Arc<OwnedFd>>,
    target: SocketAddr,
    shared: Relays,
    holding: bool,
) {
    let mut reception = shared.reception.clone();
    loop {
        let Ok(mut guard) = queue.readable().await else {
            return;
        };
        // Connections of the holding slot can wait in the kernel, which is cheaper, and where they
        // outlive the daemon.
        let hold = shared.hold();
        if holding {
            let other = reception.wait_for(|now| *now != Reception::Hold);
            match timeout(hold, other).await.map(|now| now.map(drop)) {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    shared.take_old(queue.get_ref(), target, hold).await;
                    continue;
                }
            }
        }
        let Ok(permit) = shared.room.clone().acquire_owned().await else {
            return;
        };
        let mut permits = shared.permits();
        permits.push(permit);
        let most = permits.len();
        let give = {
            let shared = shared.clone();
            move |connection| {
                let (shared, permit) = (shared.clone(), permits.pop());
                tokio::spawn(async move {
                    let _permit = permit;
                    shared.relay(connection, target, hold).await;
                });
            }
        };
        match take(queue.get_ref(), most, give).await {
            Ok(Taken::Some) => {}
            Ok(Taken::All) => guard.clear_ready(),
            Err(_) if matches!(backlog(queue.get_ref()), Ok(Backlog::NotListening)) => {
                let _ = shared.events.send(Event::ShutDown {
                    app: shared.app.clone(),
                });
                tokio::time::sleep(Duration::from_millis(20)).await;
                // tokio treats a descriptor that was once closed as closed for ever.
                let Ok(again) = readable(queue.into_inner()) else {
                    return;
                };
                queue = again;
            }
            // No descriptor is free.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
