//! The difference between two states, which is what one save writes: of each app that changed, the parts
//! that did. The state is the fold of all changes.
//!
//! The writer keeps, as [`Written`], the state that its file has, and applies each change to that as a
//! reader does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::super::app::{App, Listening, Wanted};
use super::super::hiding::Hiding;
use super::super::io::Steering;
use super::super::reason::Reason;
use super::super::release::Releases;
use super::super::restart::Instance;
use super::super::rollout::{Queue, Rollout};
use super::super::set::Set;
use super::super::types::Revision;
use super::super::weights::Share;
use super::super::worker::Worker;
use super::super::{Settings, Supervisor};
use super::{MOST_INSTANCES, MOST_SLOTS, SavedSupervisor};
use crate::config::{AppName, Balance};

/// What is different in a later state; a part that is absent is the same. Fields that are new get
/// `#[serde(default)]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// None: removed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    apps: BTreeMap<AppName, Option<AppChange>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    settings: Option<Option<Settings>>,
}

/// Of one app. Revisions never change, and are written once; everything else names them by number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct AppChange {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    revisions: BTreeMap<u64, Option<Arc<Revision>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<Wanted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    halted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<u16>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sets: BTreeMap<u64, Option<SetChange>>,
    /// The number of slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<usize>,
    /// None: empty.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    slots: BTreeMap<u16, Option<Worker>>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    rollout: Option<Option<Rollout>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Queue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listening: Option<Listening>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    steered: Option<Option<(Balance, Vec<Steering>)>>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    reason: Option<Option<Reason>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hiding: Option<Vec<(Vec<String>, Hiding)>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct SetChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<Share>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    instances: BTreeMap<u16, Option<Instance>>,
}

/// A field of this type that is `null` says so; one that is absent is the same as before.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// The state that is the fold of the changes so far.
#[derive(Debug, Default)]
pub struct Written {
    apps: BTreeMap<AppName, App>,
    next_generation: u64,
    seed: u64,
    settings: Option<Settings>,
}

impl Written {
    /// What is different in `now`. Only the apps of these names are compared; the others are the same.
    pub fn change<'a>(
        &self,
        now: &Supervisor,
        names: impl IntoIterator<Item = &'a AppName>,
    ) -> Change {
        let of = |name: &AppName| {
            let change = match (self.apps.get(name), now.apps.get(name)) {
                (None, None) => return None,
                (Some(_), None) => None,
                (None, Some(now)) => Some(app_change(&nothing(name.clone()), now)),
                (Some(was), Some(now)) => match app_change(was, now) {
                    none if none == AppChange::default() => return None,
                    change => Some(change),
                },
            };
            Some((name.clone(), change))
        };
        Change {
            apps: names.into_iter().filter_map(of).collect(),
            next_generation: differs(&self.next_generation, &now.next_generation),
            seed: differs(&self.seed, &now.seed),
            settings: differs(&self.settings, &now.settings),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &AppName> {
        self.apps.keys()
    }

    /// # Errors
    /// When no rsup can have written this change.
    pub fn apply(&mut self, change: Change) -> Result<(), String> {
        let Change {
            apps,
            next_generation,
            seed,
            settings,
        } = change;
        for (name, change) in apps {
            match change {
                None => drop(self.apps.remove(&name)),
                Some(change) => {
                    let app = self.apps.entry(name);
                    let app = app.or_insert_with_key(|name| nothing(name.clone()));
                    apply(change, app)?;
                }
            }
        }
        put(&mut self.next_generation, next_generation);
        put(&mut self.seed, seed);
        put(&mut self.settings, settings);
        Ok(())
    }

    /// The state as a whole.
    ///
    /// # Errors
    /// When it does not fit together, so that no rsup can have written it.
    pub fn finish(self) -> Result<Supervisor, String> {
        let Self {
            apps,
            next_generation,
            seed,
            settings,
        } = self;
        apps.values().try_for_each(super::check)?;
        Supervisor::try_from(SavedSupervisor {
            apps,
            next_generation,
            seed,
            settings,
        })
    }
}

fn differs<T: PartialEq + Clone>(was: &T, now: &T) -> Option<T> {
    (was != now).then(|| now.clone())
}

fn put<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// The entries that `now` does not have are None.
fn entries<'a, K: Ord + Copy + 'a, V: 'a, C>(
    was: impl IntoIterator<Item = (&'a K, &'a V)>,
    now: &'a BTreeMap<K, V>,
    differ: impl Fn(Option<&V>, &V) -> Option<C>,
) -> BTreeMap<K, Option<C>> {
    let was: BTreeMap<K, &V> = was.into_iter().map(|(key, value)| (*key, value)).collect();
    let gone = was.keys().filter(|key| !now.contains_key(key));
    let gone: Vec<(K, Option<C>)> = gone.map(|key| (*key, None)).collect();
    let there = now
        .iter()
        .filter_map(|(key, value)| Some((*key, Some(differ(was.get(key).copied(), value)?))));
    there.chain(gone).collect()
}

