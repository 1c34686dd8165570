//! The daemon's answers.

use serde::{Deserialize, Serialize};

use super::{FailureCode, HowUpgraded, Known, Listing, LogFiles, Outcome, Pong, WorkerEnv};
use crate::core::{Description, Progress};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Notes for the user beside the outcome.
    Notes(Vec<String>),
    Progress(Progress),
    Done(Reply),
    Failed(Failure),
}

/// A reply on the wire; the request's [`super::Ask`] names its type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Pong(Pong),
    /// A long action has ended (or was accepted, with `wait: false`): one entry per app, in order.
    Finished(Vec<Outcome>),
    List(Listing),
    Snapshot(Vec<Known>),
    Descriptions(Vec<Description>),
    Env(Vec<WorkerEnv>),
    LogFiles(Vec<LogFiles>),
    /// The signal was sent to these processes.
    Signalled(Vec<u32>),
    /// The daemon has stopped every app and ends now.
    Killed,
    /// The new program can read the state; the daemon becomes it in a moment.
    Upgrading,
    HowUpgraded(HowUpgraded),
}

/// What happened, to what, why, and what to type next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub code: FailureCode,
    pub message: String,
    pub hint: Option<String>,
    /// The last log lines of the worker that failed, oldest first.
    pub log: Vec<String>,
}

impl Failure {
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            log: Vec::new(),
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
