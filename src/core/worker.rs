//! One worker: its state, its probes, and what a probe's result changes.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hiding::{self, Port};
use super::io::Purpose;
use super::types::{Time, WorkerId};
use super::view::WorkerPhase;
use crate::config::{AppSpec, Check, Listen, Probe};
use crate::model::{Doubt, Retire};

/// The readiness of a ready worker is checked this often, or at the probe's own interval if that is
/// longer (Kubernetes' default period).
const READY_INTERVAL: Duration = Duration::from_secs(10);

/// The pause before the next readiness check of a worker that was not ready `uptime` after its
/// start: a share of that time, so that readiness is noticed soon, however long the start takes; at
/// least 10 ms, at most `interval`.
fn pause_while_starting(uptime: Duration, interval: Duration) -> Duration {
    (uptime / 32).max(Duration::from_millis(10)).min(interval)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    pub id: WorkerId,
    /// The number that users see; unique among the workers of its release that stay.
    pub instance: u16,
    /// The number of its revision.
    pub revision: u64,
    pub pid: Option<u32>,
    pub started: Time,
    pub state: State,
    /// Why it is replaced by another worker of its release, or removed.
    pub retiring: Option<Retire>,
    /// Resident bytes with descendants, at the last reading.
    pub memory: Option<u64>,
    /// Consecutive readings above `max_memory`.
    pub over_limit: u8,
    /// The last failure of its probes, while it matters.
    pub doubt: Option<Doubt>,
    #[serde(default)]
    pub port: Port,
}

/// What each input makes of each state is a table, which a test holds:
/// `sim/snapshots/rsup__core__sim__transitions__the_table_of_states_and_inputs.snap`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// exec is not yet confirmed.
    Spawning {
        deadline: Time,
        /// fork(2) is requested, and not made yet: until then the deadline does not count.
        #[serde(default)]
        waits: bool,
    },
    Starting {
        deadline: Time,
        readiness: Clock,
    },
    Ready {
        since: Time,
        unready: bool,
        readiness: Clock,
        liveness: Clock,
    },
    /// Out of the traffic until its accept queue is empty. It can still return.
    Draining {
        until: Time,
        /// When it became ready.
        #[serde(default)]
        since: Time,
    },
    /// `told`: the daemon was asked to send the stop signal. No worker gets it twice.
    Stopping {
        kill_at: Time,
        told: bool,
    },
    Killing {
        since: Time,
    },
    /// The process is gone, descendants of it are not. They are killed at `kill_at`, and
    /// repeatedly: one may have been forked while the others were looked for.
    Sweeping {
        kill_at: Time,
        killed: bool,
    },
}

/// The schedule of one kind of probe, and its streak of equal results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    pub next: Next,
    successes: u32,
    failures: u32,
    /// A failure of the check under way does not count: its time passed while nothing ran.
    #[serde(default)]
    doubtful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    Never,
    At(Time),
    UnderWay,
}

impl Clock {
    pub fn never() -> Self {
        Self {
            next: Next::Never,
            successes: 0,
            failures: 0,
            doubtful: false,
        }
    }

    pub fn at(time: Time) -> Self {
        Self {
            next: Next::At(time),
            successes: 0,
            failures: 0,
            doubtful: false,
        }
    }

    /// The daemon that ran the probe is gone: the probe is due now.
    pub fn again(&mut self, now: Time) {
        if self.next == Next::UnderWay {
            self.next = Next::At(now);
        }
    }

    /// True once when the probe is due; it then counts as under way.
    pub fn due(&mut self, now: Time) -> bool {
        match self.next {
            Next::At(at) if at <= now => {
                self.next = Next::UnderWay;
                self.doubtful = false;
                true
            }
            Next::At(_) | Next::Never | Next::UnderWay => false,
        }
    }

    pub fn wakes(&self) -> Option<Time> {
        match self.next {
            Next::At(at) => Some(at),
            Next::Never | Next::UnderWay => None,
        }
    }

    /// Makes a failure of the check under way, if there is one, not count.
    fn doubt(&mut self) -> bool {
        self.doubtful = self.next == Next::UnderWay;
        self.doubtful
    }

