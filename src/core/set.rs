//! The workers that are wanted of one release.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::restart::Instance;
use super::weights::Share;

/// A release that has workers, or is to have some. Restarts are counted here, so that no two releases
/// share a count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Set {
    /// How many of its instances are wanted now; a rollout changes it step by step.
    pub replicas: u16,
    #[serde(default)]
    pub share: Share,
    /// By the number that users see.
    pub instances: BTreeMap<u16, Instance>,
}

impl Set {
    /// Instances 0 to `replicas`, of which those are kept that were there.
    pub fn resize(&mut self, replicas: u16) {
        self.replicas = replicas;
        self.instances.retain(|number, _| *number < replicas);
        for number in 0..replicas {
            self.instances.entry(number).or_default();
        }
    }

    /// The number of its instances, wanted now or not.
    pub fn size(&self) -> u16 {
        u16::try_from(self.instances.len()).unwrap_or(u16::MAX)
    }

    /// A command asks for workers: those that were given up are tried again.
    pub fn reopen(&mut self) {
        self.instances.values_mut().for_each(Instance::reopen);
    }
}
