//! Why a worker goes, was lost, or is in doubt.

use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// Why a worker is to be replaced or removed, apart from a change of its release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Retire {
    /// Two readings in a row, in bytes, are over `max_memory`.
    Memory { bytes: u64, limit: u64 },
    /// Its liveness check failed `failure_threshold` times in a row; the last failure.
    Liveness { failure: String },
    /// It was not ready within `listen_timeout`.
    TooSlow {
        timeout_ms: u64,
        /// What its last readiness check said.
        last: Option<Doubt>,
    },
    /// Daemon and keeper were killed together, and the worker's sockets may not be taken back.
    OutOfReach,
    /// Daemon and keeper were killed together, and the worker's trapped calls fail.
    Deaf,
    /// It seems to have tested its port by connecting to it, and found rsup there.
    PortTest,
    /// More workers run than are wanted.
    ScaledDown,
    /// Another release takes its place.
    Replaced,
    /// The app is stopped.
    Stopped,
    /// Its release failed.
    ReleaseFailed { revision: u64 },
    /// What an earlier version of rsup wrote down.
    #[serde(untagged)]
    Told(String),
}

impl Retire {
    /// A fault of the worker itself, which a change of its release does not excuse.
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

/// How a worker was lost that was to stay.
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

/// What a probe found last, as long as it matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "doubt", rename_all = "snake_case")]
pub enum Doubt {
    NotReady {
        why: String,
    },
    NotAlive {
        why: String,
    },
    /// rsup itself could not ask.
    NotAsked {
        purpose: String,
        why: String,
    },
    /// What an earlier version of rsup wrote down.
    #[serde(untagged)]
    Told(String),
}

/// Why an instance has restarts, or no worker.
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
    /// What an earlier version of rsup wrote down.
    #[serde(untagged)]
    Told(String),
}
