//! The state, written down: for the next daemon of this boot, and for the next boot.
//!
//! Two files in the same format, mode 0600. The *live* one, in the runtime folder, is written before effects
//! are carried out, and is gone once a daemon has ended on purpose; it need not survive the machine,
//! so the loop waits for no disk. The *saved* one, in the state folder, is written by a thread of its
//! own, with fdatasync(2), whenever something changed that a reboot must not forget, and says nothing that is of
//! no use then. Each is a journal: a save appends what changed, so that it costs the same however much else there is.

mod journal;
mod reading;
mod record;
mod saver;
#[cfg(test)]
mod tests;
mod track;
mod version_1;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use tracing::{error, info};

use journal::{Journal, Lines};
pub use journal::{put_aside, write};
use reading::in_memory;
pub use reading::{ReadError, is_of_foreground, known_from_before, left_behind, read, read_memory};
pub use record::{DaemonState, Ending, Process, State, Upgrade, decode};
pub use saver::Saved;
use saver::Saver;
use track::Track;

use super::clients::remembered::{Begun, Surplus};
use super::fdstore::FdStore;
use super::fdstore::name::STATE;
use super::{Event, Events, Options, log_error, now};
use crate::control::ActionId;
use crate::core::{OpId, Supervisor, Time};
use crate::model::ActionError;
use crate::paths::Paths;
use crate::sys::process;

/// How often files are touched, so that they are not taken for forgotten.
const TOUCH: Duration = Duration::from_secs(3600);

/// The daemon's part of the state, and the files.
pub struct Store {
    boot: String,
    state: DaemonState,
    surplus: Surplus,
    live: Track,
    journal: Journal,
    saved: Track,
    /// None where a reboot has nothing to remember: what is to run is given anew each time.
    saver: Option<Saver>,
    /// When the files were last touched.
    touched: Option<Time>,
    /// What the live state does not say yet.
    unsaved: bool,
    /// Nor the saved one.
    unsaved_for_reboot: bool,
    /// The saved state says what a reboot is to remember of a stop of everything.
    saved_is_final: bool,
    /// Why the live state, or the saved one, could not be written the last time.
    troubles: [Option<String>; 2],
}

