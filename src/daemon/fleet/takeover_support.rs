//! Whether takeover is possible, for each user that workers run as: tried once, before their first
//! worker starts; and the message where it is not.

use std::collections::{BTreeMap, HashMap};

use tracing::{info, warn};

use super::forks::Fork;
use super::isolation::Isolation;
use super::spawn::wants_takeover;
use super::{Event, Fleet};
use crate::config::{AppName, AppSpec, Capabilities};
use crate::core::{Input, Supervisor, Worker, WorkerId};
use crate::daemon::aside;
use crate::sys::spawn::Credentials;
use crate::sys::takeover::{Support, Untried, probe_support, probe_support_as};

/// The user of a trial: rsup's own, or another with the capabilities that it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    Own,
    Other {
        user: Credentials,
        capabilities: Option<u64>,
    },
}

/// Results of trials, and workers that wait for one.
#[derive(Default)]
pub struct TakeoverSupport {
    known: HashMap<Who, Support>,
    /// By generation.
    waiting: HashMap<Who, BTreeMap<u64, Fork>>,
    /// Apps with a bind that could not be read, though the trial succeeded: the latest reason.
    unseen: BTreeMap<AppName, String>,
}

impl TakeoverSupport {
    /// Makes the trial for rsup's own user. `RSUP_TAKEOVER=off` leaves every `bind` alone, for apps
    /// that take their sockets from `LISTEN_FDS`.
    pub fn begin() -> Self {
        let off = std::env::var_os("RSUP_TAKEOVER").is_some_and(|value| value == "off");
        let found = if off {
            Ok(Support::No {
                why: "RSUP_TAKEOVER=off".into(),
            })
        } else {
            probe_support()
        };
        let mut this = Self::default();
        match found {
            Ok(support) => this.note(Who::Own, support),
            Err(why) => info!("takeover of bind(2) is tried again when a worker starts: {why}"),
        }
        this
    }

    /// The result for the workers of an app, if known.
    pub fn of(&self, isolation: &Isolation, spec: &AppSpec) -> Option<&Support> {
        match self.known.get(&Who::Own)? {
            // What rsup's own user is refused, no other is allowed.
            Support::Yes { .. } => self.known.get(&who(isolation, spec)),
            refused @ Support::No { .. } => Some(refused),
        }
    }

    /// Why an app that binds its address itself cannot do so here; `None` if it can, or binds none.
    pub fn lacking(&self, isolation: &Isolation, spec: &AppSpec) -> Option<String> {
        if !wants_takeover(spec) || spec.socket_activation {
            return None;
        }
        match self.of(isolation, spec) {
            Some(Support::No { why }) => Some(format!(
                "takeover of bind(2) is not possible here{}: {why}; so the app must take its sockets from LISTEN_FDS",
                for_user(&who(isolation, spec), spec)
            )),
            Some(Support::Yes { .. }) | None => {
                let why = self.unseen.get(&spec.name)?;
                Some(format!(
                    "a bind(2) of the app could not be looked at, so it got no socket of rsup's: {why}"
                ))
            }
        }
    }

    fn note(&mut self, who: Who, support: Support) {
        if let Support::No { why } = &support {
            let user = match &who {
                Who::Own => String::new(),
                Who::Other { user, .. } => format!(" for user {}", user.uid),
            };
            warn!(
                "takeover of bind(2) is not possible here{user} ({why}); apps must take the sockets of LISTEN_FDS themselves"
            );
        }
        self.known.insert(who, support);
    }

    /// Records that a bind of the app could not be read. True the first time.
    pub fn unseen(&mut self, app: &AppName, why: String) -> bool {
        let before = self.unseen.insert(app.clone(), why.clone());
        before.is_none_or(|before| before != why)
    }

    /// Records that a bind of the app was answered, or that the app is gone.
    pub fn seen(&mut self, app: &AppName) {
        self.unseen.remove(app);
    }

