//! Watches for other processes that join a port of rsup: SO_REUSEPORT admits any process of the
//! same user, and the kernel may then give it connections that are meant for rsup's workers.

use std::collections::HashSet;

use tracing::warn;

use super::Network;
use crate::config::AppName;

/// The other processes that are there now, so that each is reported once.
#[derive(Default)]
pub struct PortConflicts(HashSet<(AppName, u32)>);

impl Network {
    /// Reports processes that are new on a port of rsup. `is_worker` recognises workers of an
    /// earlier daemon whose sockets this one could not take back: they are being replaced.
    pub fn check_port_conflicts(&mut self, is_worker: impl Fn(&AppName, u32) -> bool) {
        let mut present = HashSet::new();
        for (app, of_app) in &self.apps {
            for holder in of_app.sockets.foreign_listeners() {
                if is_worker(app, holder.pid) {
                    continue;
                }
                let key = (app.clone(), holder.pid);
                if !self.port_conflicts.0.contains(&key) {
                    warn!(
                        "{app}: {holder} listens on its port too and may take its connections; stop it, or start it through rsup"
                    );
                }
                present.insert(key);
            }
        }
        self.port_conflicts.0 = present;
    }
}
