//! Everything that goes into the supervisor and comes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hiding::Traces;
use super::types::{OpId, Revision, WorkerId};
use super::view::{Exit, Progress};
use crate::config::{AppName, AppSpec, Balance, Listen, SocketFile};
use crate::model::{ActionError, Cause, Event};

pub type Env = Arc<BTreeMap<String, String>>;

/// One input. The order of inputs is the only order there is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// A user's request; answered by [`Effect::Finished`].
    Request {
        op: OpId,
        app: AppName,
        request: Request,
        #[serde(default)]
        cause: Cause,
    },
    /// The answer to [`Effect::Listen`].
    Listening {
        app: AppName,
        result: Result<(), String>,
    },
    /// The worker's process was made: it is blamed for no time before.
    Forked {
        worker: WorkerId,
    },
    /// The worker's program runs (exec has happened).
    Spawned {
        worker: WorkerId,
        pid: u32,
    },
    SpawnFailed {
        worker: WorkerId,
        reason: String,
    },
    /// The process is gone; `descendants` of it may still live.
    Exited {
        worker: WorkerId,
        exit: Exit,
        descendants: bool,
    },
    /// Nothing of an exited worker's tree is left.
    TreeGone {
        worker: WorkerId,
    },
    /// The answer to [`Effect::Probe`].
    Probed {
        worker: WorkerId,
        purpose: Purpose,
        result: Result<(), String>,
    },
    /// The other answer to [`Effect::Probe`]: rsup itself could not make the check (for want of
    /// descriptors, say), which shows nothing about the worker.
    NotProbed {
        worker: WorkerId,
        purpose: Purpose,
        reason: String,
    },
    /// The worker itself reported that it is ready.
    Notified {
        worker: WorkerId,
    },
    /// The answer to [`Effect::Drain`]: nothing is queued or half open at the worker's slot.
    Drained {
        worker: WorkerId,
    },
    /// The worker has bound a port of its app.
    Bound {
        worker: WorkerId,
        port: u16,
    },
    /// The worker has bound another TCP port than those of its app.
    BoundElsewhere {
        worker: WorkerId,
    },
    /// A worker from which the port is hidden connected to it, and was refused.
    Refused {
        worker: WorkerId,
    },
    /// The answer to [`Effect::LookForTraces`]; also sent before the end of a worker that it
    /// matters for.
    Traces {
        worker: WorkerId,
        traces: Traces,
    },
    /// Resident bytes of the worker with its descendants.
    Memory {
        worker: WorkerId,
        bytes: u64,
    },
    /// Kill everything that is being stopped now.
    ForceStop,
    /// A deadline of [`super::Supervisor::poll_timeout`] has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// A new app, or a stopped one with a new configuration.
    Start {
        spec: Box<AppSpec>,
        base_env: Env,
    },
    /// Start a stopped app, or one with errored workers, as it was last configured.
    StartStopped,
    Stop,
    /// Stop the app because the whole supervisor ends: what is wanted of the app stays, and counts
    /// for the next daemon ([`super::Supervisor::halt_is_over`]).
    Halt,
    Delete,
    /// Stop all workers, then start them again; connections wait meanwhile.
    Restart {
        spec: Box<AppSpec>,
        base_env: Option<Env>,
    },
    /// Replace worker by worker. `queue`: after the action under way, instead of being refused.
    Reload {
        spec: Box<AppSpec>,
        base_env: Option<Env>,
        queue: bool,
    },
    Scale {
        instances: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    Readiness,
    Liveness,
}

impl Purpose {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        }
    }
}

/// One effect. The daemon carries effects out in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Effect {
    /// Hold exactly these addresses, each with at least `slots` slots; answered by [`Input::Listening`].
    Listen {
        app: AppName,
        addresses: Vec<Listen>,
        slots: u16,
        /// Owner and mode for unix sockets, also for those that are open already.
        #[serde(default)]
        file: SocketFile,
    },
    /// Close every listening socket of the app.
    Unlisten {
        app: AppName,
    },
    /// Reset connections that no worker takes, until a worker is started or takes traffic again: none
    /// is coming.
    Refuse {
        app: AppName,
    },
    /// Distribute new connections to the slots by weight; while every weight is 0, connections are
    /// held.
    Steer {
        app: AppName,
        balance: Balance,
        tables: Vec<Steering>,
    },
    /// Whether rsup itself accepts what arrives at the slot and passes it to a ready worker.
    Relay {
        app: AppName,
        slot: u16,
        on: bool,
        /// The slot's worker accepts nothing any more, so how it accepts does not matter.
        #[serde(default)]
        hung: bool,
    },
    Spawn {
        worker: WorkerId,
        instance: u16,
        revision: Arc<Revision>,
        /// Refuse its connections to the ports of the app until it has bound them.
        hide_port: bool,
    },
    /// Look whether a program has tested the worker's port by connecting to it; answered by
    /// [`Input::Traces`].
    LookForTraces {
        worker: WorkerId,
    },
    /// Make one check; answered by [`Input::Probed`] within the probe's timeout.
    Probe {
        worker: WorkerId,
        purpose: Purpose,
        instance: u16,
        pid: Option<u32>,
        revision: Arc<Revision>,
    },
    /// Wait until nothing is queued at the slot; answered by [`Input::Drained`].
    Drain {
        worker: WorkerId,
    },
    /// End its drain: it takes traffic again.
    KeepOn {
        worker: WorkerId,
    },
    Signal {
        worker: WorkerId,
        signal: i32,
        reach: Reach,
    },
    /// The worker and all its descendants are gone.
    Forget {
        worker: WorkerId,
    },
    Progress(Progress),
    Finished {
        op: OpId,
        result: Result<(), ActionError>,
    },
    Record(Event),
    /// The app is deleted.
    Removed {
        app: AppName,
    },
}

impl Effect {
    /// Whether something is lost if the effect is carried out and then forgotten: if not, the state
    /// need not be saved for it.
    pub fn matters(&self) -> bool {
        match self {
            Self::Probe { .. }
            | Self::LookForTraces { .. }
            | Self::Progress(_)
            | Self::Record(_) => false,
            Self::Listen { .. }
            | Self::Unlisten { .. }
            | Self::Refuse { .. }
            | Self::Steer { .. }
            | Self::Relay { .. }
            | Self::Spawn { .. }
            | Self::Drain { .. }
            | Self::KeepOn { .. }
            | Self::Signal { .. }
            | Self::Forget { .. }
            | Self::Finished { .. }
            | Self::Removed { .. } => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    pub address: Listen,
    /// The weight of each slot.
    pub weights: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    Worker,
    /// The process, its group and every descendant.
    Tree,
}
