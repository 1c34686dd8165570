//! Why a worker is retired, was lost, or is in doubt.

use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// Why a worker is replaced or removed, apart from a change of its release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Retire {
    /// Two consecutive readings, in bytes, were above `max_memory`.
    Memory { bytes: u64, limit: u64 },
    /// Its liveness check failed `failure_threshold` times in a row; the last failure.
    Liveness { failure: String },
    /// It was not ready within `listen_timeout`.
    TooSlow {
        timeout_ms: u64,
        /// The result of its last readiness check.
        last: Option<Doubt>,
    },
    /// Daemon and keeper were killed together, and the worker's sockets may not be taken back.
    OutOfReach,
    /// Daemon and keeper were killed together, and the worker's trapped calls fail.
    Deaf,
    /// It seems to have tested its port by connecting to it, and reached rsup.
    PortTest,
    /// More workers run than wanted.
    ScaledDown,
    /// Another release takes its place.
    Replaced,
    /// The app is stopped.
    Stopped,
    /// Its release failed.
    ReleaseFailed { revision: u64 },
    /// A reason that an earlier version of rsup saved as text.
    #[serde(untagged)]
    Told(String),
}

impl Retire {
    /// Whether the worker itself is at fault, which a change of its release does not excuse.
    pub fn is_fault(&self) -> bool {
        match self {
            Self::Memory { .. }
            | Self::Liveness { .. }
            | Self::TooSlow { .. }
            | Self::OutOfReach
            | Self::Deaf
            | Self::PortTest
            | Self::Told(_) => true,
            Self::ScaledDown | Self::Replaced | Self::Stopped | Self::ReleaseFailed { .. } => false,
        }
    }
}

/// How a worker was lost that should have stayed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "loss", rename_all = "snake_case")]
pub enum Loss {
    Exited {
        exit: Exit,
        uptime_ms: u64,
        /// Whether it had been ready.
        ready: bool,
        /// The program, if it seems to have put itself into the background: it exited with 0 soon after its
        /// start, and left processes there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        background: Option<String>,
    },
    /// The program could not be started: what failed, and why.
    NotStarted { why: String },
    TooSlow {
        timeout_ms: u64,
        last: Option<Doubt>,
    },
}

/// The last failure of a probe, as long as it matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "doubt", rename_all = "snake_case")]
pub enum Doubt {
    NotReady {
        why: String,
    },
    NotAlive {
        why: String,
    },
    /// rsup itself could not make the check.
    NotAsked {
        purpose: String,
        why: String,
    },
    /// A text that an earlier version of rsup saved.
    #[serde(untagged)]
    Told(String),
}

/// Why an instance has restarts, or has no worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Because {
    Lost {
        loss: Loss,
    },
    /// Lost too often.
    GivenUp {
        loss: Loss,
        restarts: u32,
    },
    Retired {
        why: Retire,
    },
    /// A text that an earlier version of rsup saved.
    #[serde(untagged)]
    Told(String),
}
