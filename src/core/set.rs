//! The wanted workers of one release.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::restart::Instance;
use super::weights::Share;

/// A release that has workers, or gets some. Restarts are counted here, so that no two releases
/// share a count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Set {
    /// The number of its instances that are wanted now; a rollout changes it step by step.
    pub replicas: u16,
    #[serde(default)]
    pub share: Share,
    /// By instance number, as users see it.
    pub instances: BTreeMap<u16, Instance>,
}

impl Set {
    /// Sets the instances to 0 up to `replicas`, and keeps the state of those that exist.
    pub fn resize(&mut self, replicas: u16) {
        self.replicas = replicas;
        self.instances.retain(|number, _| *number < replicas);
        for number in 0..replicas {
            self.instances.entry(number).or_default();
        }
    }

    /// The number of its instances, wanted or not.
    pub fn size(&self) -> u16 {
        u16::try_from(self.instances.len()).unwrap_or(u16::MAX)
    }

    /// A command asks for workers: instances that were given up are tried again.
    pub fn reopen(&mut self) {
        self.instances.values_mut().for_each(Instance::reopen);
    }
}
