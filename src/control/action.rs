//! Changes: what a client asks the daemon for, and the outcome for each app.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Failure, Target};
use crate::config::{AppName, AppSpec};
use crate::core::{AppView, OpId, OperationKind};

/// A client's random name for an action: by it a daemon recognises an action that it, or a daemon
/// before it, already received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActionId(pub u64);

impl ActionId {
    /// A new id, unlike any other.
    pub fn new() -> Self {
        Self(fastrand::u64(..))
    }
}

impl Default for ActionId {
    fn default() -> Self {
        Self::new()
    }
}

/// A change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Start these apps; one that runs already is left alone. `base_env` is the caller's environment.
    Start {
        apps: Vec<AppSpec>,
        base_env: BTreeMap<String, String>,
    },
    /// Start stopped apps (or errored workers) as they were last configured.
    StartStopped {
        targets: Vec<Target>,
    },
    Stop {
        targets: Vec<Target>,
    },
    /// Restart all workers at once, with the listening sockets held open; `apps` are re-read from
    /// their files.
    Restart {
        apps: Vec<AppSpec>,
        base_env: Option<BTreeMap<String, String>>,
    },
    /// Rolling replacement of apps that are up. `base_env` only with `--update-env`. `queue`: wait
    /// for an action that is under way.
    Reload {
        apps: Vec<AppSpec>,
        base_env: Option<BTreeMap<String, String>>,
        queue: bool,
    },
    Delete {
        targets: Vec<Target>,
    },
    /// Start those of these apps that are not up, and reload those that are, from whatever file
    /// they are. `prune` are deleted.
    Up {
        apps: Vec<AppSpec>,
        base_env: BTreeMap<String, String>,
        /// Use the environment for reloaded apps too.
        update_env: bool,
        prune: Vec<AppName>,
    },
    Scale {
        app: AppName,
        to: ScaleTo,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleTo {
    Exactly(u16),
    By(i32),
}

/// A long action on one app that the daemon has accepted: its id stays valid in later daemons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    pub op: OpId,
    pub app: AppName,
    pub kind: OperationKind,
}

/// The outcome of a long action for one app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub app: AppName,
    pub kind: OperationKind,
    pub took_ms: u64,
    /// The app as it is now; absent once deleted.
    pub view: Option<AppView>,
    pub failure: Option<Failure>,
    /// Set where there was nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untouched: Option<Untouched>,
    /// What is not possible for this app on this machine.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Why there was nothing to do for an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Untouched {
    /// A start found it running.
    Runs,
    /// It is stopped on purpose, and was not given by name.
    Stopped,
    /// It keeps running, though its file no longer has it.
    NotInFile,
}
