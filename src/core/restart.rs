//! Restart policy: whether a wanted worker whose process has ended is started again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::types::Time;
use super::view::Exit;
use crate::config::{AppSpec, Restart, RestartPolicy};
use crate::model::{Because, Loss};

/// One wanted worker of a release, by its number. It outlives the processes that fill it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub restarts: u32,
    /// Consecutive exits before `min_uptime`.
    pub(super) unstable: u32,
    /// Restarts since the last quiet period: the exponent of the backoff.
    pub(super) streak: u32,
    pub state: RestartState,
    pub last_slot: Option<u16>,
    /// Its worker had been stable and ended by itself while another release is tried: a rollback
    /// may restart it.
    #[serde(default)]
    pub lost: bool,
    /// Why its last worker ended or was replaced.
    pub reason: Option<Because>,
    /// How its last worker ended that rsup did not stop; `None` if it was given up instead.
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// Whether an instance without a worker gets one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum RestartState {
    /// At once.
    #[default]
    Open,
    Backoff {
        until: Time,
    },
    /// No: given up after `max_restarts`.
    Errored,
    /// No: ended, and by policy not started again.
    Exited,
}

/// How the last worker of an instance ended.
pub struct Ending {
    pub now: Time,
    pub uptime: Duration,
    pub was_ready: bool,
    pub loss: Loss,
}

impl Ending {
    /// `None`: it did not exit, but was given up (not ready in time, not started).
    pub fn exit(&self) -> Option<Exit> {
        match self.loss {
            Loss::Exited { exit, .. } => Some(exit),
            Loss::NotStarted { .. } | Loss::TooSlow { .. } => None,
        }
    }
}

impl Instance {
    /// Records an ending that rsup did not ask for, and decides what follows.
    pub fn ended(&mut self, spec: &AppSpec, ending: Ending, random: &mut fastrand::Rng) {
        let policy = &spec.restart;
        let (exit, loss) = (ending.exit(), ending.loss);
        self.reason = Some(Because::Lost { loss: loss.clone() });
        self.exit = exit;
        if let Some(exit) = exit
            && !wants_restart(spec, exit)
        {
            self.state = RestartState::Exited;
            return;
        }
        if exit.is_none() && policy.policy == RestartPolicy::Never {
            self.state = RestartState::Errored;
            return;
        }
        if ending.was_ready && ending.uptime >= policy.reset_after {
            self.streak = 0;
        }
        if ending.was_ready && ending.uptime >= policy.min_uptime {
            self.unstable = 0;
        } else {
            self.unstable = self.unstable.saturating_add(1);
        }
        if self.unstable > policy.max_restarts {
            self.state = RestartState::Errored;
            self.reason = Some(Because::GivenUp {
                loss,
                restarts: policy.max_restarts,
            });
            return;
        }
        let delay = delay(policy, self.streak, random);
        self.streak = self.streak.saturating_add(1);
        self.restarts = self.restarts.saturating_add(1);
        self.state = if delay.is_zero() {
            RestartState::Open
        } else {
            RestartState::Backoff {
                until: ending.now + delay,
            }
        };
    }

    /// Resets the counts: a command asks for a start or a reload.
    pub fn reopen(&mut self) {
        self.state = RestartState::Open;
        self.unstable = 0;
        self.streak = 0;
        self.lost = false;
    }
}

