//! Watches for processes that join a port of ours: SO_REUSEPORT lets any process of the same user in,
//! and the kernel may then hand it connections that are meant for our workers.

use std::collections::HashSet;

use tracing::warn;

use super::Network;
use crate::config::AppName;

/// Those that are there now, so that each is reported once.
#[derive(Default)]
pub struct Strangers(HashSet<(AppName, u32)>);

impl Network {
    /// Says which processes are new on a port of ours. `is_worker` knows those of an earlier daemon whose sockets this
    /// one could not take back: they are being replaced.
    pub fn look_for_strangers(&mut self, is_worker: impl Fn(&AppName, u32) -> bool) {
        let mut present = HashSet::new();
        for (app, of_app) in &self.apps {
            for holder in of_app.sockets.joiners() {
                if is_worker(app, holder.pid) {
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