fn app_change(was: &App, now: &App) -> AppChange {
    // Every field is named: a new one must not be forgotten here.
    let App {
        name: _,
        wanted,
        halted,
        releases,
        current,
        last_revision,
        instances,
        sets,
        slots,
        rollout,
        queue,
        listening,
        steered,
        reason,
        hiding,
    } = now;
    let revision = |was: Option<&Arc<Revision>>, now: &Arc<Revision>| {
        let same = was.is_some_and(|was| Arc::ptr_eq(was, now) || was == now);
        (!same).then(|| now.clone())
    };
    let set = |was: Option<&Set>, now: &Set| {
        let nothing = Set::default();
        let change = set_change(was.unwrap_or(&nothing), now);
        (was.is_none() || change != SetChange::default()).then_some(change)
    };
    let former = |slot: usize| was.slots.get(slot).and_then(Option::as_ref);
    let slots_now = slots.iter().map(Option::as_ref).enumerate();
    AppChange {
        revisions: entries(was.releases.by_number(), releases.by_number(), revision),
        wanted: differs(&was.wanted, wanted),
        halted: differs(&was.halted, halted),
        current: differs(&was.current, current),
        last_revision: differs(&was.last_revision, last_revision),
        instances: differs(&was.instances, instances),
        sets: entries(&was.sets, sets, set),
        size: differs(&was.slots.len(), &slots.len()),
        slots: (0..)
            .zip(slots_now)
            .filter(|(_, (at, worker))| former(*at) != *worker)
            .map(|(number, (_, worker))| (number, worker.cloned()))
            .collect(),
        rollout: differs(&was.rollout, rollout),
        queue: differs(&was.queue, queue),
        listening: differs(&was.listening, listening),
        steered: differs(&was.steered, steered),
        reason: differs(&was.reason, reason),
        hiding: differs(&was.hiding, hiding),
    }
}

fn set_change(was: &Set, now: &Set) -> SetChange {
    let Set {
        replicas,
        share,
        instances,
    } = now;
    SetChange {
        replicas: differs(&was.replicas, replicas),
        share: differs(&was.share, share),
        instances: entries(&was.instances, instances, |was, now| {
            (was != Some(now)).then(|| now.clone())
        }),
    }
}

fn apply(change: AppChange, app: &mut App) -> Result<(), String> {
    let AppChange {
        revisions,
        wanted,
        halted,
        current,
        last_revision,
        instances,
        sets,
        size,
        slots,
        rollout,
        queue,
        listening,
        steered,
        reason,
        hiding,
    } = change;
    let gone: BTreeSet<u64> = revisions
        .iter()
        .filter(|(_, revision)| revision.is_none())
        .map(|(number, _)| *number)
        .collect();
    if !gone.is_empty() {
        let numbers = app.releases.by_number().keys().copied();
        let kept = numbers.filter(|number| !gone.contains(number)).collect();
        app.releases.keep(&kept);
    }
    for (number, revision) in revisions {
        if revision.as_ref().is_some_and(|r| r.number != number) {
            return Err(format!(
                "revision {number} of `{}` is another one",
                app.name
            ));
        }
        revision.into_iter().for_each(|r| app.releases.add(r));
    }
    for (number, change) in sets {
        match change {
            None => drop(app.sets.remove(&number)),
            Some(change) => {
                let set = app.sets.entry(number).or_default();
                put(&mut set.replicas, change.replicas);
                put(&mut set.share, change.share);
                for (number, instance) in change.instances {
                    match instance {
                        None => drop(set.instances.remove(&number)),
                        Some(instance) => drop(set.instances.insert(number, instance)),
                    }
                }
                if set.instances.len() > usize::from(MOST_INSTANCES) {
                    return Err(format!("`{}` is larger than any app can be", app.name));
                }
            }
        }
    }
    if let Some(size) = size {
        if size > MOST_SLOTS {
            return Err(format!("`{}` is larger than any app can be", app.name));
        }
        app.slots.resize(size, None);
    }
    for (number, worker) in slots {
        let slot = app.slots.get_mut(usize::from(number));
        *slot.ok_or_else(|| format!("`{}` has no slot {number}", app.name))? = worker;
    }
    put(&mut app.wanted, wanted);
    put(&mut app.halted, halted);
    put(&mut app.current, current);
    put(&mut app.last_revision, last_revision);
    put(&mut app.instances, instances);
    put(&mut app.rollout, rollout);
    put(&mut app.queue, queue);
    put(&mut app.listening, listening);
    put(&mut app.steered, steered);
    put(&mut app.reason, reason);
    put(&mut app.hiding, hiding);
    Ok(())
}

/// What the first change of an app is one of. It fits together only with that.
fn nothing(name: AppName) -> App {
    App {
        name,
        wanted: Wanted::Up,
        halted: false,
        releases: Releases::default(),
        current: 0,
        last_revision: 0,
        instances: 0,
        sets: BTreeMap::new(),
        slots: Vec::new(),
        rollout: None,
        queue: VecDeque::new(),
        listening: Listening::default(),
        steered: None,
        reason: None,
        hiding: Vec::new(),
    }
}
