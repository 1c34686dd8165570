//! The revisions of an app that are still referred to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::sync::Arc;

use serde::Deserialize;

use super::types::Revision;

/// Revisions by number. A state that refers to a missing number is refused when read; a revision is
/// removed only when nothing refers to it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Releases(BTreeMap<u64, Arc<Revision>>);

impl Releases {
    pub fn new(first: Arc<Revision>) -> Self {
        Self(BTreeMap::from([(first.number, first)]))
    }

    pub fn add(&mut self, revision: Arc<Revision>) {
        self.0.insert(revision.number, revision);
    }

    pub fn get(&self, number: u64) -> Option<&Arc<Revision>> {
        self.0.get(&number)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Revision>> {
        self.0.values()
    }

    /// With the numbers by which everything else names them.
    pub fn by_number(&self) -> &BTreeMap<u64, Arc<Revision>> {
        &self.0
    }

    /// Removes all revisions that are not in `used`.
    pub fn keep(&mut self, used: &BTreeSet<u64>) {
        self.0.retain(|number, _| used.contains(number));
    }
}

impl Index<u64> for Releases {
    type Output = Arc<Revision>;

    fn index(&self, number: u64) -> &Arc<Revision> {
        &self.0[&number]
    }
}
