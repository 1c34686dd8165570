//! A port that is hidden from a worker until it has bound it, and the traces of workers that needed
//! that.

use nix::libc::ECONNREFUSED;

use super::{Event, Fleet, log_error};
use crate::config::{AppSpec, Listen};
use crate::core::{Input, Supervisor, Traces, WorkerId};
use crate::daemon::aside;
use crate::sys::sockdiag;
use crate::sys::takeover::{Answer, Connect, Listener, Support};

/// Walks the kernel's table of connections: only for a worker that fails, or makes no progress.
fn traces(ports: &[u16]) -> Traces {
    let abandoned = ports
        .iter()
        .map(|port| sockdiag::abandoned(*port).unwrap_or(0))
        .sum();
    let others = ports
        .iter()
        .any(|port| sockdiag::closed_by_clients(*port).unwrap_or(false));
    Traces { abandoned, others }
}

impl Fleet {
    /// The ports that can be hidden from the worker.
    fn ports_of(&self, worker: &WorkerId, supervisor: &Supervisor) -> Vec<u16> {
        let possible = |spec: &AppSpec| {
            !matches!(
                self.takeover.of(&self.isolation, spec),
                Some(Support::No { .. })
            )
        };
        let revision = supervisor
            .worker(worker)
            .and_then(|w| supervisor.revision_of(w))
            .filter(|revision| possible(&revision.spec));
        revision
            .into_iter()
            .flat_map(|revision| &revision.spec.listen)
            .filter_map(Listen::tcp)
            .map(|a| a.port())
            .collect()
    }

    /// Looks for traces of the worker, in a thread. False if no thread is available.
    pub fn look_for_traces(
        &self,
        worker: WorkerId,
        and_then: Option<Input>,
        supervisor: &Supervisor,
    ) -> bool {
        let (ports, events) = (self.ports_of(&worker, supervisor), self.events.clone());
        let look = move || {
            let traces = traces(&ports);
            let _ = events.send(Event::Traces {
                worker,
                traces,
                and_then,
            });
        };
        aside("rsup-traces", look).is_ok()
    }
}

/// Refuses the worker's connection to a hidden port, as if no process listened there; allows
/// every other.
pub fn answer_connect(
    worker: &WorkerId,
    connect: &Connect,
    listener: &Listener,
    supervisor: &Supervisor,
) -> Option<Input> {
    let hidden = supervisor.worker(worker).is_some_and(|w| {
        let revision = supervisor.revision_of(w);
        revision.is_some_and(|revision| w.is_hidden(&revision.spec, connect.addr))
    });
    if !hidden || !connect.is_to_this_machine() {
        let _ = listener.proceed(connect);
        return None;
    }
    match connect.is_stream() {
        Ok(true) => {}
        Ok(false) => {
            let _ = listener.proceed(connect);
            return None;
        }
        Err(why) => {
            log_error(&format!("{worker}: a connect could not be looked at"), why);
            let _ = listener.proceed(connect);
            return None;
        }
    }
    match listener.refuse(connect, ECONNREFUSED) {
        Ok(Answer::Delivered) => Some(Input::Refused {
            worker: worker.clone(),
        }),
        Ok(Answer::Vanished) | Err(_) => None,
    }
}
