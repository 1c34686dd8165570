//! The trapped calls of workers: who holds the listener of a filter, and the answer to each `bind(2)`.

use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use super::{Event, Events, Fleet, log_error};
use crate::config::AppName;
use crate::core::{Input, Supervisor, Worker, WorkerId};
use crate::daemon::fdstore::{FdStore, name};
use crate::daemon::network::Network;
use crate::keeper::binds_link;
use crate::sys::capability;
use crate::sys::readiness::readable;
use crate::sys::takeover::{self, Answer, Bind, Call, Listener, Waiting};

/// Of so many processes of a worker it is remembered that they hold its listener.
const MOST_SEEN_TO: usize = 1024;

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

    /// The process keeps the filter alive by itself from now on, should daemon and keeper be killed together.
    pub fn leave_listener(&mut self, worker: &WorkerId, call: &Call, listener: &Listener) {
        let Some(running) = self.running.get_mut(&worker.generation) else {
            return;
        };
        let process = call.process();
        if running.seen_to.len() >= MOST_SEEN_TO {
            running.seen_to.clear();
        }
        if running.seen_to.insert(process)
            && let Err(why) = listener.leave_with(call)
        {
            debug!("{worker}: pid {process} has no listener of its own: {why}");
        }
    }

    /// Gives the app our socket in place of its own, if the address is one of ours.
    pub fn answer_bind(
        &mut self,
        (worker, bind, listener): (&WorkerId, &Bind, &Listener),
        supervisor: &Supervisor,
        network: &mut Network,
        fdstore: &mut FdStore,
    ) -> Option<Input> {
        let revision = supervisor
            .worker(worker)
            .and_then(|w| supervisor.revision_of(w));
        let matching = revision.and_then(|revision| {
            let order = &revision.spec.listen;
            network.matching(&worker.app, bind, order)
        });
        let Some(address) = matching else {
            let _ = listener.proceed(bind);
            self.saw_bind_elsewhere(worker, bind, supervisor);
            // For port 0 the kernel chooses: it is another one in any case.
            return bind.socket.is_stream.then(|| Input::BoundElsewhere {
                worker: worker.clone(),
            });
        };
        let Some(socket) = network.socket_for(worker, &address, bind, fdstore) else {
            let _ = listener.proceed(bind);
            return None;
        };
        match listener.inject(bind, socket) {
            Ok(Answer::Delivered) => {
                debug!(
                    "{worker}: bind to {} answered with the socket of its slot",
                    bind.addr
                );
                self.takeover.seen(&worker.app);
                self.saw_own_bind(worker, &address, bind, supervisor);
                network.handed(worker, &address);
                Some(Input::Bound {
                    worker: worker.clone(),
                    port: bind.addr.port(),
                })
            }
            Ok(Answer::Vanished) => None,
            Err(why) => {
                log_error(
                    &format!("{worker}: cannot give it the socket of {address}"),
                    why,
                );
                let _ = listener.refuse(bind, nix::libc::EADDRINUSE);
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

/// Passes trapped calls to the loop, one by one, until no process is left that could make one.
pub async fn answer_calls(worker: WorkerId, listener: takeover::Listener, events: Events) {
    let Ok(listener) = readable(listener) else {
        return;
    };
    let listener = Arc::new(listener);
    loop {
        let Ok(mut guard) = listener.readable().await else {
            return;
        };
        match listener.get_ref().receive() {
            Ok(Some(call)) => {
                let call = Trapped {
                    call,
                    listener: listener.clone(),
                };
                let _ = events.send(Event::Trapped {
                    worker: worker.clone(),
                    call,
                });
            }
            Ok(None) => guard.clear_ready(),
            Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => return,
            Err(why) => {
                let _ = events.send(Event::Unseen {
                    app: worker.app.clone(),
                    why: why.to_string(),
                });
            }
        }
    }
}
