//! What makes the daemon read the configuration again without a command: SIGHUP.
//!
//! The daemon does not read it. It runs a client of itself, `rsup reread`, which does all that
//! `rsup reload all` does, and whose output goes to the daemon's log. So there is one re-read, and
//! names of users are looked up in a process that ends: NSS modules (nsswitch.conf(5)) may load
//! libraries, ask servers and wait, which the daemon must not do.

mod hangup;

use std::path::PathBuf;
use std::time::Duration;

use tracing::{error, info, warn};

use super::fleet::command::{Command, Commands, Failed, c_strings};
use super::fleet::isolation::Confinement;
use super::{Daemon, upgrade};
use crate::exit::Exit;

/// The verb of the client.
pub const REREAD: &str = "reread";

/// How long the client may wait for the reloads: longer than any deadline that makes sense.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

impl Daemon {
    /// Reads the configuration again and reloads every app that is up.
    pub(super) fn reread(&self) {
        let settings = self.supervisor.settings.as_ref();
        let settings = settings.map(|settings| settings.source.clone());
        let commands = self.fleet.commands.clone();
        tokio::spawn(async move {
            if let Err(why) = client(&commands, settings).await {
                warn!("nothing was reloaded: {why}");
            }
        });
    }
}

/// Runs the client, and logs its output.
async fn client(commands: &Commands, settings: Option<PathBuf>) -> Result<(), String> {
    let settings = settings.map(|path| path.to_string_lossy().into_owned());
    let argv = ["/proc/self/exe", REREAD].into_iter();
    let command = Command {
        argv: c_strings(argv.chain(settings.as_deref()))?,
        env: upgrade::environment(None, &[])?,
        cwd: "/".into(),
        confinement: Confinement::default(),
        extra: Vec::new(),
        limit: LIMIT,
    };
    match commands.run(command, say).await {
        Ok(Exit::Code(0..=2)) => Ok(()),
        Ok(exit) => Err(format!("`rsup {REREAD}` {exit}")),
        Err(Failed::TookTooLong) => Err(format!("`rsup {REREAD}` did not end")),
        Err(Failed::NotRun(why) | Failed::Own(why)) => {
            Err(format!("cannot run rsup itself: {why}"))
        }
    }
}

/// Logs a line of a command as one of the daemon's messages.
fn say(line: &str) {
    if let Some(note) = line.strip_prefix("note: ") {
        info!("{note}");
    } else if let Some(why) = line.strip_prefix("error: ") {
        error!("{why}");
    } else {
        let line = line.strip_prefix("warning: ").unwrap_or(line).trim_end();
        if !line.is_empty() {
            warn!("{line}");
        }
    }
}
