//! `rsup restart`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Task;
use crate::config::AppSpec;
use crate::control::Failure;
use crate::core::Request;
use crate::daemon::Daemon;

impl Daemon {
    pub(super) fn restart(
        &self,
        apps: Vec<AppSpec>,
        base_env: Option<BTreeMap<String, String>>,
    ) -> Result<Vec<Task>, Failure> {
        self.check_specs(&apps)?;
        let base_env = base_env.map(Arc::new);
        let restart = |spec: AppSpec| {
            let (name, base_env) = (spec.name.clone(), base_env.clone());
            let spec = Box::new(spec);
            Task::begin(name, Request::Restart { spec, base_env })
        };
        Ok(apps.into_iter().map(restart).collect())
    }
}
