//! When the state is written down, and what a new daemon makes of what it finds.

use std::io;
use std::time::Duration;

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use tracing::{error, info, warn};

use super::fdstore::name::STATE;
use super::state::{self, Ending, Process, ReadError, Saver, State};
use super::{Daemon, Event, Events, Options, complain, now};
use crate::core::{Time, WorkerId};
use crate::keeper::{AGAIN, GO_ON};
use crate::paths::Paths;
use crate::sys::process;

/// How often files are touched, so that they are not taken for forgotten.
const TOUCH: Duration = Duration::from_secs(3600);

/// How the writing goes.
pub struct Saving {
    boot: String,
    /// None where a reboot has nothing to remember: what is to run is given anew each time.
    saver: Option<Saver>,
    /// When the files were last touched.
    touched: Option<Time>,
    /// What the live state does not say yet.
    unsaved: bool,
    /// Nor the saved one.
    unsaved_for_reboot: bool,
    /// Why the live state, or the saved one, could not be written the last time.
    troubles: [Option<String>; 2],
}

impl Saving {
    pub fn start(paths: &Paths, options: &Options, events: &Events) -> io::Result<Self> {
        let events = events.clone();
        let told = move |how| drop(events.send(Event::Saved(how)));
        let saver = if options.given_anew {
            None
        } else {
            Some(Saver::start(paths.saved_state(), told)?)
        };
        // Without /proc nothing of rsup works.
        let boot = process::boot_id()?;
        Ok(Self {
            boot,
            saver,
            touched: None,
            unsaved: false,
            unsaved_for_reboot: false,
            troubles: [None, None],
        })
    }

    /// The kernel's name of this boot of the machine.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// What is wrong with it, in words.
    pub fn troubles(&self) -> impl Iterator<Item = &str> {
        self.troubles.iter().flatten().map(String::as_str)
    }

