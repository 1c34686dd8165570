//! What the supervisor shows: the answers of `list` and `describe`, and the progress of long
//! actions. Typed, so that the CLI alone decides on words and layout.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{AppName, AppSpec};
pub use crate::exit::Exit;

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerPhase {
    /// Between fork and a confirmed exec.
    Spawning,
    /// Running, not yet ready.
    Starting,
    /// Takes traffic.
    Ready,
    /// Was ready; its readiness check fails now, so it takes no traffic.
    Unready,
    /// Takes no new connections; its accept queue empties.
    Draining,
    /// Got its stop signal.
    Stopping,
    /// Got SIGKILL.
    Killing,
    /// Waits for its next start after a crash.
    Backoff,
    /// Given up after `restart.max_restarts`.
    Errored,
    /// Ended, and is not started again (policy, exit code).
    Exited,
}

impl WorkerPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spawning => "spawning",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Killing => "killing",
            Self::Backoff => "backoff",
            Self::Errored => "errored",
            Self::Exited => "exited",
        }
    }
}

/// What an app as a whole is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppPhase {
    Starting,
    Ready,
    /// Some, but not all, of the wanted workers are ready.
    Degraded,
    Reloading,
    Stopping,
    Stopped,
    /// Every worker was given up.
    Errored,
}

impl AppPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Errored => "errored",
        }
    }
}

/// One worker in `list` and `describe`. Ages are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// The number that users see, `app:instance`; a replacement takes over that of the worker it replaces.
    pub instance: u16,
    pub slot: u16,
    pub generation: u64,
    pub revision: u64,
    pub pid: Option<u32>,
    pub phase: WorkerPhase,
    /// Age of the process; absent if there is none.
    pub uptime_ms: Option<u64>,
    /// Restarts of this instance since the app was started, reloads not counted.
    pub restarts: u32,
    /// Resident bytes with descendants.
    pub memory: Option<u64>,
    /// Percent of one core, with descendants, over the last seconds.
    pub cpu: Option<f32>,
    /// Time to the next start, in backoff.
    pub next_start_ms: Option<u64>,
    /// Why it is in this phase; of a worker that is well, why it was last restarted (what
    /// `restarts` counts).
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppView {
    pub name: AppName,
    pub phase: AppPhase,
    /// The revision that new workers get.
    pub revision: u64,
    pub instances: u16,
    pub listen: Vec<String>,
    pub workers: Vec<WorkerView>,
    /// The action under way: `reload`, `scale`, …, and since when (milliseconds ago).
    pub operation: Option<OperationView>,
    /// Why it is errored, degraded or not listening, while it is; why the last action failed, until
    /// the next.
    pub reason: Option<String>,
    /// Connections that wait, in the kernel's queue or in rsup, because no worker is ready.
    #[serde(default)]
    pub held: u64,
    /// Connections that rsup relayed because no worker could accept them, since the start.
    pub relayed: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationView {
    pub kind: OperationKind,
    pub since_ms: u64,
}

/// Everything about one app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub app: AppView,
    pub spec: AppSpec,
    /// How its workers get their listening sockets.
    #[serde(default)]
    pub sockets: Option<String>,
    pub out_log: PathBuf,
    pub err_log: PathBuf,
    /// Newest last; the age in milliseconds and the text.
    pub events: Vec<PastEvent>,
    /// What is not possible for this app here, e.g. that takeover is not permitted.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastEvent {
    pub age_ms: u64,
    pub text: String,
}

/// The long actions that the CLI waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Start,
    Stop,
    Restart,
    Reload,
    Scale,
    Delete,
}

impl OperationKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Scale => "scale",
            Self::Delete => "delete",
        }
    }
}

/// One step of a long action, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub app: AppName,
    pub instance: u16,
    pub revision: u64,
    pub pid: Option<u32>,
    pub step: Step,
    /// Instances that are as wanted now, out of `total`.
    pub done: u16,
    pub total: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Started,
    Ready {
        after_ms: u64,
    },
    /// Out of the traffic; its queue empties.
    Draining,
    /// Got its stop signal.
    Stopping,
    Killed,
    Gone {
        exit: Exit,
    },
    /// Is tried again, or the action fails.
    Failed {
        reason: String,
    },
}

/// The kind of a failure, for programs; the message beside it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    UnknownApp,
    UnknownWorker,
    AlreadyRunning,
    /// Another action on this app is under way.
    Busy,
    /// A port or socket path is not available.
    Listen,
    /// The program could not be started.
    Spawn,
    /// A worker ended, or its deadline passed, before it was ready.
    NotReady,
    /// Another action took over (`stop` during a `reload`).
    Superseded,
    BadRequest,
    /// The app is stopped, and this would start it.
    Stopped,
    /// The daemon is stopping every app, and then ends.
    Ending,
    /// The daemon does not know this action.
    UnknownAction,
    Internal,
}
