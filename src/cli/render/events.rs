//! Events, one a line.

use super::{Output, Paint};
use crate::cli::error::CliError;
use crate::daemon::event_log::Recorded;
use crate::human::one_line;

/// Writes events to stdout; with `--json`, one document a line.
#[derive(Debug)]
pub struct EventLines<'a> {
    out: &'a Output,
    /// All events are of one app: lines need no name.
    one_app: bool,
}

impl<'a> EventLines<'a> {
    pub fn new(out: &'a Output, one_app: bool) -> Self {
        Self { out, one_app }
    }

    pub fn write<'e>(&self, all: impl Iterator<Item = &'e Recorded>) -> Result<(), CliError> {
        let mut bytes = Vec::new();
        for recorded in all {
            if self.out.json {
                serde_json::to_writer(&mut bytes, recorded)
                    .map_err(|error| CliError::failed("local", error.to_string()))?;
            } else {
                bytes.extend_from_slice(self.line(recorded).as_bytes());
            }
            bytes.push(b'\n');
        }
        self.out.bytes(&bytes)
    }

    fn line(&self, recorded: &Recorded) -> String {
        let Recorded { seq, time, event } = recorded;
        let look = &self.out.look;
        let when = look.paint(Paint::Dim, &format!("{time:.3} #{seq}"));
        let line = one_line(&event.line()).into_owned();
        let line = if event.what.is_bad() {
            look.paint(Paint::Bad, &line)
        } else {
            line
        };
        if self.one_app {
            format!("{when}  {line}")
        } else {
            format!("{when}  {}: {line}", event.app)
        }
    }
}
