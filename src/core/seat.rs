//! Restart policy: what becomes of a wanted worker whose process has ended.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::types::{Revision, Time};
use super::view::Exit;
use crate::config::{AppSpec, Restart, RestartPolicy};

/// The place of one wanted worker, by instance number. It outlives the workers that fill it. `R` is a
/// revision; written down, its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seat<R = Arc<Revision>> {
    pub restarts: u32,
    /// Consecutive exits before `min_uptime`.
    pub(super) unstable: u32,
    /// Restarts since the last quiet period: the exponent of the backoff.
    pub(super) streak: u32,
    pub hold: Hold,
    pub last_slot: Option<u16>,
    /// What its old worker ran, which ended by itself while a reload tries its replacement.
    pub bereft_of: Option<R>,
    /// Why its last worker ended or was replaced.
    pub reason: Option<String>,
    /// How its last worker ended that nobody had told to; `None` if it was given up instead.
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// Why a seat is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Hold {
    /// It is to be filled at once.
    #[default]
    Open,
    Backoff {
        until: Time,
    },
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

impl<R> Default for Seat<R> {
    fn default() -> Self {
        Self {
            restarts: 0,
            unstable: 0,
            streak: 0,
            hold: Hold::Open,
            last_slot: None,
            bereft_of: None,
            reason: None,
            exit: None,
        }
    }
}

impl Seat {
    /// Books an ending that nobody asked for and decides what follows.
    pub fn ended(&mut self, spec: &AppSpec, ending: Ending<'_>, random: &mut fastrand::Rng) {
        let policy = &spec.restart;
        self.reason = Some(ending.reason.to_owned());
        self.exit = ending.exit;
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
        if ending.was_ready && ending.uptime >= policy.min_uptime {
            self.unstable = 0
        } else {
            self.unstable = self.unstable.saturating_add(1)
        }
        if self.unstable > policy.max_restarts {
            self.hold = Hold::Errored;
            self.reason = Some(format!(
                "{}; given up after {} restarts",
                ending.reason, policy.max_restarts
            ));
            return;
        }
        let delay = delay(policy, self.streak, random);
        self.streak = self.streak.saturating_add(1);
        self.restarts = self.restarts.saturating_add(1);
        self.hold = if delay.is_zero() {
            Hold::Open
        } else {
            Hold::Backoff {
                until: ending.now + delay,
            }
        };
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
    let doubled = policy
        .backoff
        .saturating_mul(1u32.checked_shl(streak - 1).unwrap_or(u32::MAX));
    doubled
        .min(policy.backoff_max)
        .mul_f64(1.0 - random.f64() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::super::sim::{ms, web};
    use super::*;

    /// A worker that was ready ends after `uptime`; the delay before the next, if there is one.
    fn crash(seat: &mut Seat, spec: &AppSpec, uptime: u64) -> Option<Duration> {
        end(seat, spec, uptime, Some(Exit::Code(1)))
    }

    fn end(seat: &mut Seat, spec: &AppSpec, uptime: u64, exit: Option<Exit>) -> Option<Duration> {
        let now = Time(ms(1000));
        let ending = Ending {
            now,
            uptime: ms(uptime),
            was_ready: true,
            exit,
            reason: "it ended",
        };
        seat.ended(spec, ending, &mut fastrand::Rng::with_seed(1));
        match seat.hold {
            Hold::Open => Some(Duration::ZERO),
            Hold::Backoff { until } => Some(until.since(now)),
            Hold::Errored | Hold::Exited => None,
        }
    }

    fn within(delay: Option<Duration>, doubled: u64) -> bool {
        delay.is_some_and(|d| d >= ms(doubled * 3 / 4) && d <= ms(doubled))
    }

    #[test]
    fn the_first_crash_after_quiet_restarts_at_once_and_then_the_delay_doubles() {
        let (mut seat, spec) = (Seat::default(), web(1));
        assert_eq!(crash(&mut seat, &spec, 5000), Some(Duration::ZERO));
        for doubled in [100, 200, 400, 800, 1600, 2000, 2000] {
            let delay = crash(&mut seat, &spec, 5000);
            assert!(within(delay, doubled), "{delay:?} for {doubled}");
        }
        assert_eq!(
            crash(&mut seat, &spec, 10_000),
            Some(Duration::ZERO),
            "reset_after has passed"
        );
        assert_eq!(seat.restarts, 9);
    }

    #[test]
    fn too_many_early_exits_in_a_row_are_an_error_with_its_reason() {
        let (mut seat, spec) = (Seat::default(), web(1));
        for _ in 0..3 {
            assert!(crash(&mut seat, &spec, 10).is_some());
        }
        assert_eq!(crash(&mut seat, &spec, 10), None);
        assert_eq!(
            (seat.hold.clone(), seat.reason.as_deref()),
            (Hold::Errored, Some("it ended; given up after 3 restarts"))
        );
        seat.reopen();
        assert!(crash(&mut seat, &spec, 10).is_some());
    }

    #[test]
    fn a_steady_run_between_early_exits_starts_the_count_again() {
        let (mut seat, spec) = (Seat::default(), web(1));
        for _ in 0..5 {
            assert!(crash(&mut seat, &spec, 10).is_some());
            assert!(crash(&mut seat, &spec, 10).is_some());
            assert!(crash(&mut seat, &spec, 1000).is_some());
        }
    }

    #[test]
    fn the_policy_and_the_exit_code_decide_whether_it_comes_back() {
        let mut spec = web(1);
        spec.stop.exit_codes.insert(42);
        let mut holds = |policy, exit| {
            spec.restart.policy = policy;
            let mut seat = Seat::default();
            end(&mut seat, &spec, 5000, exit);
            seat.hold
        };
        let code = |code| Some(Exit::Code(code));
        assert_eq!(holds(RestartPolicy::Always, code(0)), Hold::Open);
        assert_eq!(holds(RestartPolicy::Always, code(42)), Hold::Exited);
        assert_eq!(holds(RestartPolicy::OnFailure, code(0)), Hold::Exited);
        assert_eq!(holds(RestartPolicy::OnFailure, code(1)), Hold::Open);
        assert_eq!(
            holds(
                RestartPolicy::OnFailure,
                Some(Exit::Signal {
                    signal: 11,
                    core_dumped: true
                })
            ),
            Hold::Open
        );
        assert_eq!(holds(RestartPolicy::Never, code(1)), Hold::Exited);
        assert_eq!(
            holds(RestartPolicy::Never, None),
            Hold::Errored,
            "it was given up, it did not end"
        );
    }
}
