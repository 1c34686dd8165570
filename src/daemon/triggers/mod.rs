//! What makes the daemon read the configuration again though no command came: SIGHUP.
//!
//! The daemon does not read it. It runs a client of itself, `rsup reread`, which does all that
//! `rsup reload all` does, and whose lines go to the daemon's log. So there is one re-read, and
//! names of users are looked up in a process that ends: NSS modules (nsswitch.conf(5)) may load
//! libraries, ask servers and wait, and none of that is for the daemon.

mod hangup;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tracing::{error, info, warn};

use super::{Daemon, probe, spawn as workers, upgrade};
use crate::exit::Exit;
use crate::sys::spawn::{self, Plan};

/// The verb of the client.
pub const REREAD: &str = "reread";

/// How long the client may wait for the reloads: longer than any deadline that makes sense.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

impl Daemon {
    /// Reads the configuration again and reloads every app that is up.
    pub(super) fn reread(&self) {
        let settings = self.supervisor.settings.as_ref();
        let settings = settings.map(|settings| settings.source.clone());
        tokio::spawn(async move {
            if let Err(why) = client(settings).await {
                warn!("nothing was reloaded: {why}");
            }
        });
    }
}

/// Runs the client, and says what it says.
async fn client(settings: Option<PathBuf>) -> Result<(), String> {
    let failed = |why: std::io::Error| format!("cannot run rsup itself: {why}");
    let (ours, theirs) = std::io::pipe().map_err(failed)?;
    let theirs: OwnedFd = theirs.into();
    let settings = settings.map(|path| path.to_string_lossy().into_owned());
    let argv = ["/proc/self/exe", REREAD].into_iter();
    let argv = workers::c_strings(argv.chain(settings.as_deref()))?;
    let mut plan = Plan::new(
        argv,
        "/".into(),
        theirs.try_clone().map_err(failed)?,
        theirs,
    );
    plan.env = upgrade::environment(None, &[])?;
    let child = spawn::spawn(plan).map_err(|why| why.to_string())?;
    // At once: nobody else may take its exit status.
    let end = tokio::spawn(probe::end_of_command(child.pid, child.pidfd, LIMIT));
    workers::executed(child.exec).await?;
    let output = pipe::Receiver::from_owned_fd(ours.into()).map_err(failed)?;
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        say(&line);
    }
    match end.await {
        Ok(Ok(Exit::Code(0..=2))) => Ok(()),
        Ok(Ok(exit)) => Err(format!("`rsup {REREAD}` {exit}")),
        Ok(Err(_)) | Err(_) => Err(format!("`rsup {REREAD}` did not end")),
    }
}

/// A line of a command, as one of the daemon's messages.
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
