//! A life after the daemon's death: the state was read back, and what it says is compared with what
//! is there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::app::{App, Wanted};
use super::io::Effect;
use super::types::{OpId, Time, WorkerId};
use super::view::Exit;
use super::{Supervisor, each};

/// What became of a worker's process while there was no daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// It lives, and runs its program (exec has happened).
    Alive { pid: u32 },
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
        self.act(now, |apps, cx| each(apps, cx, |app, cx| app.revive(found, cx)));
    }

    /// Instead of [`Self::revive`] if the machine was started anew since: no process and no socket
    /// is left, and no time of the state means anything. What is wanted is started again.
    pub fn reboot(&mut self, now: Time) {
        self.act(now, |apps, cx| {
            apps.retain(|name, app| {
                let keep = app.wanted != Wanted::Deleted;
                if !keep {
                    cx.out.push_back(Effect::Removed { app: name.clone() });
                }
                keep
            });
            each(apps, cx, |app, _| app.reboot());
        });
    }

    /// The latest action that the state still knows of. Later ones need other names.
    pub fn last_op(&self) -> Option<OpId> {
        self.apps.values().flat_map(App::ops).max()
    }
}
