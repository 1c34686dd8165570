//! Long actions: what a user waits for, and what a failed one goes back to.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::io::{Env, OpError, Request};
use super::types::{OpId, Revision, Time};
use super::view::OperationKind;
use crate::config::AppSpec;

/// The action under way. There is one per app at a time. `R` is a revision; written down, its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation<R = Arc<Revision>> {
    pub kind: OperationKind,
    pub since: Time,
    pub op: OpId,
    /// What was wanted before, where there is a way back to it.
    pub before: Option<Before<R>>,
    pub course: Course,
}

/// How far an action has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Course {
    /// On its way to what is wanted. A stop has no deadline: the timeouts of its workers end it.
    Forward { deadline: Option<Time> },
    /// Every wanted worker is available, so it cannot fail any more; it ends when those workers
    /// that are leaving now (the ones up to this generation) are gone.
    Ending { generation: u64 },
    /// It has failed: replaced workers go back to the old revision.
    Back { deadline: Time, error: OpError },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Before<R = Arc<Revision>> {
    pub target: R,
    pub instances: u16,
}

impl Operation {
    pub fn deadline(&self) -> Option<Time> {
        match &self.course {
            Course::Forward { deadline } => *deadline,
            Course::Ending { .. } => None,
            Course::Back { deadline, .. } => Some(*deadline),
        }
    }

    /// A reload that may still fail: the old revision is to lose nothing by it.
    pub fn may_go_back(&self) -> bool {
        self.kind == OperationKind::Reload && matches!(self.course, Course::Forward { .. })
    }
}

/// Reloads that wait for the action under way (`--wait`).
pub type Queue = VecDeque<(OpId, Box<AppSpec>, Option<Env>)>;

impl Request {
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Start { .. } | Self::StartStopped => OperationKind::Start,
            Self::Stop | Self::Halt => OperationKind::Stop,
            Self::Delete => OperationKind::Delete,
            Self::Restart { .. } => OperationKind::Restart,
            Self::Reload { .. } => OperationKind::Reload,
            Self::Scale { .. } => OperationKind::Scale,
        }
    }
}
