//! The revisions of an app that something refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::types::Revision;

/// Revisions by number. Whatever names a number that is not here is refused when a state is read, and a
/// revision leaves only when nothing names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

    /// Forgets all that are not used any more.
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
