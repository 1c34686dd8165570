//! The part of the daemon that owns the sockets of every app, and decides where their connections
//! go.
//!
//! Every change of an app's sockets hands them to the [`FdStore`] in the same call, so that the
//! daemon is never the only holder.

mod drain;
mod port_conflicts;
mod relay;
mod sockets;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::fdstore::{self, FdStore};
use super::{Event, Events, log_error};
use crate::config::{AppName, Balance, Listen, SocketFile};
use crate::core::{AppView, Steering, WorkerId};
use crate::sys::listen::{Backlog, Given, backlog, is_nonblocking, set_nonblocking};
use crate::sys::takeover::Bind;
use relay::{Reception, Relay, Relays};
use sockets::Sockets;
pub use sockets::{Adopted, ProbeTarget};

/// Pause before an accept queue that could not be watched is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The same for a group of sockets that could not be steered.
const STEER_AGAIN: Duration = Duration::from_millis(250);

/// The sockets of every app.
pub struct Network {
    apps: HashMap<AppName, OfApp>,
    events: Events,
    /// Sockets of `.socket` units.
    given: Arc<Given>,
    port_conflicts: port_conflicts::PortConflicts,
}

/// The sockets and relays of one app.
struct OfApp {
    sockets: Sockets,
    relays: Relays,
    /// By slot (`None`: the holding slot): one per address.
    relaying: HashMap<Option<u16>, Vec<Relay>>,
    reception: watch::Sender<Reception>,
    /// Whether the weights that were asked for last are in force.
    steered: watch::Sender<bool>,
}

impl OfApp {
    /// Connections that wait because no worker is ready: in the kernel's queues, and accepted by
    /// rsup.
    fn held(&self) -> u64 {
        if *self.reception.borrow() == Reception::Serve {
            return 0;
        }
        let queued = |queue: &sockets::Queue| match backlog(&queue.fd) {
            Ok(Backlog::Listening { queued, .. }) => u64::from(queued),
            Ok(Backlog::NotListening) | Err(_) => 0,
        };
        let queues = self.sockets.queues(None).unwrap_or_default();
        self.relays.held() + queues.iter().map(queued).sum::<u64>()
    }

    fn receive(&self, next: impl FnOnce(Reception) -> Reception) {
        self.reception.send_if_modified(|now| {
            let next = next(*now);
            std::mem::replace(now, next) != next
        });
    }

    fn queues(&self, slot: u16) -> Vec<sockets::Queue> {
        self.sockets.queues(Some(slot)).unwrap_or_default()
    }
}

/// Effects of the core.
impl Network {
    pub fn new(events: Events, given: Arc<Given>) -> Self {
        Self {
            apps: HashMap::new(),
            events,
            given,
            port_conflicts: Default::default(),
        }
    }

    fn app(&mut self, name: &AppName) -> &mut OfApp {
        let (events, given) = (&self.events, &self.given);
        self.apps.entry(name.clone()).or_insert_with(|| {
            let (reception, watch) = watch::channel(Reception::Hold);
            OfApp {
                steered: watch::Sender::new(true),
                sockets: Sockets::new(given.clone()),
                relays: Relays::new(name.clone(), watch, events.clone()),
                relaying: HashMap::new(),
                reception,
            }
        })
    }

    /// Opens sockets on exactly these addresses, one for each slot. Slots outside `busy` have no
    /// worker, so their connections are relayed.
    ///
    /// # Errors
    /// As for [`Sockets::hold`], as a message.
    pub fn listen(
        &mut self,
        app: &AppName,
        (addresses, slots, file): (&[Listen], u16, SocketFile),
        busy: &[u16],
        fdstore: &mut FdStore,
    ) -> Result<(), String> {
        let held = self.app(app).sockets.hold(addresses, slots, file);
        let result = held.map_err(|why| why.to_string()).map(|()| {
            // The running relays hold sockets of addresses that may have been given up, and lack
            // new ones.
            let relayed: Vec<Option<u16>> = self
                .app(app)
                .relaying
                .drain()
                .map(|(slot, _)| slot)
                .collect();
            for slot in relayed.into_iter().flatten() {
                self.start_relays(app, Some(slot));
            }
            self.start_relays(app, None);
            for slot in (0..slots).filter(|slot| !busy.contains(slot)) {
                self.relay(app, slot, false);
            }
        });
        self.keep(app, fdstore);
        result
    }

