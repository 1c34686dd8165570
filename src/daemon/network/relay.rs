//! Stragglers: connections that arrive where no worker accepts any more, or not yet. rsup accepts
//! them and passes them on to a ready worker, or holds them until there is one, for `hold_timeout` at the most.
//!
//! The worker then sees rsup as its peer. This is the exception that keeps a promise, not the data path.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::sockets::Queue;
use super::{Event, Events};
use crate::config::{AppName, hold_timeout};
use crate::sys::listen::{Backlog, accept_nonblocking, backlog, silent_for};
use crate::sys::readiness::readable;
use crate::sys::steer;

/// Connections that rsup holds at the same time, per app; more wait in the kernel's queue.
const MOST: usize = 1024;

/// What all relays of one app share.
#[derive(Clone)]
pub struct Relays {
    /// True while some worker takes traffic.
    ready: watch::Receiver<bool>,
    /// Milliseconds for which a connection waits for a worker.
    hold: Arc<AtomicU64>,
    /// Accepted, and waiting for a worker.
    held: Arc<AtomicU64>,
    relayed: Arc<AtomicU64>,
    room: Arc<Semaphore>,
    /// Told of a socket that does not listen any more.
    events: Events,
    app: AppName,
}

/// Looks after one accept queue until it is stopped.
pub struct Relay {
    fd: OwnedFd,
    target: SocketAddr,
    shared: Relays,
    task: JoinHandle<()>,
}

impl Relays {
    pub fn new(app: AppName, ready: watch::Receiver<bool>, events: Events) -> Self {
        Self {
            ready,
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

    /// Connections that rsup holds or passes on at this moment.
    pub fn under_way(&self) -> usize {
        MOST - self.room.available_permits()
    }

    /// The queue's socket must be non-blocking and stay so.
    pub fn watch(&self, queue: Queue) -> io::Result<Relay> {
        let ours = readable(queue.fd.try_clone()?)?;
        let task = tokio::spawn(accept_loop(
            ours,
            queue.target,
            self.clone(),
            queue.slot.is_none(),
        ));
        Ok(Relay {
            fd: queue.fd,
            target: queue.target,
            shared: self.clone(),
            task,
        })
    }

    /// Passes on a connection that was accepted elsewhere.
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

    /// What has waited in the queue for `hold` is reset; the rest waits here as long as it still may.
    fn take_old(&self, queue: &OwnedFd, target: SocketAddr, hold: Duration) {
        while let Ok(permit) = self.room.clone().try_acquire_owned()
            && let Ok(Some((connection, _))) = accept_nonblocking(queue.as_fd())
        {
            let waited = silent_for(connection.as_fd()).unwrap_or(hold);
            let shared = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let left = hold.saturating_sub(waited);
                shared.relay(connection, target, left).await;
            });
        }
    }

    /// Passes the connection on to a ready worker. If there is none within `hold`, it is reset.
    async fn relay(mut self, connection: OwnedFd, target: SocketAddr, hold: Duration) {
        let Ok(mut client) = TcpStream::from_std(connection.into()) else {
            return;
        };
        // A probe that nobody took: its answer must come from its own slot or not at all.
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
            if !*self.ready.borrow() {
                let _held = Held::one(&self.held);
                match timeout_at(deadline, self.ready.wait_for(|ready| *ready)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return,
                    Err(_) => return reset(&client),
                }
            }
            match TcpStream::connect(target).await {
                Ok(mut worker) => {
                    let _ = worker.set_nodelay(true);
                    let _ = copy_bidirectional(&mut client, &mut worker).await;
                    let _ = client.shutdown().await;
                    return;
                }
                // Out of ports or descriptors: the client goes on waiting.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Relay {
    /// Hands the queue over to a worker. What is in it already is taken along and held, so that a
    /// worker which is not ready yet does not get it.
    pub fn stop(self) {
        self.task.abort();
        while let Ok(Some((connection, _))) = accept_nonblocking(self.fd.as_fd()) {
            self.shared.pass(connection, self.target);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts a connection that waits, as long as it does.
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

/// The client learns at once that there is no answer.
fn reset(client: &TcpStream) {
    // An RST instead of a FIN, which would look like an empty answer (socket(7), SO_LINGER).
    let _ = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn accept_loop(mut queue: AsyncFd<OwnedFd>, target: SocketAddr, shared: Relays, lobby: bool) {
    let mut ready = shared.ready.clone();
    loop {
        let Ok(mut guard) = queue.readable().await else {
            return;
        };
        // The lobby's connections can wait in the kernel, which is cheaper, and where they outlive us.
        let hold = shared.hold();
        if lobby {
            match timeout(hold, ready.wait_for(|ready| *ready)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    shared.take_old(queue.get_ref(), target, hold);
                    continue;
                }
            }
        }
        let Ok(permit) = shared.room.clone().acquire_owned().await else {
            return;
        };
        match accept_nonblocking(queue.get_ref().as_fd()) {
            Ok(Some((connection, _))) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    shared.relay(connection, target, hold).await;
                });
            }
            Ok(None) => guard.clear_ready(),
            Err(_) if matches!(backlog(queue.get_ref()), Ok(Backlog::NotListening)) => {
                let _ = shared.events.send(Event::ShutDown {
                    app: shared.app.clone(),
                });
                tokio::time::sleep(Duration::from_millis(20)).await;
                // tokio holds a descriptor that was once closed for closed for ever.
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
