//! Identities and time.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{AppName, AppSpec};

/// Time since boot, suspend excluded (CLOCK_MONOTONIC): the same clock for every process of this
/// boot, and a machine that slept does not find all its deadlines passed.
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

/// One run of one process. Generations are never used twice, so a late result about a former
/// worker of the slot is recognised and dropped.
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

/// Names a long action, so that its end finds the one who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub u64);

/// What workers are started from; never changed once made. A worker that crashes is started from
/// its own revision again, not from what the file says by then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// 1 for the first; counted per app.
    pub number: u64,
    pub spec: AppSpec,
    /// The environment below `spec.env`: that of the `rsup start` that made the app.
    pub base_env: Arc<BTreeMap<String, String>>,
}

impl Revision {
    /// The whole environment of a worker, but for what rsup adds.
    pub fn env(&self) -> BTreeMap<String, String> {
        let mut env = (*self.base_env).clone();
        env.extend(self.spec.env.clone());
        env
    }
}