    /// The check under way could not be made: schedules another one.
    fn again_at(&mut self, next: Time) {
        if self.next == Next::UnderWay {
            self.next = Next::At(next);
        }
    }

    /// Counts a result and schedules the next check; returns the streak. `None` if no result is
    /// awaited.
    pub fn count(&mut self, ok: bool, next: Time) -> Option<u32> {
        match self.next {
            Next::UnderWay => self.next = Next::At(next),
            Next::Never | Next::At(_) => return None,
        }
        if std::mem::take(&mut self.doubtful) && !ok {
            return None;
        }
        let (streak, other) = if ok {
            (&mut self.successes, &mut self.failures)
        } else {
            (&mut self.failures, &mut self.successes)
        };
        *other = 0;
        *streak = streak.saturating_add(1);
        Some(*streak)
    }
}

/// What a probe's result changes.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeOutcome {
    Nothing,
    BecameReady,
    /// Readiness is lost or regained.
    Traffic,
    /// Liveness failed often enough.
    Unhealthy,
    /// No check was awaited.
    Stale,
}

impl Worker {
    /// Whether it stays as long as its release does.
    pub fn stays(&self) -> bool {
        self.retiring.is_none()
    }

    /// Whether the daemon lacks its listening sockets: nothing can be steered to it.
    pub fn is_out_of_reach(&self) -> bool {
        self.retiring == Some(Retire::OutOfReach)
    }

    /// Whether its liveness check has failed for good: it accepts nothing any more.
    pub fn is_hung(&self) -> bool {
        matches!(self.retiring, Some(Retire::Liveness { .. }))
    }

    /// Whether its calls of `connect(2)` wait for an answer of the daemon.
    pub fn hides_port(&self) -> bool {
        self.port.hidden
    }

    /// Whether a connection to `target`, an address of this machine, goes to a port that is hidden
    /// from the worker and that it has not bound yet.
    pub fn is_hidden(&self, spec: &AppSpec, target: SocketAddr) -> bool {
        let coming = matches!(self.state, State::Spawning { .. } | State::Starting { .. });
        let mut listens = spec.listen.iter().filter_map(Listen::tcp);
        coming
            && self.port.hidden
            && !self.port.bound.contains(&target.port())
            && listens
                .any(|ours| ours.port() == target.port() && hiding::reaches(target.ip(), ours.ip()))
    }

    /// Whether it is neither leaving nor gone.
    pub fn active(&self) -> bool {
        match self.state {
            State::Spawning { .. } | State::Starting { .. } | State::Ready { .. } => true,
            State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Sweeping { .. } => false,
        }
    }

    pub fn ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    pub fn phase(&self) -> WorkerPhase {
        match self.state {
            State::Spawning { .. } => WorkerPhase::Spawning,
            State::Starting { .. } => WorkerPhase::Starting,
            State::Ready { unready: false, .. } => WorkerPhase::Ready,
            State::Ready { unready: true, .. } => WorkerPhase::Unready,
            State::Draining { .. } => WorkerPhase::Draining,
            State::Stopping { .. } | State::Sweeping { killed: false, .. } => WorkerPhase::Stopping,
            State::Killing { .. } | State::Sweeping { killed: true, .. } => WorkerPhase::Killing,
        }
    }

