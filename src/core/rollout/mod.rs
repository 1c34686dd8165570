//! The action under way on an app: what is wanted instead of what was, its phase, and what a
//! failure rolls back to. Each strategy is a pure function in a file of its own; [`plan`] turns its
//! answer into moves.

pub mod plan;
pub mod strategy;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::io::{Env, Request};
use super::types::{OpId, Time};
use super::view::OperationKind;
use crate::config::AppSpec;
use crate::model::{ActionError, Cause};

/// The action under way. There is one per app at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub kind: OperationKind,
    #[serde(default)]
    pub cause: Cause,
    pub since: Time,
    pub op: OpId,
    /// What was wanted before, where a rollback is possible.
    #[serde(alias = "before")]
    pub from: Option<Before>,
    #[serde(alias = "course")]
    pub phase: Phase,
}

/// The phase of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Phase {
    /// In progress. A stop has no deadline: the timeouts of its workers end it.
    #[serde(alias = "Forward")]
    Progress { deadline: Option<Time> },
    /// Every wanted worker is available; the rollout ends when the workers that are leaving now
    /// (the ones up to this generation) are gone.
    #[serde(alias = "Ending")]
    Finish { generation: u64 },
    /// It has failed: the release before gets its workers back.
    #[serde(alias = "Back")]
    RollBack { deadline: Time, error: ActionError },
}

/// What was wanted before a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    #[serde(alias = "target")]
    pub revision: u64,
    pub instances: u16,
}

impl Rollout {
    pub fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Progress { deadline } => *deadline,
            Phase::Finish { .. } => None,
            Phase::RollBack { deadline, .. } => Some(*deadline),
        }
    }

    /// Whether this is a reload whose success is open: the release before loses nothing by it.
    pub fn is_trial(&self) -> bool {
        self.kind == OperationKind::Reload && matches!(self.phase, Phase::Progress { .. })
    }
}

/// Reloads that wait for the action under way (`--wait`).
pub type Queue = VecDeque<Queued>;

/// A reload that waits for its turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Queued {
    pub op: OpId,
    pub spec: Box<AppSpec>,
    pub base_env: Option<Env>,
    pub cause: Cause,
}

/// The reload, also in the format of version 1 of the state.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    One(OpId, Box<AppSpec>, Option<Env>),
    Now {
        op: OpId,
        spec: Box<AppSpec>,
        base_env: Option<Env>,
        cause: Cause,
    },
}

impl From<Written> for Queued {
    fn from(written: Written) -> Self {
        let (op, spec, base_env, cause) = match written {
            Written::One(op, spec, base_env) => (op, spec, base_env, Cause::Command),
            Written::Now {
                op,
                spec,
                base_env,
                cause,
            } => (op, spec, base_env, cause),
        };
        Self {
            op,
            spec,
            base_env,
            cause,
        }
    }
}

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