impl Store {
    pub fn start(paths: &Paths, options: &Options, events: &Events) -> io::Result<Self> {
        let events = events.clone();
        let told = move |how| drop(events.send(Event::Saved(how)));
        let saver = if options.given_anew {
            None
        } else {
            Some(Saver::start(paths.saved_state(), told)?)
        };
        Ok(Self {
            // Without /proc nothing of rsup works.
            boot: process::boot_id()?,
            state: DaemonState {
                foreground: options.foreground,
                ..DaemonState::default()
            },
            surplus: Surplus::default(),
            live: Track::default(),
            journal: Journal::new(paths.live_state(), false),
            saved: Track::default(),
            saver,
            touched: None,
            unsaved: false,
            unsaved_for_reboot: false,
            saved_is_final: false,
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

    /// Something happened that the next daemon has to know.
    pub fn unsaved(&mut self) {
        self.unsaved = true;
    }

    /// And that a reboot must not forget.
    pub fn unsaved_for_reboot(&mut self) {
        self.unsaved = true;
        self.unsaved_for_reboot = true;
    }

    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// What an earlier daemon knew.
    pub fn take_over(&mut self, state: DaemonState) {
        self.state = DaemonState {
            foreground: self.state.foreground,
            ..state
        };
        self.saved_is_final = self.state.ending.is_some();
        self.write_whole();
    }

    pub fn ending(&self) -> Option<Ending> {
        self.state.ending
    }

    /// Every app will be stopped: a later daemon finds what is wanted now.
    pub fn end(&mut self, why: Ending, supervisor: &mut Supervisor, fdstore: &mut FdStore) {
        self.state.ending = Some(why);
        self.write_whole();
        self.unsaved_for_reboot();
        self.save(supervisor, fdstore);
        self.saved_is_final = true;
    }

    pub fn process(&self, generation: u64) -> Option<Process> {
        self.state.processes.get(&generation).copied()
    }

    pub fn record_process(&mut self, generation: u64, process: Process) {
        self.live.touched.generations.insert(generation);
        self.state.processes.insert(generation, process);
    }

    pub fn forget_process(&mut self, generation: u64) {
        self.live.touched.generations.insert(generation);
        self.state.processes.remove(&generation);
    }

    pub fn retain_processes(&mut self, keep: impl Fn(u64) -> bool) {
        let all = self.state.processes.keys().copied();
        let gone: Vec<u64> = all.filter(|generation| !keep(*generation)).collect();
        gone.into_iter()
            .for_each(|generation| self.forget_process(generation));
    }

    /// What was begun under this id, by this daemon or one before it.
    pub fn begun(&self, id: ActionId) -> Option<&Begun> {
        self.state.actions.iter().find(|begun| begun.id == id)
    }

    pub fn note_action(&mut self, begun: Begun) {
        self.state.actions.push_back(begun);
        self.unsaved_for_reboot();
    }

    /// How the latest actions on single apps ended.
    pub fn results(&self) -> impl Iterator<Item = (OpId, Result<(), ActionError>)> {
        self.state.results.iter().cloned()
    }

    /// Called before the state is saved that no longer has these actions.
    pub fn note_results(&mut self, ends: impl Iterator<Item = (OpId, Result<(), ActionError>)>) {
        self.state.results.extend(ends);
        self.surplus
            .forget(&mut self.state.actions, &mut self.state.results);
    }

    /// The latest action whose end is known.
    pub fn last_op(&self) -> Option<OpId> {
        self.state.results.iter().map(|(op, _)| *op).max()
    }

    pub fn upgrade(&self) -> Option<&Upgrade> {
        self.state.upgrade.as_ref()
    }

    pub fn upgrade_begins(&mut self, upgrade: Upgrade) {
        self.state.upgrade = Some(upgrade);
    }

    pub fn upgrade_ended(&mut self, result: Result<String, String>) {
        if let Some(upgrade) = &mut self.state.upgrade {
            upgrade.result = Some(result);
        }
    }

    /// The whole state.
    ///
    /// # Errors
    /// None is known: everything in it can be written as JSON.
    pub fn whole(&self, supervisor: &Supervisor) -> io::Result<Vec<u8>> {
        match Track::default().next(&self.boot, &self.state, supervisor)? {
            Lines::Whole(lines) | Lines::More(lines) => Ok(lines),
        }
    }

    /// The whole state for a program that reads no later version than 1.
    ///
    /// # Errors
    /// When that version has no words for it.
    pub fn as_version_1(&self, supervisor: &Supervisor) -> Result<Vec<u8>, String> {
        version_1::encode(&self.boot, &self.state, supervisor)
    }

    /// Writes down what changed, before effects that want it are carried out.
    pub fn save(&mut self, supervisor: &mut Supervisor, fdstore: &mut FdStore) {
        self.unsaved = false;
        self.state.written += 1;
        let changed = supervisor.take_changed();
        if self.saver.is_some() {
            self.saved.touched.apps.extend(changed.iter().cloned());
        }
        self.live.touched.apps.extend(changed);
        let how = self.save_live(supervisor);
        // If it failed, it is tried again with the next change, or in a while.
        self.unsaved_for_reboot &= !self.saved_is_final;
        let kept = how.is_err() && self.keep_state(supervisor, fdstore);
        let who = if kept {
            "rsup could not go on if its keeper were killed too"
        } else {
            "a killed rsup could not go on"
        };
        let path = self.journal.path().display().to_string();
        self.note(0, &format!("cannot write {path}, so {who}"), how);
        if !kept {
            fdstore.forget(STATE);
        }
        if std::mem::take(&mut self.unsaved_for_reboot) {
            self.save_for_reboot(supervisor);
        }
    }

    fn save_live(&mut self, supervisor: &Supervisor) -> io::Result<()> {
        if !self.journal.is_in_place() {
            self.live.lost();
        }
        let lines = self.live.next(&self.boot, &self.state, supervisor)?;
        let mut how = self.journal.take(&lines);
        if how.is_err() && matches!(lines, Lines::More(_)) {
            // Where there is no room for another line there may be some for a whole.
            self.live.lost();
            let lines = self.live.next(&self.boot, &self.state, supervisor)?;
            how = self.journal.take(&lines);
        }
        if how.is_err() {
            self.live.lost();
        }
        how
    }

    fn save_for_reboot(&mut self, supervisor: &Supervisor) {
        let Some(saver) = &self.saver else {
            return;
        };
        let state = DaemonState {
            ending: self.state.ending,
            foreground: self.state.foreground,
            written: self.state.written,
            ..DaemonState::default()
        };
        match self.saved.next(&self.boot, &state, supervisor) {
            Ok(lines) => saver.save(lines),
            Err(why) => log_error("the state cannot be put into words", why),
        }
    }

    /// Everything is on the disk when this returns, as far as it can be.
    pub fn save_and_wait(&mut self, supervisor: &mut Supervisor, fdstore: &mut FdStore) {
        self.write_whole();
        self.unsaved_for_reboot();
        self.save(supervisor, fdstore);
        if let Some(saver) = &self.saver {
            saver.finish();
        }
    }

    /// The next save is one of the whole state.
    pub fn write_whole(&mut self) {
        self.live.lost();
        self.saved.lost();
    }

    /// Puts a state in another format into the files. The next save replaces it.
    pub fn leave(&mut self, bytes: &[u8]) {
        self.write_whole();
        let how = self.journal.replace(bytes);
        if let Err(why) = how {
            log_error("the state cannot be left to an earlier version", why);
        }
        if let Some(saver) = &self.saver {
            saver.save(Lines::Whole(bytes.to_vec()));
            saver.finish();
        }
    }

    /// Whether the next daemon gets the state from who holds descriptors for it.
    fn keep_state(&self, supervisor: &Supervisor, fdstore: &mut FdStore) -> bool {
        match self.whole(supervisor).and_then(|bytes| in_memory(&bytes)) {
            Ok(memory) => fdstore.keep(STATE.to_owned(), memory),
            Err(why) => {
                log_error("the state cannot be held in memory either", why);
                return false;
            }
        }
        fdstore.outlives_us()
    }

    /// What became of a save for the next boot; whether there has to be another.
    pub fn on_saved(&mut self, how: Saved, path: &Path) -> bool {
        let how = match how {
            Saved::Done => Ok(()),
            Saved::Failed(why) => {
                self.saved.lost();
                Err(why)
            }
            Saved::OutOfPlace => {
                self.saved.lost();
                return true;
            }
        };
        self.note(
            1,
            &format!(
                "cannot write {}, so a reboot would forget changes",
                path.display()
            ),
            how,
        );
        false
    }

    /// Files in /tmp that no process touches are cleaned away (tmpfiles.d(5)), and these are needed as long as
    /// this daemon lives.
    pub fn stay_in_use(&mut self, paths: &Paths) {
        let time = now();
        if self.touched.is_some_and(|last| time.since(last) < TOUCH) {
            return;
        }
        self.touched = Some(time);
        for path in [paths.live_state(), paths.lock(), paths.keeper_lock()] {
            let _ = File::open(path)
                .map(|file| futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW));
        }
    }

    /// The end on purpose: no daemon continues.
    pub fn close(&mut self) {
        if let Err(why) = fs::remove_file(self.journal.path())
            && why.kind() != io::ErrorKind::NotFound
        {
            log_error("the state of this daemon cannot be removed", why);
        }
        self.saver = None;
    }
}
