//! Hands each event of a task to the part that it is for, and what that part returns to the core.

use tokio::sync::mpsc;

use super::fleet::binds::Trapped;
use super::fleet::{hiding, on_drained};
use super::{Daemon, Event, now};
use crate::core::{Input, WorkerId};
use crate::sys::takeover::Call;

impl Daemon {
    /// Handles all that tasks have sent so far.
    pub(super) fn on_events(&mut self, inbox: &mut mpsc::UnboundedReceiver<Event>) {
        while let Ok(event) = inbox.try_recv() {
            self.on_event(event);
        }
    }

    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.on_input(input),
            Event::Traces {
                worker,
                traces,
                and_then,
            } => {
                self.supervisor
                    .handle(now(), Input::Traces { worker, traces });
                let end = and_then.map(|end| self.fleet.complete_end(end));
                end.into_iter()
                    .for_each(|end| self.supervisor.handle(now(), end));
                self.settle();
            }
            Event::Ask(ask) => self.on_ask(ask),
            Event::Call { call, answer } => self.on_call(call, answer),
            Event::Drained { worker, of } => self.handle_any(on_drained(worker, &of)),
            Event::Notified { worker, by } => {
                let input = self.fleet.on_notified(&worker, by);
                self.handle_any(input);
            }
            Event::ShutDown { app } => self.network.repair(&app),
            Event::SteerAgain { app } => self.network.steer_again(&app),
            Event::RelayAgain { app, slot } => self.relay_again(&app, slot),
            Event::Trapped { worker, call } => self.on_trapped(&worker, &call),
            Event::Given {
                worker,
                address,
                bind,
                result,
            } => {
                let fleet = &mut self.fleet;
                let input = fleet.on_given(worker, (&address, &bind), result, &self.supervisor);
                self.handle_any(input);
            }
            Event::Unseen { app, why } => self.fleet.on_unseen(&app, why),
            Event::Tried { who, tried } => {
                let failures = self.fleet.on_tried(&who, tried);
                self.handle_any(failures);
            }
            Event::Executed {
                worker,
                pid,
                listener,
            } => {
                let input = self
                    .fleet
                    .on_executed(worker, pid, listener, &mut self.fdstore);
                self.handle(input);
            }
            Event::HowEnded { pid, answer } => self.fdstore.how_ended(pid, answer),
            Event::Silent { generation } => self
                .fdstore
                .forget_all(&[format!("out/{generation}/"), format!("err/{generation}/")]),
            Event::Saved(how) => self.on_saved(how),
            Event::Upgrade(pending) => self.on_upgrade(pending),
            Event::Explained { op, failure } => self.on_explained(op, failure),
        }
    }

    pub(super) fn handle_any(&mut self, inputs: impl IntoIterator<Item = Input>) {
        inputs.into_iter().for_each(|input| self.handle(input));
    }

    fn on_input(&mut self, input: Input) {
        // Why a worker ended that has not bound its port is looked for before its end counts.
        if let Input::Exited { worker, .. } = &input
            && self.supervisor.wants_traces(worker)
            && self
                .fleet
                .look_for_traces(worker.clone(), Some(input.clone()), &self.supervisor)
        {
            return;
        }
        let input = self.fleet.complete_end(input);
        self.handle(input);
    }

    fn on_trapped(&mut self, worker: &WorkerId, Trapped { call, listener }: &Trapped) {
        let (fleet, supervisor) = (&mut self.fleet, &self.supervisor);
        let input = match call {
            Call::Bind(bind) => fleet.answer_bind(
                (worker, bind),
                listener,
                supervisor,
                &mut self.network,
                &mut self.fdstore,
            ),
            Call::Connect(connect) => {
                hiding::answer_connect(worker, connect, listener.get_ref(), supervisor)
            }
        };
        self.handle_any(input);
    }
}