    /// exec has happened: from now on readiness is probed, until the same deadline. False if that
    /// was known.
    pub fn running(&mut self, spec: &AppSpec, pid: u32, now: Time) -> bool {
        match self.state {
            State::Sweeping { .. } => return false,
            State::Spawning { .. }
            | State::Starting { .. }
            | State::Ready { .. }
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. } => {}
        }
        let news = self.pid.replace(pid).is_none();
        self.forked(spec, now);
        let State::Spawning { deadline, .. } = self.state else {
            return news;
        };
        let readiness = match &spec.readiness.check {
            Check::Http { .. } | Check::Tcp | Check::Exec { .. } => {
                Clock::at(now + spec.readiness.initial_delay)
            }
            Check::Alive => Clock::at(now + spec.restart.min_uptime),
            Check::Notify => Clock::never(),
        };
        self.state = State::Starting {
            deadline,
            readiness,
        };
        news
    }

    /// Its process is there: from now on its time counts.
    pub fn forked(&mut self, spec: &AppSpec, now: Time) {
        if let State::Spawning {
            deadline,
            waits: waits @ true,
        } = &mut self.state
        {
            *waits = false;
            *deadline = now + spec.listen_timeout;
            self.started = now;
        }
    }

    pub fn become_ready(&mut self, spec: &AppSpec, now: Time) {
        // With the `alive` check, time counts from the start.
        let since = match &spec.readiness.check {
            Check::Alive => self.started,
            Check::Http { .. } | Check::Tcp | Check::Exec { .. } | Check::Notify => now,
        };
        self.be_ready(spec, since, now);
    }

    /// Returns it to the traffic, if it has no stop signal yet. False if it has, or was not
    /// leaving.
    pub fn return_to_traffic(&mut self, spec: &AppSpec, now: Time) -> bool {
        let State::Draining { since, .. } = self.state else {
            return false;
        };
        self.be_ready(spec, since, now);
        true
    }

    fn be_ready(&mut self, spec: &AppSpec, since: Time, now: Time) {
        let again = spec.readiness.interval.max(READY_INTERVAL);
        let readiness = match &spec.readiness.check {
            Check::Http { .. } => Clock::at(now + again),
            Check::Tcp | Check::Exec { .. } | Check::Alive | Check::Notify => Clock::never(),
        };
        let liveness = match &spec.liveness {
            Some(probe) => {
                Clock::at((self.started + probe.initial_delay).max(now + probe.interval))
            }
            None => Clock::never(),
        };
        self.state = State::Ready {
            since,
            unready: false,
            readiness,
            liveness,
        };
    }

    pub fn readiness_result(&mut self, spec: &AppSpec, ok: bool, now: Time) -> ProbeOutcome {
        let probe = &spec.readiness;
        match &mut self.state {
            State::Starting { readiness, .. } => {
                let pause = if ok {
                    probe.interval
                } else {
                    pause_while_starting(now.since(self.started), probe.interval)
                };
                let Some(streak) = readiness.count(ok, now + pause) else {
                    return ProbeOutcome::Stale;
                };
                if ok && streak >= probe.success_threshold {
                    self.become_ready(spec, now);
                    return ProbeOutcome::BecameReady;
                }
                ProbeOutcome::Nothing
            }
            State::Ready {
                unready, readiness, ..
            } => {
                let quick = probe.interval;
                let slow = probe.interval.max(READY_INTERVAL);
                let next = now + if ok && !*unready { slow } else { quick };
                let Some(streak) = readiness.count(ok, next) else {
                    return ProbeOutcome::Stale;
                };
                let lost = !ok && !*unready && streak >= probe.failure_threshold;
                let regained = ok && *unready && streak >= probe.success_threshold;
                if lost || regained {
                    *unready = lost;
                    return ProbeOutcome::Traffic;
                }
                ProbeOutcome::Nothing
            }
            State::Spawning { .. }
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Sweeping { .. } => ProbeOutcome::Stale,
        }
    }

    pub fn liveness_result(&mut self, spec: &AppSpec, ok: bool, now: Time) -> ProbeOutcome {
        let Some(Probe {
            interval,
            failure_threshold,
            ..
        }) = spec.liveness
        else {
            return ProbeOutcome::Stale;
        };
        let State::Ready {
            unready,
            readiness,
            liveness,
            ..
        } = &mut self.state
        else {
            return ProbeOutcome::Stale;
        };
        let Some(streak) = liveness.count(ok, now + interval) else {
            return ProbeOutcome::Stale;
        };
        if ok || streak < failure_threshold {
            return ProbeOutcome::Nothing;
        }
        // It takes no more traffic, whatever its readiness check finds from now on.
        *unready = true;
        *readiness = Clock::never();
        *liveness = Clock::never();
        ProbeOutcome::Unhealthy
    }

    /// The check under way could not be made. False if none was awaited.
    pub fn not_probed(&mut self, spec: &AppSpec, purpose: Purpose, now: Time) -> bool {
        let (clock, probe) = match (&mut self.state, purpose, &spec.liveness) {
            (
                State::Starting { readiness, .. } | State::Ready { readiness, .. },
                Purpose::Readiness,
                _,
            ) => (readiness, &spec.readiness),
            (State::Ready { liveness, .. }, Purpose::Liveness, Some(probe)) => (liveness, probe),
            (
                State::Spawning { .. }
                | State::Starting { .. }
                | State::Ready { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Sweeping { .. },
                Purpose::Readiness | Purpose::Liveness,
                _,
            ) => return false,
        };
        let awaited = clock.next == Next::UnderWay;
        clock.again_at(now + probe.interval);
        awaited
    }

    /// The deadline of its present state.
    pub fn deadline(&self) -> Option<Time> {
        match self.state {
            State::Spawning { waits: true, .. } => None,
            State::Spawning { deadline, .. } | State::Starting { deadline, .. } => Some(deadline),
            State::Draining { until, .. } => Some(until),
            State::Stopping { kill_at, .. } | State::Sweeping { kill_at, .. } => Some(kill_at),
            State::Ready { .. } | State::Killing { .. } => None,
        }
    }

    /// Nothing ran for `gap` from `seen` on, maybe not the worker either. True if that changes
    /// anything.
    pub fn stood_still(&mut self, spec: &AppSpec, seen: Time, gap: Duration) -> bool {
        let min_ready = spec.reload.min_ready;
        match &mut self.state {
            State::Spawning { waits: true, .. } => return false,
            State::Spawning { deadline, .. } => *deadline = *deadline + gap,
            State::Starting {
                deadline,
                readiness,
            } => {
                *deadline = *deadline + gap;
                readiness.doubt();
            }
            State::Ready {
                since,
                readiness,
                liveness,
                ..
            } => {
                if *since + min_ready > seen {
                    *since = *since + gap;
                }
                return readiness.doubt() | liveness.doubt();
            }
            State::Draining { until, .. } => *until = *until + gap,
            State::Stopping { kill_at, .. } | State::Sweeping { kill_at, .. } => {
                *kill_at = *kill_at + gap
            }
            State::Killing { .. } => return false,
        }
        true
    }

    /// The earliest time at which something is due that was not due at the last tick.
    pub fn wakes(&self, spec: &AppSpec, ticked: Time) -> Option<Time> {
        match &self.state {
            State::Spawning { waits: true, .. } => None,
            State::Spawning { deadline, .. } => Some(*deadline),
            State::Starting {
                deadline,
                readiness,
            } => [Some(*deadline), readiness.wakes(), self.port.look]
                .into_iter()
                .flatten()
                .min(),
            State::Ready {
                since,
                readiness,
                liveness,
                ..
            } => {
                let available = Some(*since + spec.reload.min_ready).filter(|at| *at > ticked);
                [readiness.wakes(), liveness.wakes(), available]
                    .into_iter()
                    .flatten()
                    .min()
            }
            State::Draining { until, .. } => Some(*until),
            State::Stopping { kill_at, .. } | State::Sweeping { kill_at, .. } => Some(*kill_at),
            State::Killing { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_starts_is_tried_often_at_first_and_at_its_interval_later() {
        let ms = Duration::from_millis;
        let interval = ms(250);
        assert_eq!(pause_while_starting(ms(0), interval), ms(10));
        assert_eq!(pause_while_starting(ms(640), interval), ms(20));
        assert_eq!(pause_while_starting(ms(60_000), interval), interval);
        assert_eq!(pause_while_starting(ms(60_000), ms(5)), ms(5));
        // Noticed within a thirtieth of the start time, with less than 150 checks until the
        // interval is reached.
        let (mut uptime, mut tries) = (ms(0), 0);
        while pause_while_starting(uptime, interval) < interval {
            uptime += pause_while_starting(uptime, interval);
            tries += 1;
        }
        assert!(uptime < ms(8_250) && tries < 150, "{uptime:?} {tries}");
    }
}