/// Whether the exit counts as success: the app has done its work.
pub fn is_success(spec: &AppSpec, exit: Exit) -> bool {
    match exit {
        Exit::Code(code) => code == 0 || spec.stop.exit_codes.contains(&code),
        Exit::Signal { .. } | Exit::OutOfMemory | Exit::Starved { .. } | Exit::Unknown => false,
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

/// The delay before a restart: none for the first after quiet; then doubling, reduced at random by
/// up to a quarter, so that workers which crashed together do not restart together.
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

    /// A worker that was ready ends after `uptime`; returns the delay before the next start, if
    /// there is one.
    fn crash(instance: &mut Instance, spec: &AppSpec, uptime: u64) -> Option<Duration> {
        end(instance, spec, uptime, Some(Exit::Code(1)))
    }

    fn end(
        instance: &mut Instance,
        spec: &AppSpec,
        uptime: u64,
        exit: Option<Exit>,
    ) -> Option<Duration> {
        let now = Time(ms(1000));
        let loss = match exit {
            Some(exit) => Loss::Exited {
                exit,
                uptime_ms: uptime,
                ready: true,
                background: None,
            },
            None => Loss::NotStarted {
                why: "no such file".into(),
            },
        };
        let ending = Ending {
            now,
            uptime: ms(uptime),
            was_ready: true,
            loss,
        };
        instance.ended(spec, ending, &mut fastrand::Rng::with_seed(1));
        match instance.state {
            RestartState::Open => Some(Duration::ZERO),
            RestartState::Backoff { until } => Some(until.since(now)),
            RestartState::Errored | RestartState::Exited => None,
        }
    }

    fn within(delay: Option<Duration>, doubled: u64) -> bool {
        delay.is_some_and(|d| d >= ms(doubled * 3 / 4) && d <= ms(doubled))
    }

    #[test]
    fn the_first_crash_after_quiet_restarts_at_once_and_then_the_delay_doubles() {
        let (mut instance, spec) = (Instance::default(), web(1));
        assert_eq!(crash(&mut instance, &spec, 5000), Some(Duration::ZERO));
        for doubled in [100, 200, 400, 800, 1600, 2000, 2000] {
            let delay = crash(&mut instance, &spec, 5000);
            assert!(within(delay, doubled), "{delay:?} for {doubled}");
        }
        assert_eq!(
            crash(&mut instance, &spec, 10_000),
            Some(Duration::ZERO),
            "reset_after has passed"
        );
        assert_eq!(instance.restarts, 9);
    }

    #[test]
    fn too_many_early_exits_in_a_row_are_an_error_with_its_reason() {
        let (mut instance, spec) = (Instance::default(), web(1));
        for _ in 0..3 {
            assert!(crash(&mut instance, &spec, 10).is_some());
        }
        assert_eq!(crash(&mut instance, &spec, 10), None);
        assert_eq!(instance.state, RestartState::Errored);
        assert!(
            matches!(instance.reason, Some(Because::GivenUp { restarts: 3, .. })),
            "{:?}",
            instance.reason
        );
        instance.reopen();
        assert!(crash(&mut instance, &spec, 10).is_some());
    }

    #[test]
    fn a_steady_run_between_early_exits_starts_the_count_again() {
        let (mut instance, spec) = (Instance::default(), web(1));
        for _ in 0..5 {
            assert!(crash(&mut instance, &spec, 10).is_some());
            assert!(crash(&mut instance, &spec, 10).is_some());
            assert!(crash(&mut instance, &spec, 1000).is_some());
        }
    }

    #[test]
    fn the_policy_and_the_exit_code_decide_whether_it_comes_back() {
        let mut spec = web(1);
        spec.stop.exit_codes.insert(42);
        let mut holds = |policy, exit| {
            spec.restart.policy = policy;
            let mut instance = Instance::default();
            end(&mut instance, &spec, 5000, exit);
            instance.state
        };
        let code = |code| Some(Exit::Code(code));
        assert_eq!(holds(RestartPolicy::Always, code(0)), RestartState::Open);
        assert_eq!(holds(RestartPolicy::Always, code(42)), RestartState::Exited);
        assert_eq!(
            holds(RestartPolicy::OnFailure, code(0)),
            RestartState::Exited
        );
        assert_eq!(holds(RestartPolicy::OnFailure, code(1)), RestartState::Open);
        assert_eq!(
            holds(
                RestartPolicy::OnFailure,
                Some(Exit::Signal {
                    signal: 11,
                    core_dumped: true
                })
            ),
            RestartState::Open
        );
        assert_eq!(holds(RestartPolicy::Never, code(1)), RestartState::Exited);
        assert_eq!(
            holds(RestartPolicy::Never, None),
            RestartState::Errored,
            "it was given up, it did not end"
        );
    }
}
