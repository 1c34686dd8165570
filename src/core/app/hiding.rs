//! Whether the port is hidden from a starting worker: see [`super::super::hiding`].

use super::super::hiding::{FIRST_LOOK, Hiding, Port, Traces};
use super::super::io::Effect;
use super::super::types::{Revision, Time, WorkerId};
use super::super::worker::{State, Worker};
use super::{App, Context};
use crate::config::{AppSpec, Check, HidePort};
use crate::model::{Loss, Retire, What};

impl App {
    /// What is known of the command of a spec.
    pub fn hiding(&self, spec: &AppSpec) -> Hiding {
        self.hiding
            .iter()
            .find(|(command, _)| *command == spec.command)
            .map_or(Hiding::Unknown, |(_, known)| *known)
    }

    fn learn(&mut self, spec: &AppSpec, news: Hiding) {
        self.hiding.retain(|(command, _)| *command != spec.command);
        self.hiding.push((spec.command.clone(), news));
    }

    /// Whether the port is hidden from new workers of the revision.
    pub fn hides(&self, revision: &Revision) -> bool {
        let spec = &revision.spec;
        match spec.hide_port {
            _ if !listens(spec) => false,
            HidePort::Always => true,
            HidePort::Never => false,
            HidePort::Auto => matches!(self.hiding(spec), Hiding::Trying | Hiding::Needed { .. }),
        }
    }

    /// Forgets commands that no revision runs any more.
    pub(super) fn forget_commands(&mut self) {
        let releases = &self.releases;
        self.hiding.retain(|(command, _)| {
            releases
                .iter()
                .any(|revision| revision.spec.command == *command)
        });
    }

    /// Whether hiding the port may help a worker that fails now or makes no progress.
    pub fn wants_traces(&self, worker: &Worker) -> bool {
        let spec = self.spec_of(worker);
        let coming = matches!(
            worker.state,
            State::Spawning { .. } | State::Starting { .. }
        );
        coming
            && listens(spec)
            && spec.hide_port == HidePort::Auto
            && !spec.socket_activation
            && worker.stays()
            && !worker.port.hidden
            && worker.port.bound.is_empty()
            && self.hiding(spec) != Hiding::Unneeded
    }

    pub(super) fn look_for_traces_later(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let look = self.wants_traces_of(id).then(|| cx.now + FIRST_LOOK);
        if let Some(worker) = self.worker(id) {
            worker.port.look = look;
        }
    }

    fn wants_traces_of(&self, id: &WorkerId) -> bool {
        self.workers()
            .find(|w| w.id == *id)
            .is_some_and(|w| self.wants_traces(w))
    }

    /// Looks for traces once it is time to.
    pub(super) fn look(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let now = cx.now;
        let worker = self.worker(id);
        if worker.is_none_or(|w| w.port.look.is_none_or(|at| at > now)) {
            return;
        }
        let wants_traces = self.wants_traces_of(id);
        if let Some(worker) = self.worker(id) {
            worker.port.look =
                wants_traces.then(|| cx.now + cx.now.since(worker.started).max(FIRST_LOOK));
            if wants_traces {
                cx.out
                    .push_back(Effect::LookForTraces { worker: id.clone() });
            }
        }
    }

    pub fn on_bound(&mut self, id: &WorkerId, port: u16, cx: &mut Context<'_>) {
        let Some(worker) = self.worker(id) else {
            return;
        };
        worker.port.bound.insert(port);
        worker.port.look = None;
        let worker = worker.clone();
        let revision = self.releases[worker.revision].clone();
        let spec = &revision.spec;
        if spec.hide_port != HidePort::Auto {
            return;
        }
        match (worker.port.hidden, self.hiding(spec)) {
            (false, Hiding::Unknown) => self.learn(spec, Hiding::Unneeded),
            (true, Hiding::Trying) if worker.port.refused => {
                self.learn(spec, Hiding::Needed { since: cx.now });
                self.record_of(&worker, What::PortHidden, cx);
            }
            (true, Hiding::Trying) => self.learn(spec, Hiding::Unneeded),
            (false, Hiding::Unneeded | Hiding::Trying | Hiding::Needed { .. })
            | (true, Hiding::Unknown | Hiding::Unneeded | Hiding::Needed { .. }) => {}
        }
    }

