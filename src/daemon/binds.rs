//! The trapped calls of workers: who holds the listener of a filter, and the answer to each `bind(2)`.

use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use super::fdstore::name;
use super::{Daemon, Event, Events, complain};
use crate::config::AppName;
use crate::core::{Input, Worker, WorkerId};
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

impl Daemon {
    /// The listener outlives this daemon at the keeper, and both of them at the worker, or at a process for
    /// the purpose where the worker may not have it.
    pub(super) fn keep_listener(&mut self, worker: &WorkerId, pid: u32, listener: &Listener) {
        self.fdstore.keep(name::binds(worker.generation), listener);
        self.hold_listener(worker, pid, listener);
    }

    /// The second half of [`Self::keep_listener`].
    pub(super) fn hold_listener(&mut self, worker: &WorkerId, pid: u32, listener: &Listener) {
        // systemd is not killed with us, and in a container nothing outlives its first process.
        if takeover::may_hold(pid) || self.fdstore.is_at_systemd() || std::process::id() == 1 {
            return;
        }
        let (name, fdstore) = (name::binds(worker.generation), &self.fdstore);
        if let Err(why) = self
            .bind_holder
            .keep(name, &listener.as_fd(), |name| fdstore.find(name))
        {
            warn!("{worker}: its binds would fail if rsup were killed with its keeper: {why}");
        }
    }

    /// Replaces a holder that is gone.
    pub(super) fn tend_bind_holder(&mut self) {
        let fdstore = &self.fdstore;
        if let Err(why) = self.bind_holder.tend(|name| fdstore.find(name)) {
            debug!("no holder of binds can be had: {why}");
        }
    }

    /// Takes back the listeners of the workers that were not kept elsewhere.
    pub(super) fn take_back_listeners(&mut self, workers: &[Worker]) {
        let missing: Vec<&Worker> = workers
            .iter()
            .filter(|w| self.has_takeover(w))
            .filter(|w| self.fdstore.find(&name::binds(w.id.generation)).is_none())
            .collect();
        if missing.is_empty() {
            return;
        }
        let mut held = binds_link::take_back(&self.paths.binds())
            .inspect_err(|why| complain("the holder of binds does not answer", why))
            .unwrap_or_default();
        for worker in missing {
            let name = name::binds(worker.id.generation);
            if let Some(listener) = held.remove(&name) {
                self.fdstore.keep(name, listener);
            }
        }
    }

    /// The process keeps the filter alive by itself from now on, should daemon and keeper be killed together.
    fn leave_listener(&mut self, worker: &WorkerId, call: &Call, listener: &Listener) {
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

    pub(super) fn on_trapped(&mut self, worker: &WorkerId, Trapped { call, listener }: &Trapped) {
        self.leave_listener(worker, call, listener.get_ref());
        match call {
            Call::Bind(bind) => self.on_bind(worker, bind, listener.get_ref()),
            Call::Connect(connect) => self.on_connect(worker, connect, listener.get_ref()),
        }
    }

    /// Gives the app our socket in place of its own, if the address is one of ours.
    fn on_bind(&mut self, worker: &WorkerId, bind: &Bind, listener: &Listener) {
        let revision = self
            .supervisor
            .worker(worker)
            .and_then(|w| self.supervisor.revision_of(w));
        let matching = revision.and_then(|revision| {
            let order = &revision.spec.listen;
            self.network.matching(&worker.app, bind, order)
        });
        let Some(address) = matching else {
            let _ = listener.proceed(bind);
            self.saw_bind_elsewhere(worker, bind);
            // For port 0 the kernel chooses: it is another one in any case.
            if bind.socket.is_stream {
                self.handle(Input::BoundElsewhere {
                    worker: worker.clone(),
                });
            }
            return;
        };
        let socket = self
            .network
            .socket_for(worker, &address, bind, &mut self.fdstore);
        let Some(socket) = socket else {
            let _ = listener.proceed(bind);
            return;
        };
        match listener.inject(bind, socket) {
            Ok(Answer::Delivered) => {
                debug!(
                    "{worker}: bind to {} answered with the socket of its slot",
                    bind.addr
                );
                self.takeover.seen(&worker.app);
                self.saw_own_bind(worker, &address, bind);
                self.network.handed(worker, &address);
                self.handle(Input::Bound {
                    worker: worker.clone(),
                    port: bind.addr.port(),
                });
            }
            Ok(Answer::Vanished) => {}
            Err(why) => {
                complain(
                    &format!("{worker}: cannot give it the socket of {address}"),
                    why,
                );
                let _ = listener.refuse(bind, nix::libc::EADDRINUSE);
            }
        }
    }

    /// A bind was let go on unseen: if it was for an address of ours, it fails, because we listen there.
    pub(super) fn on_unseen(&mut self, app: &AppName, mut why: String) {
        if !capability::may_trace_all() {
            why += "; with CAP_SYS_PTRACE rsup could (docker run --cap-add SYS_PTRACE)";
        }
        if self.takeover.unseen(app, why.clone()) {
            warn!("{app}: a bind(2) could not be looked at, so it got no socket of rsup's: {why}");
        }
    }
}

/// Passes trapped calls to the loop, one by one, until nobody is left who could make one.
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
