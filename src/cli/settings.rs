//! `[supervisor]` of a file, which goes to the daemon with the apps of that file.

use std::path::Path;

use crate::config::Loaded;
use crate::core::Settings;

/// The settings in the form that the daemon takes.
pub fn of(file: &Path, loaded: &Loaded) -> Settings {
    // The daemon does not share our working directory.
    let source = crate::cwd::absolute(file).unwrap_or_else(|_| file.to_owned());
    Settings {
        source,
        spec: loaded.config.supervisor.clone(),
    }
}
