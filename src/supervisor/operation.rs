//! Long actions: what a user waits for, and what a failed reload goes back to.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::io::{Env, Request};
use super::types::{OpId, Revision, Time};
use super::view::OperationKind;
use crate::config::AppSpec;

/// The action under way. There is one per app at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub kind: OperationKind,
    pub since: Time,
    /// `None` once the asker has his answer and the rest goes on without him.
    pub op: Option<OpId>,
    pub rollout: Option<Rollout>,
}

/// A change of revision that can fail and be taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The revision to go back to; `None` where there was none serving (first start, restart).
    pub from: Option<Arc<Revision>>,
    pub old_instances: u16,
    pub deadline: Time,
    /// Set once it has failed: replaced workers go back to the old revision.
    pub failed: Option<super::io::OpError>,
}

/// Reloads that wait for the action under way (`--wait`).
pub type Queue = VecDeque<(OpId, Box<AppSpec>, Option<Env>)>;

impl Request {
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Start { .. } | Self::Resume => OperationKind::Start,
            Self::Stop => OperationKind::Stop,
            Self::Delete => OperationKind::Delete,
            Self::Restart { .. } => OperationKind::Restart,
            Self::Reload { .. } => OperationKind::Reload,
            Self::Scale { .. } => OperationKind::Scale,
        }
    }
}
