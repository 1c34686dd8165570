//! Changes: what is asked of the daemon, and what became of it for each app.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Failure, Target};
use crate::config::{AppName, AppSpec};
use crate::core::{AppView, OpId, OperationKind};

/// A client's name for an action, chosen at random: by it, a daemon knows one that was sent to it
/// or to a daemon before it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActionId(pub u64);

impl ActionId {
    /// One that no other has.
    pub fn new() -> Self {
        Self(fastrand::u64(..))
    }
}

impl Default for ActionId {
    fn default() -> Self {
        Self::new()
    }
}

/// What is to be changed.
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
    /// All workers at once, with the listening sockets held open; `apps` re-read from their file.
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
    /// Start those of these apps that are not up, and reload those that are, whatever they are from.
    /// `prune` are to be deleted.
    Up {
        apps: Vec<AppSpec>,
        base_env: BTreeMap<String, String>,
        /// For those that are reloaded too.
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

/// A long action on one app that has been accepted: its name outlives the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    pub op: OpId,
    pub app: AppName,
    pub kind: OperationKind,
}

/// What became of one app in a long action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub app: AppName,
    pub kind: OperationKind,
    pub took_ms: u64,
    /// As it is now; absent once deleted.
    pub view: Option<AppView>,
    pub failure: Option<Failure>,
    /// Nothing was done, since there was nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untouched: Option<Untouched>,
    /// What cannot be done for it here.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Why there was nothing to do for an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Untouched {
    /// It was to be started, and runs.
    Runs,
    /// It was not meant by its name, and is stopped on purpose.
    Stopped,
    /// It goes on, though the file that it is from does not have it any more.
    NotInFile,
}