    fn note(&mut self, which: usize, what: &str, how: io::Result<()>) {
        let trouble = how.err().map(|why| format!("{what}: {why}"));
        match (&self.troubles[which], &trouble) {
            (None, Some(new)) => error!("{new}; serving goes on"),
            (Some(_), None) => info!("the state can be written again"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        self.troubles[which] = trouble;
    }
}

impl Daemon {
    /// Something happened that the next daemon has to know.
    pub(super) fn unsaved(&mut self) {
        self.saving.unsaved = true;
    }

    /// And that a reboot must not forget.
    pub(super) fn unsaved_for_reboot(&mut self) {
        self.saving.unsaved = true;
        self.saving.unsaved_for_reboot = true;
    }

    pub(super) fn record(&mut self, worker: &WorkerId, process: Process) {
        self.state.processes.insert(worker.generation, process);
        self.unsaved();
    }

    pub(super) fn save_if_needed(&mut self) {
        if self.saving.unsaved || self.supervisor.to_be_saved() {
            self.note_results();
            self.save();
        }
    }

    pub(super) fn encoded(&self) -> io::Result<Vec<u8>> {
        state::encode(&self.saving.boot, &self.state, &self.supervisor)
    }

    /// Everything is on the disk when this returns, as far as it can be.
    pub(super) fn save_for_upgrade(&mut self) {
        self.unsaved_for_reboot();
        self.save();
        if let Some(saver) = &self.saving.saver {
            saver.finish();
        }
    }

    fn save(&mut self) {
        self.saving.unsaved = false;
        self.state.written += 1;
        let bytes = match self.encoded() {
            Ok(bytes) => bytes,
            Err(why) => return complain("the state cannot be put into words", why),
        };
        let path = self.paths.live_state();
        let how = state::write(&path, &bytes, false);
        // It is tried again with the next change, or in a while.
        self.saving.unsaved_for_reboot &= !self.ending;
        let kept = how.is_err() && self.keep_state(&bytes);
        let who = if kept {
            "rsup could not go on if its keeper were killed too"
        } else {
            "a killed rsup could not go on"
        };
        self.saving.note(
            0,
            &format!("cannot write {}, so {who}", path.display()),
            how,
        );
        if !kept {
            self.fdstore.forget(STATE);
        }
        if std::mem::take(&mut self.saving.unsaved_for_reboot)
            && let Some(saver) = &self.saving.saver
        {
            saver.save(bytes);
        }
    }

    /// Whether the next daemon gets the state from who holds descriptors for it.
    fn keep_state(&mut self, bytes: &[u8]) -> bool {
        match state::in_memory(bytes) {
            Ok(memory) => self.fdstore.keep(STATE.to_owned(), memory),
            Err(why) => {
                complain("the state cannot be held in memory either", why);
                return false;
            }
        }
        self.fdstore.outlives_us()
    }

    /// Files in /tmp that nobody touches are cleaned away (tmpfiles.d(5)), and these are needed as long as
    /// this daemon lives.
    pub(super) fn stay_in_use(&mut self) {
        let time = now();
        if self
            .saving
            .touched
            .is_some_and(|last| time.since(last) < TOUCH)
        {
            return;
        }
        self.saving.touched = Some(time);
        for path in [
            self.paths.live_state(),
            self.paths.lock(),
            self.paths.keeper_lock(),
        ] {
            let _ = std::fs::File::open(path)
                .map(|file| futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW));
        }
    }

    /// From time to time, in case a disk was full.
    pub(super) fn save_again(&mut self) {
        if self.saving.troubles().next().is_some() {
            self.unsaved_for_reboot();
            self.save();
        }
    }

    pub(super) fn on_saved(&mut self, how: io::Result<()>) {
        let path = self.paths.saved_state();
        self.saving.note(
            1,
            &format!(
                "cannot write {}, so a reboot would forget changes",
                path.display()
            ),
            how,
        );
    }

    /// Everything is to be stopped: what is wanted now is what a later daemon is to know.
    pub(super) fn note_end(&mut self, why: Ending) {
        self.state.ending = Some(why);
        self.unsaved_for_reboot();
        self.save();
        self.ending = true;
    }

    /// The end on purpose: nobody has to go on.
    pub(super) fn end_of_state(&mut self) {
        if let Err(why) = std::fs::remove_file(self.paths.live_state())
            && why.kind() != io::ErrorKind::NotFound
        {
            complain("the state of this daemon cannot be removed", why);
        }
        self.fdstore.forget(STATE);
        self.fdstore.bye();
        self.saving.saver = None;
    }

    /// Goes on from where an earlier daemon was, if there was one.
    pub(super) fn go_on(&mut self) {
        let kept = self.fdstore.get(STATE).and_then(|memory| {
            state::read_memory(memory)
                .inspect_err(|why| warn!("the state in memory cannot be used: {why}"))
                .ok()
        });
        let written = self.read(&self.paths.live_state());
        // The file may be of a time when there was room for it.
        let of_this_boot = kept
            .into_iter()
            .chain(written)
            .filter(|state| state.boot == self.saving.boot);
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
        self.unsaved();
        if std::env::var_os(AGAIN).is_some() {
            // A daemon has a live state until it ends on purpose: its keeper did not hear of that.
            info!("the daemon before this one had ended on purpose; so does this one");
            self.ending = true;
            return;
        }
        // Whatever was kept belongs to workers that nobody knows any more.
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
            && (boot == self.saving.boot || !self.options.resurrect);
        self.supervisor = supervisor;
        self.calls.go_on_after(self.last_op());
        let apps = self.supervisor.names().count();
        match (apps, down) {
            (0, _) => {}
            (_, true) => info!("{apps} apps are known from before `rsup kill`, and stay stopped"),
            (_, false) => info!("{apps} apps come back as they were"),
        }
        self.supervisor.reboot(now(), down);
        self.unsaved_for_reboot();
    }

    /// A stop of everything that was cut short, by whatever death, is for a next start what a finished one is:
    /// after a signal apps are what they were, after `rsup kill` they stay stopped, and what is given anew is all
    /// there is. Only a daemon that nobody asked to start anything goes on with the stop.
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
        self.unsaved_for_reboot();
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
        match state::read(path) {
            Ok(state) => Some(state),
            Err(ReadError::None) => None,
            Err(why) => {
                let aside = state::put_aside(path).map_or_else(
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
