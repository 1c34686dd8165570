//! `rsup reload`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Task;
use crate::config::AppSpec;
use crate::control::Failure;
use crate::core::Request;
use crate::daemon::Daemon;

impl Daemon {
    pub(super) fn reload(
        &self,
        apps: Vec<AppSpec>,
        base_env: Option<BTreeMap<String, String>>,
        queue: bool,
    ) -> Result<Vec<Task>, Failure> {
        self.check_specs(&apps)?;
        let base_env = base_env.map(Arc::new);
        let reload = |spec: AppSpec| {
            let name = spec.name.clone();
            let request = Request::Reload {
                spec: Box::new(spec),
                base_env: base_env.clone(),
                queue,
            };
            Task::begin(name, request)
        };
        Ok(apps.into_iter().map(reload).collect())
    }
}
