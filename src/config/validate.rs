//! A spec from the control socket or the state file may not have been checked by this version of
//! rsup. What the rest of the program relies on is checked again here.

use std::time::Duration;

use super::check::MOST_INSTANCES;
use super::types::{AppSpec, Check, Probe, Surge};
use super::units::YEAR;

impl AppSpec {
    /// Checks that [`super::load`] could have made this spec.
    ///
    /// # Errors
    /// A message that says what is wrong with it.
    pub fn validate(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("`{}` {what}", self.name));
        if self.command.first().is_none_or(String::is_empty) {
            return wrong("has no command");
        }
        if !(1..=MOST_INSTANCES).contains(&self.instances) {
            return wrong(&format!(
                "has {} instances: 1 to {MOST_INSTANCES} are possible",
                self.instances
            ));
        }
        let surge = match self.reload.max_surge {
            Surge::Workers(workers) => (1..=MOST_INSTANCES).contains(&workers),
            Surge::Percent(percent) => (1..=100).contains(&percent),
        };
        if !surge {
            return wrong(&format!(
                "has a max_surge of {}: 1 to {MOST_INSTANCES}, or 1% to 100%, are possible",
                self.reload.max_surge
            ));
        }
        if !(1..=64).contains(&self.stop.signal) {
            return wrong(&format!(
                "is stopped by signal {}, which does not exist",
                self.stop.signal
            ));
        }
        let file = self.socket_file();
        if file.mode.is_some_and(|mode| mode > 0o777)
            || [file.uid, file.gid, file.app_gid].contains(&Some(u32::MAX))
        {
            return wrong("has a socket of a mode or an owner that cannot be");
        }
        let probes = || std::iter::once(&self.readiness).chain(&self.liveness);
        let times = [
            self.listen_timeout,
            self.drain_timeout,
            self.hold_timeout,
            self.kill_timeout,
        ]
        .into_iter();
        let restart = [
            self.restart.min_uptime,
            self.restart.backoff,
            self.restart.backoff_max,
            self.restart.reset_after,
        ];
        let times = times
            .chain(restart)
            .chain([self.reload.min_ready, self.reload.deadline]);
        let times = times.chain(probes().flat_map(|p| [p.interval, p.timeout, p.initial_delay]));
        if times.into_iter().any(|time| time > YEAR) {
            return wrong("has a duration of more than a year");
        }
        if probes().any(|p| !usable(p)) {
            return wrong("has a check that cannot be made");
        }
        Ok(())
    }
}

fn usable(probe: &Probe) -> bool {
    let command = match &probe.check {
        Check::Exec { command } => command.first().is_some_and(|program| !program.is_empty()),
        Check::Http { .. } | Check::Tcp | Check::Notify | Check::Alive => true,
    };
    command
        && probe.success_threshold > 0
        && probe.failure_threshold > 0
        && probe.interval > Duration::ZERO
}
