//! Requests of clients: the connections ([`server`]), queries ([`queries`]), changes, with a file
//! for each verb in [`verbs`], the checks of their specs ([`admission`]), and the waits for their
//! ends ([`wait`]).

mod admission;
mod queries;
pub mod remembered;
pub mod server;
mod verbs;
mod wait;

use std::collections::HashSet;

use tokio::sync::mpsc::UnboundedSender;

pub use wait::Calls;

use super::{Daemon, now};
use crate::config::AppName;
use crate::control::{
    self, Act, Answer, Ask, AskHowUpgraded, Call, Failure, FailureCode, Ping, Request, Target,
};

/// The channel back to a client.
pub type Caller = UnboundedSender<Answer>;

/// The final answer to a client, of the type that it expects.
pub fn reply<Q: Ask>(to: &Caller, result: Result<Q::Reply, Failure>) {
    let _ = to.send(match result {
        Ok(value) => Answer::Done(Q::reply(value)),
        Err(failure) => Answer::Failed(failure),
    });
}

impl Daemon {
    pub(super) fn on_call(&mut self, call: Call, answer: Caller) {
        let Call { request, wait, .. } = call;
        match request {
            Request::Ping => reply::<Ping>(&answer, Ok(self.pong())),
            Request::Upgrade {
                program,
                token,
                force,
            } => self.upgrade(program, token, force, answer),
            Request::HowUpgraded { token } => {
                reply::<AskHowUpgraded>(&answer, Ok(self.how_upgraded(token)));
            }
            Request::Await { actions, kill } => self.go_on_waiting(actions, kill, answer),
            Request::Outcome { id } => match self.begun(id) {
                Some(begun) => self.go_on_with(&begun, wait, answer),
                None => {
                    let why = "this daemon has not heard of the action";
                    let failure = Failure::new(FailureCode::UnknownAction, why);
                    let _ = answer.send(Answer::Failed(failure));
                }
            },
            Request::Query(query) => self.on_query(query, &answer),
            Request::Signal { targets, signal } => {
                reply::<control::Signal>(&answer, self.signal_targets(&targets, signal));
            }
            Request::Action {
                id,
                action,
                settings,
                cause,
            } => match self.begun(id) {
                Some(begun) => self.go_on_with(&begun, wait, answer),
                None => {
                    let action = Act {
                        id,
                        action,
                        settings,
                        cause,
                    };
                    self.act(action, wait, answer);
                }
            },
            Request::Kill { id } => match self.begun(id) {
                Some(begun) => self.go_on_with(&begun, wait, answer),
                None => self.kill(id, answer),
            },
        }
    }

    /// The apps of the targets, each once; an error if one target is unknown.
    fn apps_of(&self, targets: &[Target]) -> Result<Vec<AppName>, Failure> {
        let (mut apps, mut seen) = (Vec::new(), HashSet::new());
        for target in targets {
            let of_target = self.apps_of_one(target)?.into_iter();
            apps.extend(of_target.filter(|app| seen.insert(app.clone())));
        }
        Ok(apps)
    }

    fn apps_of_one(&self, target: &Target) -> Result<Vec<AppName>, Failure> {
        match target {
            Target::All => Ok(self.supervisor.names().cloned().collect()),
            Target::App(app) => self
                .supervisor
                .revision(app)
                .map(|_| vec![app.clone()])
                .ok_or_else(|| unknown(app)),
            Target::Worker(app, instance) => {
                let view = self
                    .supervisor
                    .view(app, now())
                    .ok_or_else(|| unknown(app))?;
                if view.workers.iter().any(|w| w.instance == *instance) {
                    return Ok(vec![app.clone()]);
                }
                let why = format!(
                    "`{app}` has no worker {instance}; it has {}",
                    view.instances
                );
                Err(Failure::new(FailureCode::UnknownWorker, why)
                    .hint(format!("rsup describe {app}")))
            }
        }
    }
}

fn unknown(app: &AppName) -> Failure {
    Failure::new(FailureCode::UnknownApp, format!("there is no app `{app}`"))
        .hint("rsup list shows what there is")
}
