//! A port that is hidden from a worker until it has bound it, and the traces of workers that needed
//! that.

use nix::libc::ECONNREFUSED;

use super::{Daemon, Event, complain};
use crate::config::{AppSpec, Listen};
use crate::core::{Input, Traces, WorkerId};
use crate::sys::sockdiag;
use crate::sys::takeover::{Answer, Connect, Listener, Support};

/// Walks the kernel's table of connections: only for a worker that fails, or makes no progress.
pub fn traces(ports: &[u16]) -> Traces {
    let abandoned = ports
        .iter()
        .map(|port| sockdiag::abandoned(*port).unwrap_or(0))
        .sum();
    let others = ports
        .iter()
        .any(|port| sockdiag::closed_by_clients(*port).unwrap_or(false));
    Traces { abandoned, others }
}

impl Daemon {
    /// The ports that can be hidden from the worker.
    pub(super) fn ports_of(&self, worker: &WorkerId) -> Vec<u16> {
        let possible = |spec: &AppSpec| {
            !matches!(
                self.takeover.of(&self.isolation, spec),
                Some(Support::No { .. })
            )
        };
        let revision = self
            .supervisor
            .worker(worker)
            .and_then(|w| self.supervisor.revision_of(w))
            .filter(|revision| possible(&revision.spec));
        revision
            .into_iter()
            .flat_map(|revision| &revision.spec.listen)
            .filter_map(Listen::tcp)
            .map(|a| a.port())
            .collect()
    }

    /// Looks for traces of the worker, in a thread. False if no thread is available.
    pub(super) fn look_for_traces(&self, worker: WorkerId, and_then: Option<Input>) -> bool {
        let (ports, events) = (self.ports_of(&worker), self.events.clone());
        let look = move || {
            let traces = traces(&ports);
            let _ = events.send(Event::Traces {
                worker,
                traces,
                and_then,
            });
        };
        super::aside("rsup-traces", look).is_ok()
    }

    /// Refuses the worker's connection to a hidden port, as if no process listened there; allows
    /// every other.
    pub(super) fn on_connect(&mut self, worker: &WorkerId, connect: &Connect, listener: &Listener) {
        let hidden = self.supervisor.worker(worker).is_some_and(|w| {
            let revision = self.supervisor.revision_of(w);
            revision.is_some_and(|revision| w.is_hidden(&revision.spec, connect.addr))
        });
        if !hidden || !connect.is_to_this_machine() {
            let _ = listener.proceed(connect);
            return;
        }
        match connect.is_stream() {
            Ok(true) => {}
            Ok(false) => {
                let _ = listener.proceed(connect);
                return;
            }
            Err(why) => {
                complain(&format!("{worker}: a connect could not be looked at"), why);
                let _ = listener.proceed(connect);
                return;
            }
        }
        if let Ok(Answer::Delivered) = listener.refuse(connect, ECONNREFUSED) {
            self.handle(Input::Refused {
                worker: worker.clone(),
            });
        }
    }
}