    /// Closes every socket of the app.
    pub fn unlisten(&mut self, app: &AppName, fdstore: &mut FdStore) {
        if let Some(of_app) = self.apps.get_mut(app) {
            of_app.relaying.clear();
            let _ = of_app.reception.send(Reception::Refuse);
            of_app.sockets.close();
        }
        self.keep(app, fdstore);
    }

    /// Removes a deleted app.
    pub fn remove(&mut self, app: &AppName, fdstore: &mut FdStore) {
        self.apps.remove(app);
        self.keep(app, fdstore);
    }

    /// Hands the app's present sockets to the fdstore.
    fn keep(&self, name: &AppName, fdstore: &mut FdStore) {
        let beginning = fdstore::name::sockets(name);
        let wanted = self
            .apps
            .get(name)
            .into_iter()
            .flat_map(|app| app.sockets.all())
            .map(|(address, place, fd)| (fdstore::name::socket(name, address, place), fd))
            .collect();
        fdstore.keep_exactly(&beginning, wanted);
    }

    /// Applies weights.
    pub fn steer(&mut self, app: &AppName, balance: Balance, tables: &[Steering]) {
        let Some(of_app) = self.apps.get_mut(app) else {
            return;
        };
        let steered = of_app.sockets.steer(balance, tables);
        let serves = of_app.sockets.serves();
        of_app.receive(|before| match (serves, before) {
            (true, _) => Reception::Serve,
            (false, Reception::Serve) => Reception::Hold,
            (false, before) => before,
        });
        self.note_steered(app, steered);
    }

    /// Tells drains whether the weights are in force that they rely on, and sees to it that they come into force.
    fn note_steered(&self, app: &AppName, how: io::Result<()>) {
        let Some(of_app) = self.apps.get(app) else {
            return;
        };
        let now = of_app.sockets.is_steered();
        let before = of_app.steered.send_replace(now);
        match how {
            Err(why) if before => {
                log_error(&format!("{app}: cannot steer its connections yet"), why);
                self.steer_later(app);
            }
            Ok(()) if now && !before => info!("{app}: its connections are steered again"),
            // It is being tried already, or is as before.
            Ok(()) | Err(_) => {}
        }
    }

    fn steer_later(&self, app: &AppName) {
        let (events, app) = (self.events.clone(), app.clone());
        tokio::spawn(async move {
            tokio::time::sleep(STEER_AGAIN).await;
            let _ = events.send(Event::SteerAgain { app });
        });
    }

    /// Tries again what could not be steered.
    pub fn steer_again(&mut self, app: &AppName) {
        self.repair(app);
        let of_app = self.apps.get(app);
        if of_app.is_some_and(|of_app| !of_app.sockets.is_steered()) {
            self.steer_later(app);
        }
    }

    /// Relays the connections of a slot without a worker, or with one that got its stop signal.
    /// `accepts`: that worker may still be in accept(2).
    pub fn relay(&mut self, app: &AppName, slot: u16, accepts: bool) {
        self.repair(app);
        for queue in self.app(app).queues(slot) {
            if is_nonblocking(queue.fd.as_fd()).unwrap_or(false) {
                continue;
            }
            // A worker that uses blocking accept shares the socket's mode with rsup; it keeps its
            // queue for itself until it is gone.
            if accepts {
                return;
            }
            if let Err(why) = set_nonblocking(queue.fd.as_fd(), true) {
                return log_error(&format!("{app}: cannot look after slot {slot}"), why);
            }
        }
        self.start_relays(app, Some(slot));
    }

    /// Leaves the slot's connections to its new worker.
    pub fn stop_relaying(&mut self, app: &AppName, slot: u16) {
        self.repair(app);
        let Some(of_app) = self.apps.get_mut(app) else {
            return;
        };
        for relay in of_app.relaying.remove(&Some(slot)).into_iter().flatten() {
            relay.stop();
        }
        // A worker inherits blocking sockets, as from systemd; takeover sets the mode of the app's
        // own socket.
        for queue in of_app.queues(slot) {
            let _ = set_nonblocking(queue.fd.as_fd(), false);
        }
    }

