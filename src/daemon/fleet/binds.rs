//! The trapped calls of workers: who holds the listener of a filter, and the answer to each `bind(2)`.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::{Event, Events, Fleet, log_error};
use crate::config::{AppName, Listen};
use crate::core::{Input, Supervisor, Worker, WorkerId};
use crate::daemon::aside;
use crate::daemon::fdstore::{FdStore, name};
use crate::daemon::network::Network;
use crate::keeper::binds_link;
use crate::sys::capability;
use crate::sys::readiness::readable;
use crate::sys::takeover::{self, Answer, Bind, Call, Listener, Waiting};

/// Of so many processes of a worker it is remembered that they hold its listener.
const MOST_HOLDERS: usize = 1024;
/// How long a thread waits for the worker's next call before it ends.
const IDLE: Duration = Duration::from_millis(50);
/// A worker's calls that cannot be read are reported this often at the most.
const REPORTED_EVERY: Duration = Duration::from_secs(10);
/// Pause before a thread that could not be made is tried again.
const LATER: Duration = Duration::from_millis(100);

/// A trapped call and where to answer it.
pub struct Trapped {
    pub call: Call,
    pub listener: Arc<AsyncFd<takeover::Listener>>,
}

impl Fleet {
    /// The listener outlives this daemon at the keeper, and both of them at the worker, or at a process for
    /// the purpose where the worker may not have it.
    pub(super) fn keep_listener(
        &mut self,
        worker: &WorkerId,
        pid: u32,
        listener: &Listener,
        fdstore: &mut FdStore,
    ) {
        fdstore.keep(name::binds(worker.generation), listener);
        self.hold_listener(worker, pid, listener, fdstore);
    }

    /// Has it held where it outlives the keeper.
    pub fn hold_listener(
        &mut self,
        worker: &WorkerId,
        pid: u32,
        listener: &Listener,
        fdstore: &FdStore,
    ) {
        // systemd is not killed with us, and in a container nothing outlives its first process.
        if takeover::may_hold(pid) || fdstore.is_at_systemd() || std::process::id() == 1 {
            return;
        }
        let name = name::binds(worker.generation);
        if let Err(why) = self
            .bind_holder
            .keep(name, &listener.as_fd(), |name| fdstore.find(name))
        {
            warn!("{worker}: its binds would fail if rsup were killed with its keeper: {why}");
        }
    }

    /// Replaces a holder that is gone.
    pub fn tend_bind_holder(&mut self, fdstore: &FdStore) {
        if let Err(why) = self.bind_holder.tend(|name| fdstore.find(name)) {
            debug!("no holder of binds can be had: {why}");
        }
    }

    /// Takes back the listeners of the workers that were not kept elsewhere.
    pub fn take_back_listeners(
        &self,
        workers: &[Worker],
        supervisor: &Supervisor,
        fdstore: &mut FdStore,
    ) {
        let missing: Vec<&Worker> = workers
            .iter()
            .filter(|w| self.has_takeover(w, supervisor))
            .filter(|w| fdstore.find(&name::binds(w.id.generation)).is_none())
            .collect();
        if missing.is_empty() {
            return;
        }
        let mut held = binds_link::take_back(&self.paths.binds())
            .inspect_err(|why| log_error("the holder of binds does not answer", why))
            .unwrap_or_default();
        for worker in missing {
            let name = name::binds(worker.id.generation);
            if let Some(listener) = held.remove(&name) {
                fdstore.keep(name, listener);
            }
        }
    }

    /// Gives the app our socket in place of its own, if the address is one of ours.
    pub fn answer_bind(
        &mut self,
        (worker, bind): (&WorkerId, &Bind),
        listener: &Arc<AsyncFd<Listener>>,
        supervisor: &Supervisor,
        network: &mut Network,
        fdstore: &mut FdStore,
    ) -> Option<Input> {
        let proceed = || drop(listener.get_ref().proceed(bind));
        let revision = supervisor
            .worker(worker)
            .and_then(|w| supervisor.revision_of(w));
        let matching = revision.and_then(|revision| {
            let order = &revision.spec.listen;
            network.matching(&worker.app, bind, order)
        });
        let Some(address) = matching else {
            proceed();
            self.saw_bind_elsewhere(worker, bind, supervisor);
            // For port 0 the kernel chooses: it is another one in any case.
            return bind.socket.is_stream.then(|| Input::BoundElsewhere {
                worker: worker.clone(),
            });
        };
        let socket = network.socket_for(worker, &address, bind, fdstore);
        let Some(socket) = socket.and_then(|socket| socket.try_clone_to_owned().ok()) else {
            proceed();
            return None;
        };
        // From now on, so that the socket's family stays what it is.
        network.handed(worker, &address);
        let (events, listener) = (self.events.clone(), listener.clone());
        let (worker, bind) = (worker.clone(), bind.clone());
        let given = aside("rsup-bind", {
            let (listener, bind) = (listener.clone(), bind.clone());
            move || {
                let result = listener.get_ref().inject(&bind, socket.as_fd());
                if result.is_err() {
                    let _ = listener.get_ref().refuse(&bind, nix::libc::EADDRINUSE);
                }
                let _ = events.send(Event::Given {
                    worker,
                    address,
                    bind,
                    result,
                });
            }
        });
        if let Err(why) = given {
            log_error("no thread can be made to answer a bind(2)", why);
            let _ = listener.get_ref().refuse(&bind, nix::libc::EADDRINUSE);
        }
        None
    }

