//! Stragglers: connections that arrive where no worker accepts any more, or not yet. rsup accepts
//! them and relays them to a ready worker, or holds them until there is one, for `hold_timeout` at
//! most.
//!
//! The worker then sees rsup as its peer. This fallback keeps the promise of no lost connection; it
//! is not the data path.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
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

/// How long the loop waits while a queue is taken over: a worker that has the socket too can hold accept(2) up.
const TAKE_OVER: Duration = Duration::from_millis(50);

/// How often it looks whether that is done.
const LOOK: Duration = Duration::from_micros(50);

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
    /// What takes connections off the queue at this moment.
    active: Arc<Mutex<Weak<Taking>>>,
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
        let active = Arc::default();
        let task = tokio::spawn(accept_loop(
            ours,
            queue.target,
            self.clone(),
            queue.slot.is_none(),
            Arc::clone(&active),
        ));
        Ok(Relay {
            fd,
            target: queue.target,
            shared: self.clone(),
            task,
            active,
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
    async fn take_old(
        &self,
        queue: &Arc<OwnedFd>,
        target: SocketAddr,
        hold: Duration,
        active: &Mutex<Weak<Taking>>,
    ) {
        loop {
            let mut permits = self.permits();
            if permits.is_empty() {
                return;
            }
            let (most, shared) = (permits.len(), self.clone());
            let give = move |connection: OwnedFd| {
                let waited = silent_for(connection.as_fd()).unwrap_or(hold);
                let (shared, permit) = (shared.clone(), permits.pop());
                tokio::spawn(async move {
                    let _permit = permit;
                    let left = hold.saturating_sub(waited);
                    shared.relay(connection, target, left).await;
                });
            };
            if !matches!(take(queue, most, give, active).await, Ok(Taken::Some)) {
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
    /// held, so that a worker that is not ready yet does not get them. Nothing is taken from the queue
    /// afterwards: a probe that finds it empty takes the worker for one that accepts.
    pub fn stop(self) {
        self.task.abort();
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taking) = active.upgrade() {
            taking.end();
        }
        drop(active);
        // Most often there is none.
        while is_queued(&self.fd) {
            let (shared, target) = (self.shared.clone(), self.target);
            let give = move |connection| shared.pass(connection, target);
            let (answer, taken) = oneshot::channel();
            match Taking::begin(&self.fd, BATCH, give, answer) {
                Ok(taking) => taking.wait(),
                Err(_) => return,
            }
            if !matches!({ taken }.try_recv(), Ok(Ok(Taken::Some))) {
                return;
            }
        }
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

/// Whether a connection is in the queue; also when that cannot be told.
fn is_queued(queue: &OwnedFd) -> bool {
    !matches!(backlog(queue), Ok(Backlog::Listening { queued: 0, .. }))
}

/// Takes connections off a queue, at most so many, and gives each away: see [`Taking`]. Dropped, this
/// ends it.
///
/// # Errors
/// As for [`accept_if_queued`]; as `pthread_create(3)`.
async fn take(
    queue: &Arc<OwnedFd>,
    most: usize,
    give: impl FnMut(OwnedFd) + Send + 'static,
    active: &Mutex<Weak<Taking>>,
) -> io::Result<Taken> {
    let (answer, taken) = oneshot::channel();
    let taking = Arc::new(Taking::begin(queue, most, give, answer)?);
    *active.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&taking);
    taken.await.unwrap_or(Ok(Taken::All))
}

/// A thread that takes connections off a queue. A worker that has the socket too can make accept(2)
/// wait, by switching `O_NONBLOCK` off, or by taking the connection that was seen: then this thread
/// waits for the app's next connection, and the loop for nothing.
struct Taking {
    thread: Option<Interruptible>,
    stop: Arc<AtomicBool>,
}

impl Taking {
    fn begin(
        queue: &Arc<OwnedFd>,
        most: usize,
        mut give: impl FnMut(OwnedFd) + Send + 'static,
        answer: oneshot::Sender<io::Result<Taken>>,
    ) -> io::Result<Self> {
        let (queue, stop) = (queue.clone(), Arc::new(AtomicBool::new(false)));
        let runtime = tokio::runtime::Handle::current();
        let told = stop.clone();
        let work = move || {
            let _runtime = runtime.enter();
            for _ in 0..most {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                match accept_if_queued(queue.as_fd()) {
                    Ok(Some(connection)) => give(connection),
                    Ok(None) => return drop(answer.send(Ok(Taken::All))),
                    Err(why) => return drop(answer.send(Err(why))),
                }
            }
            let _ = answer.send(Ok(Taken::Some));
        };
        let thread = Interruptible::spawn("rsup-accept", work)?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(Interruptible::is_finished)
    }

    /// Waits until all is taken, but no longer than a worker may hold the loop up.
    fn wait(&self) {
        let begun = std::time::Instant::now();
        while !self.is_finished() && begun.elapsed() < TAKE_OVER {
            std::thread::sleep(LOOK);
        }
        self.end();
    }

    /// Ends it, and waits for that.
    fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let begun = std::time::Instant::now();
        while !self.is_finished() && begun.elapsed() < TAKE_OVER {
            self.thread.iter().for_each(Interruptible::interrupt);
            std::thread::sleep(LOOK);
        }
    }
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
    active: Arc<Mutex<Weak<Taking>>>,
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
                    shared
                        .take_old(queue.get_ref(), target, hold, &active)
                        .await;
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
        match take(queue.get_ref(), most, give, &active).await {
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream as Client};

    use tokio::sync::mpsc;

    use super::*;
    use crate::config::Listen;

    /// What a worker's probe sees is the worker's doing alone.
    #[tokio::test]
    async fn nothing_is_taken_any_more_once_it_is_stopped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let target = listener.local_addr().unwrap();
        let ours = listener.try_clone().unwrap();
        let queued = || match backlog(&ours).unwrap() {
            Backlog::Listening { queued, .. } => queued,
            Backlog::NotListening => panic!("it listens"),
        };
        let (_reception, watch) = watch::channel(Reception::Hold);
        let (events, _inbox) = mpsc::unbounded_channel();
        let relays = Relays::new(AppName::new("web"), watch, events);
        for _ in 0..20 {
            let relay = relays
                .watch(Queue {
                    fd: listener.try_clone().unwrap().into(),
                    address: Listen::Tcp {
                        addr: target,
                        v6only: false,
                    },
                    slot: Some(0),
                    target,
                })
                .unwrap();
            let before = relays.held();
            let first = Client::connect(target).unwrap();
            while relays.held() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let second = Client::connect(target).unwrap();
            relay.stop();
            assert_eq!(queued(), 0, "what was queued is taken along");
            let probe = Client::connect(target).unwrap();
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert_eq!(queued(), 1, "what comes later is the worker's");
            }
            drop(listener.accept().unwrap());
            drop((first, second, probe));
        }
    }
}
