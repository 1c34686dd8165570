//! What one of the files says, and what the next save has to write there.

use std::io;

use super::journal::{Growth, Lines};
use super::record::{self, DaemonState, OnFile, Touched};
use crate::core::Supervisor;

/// What one of the files says, and what it does not say yet.
#[derive(Default)]
pub struct Track {
    /// None: it has to be written anew as a whole.
    on_file: Option<OnFile>,
    pub(super) growth: Growth,
    pub(super) touched: Touched,
}

impl Track {
    /// The next save. It counts as written.
    ///
    /// # Errors
    /// None is known: everything in it can be written as JSON.
    pub fn next(
        &mut self,
        boot: &str,
        daemon: &DaemonState,
        supervisor: &Supervisor,
    ) -> io::Result<Lines> {
        let mut touched = std::mem::take(&mut self.touched);
        let on_file = self.on_file.take().filter(|_| !self.growth.is_due());
        let (mut on_file, mut lines, is_whole) = match on_file {
            Some(on_file) => (on_file, Vec::new(), false),
            None => {
                touched.apps.extend(supervisor.names().cloned());
                touched.generations.extend(daemon.processes.keys());
                (OnFile::default(), record::head(boot)?, true)
            }
        };
        let line = on_file.line(daemon, supervisor, &touched);
        lines.extend(record::in_one_line(&line)?);
        // The writer knows what a reader will.
        on_file.apply(line).map_err(io::Error::other)?;
        self.on_file = Some(on_file);
        Ok(if is_whole {
            self.growth.replaced(&lines);
            Lines::Whole(lines)
        } else {
            self.growth.appended(&lines);
            Lines::More(lines)
        })
    }

    /// The file does not say what was to be written.
    pub fn lost(&mut self) {
        self.on_file = None;
    }
}
