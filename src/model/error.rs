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
    /// The app is stopped; only a start starts it.
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
    /// A port or a socket's path is not available.
    Listen {
        why: String,
    },
    /// A wanted worker was lost.
    Worker {
        worker: WorkerId,
        instance: u16,
        loss: Loss,
        kind: OperationKind,
        /// rsup goes on trying after the caller has its answer.
        trying: bool,
    },
    /// `reload.deadline` has passed.
    Deadline {
        /// `None`: during the rollback.
        kind: Option<OperationKind>,
        deadline_ms: u64,
        /// A worker that is not ready.
        worker: Option<WorkerId>,
    },
    /// The rollback failed as well.
    NoWayBack {
        first: Box<ActionError>,
        second: Box<ActionError>,
    },
    /// The action failed, and workers of the revision before are started again from a folder that
    /// the failed release uses too: its content may have changed.
    SameFolder {
        failed: Box<ActionError>,
        revision: u64,
        folder: PathBuf,
    },
    /// An action that a client asks for is not under way, and nothing is recorded of its end.
    NotBegun,
    /// A text that an earlier version of rsup saved.
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

    /// The worker whose last log lines explain the failure.
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
