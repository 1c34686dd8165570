//! Restart policy: what becomes of a wanted worker whose process has ended.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::types::{Revision, Time};
use super::view::Exit;
use crate::config::{AppSpec, Restart, RestartPolicy};

/// The place of one wanted worker, by instance number. It outlives the workers that fill it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seat {
    pub restarts: u32,
    /// Consecutive exits before `min_uptime`.
    unstable: u32,
    /// Restarts since the last quiet period: the exponent of the backoff.
    streak: u32,
    pub hold: Hold,
    pub last_slot: Option<u16>,
    /// What its old worker ran, which ended by itself while a reload tries its replacement.
    pub bereft_of: Option<Arc<Revision>>,
    /// Why its last worker ended or was replaced.
    pub reason: Option<String>,
}

/// Why a seat is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Hold {
    /// It is to be filled at once.
    #[default]
    Open,
    Backoff { until: Time },
    /// Given up after `max_restarts`.
    Errored,
    /// Ended, and by policy not started again.
    Exited,
}

/// How the last worker of a seat ended.
pub struct Ending<'a> {
    pub now: Time,
    pub uptime: Duration,
    pub was_ready: bool,
    /// `None`: it did not exit, but was given up (not ready in time, not started).
    pub exit: Option<Exit>,
    pub reason: &'a str,
}

impl Seat {
    /// Books an ending that nobody asked for and decides what follows.
    pub fn ended(&mut self, spec: &AppSpec, ending: Ending<'_>, random: &mut fastrand::Rng) {
        let policy = &spec.restart;
        self.reason = Some(ending.reason.to_owned());
        if let Some(exit) = ending.exit
            && !wants_restart(spec, exit)
        {
            self.hold = Hold::Exited;
            return;
        }
        if ending.exit.is_none() && policy.policy == RestartPolicy::Never {
            self.hold = Hold::Errored;
            return;
        }
        if ending.was_ready && ending.uptime >= policy.reset_after {
            self.streak = 0;
        }
        if ending.was_ready && ending.uptime >= policy.min_uptime { self.unstable = 0 } else { self.unstable += 1 }
        if self.unstable > policy.max_restarts {
            self.hold = Hold::Errored;
            self.reason = Some(format!("{}; given up after {} restarts", ending.reason, policy.max_restarts));
            return;
        }
        let delay = delay(policy, self.streak, random);
        self.streak = self.streak.saturating_add(1);
        self.restarts = self.restarts.saturating_add(1);
        self.hold = if delay.is_zero() { Hold::Open } else { Hold::Backoff { until: ending.now + delay } };
    }

    /// A clean sheet: the user asked for a start or a reload.
    pub fn reopen(&mut self) {
        self.hold = Hold::Open;
        self.unstable = 0;
        self.streak = 0;
        self.bereft_of = None;
    }
}

fn wants_restart(spec: &AppSpec, exit: Exit) -> bool {
    let stops = matches!(exit, Exit::Code(code) if spec.stop.exit_codes.contains(&code));
    match spec.restart.policy {
        _ if stops => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit != Exit::Code(0),
        RestartPolicy::Never => false,
    }
}

/// None for the first restart after quiet; then doubling, up to a quarter less by chance so that
/// workers which fell together do not rise together.
fn delay(policy: &Restart, streak: u32, random: &mut fastrand::Rng) -> Duration {
    if streak == 0 {
        return Duration::ZERO;
    }
    let doubled = policy.backoff.saturating_mul(1u32.checked_shl(streak - 1).unwrap_or(u32::MAX));
    doubled.min(policy.backoff_max).mul_f64(1.0 - random.f64() / 4.0)
}
