//! Why an action was refused, or failed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Loss;
use super::types::WorkerId;
use super::view::{FailureCode, OperationKind};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum ActionError {
    UnknownApp,
    AlreadyRunning,
    /// What is stopped is started by a start alone.
    Stopped,
    /// An app has at least one worker.
    NoInstances,
    Busy {
        kind: OperationKind,
        for_ms: u64,
    },
    Superseded {
        kind: OperationKind,
        by: OperationKind,
    },
    /// A port or a socket's path cannot be had.
    Listen {
        why: String,
    },
    /// A worker of what is wanted was lost.
    Worker {
        worker: WorkerId,
        instance: u16,
        loss: Loss,
        kind: OperationKind,
        /// rsup goes on trying without the one who asked.
        trying: bool,
    },
    /// `reload.deadline` has passed.
    Deadline {
        /// `None`: on the way back.
        kind: Option<OperationKind>,
        deadline_ms: u64,
        /// One that is not ready.
        worker: Option<WorkerId>,
    },
    /// The way back failed as well.
    NoWayBack {
        first: Box<ActionError>,
        second: Box<ActionError>,
    },
    /// It failed, and workers of the revision before are started again from a folder that the failed release
    /// uses too: what is in it now may not be what it was.
    SameFolder {
        failed: Box<ActionError>,
        revision: u64,
        folder: PathBuf,
    },
    /// Of what became of it nothing is known.
    NotBegun,
    /// What an earlier version of rsup wrote down.
    #[serde(untagged)]
    Told {
        code: FailureCode,
        message: String,
        hint: Option<String>,
        worker: Option<WorkerId>,
    },
}

impl ActionError {
    pub fn code(&self) -> FailureCode {
        match self {
            Self::UnknownApp => FailureCode::UnknownApp,
            Self::AlreadyRunning => FailureCode::AlreadyRunning,
            Self::Stopped => FailureCode::Stopped,
            Self::NoInstances => FailureCode::BadRequest,
            Self::Busy { .. } => FailureCode::Busy,
            Self::Superseded { .. } => FailureCode::Superseded,
            Self::Listen { .. } => FailureCode::Listen,
            Self::Worker {
                loss: Loss::NotStarted { .. },
                ..
            } => FailureCode::Spawn,
            Self::Worker {
                loss: Loss::Exited { .. } | Loss::TooSlow { .. },
                ..
            }
            | Self::Deadline { .. } => FailureCode::NotReady,
            Self::NoWayBack { first, .. } => first.code(),
            Self::SameFolder { failed, .. } => failed.code(),
            Self::NotBegun => FailureCode::Internal,
            Self::Told { code, .. } => *code,
        }
    }

    /// Whose last log lines explain it.
    pub fn worker(&self) -> Option<&WorkerId> {
        match self {
            Self::Worker { worker, .. } => Some(worker),
            Self::Deadline { worker, .. } | Self::Told { worker, .. } => worker.as_ref(),
            Self::NoWayBack { first, .. } => first.worker(),
            Self::SameFolder { failed, .. } => failed.worker(),
            Self::UnknownApp
            | Self::AlreadyRunning
            | Self::Stopped
            | Self::NoInstances
            | Self::Busy { .. }
            | Self::Superseded { .. }
            | Self::Listen { .. }
            | Self::NotBegun => None,
        }
    }
}
