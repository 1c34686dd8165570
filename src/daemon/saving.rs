//! When the state is written down, and what a new daemon makes of what it finds.

use tracing::{info, warn};

use super::fdstore::name::STATE;
use super::store::{self, Ending, ReadError, Saved, State};
use super::{Daemon, now};
use crate::keeper::{AGAIN, GO_ON};

impl Daemon {
    pub(super) fn save_if_needed(&mut self) {
        if self.store.is_unsaved() || self.supervisor.to_be_saved() {
            self.note_results();
            self.save();
        }
    }

    fn save(&mut self) {
        self.store.save(&mut self.supervisor, &mut self.fdstore);
    }

    /// Everything is on the disk when this returns, as far as it can be.
    pub(super) fn save_for_upgrade(&mut self) {
        self.store
            .save_and_wait(&mut self.supervisor, &mut self.fdstore);
    }

    /// From time to time, in case a disk was full.
    pub(super) fn save_again(&mut self) {
        if self.store.troubles().next().is_some() {
            self.store.unsaved_for_reboot();
            self.save();
        }
    }

    pub(super) fn on_saved(&mut self, how: Saved) {
        if self.store.on_saved(how, &self.paths.saved_state()) {
            self.store.unsaved_for_reboot();
            self.save();
        }
    }

    /// Every app will be stopped: a later daemon finds what is wanted now.
    pub(super) fn note_end(&mut self, why: Ending) {
        self.store.end(why, &mut self.supervisor, &mut self.fdstore);
        self.ending = true;
    }

    /// The end on purpose: no daemon continues.
    pub(super) fn end_of_state(&mut self) {
        self.store.close();
        self.fdstore.forget(STATE);
        self.fdstore.bye();
    }

    /// Goes on from where an earlier daemon was, if there was one.
    pub(super) fn go_on(&mut self) {
        let kept = self.fdstore.get(STATE).and_then(|memory| {
            store::read_memory(memory)
                .inspect_err(|why| warn!("the state in memory cannot be used: {why}"))
                .ok()
        });
        let written = self.read(&self.paths.live_state());
        // The file may be of a time when there was room for it.
        let of_this_boot = kept
            .into_iter()
            .chain(written)
            .filter(|state| state.boot == self.store.boot());
        if let Some(mut state) = of_this_boot.max_by_key(|state| state.daemon.written) {
            self.begin_again(&mut state);
            self.adopt(state);
            self.upgrade_died();
            if self.options.only_stop && !self.ending {
                info!("rsup was to be stopped and is dead: stopping every app");
                self.stop_everything();
            }
            return;
        }
        if self.options.only_stop {
            self.ending = true;
            return;
        }
        self.store.unsaved();
        if std::env::var_os(AGAIN).is_some() {
            // A daemon has a live state until it ends on purpose: its keeper did not hear of that.
            info!("the daemon before this one had ended on purpose; so does this one");
            self.ending = true;
            return;
        }
        // Whatever was kept belongs to workers that no state names any more.
        self.fdstore.forget_all(
            &[
                "listen/", "out/", "err/", "bind/", "notify/", "node/", STATE,
            ]
            .map(str::to_owned),
        );
        if self.options.given_anew {
            return;
        }
        let Some(state) = self.read(&self.paths.saved_state()) else {
            return;
        };
        let State {
            boot,
            daemon,
            supervisor,
        } = state;
        // After a reboot everything that was wanted comes back, whatever ended it.
        let down = daemon.ending == Some(Ending::Kill)
            && (boot == self.store.boot() || !self.options.resurrect);
        self.supervisor = supervisor;
        self.store.write_whole();
        self.calls.go_on_after(self.last_op());
        let apps = self.supervisor.names().count();
        match (apps, down) {
            (0, _) => {}
            (_, true) => info!("{apps} apps are known from before `rsup kill`, and stay stopped"),
            (_, false) => info!("{apps} apps come back as they were"),
        }
        self.supervisor.reboot(now(), down);
        self.store.unsaved_for_reboot();
    }

    /// A stop of everything that was cut short, by whatever death, is for a next start what a finished one is:
    /// after a signal apps are what they were, after `rsup kill` they stay stopped, and what is given anew is all
    /// there is. Only a daemon that was not asked to start anything continues the stop.
    fn begin_again(&mut self, state: &mut State) {
        let goes_on = self.options.only_stop
            || [AGAIN, GO_ON]
                .into_iter()
                .any(|name| std::env::var_os(name).is_some());
        let Some(ending) = state.daemon.ending.filter(|_| !goes_on) else {
            return;
        };
        state.daemon.ending = None;
        let down = ending == Ending::Kill || self.options.given_anew;
        state.supervisor.halt_is_over(down);
        self.cut_short = true;
        self.store.unsaved_for_reboot();
        match (self.options.given_anew, ending) {
            (true, _) => {
                info!("an earlier rsup died while it stopped every app; what is given is started")
            }
            (false, Ending::Kill) => info!(
                "an earlier rsup died during `rsup kill`; its apps are known, and stay stopped"
            ),
            (false, Ending::Signal) => info!(
                "an earlier rsup died while it stopped every app; apps come back as they were"
            ),
        }
    }

    fn read(&self, path: &std::path::Path) -> Option<State> {
        match store::read(path) {
            Ok(state) => Some(state),
            Err(ReadError::None) => None,
            Err(why) => {
                let aside = store::put_aside(path).map_or_else(
                    || "left as it is".into(),
                    |to| format!("put aside as {}", to.display()),
                );
                warn!(
                    "the state in {} cannot be used: {why}; it is {aside}",
                    path.display()
                );
                None
            }
        }
    }
}
