//! The apps by name. They are changed through this type alone, which notes the names of those that may
//! have changed, so that a save and the agenda can leave out all others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::app::App;
use crate::config::AppName;

#[derive(Debug, Default)]
pub struct Apps {
    all: BTreeMap<AppName, App>,
    /// Since the last save.
    changed: BTreeSet<AppName>,
    /// Since the agenda was brought up to date.
    touched: BTreeSet<AppName>,
}

impl Apps {
    pub fn get_mut(&mut self, name: &AppName) -> Option<&mut App> {
        let app = self.all.get_mut(name)?;
        note(&mut self.changed, name);
        note(&mut self.touched, name);
        Some(app)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut App> {
        self.changed.extend(self.all.keys().cloned());
        self.touched.extend(self.all.keys().cloned());
        self.all.values_mut()
    }

    pub fn insert(&mut self, name: AppName, app: App) {
        note(&mut self.changed, &name);
        note(&mut self.touched, &name);
        self.all.insert(name, app);
    }

    pub fn remove(&mut self, name: &AppName) -> Option<App> {
        note(&mut self.changed, name);
        note(&mut self.touched, name);
        self.all.remove(name)
    }

    /// The names of the apps that were added, removed or lent for a change since this was last called.
    pub fn take_changed(&mut self) -> BTreeSet<AppName> {
        std::mem::take(&mut self.changed)
    }

    /// The same since this was last called.
    pub fn take_touched(&mut self) -> BTreeSet<AppName> {
        std::mem::take(&mut self.touched)
    }
}

fn note(changed: &mut BTreeSet<AppName>, name: &AppName) {
    if !changed.contains(name) {
        changed.insert(name.clone());
    }
}

/// Reading changes nothing.
impl Deref for Apps {
    type Target = BTreeMap<AppName, App>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl From<BTreeMap<AppName, App>> for Apps {
    fn from(all: BTreeMap<AppName, App>) -> Self {
        Self {
            changed: all.keys().cloned().collect(),
            touched: all.keys().cloned().collect(),
            all,
        }
    }
}

impl PartialEq for Apps {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}
