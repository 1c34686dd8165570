//! Events as data: log lines, progress, `describe`, `rsup events` and metrics are rendered from
//! them.

use serde::{Deserialize, Serialize};

use super::types::Time;
use super::view::OperationKind;
use super::{ActionError, Doubt, Loss, Retire};
use crate::config::AppName;
use crate::exit::Exit;

/// Who asked for an action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A person or a script, by a command of the command line.
    #[default]
    Command,
    /// SIGHUP, and so `systemctl reload`.
    Hangup,
    /// The daemon in the foreground starts what its file says.
    Startup,
    /// The daemon itself ends: SIGTERM, SIGINT, `rsup kill`.
    Shutdown,
}

/// One thing that happened to an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: Time,
    pub app: AppName,
    /// The revision that the event is about, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    #[serde(flatten)]
    pub what: What,
}

/// The worker that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerName {
    pub instance: u16,
    pub slot: u16,
    pub generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Durations are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    ActionBegan {
        kind: OperationKind,
        cause: Cause,
        /// Workers wanted from now on; 0 for a stop and a delete.
        instances: u16,
    },
    ActionDone {
        kind: OperationKind,
        after_ms: u64,
    },
    ActionFailed {
        kind: OperationKind,
        error: ActionError,
        /// Ready workers of the failed release that are replaced by the revision before.
        back: u16,
        /// The revision that is wanted again, where a rollback is possible.
        to: Option<u64>,
    },
    /// Another action took over.
    ActionSuperseded {
        kind: OperationKind,
        by: OperationKind,
    },
    WorkerReady {
        after_ms: u64,
    },
    /// Its readiness check fails; it takes no traffic.
    WorkerUnready {
        why: Doubt,
    },
    WorkerReadyAgain,
    /// It is replaced or removed; a replacement starts first.
    WorkerRetired {
        why: Retire,
    },
    /// It was out of the traffic already, and takes traffic again.
    WorkerReturned,
    WorkerKilled {
        why: Killed,
    },
    /// It ended after its stop signal.
    WorkerStopped {
        exit: Exit,
    },
    /// It ended by itself, or never started.
    WorkerLost {
        loss: Loss,
    },
    /// Its instance is not restarted any more.
    InstanceGivenUp {
        loss: Loss,
        restarts: u32,
    },
    /// It seems to have tested its port by connecting to it: another worker is started with the
    /// port hidden.
    PortTested {
        loss: Option<Loss>,
    },
    /// From now on the port is hidden from starting workers.
    PortHidden,
    /// Its sockets are not available.
    NotListening {
        why: String,
    },
    /// No worker is ready and none is coming: its sockets are closed, and connections refused.
    Refusing,
    /// rsup, or the whole machine, did not run for this time; no deadline counts it.
    StoodStill {
        for_ms: u64,
    },
    /// A daemon took over from a dead one.
    Adopted {
        live: u16,
        of: u16,
    },
}

/// Why SIGKILL was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "killed", rename_all = "snake_case")]
pub enum Killed {
    /// It had not ended within `kill_timeout`.
    Timeout { timeout_ms: u64 },
    /// A second stop asked to end everything at once.
    #[serde(alias = "hurry")]
    Forced,
}

impl What {
    /// Whether the event is worth a warning.
    pub fn is_bad(&self) -> bool {
        match self {
            Self::ActionFailed { .. }
            | Self::WorkerUnready { .. }
            | Self::WorkerKilled { .. }
            | Self::WorkerLost { .. }
            | Self::InstanceGivenUp { .. }
            | Self::PortTested { .. }
            | Self::NotListening { .. }
            | Self::Refusing
            | Self::StoodStill { .. } => true,
            Self::WorkerRetired { why } => why.is_fault(),
            Self::ActionBegan { .. }
            | Self::ActionDone { .. }
            | Self::ActionSuperseded { .. }
            | Self::WorkerReady { .. }
            | Self::WorkerReadyAgain
            | Self::WorkerReturned
            | Self::WorkerStopped { .. }
            | Self::PortHidden
            | Self::Adopted { .. } => false,
        }
    }
}
