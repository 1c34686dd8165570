//! Continues after the daemon's death: the state was read back, and is compared with what exists.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::app::{App, Wanted};
use super::io::{Effect, Steering};
use super::types::{OpId, Time, WorkerId};
use super::view::{Exit, OperationKind};
use super::{Supervisor, each};
use crate::config::{AppName, Listen, SocketFile};

/// What happened to a worker's process while there was no daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// It lives, and runs its program (exec has happened).
    Alive { pid: u32 },
    /// It lives, but its trapped calls of `bind(2)` (and `connect(2)`) cannot be answered, and fail
    /// or wait for ever: it is replaced, and serves until then.
    Deaf { pid: u32 },
    /// It lives, but the daemon cannot get its listening sockets: it is replaced, as by a reload.
    OutOfReach { pid: u32 },
    /// It is gone; `descendants` of it may still live.
    Gone { exit: Exit, descendants: bool },
    /// It never existed: the daemon was killed between the effect and the fork.
    NeverStarted,
}

impl Supervisor {
    /// Called once on a state that was read back, before any other input. Requests again everything
    /// that was under way, but no worker gets a second stop signal. `found` has every worker of the
    /// state; a missing one is gone.
    ///
    /// That each worker gets its stop signal once holds if the state is saved before the effects of
    /// an input are carried out, and again after them if a signal was among them.
    pub fn revive(&mut self, now: Time, found: &BTreeMap<WorkerId, Found>) {
        self.act(now, |apps, cx| {
            each(apps, cx, |app, cx| app.revive(found, cx))
        });
    }

    /// Called before [`Self::revive`] on the state of a daemon that died while it was stopping
    /// everything, if this daemon does not continue with that: what was wanted of each app counts
    /// again. With `down`, nothing is wanted: all apps are known, and what is left of them is
    /// stopped.
    pub fn halt_is_over(&mut self, down: bool) {
        self.apps
            .values_mut()
            .for_each(|app| app.halt_is_over(down));
        self.update_agenda();
    }

    /// Called instead of [`Self::revive`] if the machine was booted since: no process and no socket
    /// is left, and no time of the state means anything. What is wanted is started again; with
    /// `down`, all apps are known and stopped.
    pub fn reboot(&mut self, now: Time, down: bool) {
        self.act(now, |apps, cx| {
            let deleted = apps.values().filter(|app| app.wanted == Wanted::Deleted);
            let deleted: Vec<AppName> = deleted.map(|app| app.name.clone()).collect();
            for app in deleted {
                apps.remove(&app);
                cx.out.push_back(Effect::Removed { app });
            }
            each(apps, cx, |app, _| app.reboot(down));
        });
    }

    /// What an app has, or has requested: its addresses, the number of slots of each, and owner and
    /// mode of its unix socket files.
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

    /// The weights that were last applied.
    pub fn steering(&self, app: &AppName) -> &[Steering] {
        self.apps
            .get(app)
            .and_then(|app| app.steered.as_ref())
            .map_or(&[], |(_, tables)| tables)
    }

    /// The actions under way, at most one for each app.
    pub fn under_way(&self) -> impl Iterator<Item = (&AppName, OpId, OperationKind)> {
        self.apps
            .values()
            .filter_map(|app| app.rollout.as_ref().map(|o| (&app.name, o.op, o.kind)))
    }

    /// The action under way of one app.
    pub fn action(&self, app: &AppName) -> Option<(OpId, OperationKind)> {
        let rollout = self.apps.get(app)?.rollout.as_ref()?;
        Some((rollout.op, rollout.kind))
    }

    /// The start that waits for the end of the app's stop.
    pub fn waiting_start(&self, app: &AppName) -> Option<OpId> {
        let app = self.apps.get(app).filter(|app| app.goal() != Wanted::Up)?;
        app.queue.front().map(|queued| queued.op)
    }

    /// The actions that are under way, or wait for their turn.
    pub fn ops(&self) -> BTreeSet<OpId> {
        self.apps.values().flat_map(App::ops).collect()
    }

    /// The latest action in the state. Later ones need other names.
    pub fn last_op(&self) -> Option<OpId> {
        self.apps.values().flat_map(App::ops).max()
    }
}
