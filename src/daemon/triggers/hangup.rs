//! SIGHUP without a terminal.

use tracing::info;

use crate::daemon::Daemon;

impl Daemon {
    /// Does what `rsup reload all` does.
    pub(in crate::daemon) fn on_hangup(&self) {
        info!("told to reload: reading the configuration again");
        self.reread();
    }
}