    /// Resets what no worker takes, from now on and what waits already: no worker is coming.
    pub fn refuse(&mut self, app: &AppName) {
        if let Some(of_app) = self.apps.get(app) {
            of_app.receive(|_| Reception::Refuse);
        }
    }

    /// A worker is coming. Sets how long a connection waits for it while none is ready.
    pub fn hold_for(&mut self, app: &AppName, timeout: Duration) {
        let of_app = self.app(app);
        of_app.relays.hold_for(timeout);
        of_app.receive(|before| match before {
            Reception::Refuse => Reception::Hold,
            Reception::Hold | Reception::Serve => before,
        });
    }

    /// Waits until nothing is queued at the worker's slot; `None` if the app has no sockets.
    /// `halted` returns whether the worker accepts nothing any more.
    pub fn drain<H: Fn() -> bool + 'static>(
        &self,
        worker: &WorkerId,
        halted: H,
    ) -> Option<impl Future<Output = ()> + use<H>> {
        let of_app = self.apps.get(&worker.app)?;
        let queues = of_app.sockets.queues(Some(worker.slot)).ok()?;
        let ports = of_app.sockets.ports();
        let mut steered = of_app.steered.subscribe();
        Some(async move {
            // While the worker still takes traffic its queue is empty by chance. If the sender is gone,
            // so are the sockets.
            let _ = steered.wait_for(|steered| *steered).await;
            drain::until_empty(queues, ports, halted).await;
        })
    }
}

/// Changes of sockets at run time.
impl Network {
    /// Checks whether a worker shut its socket down, and repairs that.
    pub fn repair(&mut self, app: &AppName) {
        if let Some(of_app) = self.apps.get_mut(app) {
            let repaired = of_app.sockets.repair();
            self.note_steered(app, repaired);
        }
    }

