//! `rsup up`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Task;
use crate::config::{AppName, AppSpec};
use crate::control::Failure;
use crate::core::{AppPhase, Request};
use crate::daemon::{Daemon, now};

impl Daemon {
    /// Starts apps that are not up, and reloads those that are, from whatever file they are.
    pub(super) fn up(
        &self,
        apps: Vec<AppSpec>,
        base_env: BTreeMap<String, String>,
        update_env: bool,
        prune: Vec<AppName>,
    ) -> Result<Vec<Task>, Failure> {
        self.check_specs(&apps)?;
        let base_env = Arc::new(base_env);
        let mut tasks = Vec::new();
        for spec in apps {
            let name = spec.name.clone();
            let spec = Box::new(spec);
            let request = match self.supervisor.view(&name, now()).map(|view| view.phase) {
                None | Some(AppPhase::Stopping | AppPhase::Stopped) => Request::Start {
                    spec,
                    base_env: base_env.clone(),
                },
                Some(
                    AppPhase::Starting
                    | AppPhase::Ready
                    | AppPhase::Degraded
                    | AppPhase::Reloading
                    | AppPhase::Errored,
                ) => Request::Reload {
                    spec,
                    base_env: update_env.then(|| base_env.clone()),
                    queue: true,
                },
            };
            tasks.push(Task::begin(name, request));
        }
        let delete = |name| Task::begin(name, Request::Delete);
        tasks.extend(prune.into_iter().map(delete));
        Ok(tasks)
    }
}
