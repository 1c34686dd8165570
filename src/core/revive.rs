//! A life after the daemon's death: the state was read back, and what it says is compared with what
//! is there.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::app::{App, Wanted};
use super::io::{Effect, Steering};
use super::types::{OpId, Time, WorkerId};
use super::view::{Exit, OperationKind};
use super::{Supervisor, each};
use crate::config::{AppName, Listen, SocketFile};

/// What became of a worker's process while there was no daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// It lives, and runs its program (exec has happened).
    Alive { pid: u32 },
    /// It lives, but its trapped calls of `bind(2)` (and `connect(2)`) cannot be answered, and fail or wait for
    /// ever: it is replaced too, and serves until then.
    Deaf { pid: u32 },
    /// It lives, but its listening sockets cannot be had: it is replaced, as by a reload.
    OutOfReach { pid: u32 },
    /// It is gone; `descendants` of it may still live.
    Gone { exit: Exit, descendants: bool },
    /// There never was one: the daemon was killed between the wish and the fork.
    NeverStarted,
}

impl Supervisor {
    /// To be called once on a state that was read back, before any other input. Everything that was
    /// under way is asked for again, but no worker is told to stop a second time. `found` has every
    /// worker of the state; one that is not in it is gone.
    ///
    /// That nobody is told twice, or never, holds if the state is written down before the effects
    /// of an input are carried out, and again after them if a signal was among them.
    pub fn revive(&mut self, now: Time, found: &BTreeMap<WorkerId, Found>) {
        self.act(now, |apps, cx| {
            each(apps, |_| true, cx, |app, cx| app.revive(found, cx))
        });
    }

    /// To be called before [`Self::revive`] on the state of a daemon that died while it was stopping everything,
    /// if this one is not to go on with that: what was wanted of each app counts again. With `down`, nothing is
    /// wanted: all apps are known, and what is left of them is stopped.
    pub fn halt_is_over(&mut self, down: bool) {
        self.apps
            .values_mut()
            .for_each(|app| app.halt_is_over(down));
    }

    /// Instead of [`Self::revive`] if the machine was started anew since: no process and no socket
    /// is left, and no time of the state means anything. What is wanted is started again; with
    /// `down`, nothing is: all apps are known, and stopped.
    pub fn reboot(&mut self, now: Time, down: bool) {
        self.act(now, |apps, cx| {
            apps.retain(|name, app| {
                let keep = app.wanted != Wanted::Deleted;
                if !keep {
                    cx.out.push_back(Effect::Removed { app: name.clone() });
                }
                keep
            });
            each(apps, |_| true, cx, |app, _| app.reboot(down));
        });
    }

    /// What an app has, or has asked for: its addresses, the number of slots of each, and whose the files of its unix
    /// sockets are.
    pub fn sockets(&self, app: &AppName) -> Option<(Vec<Listen>, u16, SocketFile)> {
        let listening = &self.apps.get(app)?.listening;
        let all = [&listening.held, &listening.pending];
        let slots = all
            .iter()
            .filter_map(|held| Some(held.as_ref()?.slots))
            .max()?;
        let addresses: BTreeSet<&Listen> = all
            .into_iter()
            .flatten()
            .flat_map(|held| &held.addresses)
            .collect();
        let file = listening
            .pending
            .as_ref()
            .or(listening.held.as_ref())
            .map(|held| held.file)
            .unwrap_or_default();
        Some((addresses.into_iter().cloned().collect(), slots, file))
    }

    /// The weights that were last put in force.
    pub fn steering(&self, app: &AppName) -> &[Steering] {
        self.apps
            .get(app)
            .and_then(|app| app.steered.as_ref())
            .map_or(&[], |(_, tables)| tables)
    }

    /// The actions under way, one for each app at the most.
    pub fn under_way(&self) -> impl Iterator<Item = (&AppName, OpId, OperationKind)> {
        self.apps
            .values()
            .filter_map(|app| app.rollout.as_ref().map(|o| (&app.name, o.op, o.kind)))
    }

    /// The start that waits for the end of the app's stop.
    pub fn waiting_start(&self, app: &AppName) -> Option<OpId> {
        let app = self.apps.get(app).filter(|app| app.goal() != Wanted::Up)?;
        app.queue.front().map(|queued| queued.op)
    }

    /// The action is under way, or waits for its turn.
    pub fn is_under_way(&self, op: OpId) -> bool {
        self.apps
            .values()
            .flat_map(App::ops)
            .any(|other| other == op)
    }

    /// The latest action that the state still knows of. Later ones need other names.
    pub fn last_op(&self) -> Option<OpId> {
        self.apps.values().flat_map(App::ops).max()
    }
}
