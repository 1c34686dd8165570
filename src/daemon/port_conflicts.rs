//! Watches for processes that join a port of ours: SO_REUSEPORT lets any process of the same user in,
//! and the kernel may then hand it connections that are meant for our workers.

use std::collections::HashSet;

use tracing::warn;

use super::Daemon;
use crate::config::AppName;

/// Those that are there now, so that each is reported once.
#[derive(Default)]
pub struct Strangers(HashSet<(AppName, u32)>);

impl Daemon {
    pub(super) fn look_for_strangers(&mut self) {
        let mut present = HashSet::new();
        for (app, resources) in &self.apps {
            for holder in resources.sockets.joiners() {
                // One of an earlier daemon, whose sockets this one could not take back; it is being replaced.
                if self
                    .running
                    .values()
                    .any(|running| running.id.app == *app && running.owns(holder.pid))
                {
                    continue;
                }
                let key = (app.clone(), holder.pid);
                if !self.strangers.0.contains(&key) {
                    warn!(
                        "{app}: {holder} listens on its port too and may take its connections; stop it, or start it through rsup"
                    );
                }
                present.insert(key);
            }
        }
        self.strangers.0 = present;
    }
}
