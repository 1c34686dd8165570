//! Which workers get new connections, and in which shares.

use super::super::io::{Effect, Steering};
use super::super::weights::{Takers, weights};
use super::super::worker::{State, Worker};
use super::{App, Context};
use crate::config::Listen;

impl App {
    /// Applies the weights if they differ from those in force.
    pub(super) fn steer(&mut self, cx: &mut Context<'_>) {
        let Some(held) = &self.listening.held else {
            return;
        };
        let tables: Vec<Steering> = held
            .addresses
            .iter()
            .filter(|a| a.tcp().is_some())
            .map(|address| Steering {
                address: address.clone(),
                weights: self.weights(address),
            })
            .collect();
        let balance = self.spec().balance;
        if tables.is_empty()
            || self
                .steered
                .as_ref()
                .is_some_and(|(b, t)| *b == balance && *t == tables)
        {
            return;
        }
        self.steered = Some((balance, tables.clone()));
        cx.out.push_back(Effect::Steer {
            app: self.name.clone(),
            balance,
            tables,
        });
    }

    /// The ready workers that listen on the address, by the shares of their releases; if every one
    /// of them is unready, still all of them: a dependency that fails for all must not turn a
    /// degraded app into a dead one.
    fn weights(&self, address: &Listen) -> Vec<u32> {
        let weigh = |take_unready: bool| -> Vec<u32> {
            let takes = |w: &Worker| match &w.state {
                State::Ready { unready, .. } => {
                    (take_unready || !unready)
                        && !w.is_out_of_reach()
                        && self.spec_of(w).listen.contains(address)
                }
                State::Spawning { .. }
                | State::Starting { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Sweeping { .. } => false,
            };
            let sets: Vec<Takers> = self
                .sets
                .iter()
                .map(|(revision, set)| Takers {
                    share: set.share,
                    slots: self
                        .workers()
                        .filter(|w| w.revision == *revision && takes(w))
                        .map(|w| w.id.slot)
                        .collect(),
                })
                .collect();
            weights(&sets, self.slots.len())
        };
        let weights = weigh(false);
        if weights.iter().any(|w| *w > 0) {
            weights
        } else {
            weigh(true)
        }
    }
}
