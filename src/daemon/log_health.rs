//! Log files that cannot be written: logged when it begins and when it ends, and shown by queries
//! meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::logs::Event;

/// By file: why it cannot be written.
#[derive(Default)]
pub struct Troubles(BTreeMap<PathBuf, String>);

impl Troubles {
    /// Handles an event of the log pump.
    pub fn note(&mut self, event: Event) {
        match event {
            Event::Failed { path, error } => {
                warn!(
                    "{} cannot be written: {error}; its app goes on, and the lines that are lost are counted",
                    path.display()
                );
                self.0.insert(path, error);
            }
            Event::Recovered {
                path,
                lost_bytes,
                lost_lines,
            } => {
                info!(
                    "{} can be written again; {lost_lines} lines ({lost_bytes} bytes) were lost",
                    path.display()
                );
                self.0.remove(&path);
            }
            Event::Closed {
                path,
                lost_bytes,
                lost_lines,
            } => {
                let path_shown = path.display();
                warn!(
                    "{path_shown} is closed before it could be written again; {lost_lines} lines ({lost_bytes} bytes) were lost"
                );
                self.0.remove(&path);
            }
            Event::Untidy { path, error } => warn!("{}: {error}; nothing is lost", path.display()),
            Event::BadPipe {
                source,
                stream,
                error,
            } => {
                warn!(
                    "{}:{}: what it writes to std{} cannot be read any more: {error}",
                    source.app,
                    source.instance,
                    stream.name()
                );
            }
        }
    }

    /// The present problems of these files.
    pub fn of<'a>(&'a self, files: &'a [&Path]) -> impl Iterator<Item = String> + 'a {
        let wrong = |file: &&Path| {
            let error = self.0.get(*file)?;
            Some(format!(
                "its log {} cannot be written: {error}; lines are being lost",
                file.display()
            ))
        };
        files.iter().filter_map(wrong)
    }
}