    pub fn on_bound_elsewhere(&mut self, id: &WorkerId, cx: &mut Context<'_>) {
        let wants_traces = self.wants_traces_of(id);
        if let Some(worker) = self
            .worker(id)
            .filter(|w| wants_traces && !w.port.elsewhere)
        {
            worker.port.elsewhere = true;
            cx.out
                .push_back(Effect::LookForTraces { worker: id.clone() });
        }
    }

    pub fn on_refused(&mut self, id: &WorkerId) {
        if let Some(worker) = self.worker(id).filter(|w| w.port.hidden) {
            worker.port.refused = true;
        }
    }

    pub fn on_traces(&mut self, id: &WorkerId, traces: Traces, cx: &mut Context<'_>) {
        let wants_traces = self.wants_traces_of(id);
        let Some(worker) = self.worker(id).filter(|_| wants_traces) else {
            return;
        };
        if !worker.port.found(traces) {
            return;
        }
        let before = worker.clone();
        worker.retiring = Some(Retire::PortTest);
        self.try_hidden(&before, None, cx);
    }

    /// Records that a worker was ready without hiding.
    pub(super) fn was_not_needed(&mut self, id: &WorkerId) {
        let Some(revision) = self
            .worker(id)
            .filter(|w| w.ready() && !w.port.hidden)
            .map(|w| w.revision)
        else {
            return;
        };
        let revision = self.releases[revision].clone();
        let spec = &revision.spec;
        // Other checks than these show nothing about the port.
        let by_port = matches!(spec.readiness.check, Check::Http { .. } | Check::Tcp);
        if by_port
            && listens(spec)
            && spec.hide_port == HidePort::Auto
            && self.hiding(spec) == Hiding::Unknown
        {
            self.learn(spec, Hiding::Unneeded);
        }
    }

    /// A worker was lost before it was ready. True if another one is started in its place with the
    /// port hidden, so that this end does not count. `worker`: its state before the loss.
    pub(super) fn tries_hidden(
        &mut self,
        worker: &Worker,
        loss: Option<&Loss>,
        cx: &mut Context<'_>,
    ) -> bool {
        if self.wants_traces(worker) && worker.port.tested {
            self.try_hidden(worker, loss, cx);
            return true;
        }
        let Port {
            hidden, refused, ..
        } = worker.port;
        let revision = self.releases[worker.revision].clone();
        let spec = &revision.spec;
        if hidden && !refused && !worker.ready() && self.hiding(spec) == Hiding::Trying {
            // It did not try to connect: the port is not the cause.
            self.learn(spec, Hiding::Unneeded);
        }
        false
    }

    fn try_hidden(&mut self, worker: &Worker, loss: Option<&Loss>, cx: &mut Context<'_>) {
        let revision = self.releases[worker.revision].clone();
        if self.hiding(&revision.spec) == Hiding::Unknown {
            self.learn(&revision.spec, Hiding::Trying);
        }
        if let Some(instance) = self
            .sets
            .get_mut(&worker.revision)
            .and_then(|set| set.instances.get_mut(&worker.instance))
        {
            // Of a release that is not the wanted one, only lost workers come back.
            instance.lost = worker.revision != self.current;
        }
        let loss = loss.cloned();
        self.record_of(worker, What::PortTested { loss }, cx);
    }

    /// The machine was booted since: earlier times are meaningless.
    pub(super) fn still_needed(&mut self) {
        for (_, known) in &mut self.hiding {
            if let Hiding::Needed { since } = known {
                *since = Time::default();
            }
        }
    }
}

fn listens(spec: &AppSpec) -> bool {
    spec.listen.iter().any(|l| l.tcp().is_some())
}