    /// The app has got a socket of the address, or has not.
    pub fn on_given(
        &mut self,
        worker: WorkerId,
        (address, bind): (&Listen, &Bind),
        result: io::Result<Answer>,
        supervisor: &Supervisor,
    ) -> Option<Input> {
        match result {
            Ok(Answer::Delivered) => {
                debug!(
                    "{worker}: bind to {} answered with the socket of its slot",
                    bind.addr
                );
                self.takeover.seen(&worker.app);
                self.saw_own_bind(&worker, address, bind, supervisor);
                let port = bind.addr.port();
                Some(Input::Bound { worker, port })
            }
            Ok(Answer::Vanished) => None,
            Err(why) => {
                log_error(
                    &format!("{worker}: cannot give it the socket of {address}"),
                    why,
                );
                None
            }
        }
    }

    /// A bind was let go on unseen: if it was for an address of ours, it fails, because we listen there.
    pub fn on_unseen(&mut self, app: &AppName, mut why: String) {
        if !capability::may_trace_all() {
            why += "; with CAP_SYS_PTRACE rsup could (docker run --cap-add SYS_PTRACE)";
        }
        if self.takeover.unseen(app, why.clone()) {
            warn!("{app}: a bind(2) could not be looked at, so it got no socket of rsup's: {why}");
        }
    }
}

/// Passes trapped calls to the loop, until no process is left that could make one.
///
/// To receive one is to read the worker's memory, which may be that of a file whose server never
/// answers, and the kernel gives the worker a descriptor when the worker runs next: so a thread does all that,
/// never the loop, and a worker that holds it up holds up its own calls alone.
pub async fn answer_calls(worker: WorkerId, listener: takeover::Listener, events: Events) {
    let Ok(listener) = readable(listener) else {
        return;
    };
    let listener = Arc::new(listener);
    let known = Arc::new(Mutex::new(Known::default()));
    loop {
        let Ok(mut guard) = listener.readable().await else {
            return;
        };
        let (over, done) = oneshot::channel();
        let receiver = Receiver {
            worker: worker.clone(),
            listener: listener.clone(),
            events: events.clone(),
            known: known.clone(),
        };
        if let Err(why) = aside("rsup-calls", move || drop(over.send(receiver.receive()))) {
            log_error("no thread can be made to read the calls of workers", why);
            tokio::time::sleep(LATER).await;
            continue;
        }
        match done.await {
            Ok(Left::None) => guard.clear_ready(),
            Ok(Left::NoProcess) | Err(_) => return,
        }
    }
}

/// What is left after a thread has received calls.
enum Left {
    /// No call, for a while.
    None,
    /// No process that could make one.
    NoProcess,
}

/// Receives calls of one worker.
struct Receiver {
    worker: WorkerId,
    listener: Arc<AsyncFd<Listener>>,
    events: Events,
    known: Arc<Mutex<Known>>,
}

impl Receiver {
    fn receive(&self) -> Left {
        let listener = self.listener.get_ref();
        loop {
            match listener.receive() {
                Ok(Some(call)) => {
                    self.leave(&call);
                    let call = Trapped {
                        call,
                        listener: self.listener.clone(),
                    };
                    let _ = self.events.send(Event::Trapped {
                        worker: self.worker.clone(),
                        call,
                    });
                }
                Ok(None) => {
                    if !listener.has_call_within(IDLE).unwrap_or(false) {
                        return Left::None;
                    }
                }
                Err(why) if why.kind() == io::ErrorKind::BrokenPipe => return Left::NoProcess,
                Err(why) => self.unseen(&why),
            }
        }
    }

    /// A worker can make such calls as fast as it likes, with any words.
    fn unseen(&self, why: &io::Error) {
        if self.known().is_time_to_log() {
            let _ = self.events.send(Event::Unseen {
                app: self.worker.app.clone(),
                why: why.to_string(),
            });
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process keeps the filter alive by itself from now on, should daemon and keeper be killed together.
    fn leave(&self, call: &Call) {
        let process = call.process();
        let is_new = self.known().add(process);
        if is_new && let Err(why) = self.listener.get_ref().leave_with(call) {
            debug!(
                "{}: pid {process} has no listener of its own: {why}",
                self.worker
            );
        }
    }
}

/// What is known of a worker's calls.
#[derive(Default)]
struct Known {
    /// Processes that were given the listener of their filter, or may not have it.
    holders: HashSet<u32>,
    /// When it was last reported that a call could not be read.
    reported: Option<Instant>,
}

impl Known {
    /// False if it is known.
    fn add(&mut self, process: u32) -> bool {
        if self.holders.len() >= MOST_HOLDERS {
            self.holders.clear();
        }
        self.holders.insert(process)
    }

    fn is_time_to_log(&mut self) -> bool {
        let is = self
            .reported
            .is_none_or(|reported| reported.elapsed() >= REPORTED_EVERY);
        if is {
            self.reported = Some(Instant::now());
        }
        is
    }
}
