//! Workers that wait for their fork, in a queue: a big start must not keep the loop from probes, answers
//! and other apps, and its state is saved once for many forks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Fleet;
use crate::core::{Input, Revision, WorkerId};

/// How long the forks of one turn of the loop may take, beyond the first one.
const TURN: Duration = Duration::from_millis(20);

/// A worker that waits for its fork.
#[derive(Debug)]
pub struct Fork {
    pub worker: WorkerId,
    pub instance: u16,
    pub revision: Arc<Revision>,
    pub hide_port: bool,
}

/// In the order of their generations, which is that in which they were asked for.
#[derive(Debug, Default)]
pub struct Forks(BTreeMap<u64, Fork>);

impl Forks {
    pub fn push(&mut self, fork: Fork) {
        self.0.insert(fork.worker.generation, fork);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn next(&mut self) -> Option<Fork> {
        self.0.pop_first().map(|(_, fork)| fork)
    }

    /// Takes out a worker that is not wanted any more. False if it does not wait.
    pub fn give_up(&mut self, worker: &WorkerId) -> bool {
        self.0.remove(&worker.generation).is_some()
    }
}

/// The time that the forks of one turn of the loop may take.
#[derive(Debug)]
pub struct Turn(Instant);

impl Turn {
    pub fn begin() -> Self {
        Self(Instant::now() + TURN)
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}

impl Fleet {
    /// Forks the worker in a later turn, or after a trial that is under way for it.
    pub fn fork_later(&mut self, fork: Fork) {
        if let Some(fork) = self.await_trial(fork) {
            self.forks.push(fork);
        }
    }

    pub fn next_fork(&mut self) -> Option<Fork> {
        self.forks.next()
    }

    pub fn has_forks(&self) -> bool {
        !self.forks.is_empty()
    }

    /// Drops a worker that gets a signal while it waits for its fork, or for a trial: it is never started.
    pub(super) fn give_up_fork(&mut self, worker: &WorkerId) -> Option<Input> {
        let waited = self.forks.give_up(worker) || self.takeover.give_up(worker);
        waited.then(|| Input::SpawnFailed {
            worker: worker.clone(),
            reason: "it was told to stop before it was started".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(generation: u64) -> Fork {
        let spec = crate::config::minimal("web", &["web"]);
        Fork {
            worker: WorkerId {
                app: spec.name.clone(),
                slot: 0,
                generation,
            },
            instance: 0,
            revision: Arc::new(Revision {
                number: 1,
                spec,
                base_env: Default::default(),
            }),
            hide_port: false,
        }
    }

    #[test]
    fn one_that_is_given_up_is_not_forked_and_the_others_keep_their_order() {
        let mut forks = Forks::default();
        (1..=4).for_each(|generation| forks.push(fork(generation)));
        assert!(forks.give_up(&fork(2).worker));
        assert!(!forks.give_up(&fork(2).worker), "it does not wait any more");
        let order: Vec<u64> = std::iter::from_fn(|| forks.next())
            .map(|fork| fork.worker.generation)
            .collect();
        assert_eq!(order, [1, 3, 4]);
        assert!(forks.is_empty());
    }
}
