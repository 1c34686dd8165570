//! `[supervisor]` of a file, told to the daemon with the apps of that file.

use std::path::Path;

use super::client::Client;
use super::error::CliError;
use super::render::Output;
use super::targets;
use crate::config::Loaded;
use crate::control::{Reply, Request};
use crate::core::Settings;

/// As the daemon wants it.
pub fn of(file: &Path, loaded: &Loaded) -> Settings {
    // The daemon does not share our working directory.
    let source = crate::cwd::absolute(file).unwrap_or_else(|_| file.to_owned());
    Settings {
        source,
        spec: loaded.config.supervisor.clone(),
    }
}

/// Tells the daemon, and the user what came of it. Apps do not depend on it: what fails is said, no more.
pub fn tell(client: &Client, settings: Settings, out: &Output) -> Result<(), CliError> {
    match client.ask(Request::Supervise { settings })? {
        Reply::Supervised { notes } => notes
            .iter()
            .for_each(|note| out.warning(&format!("warning: {note}\n"))),
        _ => return Err(targets::unexpected()),
    }
    Ok(())
}
