//! `rsup signal`: sent at once, without a wait.

use crate::control::{Failure, FailureCode, Target};
use crate::daemon::Daemon;
use crate::exit::signal_name;

impl Daemon {
    pub(in crate::daemon::clients) fn signal_targets(
        &self,
        targets: &[Target],
        signal: i32,
    ) -> Result<Vec<u32>, Failure> {
        let mut all = Vec::new();
        for target in targets {
            let reached = self.signal_target(target, signal)?;
            if reached.is_empty() {
                let why = format!("`{target}` has no running worker");
                return Err(Failure::new(FailureCode::UnknownWorker, why).hint("rsup list"));
            }
            all.extend(reached);
        }
        Ok(all)
    }

    fn signal_target(&self, target: &Target, signal: i32) -> Result<Vec<u32>, Failure> {
        let instance = target.instance();
        let mut reached = Vec::new();
        for app in self.apps_of_one(target)? {
            let workers = self.supervisor.workers(&app);
            for worker in workers.filter(|w| instance.is_none_or(|i| w.instance == i)) {
                let failed = |(pid, why): (u32, std::io::Error)| {
                    let signal = signal_name(signal);
                    let why = format!("cannot send {signal} to pid {pid}: {why}");
                    Failure::new(FailureCode::Internal, why)
                };
                let sent = self.fleet.signal_for_user(&worker.id, signal);
                reached.extend(sent.map_err(failed)?);
            }
        }
        Ok(reached)
    }
}
