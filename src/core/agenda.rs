//! What each app waits for, kept up to date app by app, so that an event costs the same however many
//! apps there are. All of it follows from the apps and is never saved.

use std::collections::{BTreeMap, BTreeSet};

use super::app::App;
use super::completion::Completion;
use super::types::Time;
use crate::config::AppName;

#[derive(Debug, Default, PartialEq)]
pub struct Agenda {
    apps: BTreeMap<AppName, Entry>,
    /// When something is due, and for which app.
    times: BTreeSet<(Time, AppName)>,
    /// How many apps have a deadline.
    with_deadlines: usize,
    /// How many apps have workers.
    occupied: usize,
    /// The apps that have ended by themselves.
    completed: BTreeMap<AppName, Completion>,
}

/// What one app waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Entry {
    wakes: Option<Time>,
    has_deadline: bool,
    occupied: bool,
    completion: Option<Completion>,
}

impl Entry {
    fn of(app: &App, ticked: Time) -> Self {
        Self {
            wakes: app.wakes(ticked),
            has_deadline: app.has_deadline(),
            occupied: app.workers().next().is_some(),
            completion: app.completion(),
        }
    }
}

impl Agenda {
    /// That of all these apps; `ticked` is the time of the last tick.
    pub fn of(apps: &BTreeMap<AppName, App>, ticked: Time) -> Self {
        let mut agenda = Self::default();
        for (name, app) in apps {
            agenda.note(name, Some(app), ticked);
        }
        agenda
    }

    /// Called for each app that an input has touched; `None` for one that is gone.
    pub fn note(&mut self, name: &AppName, app: Option<&App>, ticked: Time) {
        let now = app.map(|app| Entry::of(app, ticked));
        let before = match now {
            Some(entry) => self.apps.insert(name.clone(), entry),
            None => self.apps.remove(name),
        };
        let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
        if before.wakes != now.wakes {
            if let Some(at) = before.wakes {
                self.times.remove(&(at, name.clone()));
            }
            self.times.extend(now.wakes.map(|at| (at, name.clone())));
        }
        self.with_deadlines =
            self.with_deadlines - usize::from(before.has_deadline) + usize::from(now.has_deadline);
        self.occupied = self.occupied - usize::from(before.occupied) + usize::from(now.occupied);
        match now.completion {
            Some(end) => drop(self.completed.insert(name.clone(), end)),
            None if before.completion.is_some() => drop(self.completed.remove(name)),
            None => {}
        }
    }

    /// When the next thing is due.
    pub fn wakes(&self) -> Option<Time> {
        self.times.first().map(|(at, _)| *at)
    }

    /// The apps that something is due for, by name.
    pub fn due(&self, now: Time) -> BTreeSet<AppName> {
        let due = self.times.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, name)| name.clone()).collect()
    }

    /// Whether any deadline runs.
    pub fn has_deadline(&self) -> bool {
        self.with_deadlines > 0
    }

    /// Whether any app has workers.
    pub fn is_occupied(&self) -> bool {
        self.occupied > 0
    }

    /// The apps that have ended by themselves, if they are all there are.
    pub fn all_completed(&self) -> Option<impl Iterator<Item = Completion>> {
        let all = self.completed.len() == self.apps.len();
        all.then(|| self.completed.values().copied())
    }

    /// The first app that has ended by itself.
    pub fn first_completed(&self) -> Option<(&AppName, Completion)> {
        self.completed.iter().map(|(name, end)| (name, *end)).next()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sim::{Behaviour, World, ms, start, web};
    use super::super::{Input, Request};
    use super::*;
    use crate::config::AppSpec;

    fn named(number: usize) -> AppSpec {
        let mut spec = web(1 + number as u16 % 3);
        spec.name = AppName::new(format!("app{number}"));
        spec.listen.clear();
        spec
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The simulated world compares after every step what is kept with a walk over all apps.
        #[test]
        fn it_is_what_a_walk_over_all_apps_finds(
            seed in any::<u64>(),
            crashing in any::<u8>(),
            acts in prop::collection::vec((0usize..6, 0u8..7, 0u64..4000), 1..30),
        ) {
            let mut world = World::new(seed);
            world.script = Box::new(move |random, _, _| match random.u8(..) < crashing / 2 {
                true => Behaviour::crashing(),
                false => Behaviour::good(),
            });
            for (number, act, pause) in acts {
                let spec = named(number);
                let request = match act {
                    0..3 => start(&spec),
                    3 => Request::Stop,
                    4 => Request::Delete,
                    5 => Request::Halt,
                    _ => Request::Scale { instances: 1 + number as u16 },
                };
                world.ask(&spec.name, request);
                world.run(ms(pause));
            }
            world.handle(Input::ForceStop);
            world.run(ms(60_000));
        }
    }
}