    /// Relays connections of the slot, or of the holding slot, unless that is done already.
    fn start_relays(&mut self, app: &AppName, slot: Option<u16>) {
        let of_app = self.app(app);
        if of_app.relaying.contains_key(&slot) {
            return;
        }
        let relays: io::Result<Vec<_>> = of_app.sockets.queues(slot).and_then(|queues| {
            let watch = |queue: sockets::Queue| {
                set_nonblocking(queue.fd.as_fd(), true)?;
                of_app.relays.watch(queue)
            };
            queues.into_iter().map(watch).collect()
        });
        match relays {
            Ok(relays) => {
                of_app.relaying.insert(slot, relays);
            }
            Err(why) => {
                log_error(&format!("{app}: cannot look after an accept queue"), why);
                // Out of descriptors: waiting connections continue to wait.
                let (events, app) = (self.events.clone(), app.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    let _ = events.send(Event::RelayAgain { app, slot });
                });
            }
        }
    }

    /// Relays connections of a slot without a usable worker, or of the holding slot, where the app
    /// has sockets.
    pub fn relay_again(&mut self, app: &AppName, slot: Option<u16>) {
        if self.apps.contains_key(app) {
            self.start_relays(app, slot);
        }
    }

    /// Continues with the sockets that an earlier daemon made: see [`Sockets::adopt`].
    pub fn adopt(
        &mut self,
        app: &AppName,
        addresses: &[Listen],
        adopted: &Adopted<'_>,
        of_worker: impl Fn(&Listen, u16) -> Option<OwnedFd>,
        fdstore: &mut FdStore,
    ) {
        for address in addresses {
            let kept = |place| fdstore.get(&fdstore::name::socket(app, address, place));
            let of_worker = |slot| of_worker(address, slot);
            let sockets = &mut self.app(app).sockets;
            match sockets.adopt(address, adopted, kept, of_worker) {
                Ok(steered) => self.note_steered(app, steered),
                Err(why) => log_error(&format!("{app}: {address}"), why),
            }
        }
        self.keep(app, fdstore);
    }

    /// The app's own address that a bind means, out of those of its release.
    pub fn matching(&self, app: &AppName, bind: &Bind, order: &[Listen]) -> Option<Listen> {
        self.apps.get(app)?.sockets.matching(bind, order)
    }

    /// The slot's socket of the address, in the family that the worker asks for where that can
    /// still be chosen.
    pub fn socket_for(
        &mut self,
        worker: &WorkerId,
        address: &Listen,
        bind: &Bind,
        fdstore: &mut FdStore,
    ) -> Option<BorrowedFd<'_>> {
        self.adapt(worker, address, bind, fdstore);
        self.apps
            .get(&worker.app)?
            .sockets
            .socket(address, worker.slot)
    }

    fn adapt(&mut self, worker: &WorkerId, address: &Listen, bind: &Bind, fdstore: &mut FdStore) {
        let Some(of_app) = self.apps.get_mut(&worker.app) else {
            return;
        };
        let changed = match of_app.sockets.adapt(address, bind) {
            Ok(Some(changed)) => changed,
            Ok(None) => return,
            Err(why) => return warn!("{worker}: its sockets stay of the other family: {why}"),
        };
        // The relays still hold sockets of the old group.
        let slots: Vec<Option<u16>> = of_app.relaying.drain().map(|(slot, _)| slot).collect();
        let holding = of_app.sockets.queues(None).unwrap_or_default();
        let target = holding
            .into_iter()
            .find(|queue| queue.address == changed.address)
            .map(|queue| queue.target);
        if let Some(target) = target {
            for connection in changed.accepted {
                of_app.relays.pass(connection, target);
            }
        }
        for slot in slots {
            self.start_relays(&worker.app, slot);
        }
        self.keep(&worker.app, fdstore);
    }

    /// Records that a worker has a socket of the address.
    pub fn handed(&mut self, worker: &WorkerId, address: &Listen) {
        if let Some(of_app) = self.apps.get_mut(&worker.app) {
            of_app.sockets.handed(address, worker.generation);
        }
    }

    /// Records that the worker is gone.
    pub fn taken_back(&mut self, worker: &WorkerId) {
        if let Some(of_app) = self.apps.get_mut(&worker.app) {
            of_app.sockets.taken_back(worker.generation);
        }
    }

    /// The sockets that a worker in the slot inherits, in the order of its configuration.
    ///
    /// # Errors
    /// As `fcntl(2)` with `F_DUPFD`.
    pub fn inherit(&mut self, worker: &WorkerId, order: &[Listen]) -> io::Result<Vec<OwnedFd>> {
        self.app(&worker.app).sockets.inherit(worker.slot, order)
    }
}

/// Queries.
impl Network {
    /// Sockets of `.socket` units.
    pub fn given(&self) -> &Given {
        &self.given
    }

    /// Whether no app has sockets, or ever had any.
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty()
    }

    /// Where a probe reaches the worker.
    pub fn probe_target(&self, worker: &WorkerId, order: &[Listen]) -> Option<ProbeTarget> {
        let of_app = self.apps.get(&worker.app)?;
        of_app.sockets.probe_target(worker.slot, order)
    }

    /// A copy of the worker's first TCP socket, for looking at its accept queue.
    pub fn probe_queue(&self, worker: &WorkerId, order: &[Listen]) -> Option<OwnedFd> {
        let of_app = self.apps.get(&worker.app)?;
        of_app.sockets.probe_queue(worker.slot, order)
    }

    /// Adds to the view of an app: connections that rsup has relayed so far, those that wait for a worker now, and the
    /// addresses that are served in place of those configured.
    pub fn complete(&self, view: &mut AppView, configured: &[Listen]) {
        let Some(of_app) = self.apps.get(&view.name) else {
            return;
        };
        (view.relayed, view.held) = (of_app.relays.count(), of_app.held());
        for (shown, address) in view.listen.iter_mut().zip(configured) {
            if let Some(served) = of_app.sockets.served_otherwise(address) {
                *shown = served.to_string();
            }
        }
    }

    /// Connections that rsup is relaying at this moment.
    pub fn under_way(&self) -> usize {
        self.apps.values().map(|app| app.relays.under_way()).sum()
    }

    /// The address that is served where it is less than the configured one: see
    /// [`Sockets::served_otherwise`].
    pub fn served_otherwise(&self, app: &AppName, address: &Listen) -> Option<SocketAddr> {
        self.apps.get(app)?.sockets.served_otherwise(address)
    }
}
