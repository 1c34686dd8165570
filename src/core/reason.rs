//! Why an app is not as wanted. A reason is dropped with the condition that it explains.

use serde::{Deserialize, Serialize};

use super::view::OperationKind;
use crate::config::AppName;
use crate::model::{ActionError, Because};

/// What `list` shows beside an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// The last action failed, until the next one.
    Action {
        kind: OperationKind,
        error: ActionError,
    },
    /// The app lacks sockets that it should have.
    Sockets { why: String },
    /// The instance has no worker that serves.
    Instance { instance: u16, why: Because },
    /// A text that an earlier version of rsup saved.
    Told { explains: Explains, text: String },
}

/// What a reason explains, and so how long it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Explains {
    #[default]
    Action,
    Sockets,
    Instance(u16),
}

impl Reason {
    pub fn explains(&self) -> Explains {
        match self {
            Self::Action { .. } => Explains::Action,
            Self::Sockets { .. } => Explains::Sockets,
            Self::Instance { instance, .. } => Explains::Instance(*instance),
            Self::Told { explains, .. } => *explains,
        }
    }

    /// The reason as text.
    pub fn text(&self, app: &AppName) -> String {
        match self {
            Self::Action { kind, error } => {
                format!("{} failed: {}", kind.as_str(), error.message(app))
            }
            Self::Sockets { why } => why.clone(),
            Self::Instance { instance, why } => format!("{instance}: {why}"),
            Self::Told { text, .. } => text.clone(),
        }
    }
}
