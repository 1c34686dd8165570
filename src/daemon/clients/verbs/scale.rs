//! `rsup scale`.

use super::super::unknown;
use super::Task;
use crate::config::{AppName, MOST_INSTANCES, too_many_slots};
use crate::control::{Failure, FailureCode, ScaleTo};
use crate::core::Request;
use crate::daemon::{Daemon, now};

impl Daemon {
    pub(super) fn scale(&self, app: AppName, to: ScaleTo) -> Result<Vec<Task>, Failure> {
        let view = self.supervisor.view(&app, now());
        let view = view.ok_or_else(|| unknown(&app))?;
        let wanted = match to {
            ScaleTo::Exactly(n) => i64::from(n),
            ScaleTo::By(by) => i64::from(view.instances) + i64::from(by),
        };
        let instances = u16::try_from(wanted).ok();
        match instances.filter(|n| (1..=MOST_INSTANCES).contains(n)) {
            Some(instances) => {
                if let Some(mut spec) = self.as_it_runs(&app) {
                    spec.instances = instances;
                    if let Some(too_many) = too_many_slots(&spec) {
                        let why = format!("`{app}`: {}", too_many.message);
                        return Err(Failure::new(FailureCode::BadRequest, why).hint(too_many.hint));
                    }
                    self.fleet.isolation.refuse(&spec)?;
                }
                Ok(vec![Task::begin(app, Request::Scale { instances })])
            }
            None => {
                let why = format!(
                    "`{app}` cannot have {wanted} workers: 1 to {MOST_INSTANCES} are possible"
                );
                let hint = if wanted < 1 {
                    format!("rsup stop {app} stops it")
                } else {
                    format!("rsup scale {app} {MOST_INSTANCES}")
                };
                Err(Failure::new(FailureCode::BadRequest, why).hint(hint))
            }
        }
    }
}