    /// Drops a worker that waits for a trial: it is not wanted any more.
    pub fn give_up(&mut self, worker: &WorkerId) -> bool {
        let mut waiting = self.waiting.values_mut();
        waiting.any(|waiting| waiting.remove(&worker.generation).is_some())
    }
}

fn who(isolation: &Isolation, spec: &AppSpec) -> Who {
    match isolation.credentials(spec) {
        Some(user) => Who::Other {
            user,
            capabilities: spec.limits.capabilities.map(Capabilities::bits),
        },
        // With fewer capabilities than rsup, and of its user, it is as accessible to rsup as rsup
        // itself.
        None => Who::Own,
    }
}

fn for_user(who: &Who, spec: &AppSpec) -> String {
    match (who, &spec.run_as) {
        (Who::Other { .. }, Some(run_as)) => format!(" for user {}", run_as.user),
        (Who::Own | Who::Other { .. }, _) => String::new(),
    }
}

impl Fleet {
    /// Whether the worker runs under a filter. Where takeover is not possible, it has its sockets from LISTEN_FDS,
    /// seen or not.
    pub fn has_takeover(&self, worker: &Worker, supervisor: &Supervisor) -> bool {
        let Some(revision) = supervisor.revision_of(worker) else {
            return false;
        };
        let support = self.takeover.of(&self.isolation, &revision.spec);
        wants_takeover(&revision.spec) && !matches!(support, Some(Support::No { .. }))
    }

    /// Delays a worker until it is known whether it can have takeover; returns it if that is known.
    pub(super) fn await_trial(&mut self, fork: Fork) -> Option<Fork> {
        let spec = &fork.revision.spec;
        if !wants_takeover(spec) || self.takeover.of(&self.isolation, spec).is_some() {
            return Some(fork);
        }
        let who = who(&self.isolation, spec);
        // An entry without a worker has a trial under way too: who waited was given up.
        let first = !self.takeover.waiting.contains_key(&who);
        let waiting = self.takeover.waiting.entry(who.clone()).or_default();
        waiting.insert(fork.worker.generation, fork);
        if first {
            let own = self.takeover.known.get(&Who::Own).cloned();
            let (events, of_trial) = (self.events.clone(), who.clone());
            let begun = aside("rsup-trial", move || {
                let _ = events.send(Event::Tried {
                    tried: trial(own, &of_trial),
                    who: of_trial,
                });
            });
            if let Err(why) = begun {
                let _ = self.events.send(Event::Tried {
                    who,
                    tried: Err(Untried::no_thread(&why)),
                });
            }
        }
        None
    }

    /// Starts the workers that waited for the trial.
    pub fn on_tried(
        &mut self,
        who: &Who,
        tried: Result<Vec<(Who, Support)>, Untried>,
    ) -> Vec<Input> {
        let mut failures = Vec::new();
        let waiting = self.takeover.waiting.remove(who).unwrap_or_default();
        let failed = match tried {
            Ok(found) => {
                found
                    .into_iter()
                    .for_each(|(who, support)| self.takeover.note(who, support));
                None
            }
            Err(why) => Some(why.to_string()),
        };
        for fork in waiting.into_values() {
            match failed.clone() {
                None => self.forks.push(fork),
                Some(reason) => failures.push(Input::SpawnFailed {
                    worker: fork.worker,
                    reason,
                }),
            }
        }
        failures
    }
}

/// Makes the trial for `who`, after that for rsup's own user where its result is not known.
fn trial(own: Option<Support>, who: &Who) -> Result<Vec<(Who, Support)>, Untried> {
    let mut found = Vec::new();
    let own = match own {
        Some(own) => own,
        None => {
            let own = probe_support()?;
            found.push((Who::Own, own.clone()));
            own
        }
    };
    if let (Who::Other { user, capabilities }, Support::Yes { needs_no_new_privs }) = (who, own) {
        found.push((
            who.clone(),
            probe_support_as(user, *capabilities, needs_no_new_privs)?,
        ));
    }
    Ok(found)
}
