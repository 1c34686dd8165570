//! The processes of rsup itself: which they are, and their deaths.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Home, is_alive, signal, wait_until};
use crate::support::Life;

pub trait Supervisors {
    /// The keeper of the running daemon.
    fn keeper(&self) -> u32;
    /// Kills the daemon and waits for the next one to answer; how long that took, from the kill.
    fn kill_daemon(&self) -> Duration;
    fn kill_keeper_and_daemon(&self);
    /// Names of what the daemon has open, by what they link to.
    fn descriptors(&self) -> usize;
}

impl Supervisors for Home {
    fn keeper(&self) -> u32 {
        let daemon = self.daemon();
        let keepers = self
            .processes()
            .into_iter()
            .filter(|(_, what)| what.trim_end().ends_with(" keeper"));
        let keepers: Vec<u32> = keepers.map(|(pid, _)| pid).collect();
        assert_eq!(
            keepers.len(),
            1,
            "one keeper for daemon {daemon}: {:?}",
            self.processes()
        );
        keepers[0]
    }

    fn kill_daemon(&self) -> Duration {
        let before = self.daemon();
        let began = Instant::now();
        signal(before, Signal::SIGKILL);
        // Whoever asks now waits for the next one.
        wait_until("the next daemon", || self.daemon() != before);
        began.elapsed()
    }

    fn kill_keeper_and_daemon(&self) {
        let (keeper, daemon) = (self.keeper(), self.daemon());
        // The keeper first, stopped, so that it has no time to start another daemon; and the daemon
        // stopped, so that it has none to make another keeper.
        signal(daemon, Signal::SIGSTOP);
        signal(keeper, Signal::SIGKILL);
        wait_until("the keeper's end", || !is_alive(keeper));
        signal(daemon, Signal::SIGKILL);
        wait_until("the daemon's end", || !is_alive(daemon));
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.daemon()))
            .expect("its descriptors")
            .count()
    }
}
