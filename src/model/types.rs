//! Identities and time.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{AppName, AppSpec};

/// Time since boot, suspend excluded (CLOCK_MONOTONIC): the same clock for every process of this
/// boot; after a suspend the deadlines have not passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(pub Duration);

impl Time {
    /// Zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, by: Duration) -> Time {
        Time(self.0.saturating_add(by))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, by: Duration) -> Time {
        Time(self.0.saturating_sub(by))
    }
}

/// One run of one process. Generations are never reused, so a late result about an earlier worker
/// of the slot is recognised and dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId {
    pub app: AppName,
    pub slot: u16,
    pub generation: u64,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.app, self.slot, self.generation)
    }
}

/// Identifies a long action, so that its end reaches the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub u64);

/// What workers are started from; immutable. A worker that crashes is started again from its own
/// revision, not from the present file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// Counted per app, from 1.
    pub number: u64,
    pub spec: AppSpec,
    /// The environment below `spec.env`: that of the `rsup start` that created the app.
    pub base_env: Arc<BTreeMap<String, String>>,
}

impl Revision {
    /// The whole environment of a worker, except for rsup's own variables.
    pub fn env(&self) -> BTreeMap<String, String> {
        let mut env = (*self.base_env).clone();
        env.extend(self.spec.env.clone());
        env
    }
}
