//! Words, tables and JSON: the only writers to stdout.
//!
//! Each part makes a `String` from typed views; [`Output`] writes it. So the rendering is tested
//! without a terminal.

mod console;
mod describe;
mod events;
mod list;
mod load_test;
mod logs;
mod outcome;
mod report;
mod small;
mod startup;
mod step;
mod style;
mod units;

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::Serialize;

pub use console::to_stdout;
pub use describe::descriptions;
pub use events::EventLines;
pub use list::list;
pub use load_test::{Moment, activity_line, moment, took, verdict};
pub use logs::LogLines;
pub use outcome::outcome;
pub use report::report;
pub use small::{Environment, Killed, Pong, Upgraded, Written, checked, environments, signalled};
pub use startup::{Installed, Removed, UnitFile, units};
pub use step::{activity, step};
pub use style::{Look, Paint};
pub use units::count;
use units::harmless;

use super::error::{CliError, Report};
use crate::config::ConfigErrors;
use crate::logs::stderr;

/// A configuration with errors, as `--json` shows it.
#[derive(serde::Serialize)]
struct Refused {
    #[serde(flatten)]
    report: Report,
    /// Every error and warning, in the order of the file.
    findings: Vec<crate::config::Finding>,
}

/// The message when Ctrl-C ends a wait.
const DETACHED: &str = "still going on in the background; `rsup list` shows it";

/// Where a verb writes its output.
#[derive(Debug)]
pub struct Output {
    /// `--json`: one JSON document on stdout and nothing else anywhere.
    pub json: bool,
    /// What stdout can show.
    pub look: Look,
    /// What stderr can show.
    pub error_look: Look,
}

impl Output {
    /// Detects the terminal and `NO_COLOR`.
    pub fn new(json: bool) -> Self {
        let calm = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let look = |terminal: bool| Look {
            color: terminal && !calm,
            terminal,
            width: None,
        };
        let mut out = look(io::stdout().is_terminal());
        if out.terminal {
            // A serial console reports a width of 0 when it does not know it.
            out.width = comfy_table::Table::new()
                .width()
                .filter(|columns| *columns > 0);
        }
        Self {
            json,
            look: out,
            error_look: look(io::stderr().is_terminal()),
        }
    }

    /// Writes text to stdout.
    pub fn text(&self, text: &str) -> Result<(), CliError> {
        self.bytes(text.as_bytes())
    }

    /// Writes bytes to stdout.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(written)
    }

    /// Writes one JSON document and a line end.
    pub fn document<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), CliError> {
        let mut text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::failed("local", error.to_string()))?;
        text.push('\n');
        self.text(&text)
    }

    /// Prints the result of a change that is done. A result that cannot be printed is a warning on stderr, not a
    /// failure: the exit code is that of the change.
    pub fn result<T: Serialize + ?Sized>(&self, of: &str, value: &T, words: &str) {
        self.printed(
            &format!("{of} is done"),
            if self.json {
                self.document(value)
            } else {
                self.text(words)
            },
        );
    }

    /// Warns that a result could not be printed, after a sentence that says what was done; silent where the reader
    /// has closed the pipe.
    pub fn printed(&self, done: &str, printed: Result<(), CliError>) {
        if let Err(CliError::Report { report, .. }) = printed {
            error_text(&format!(
                "{} {done}; its result alone is lost: {}\n",
                self.error_look.paint(Paint::Busy, "warning:"),
                harmless(&report.message)
            ));
        }
    }

    /// A remark beside the result: on stderr, not with `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            error_text(&format!(
                "{} {text}\n",
                self.error_look.paint(Paint::Dim, "note:")
            ));
        }
    }

    /// A problem beside the result: on stderr, not with `--json`.
    pub fn trouble(&self, text: &str) {
        if !self.json {
            error_text(&format!(
                "{} {}\n",
                self.error_look.paint(Paint::Busy, "warning:"),
                harmless(text)
            ));
        }
    }

    /// The rendered warnings of a configuration file.
    pub fn warning(&self, rendered: &str) {
        if !self.json {
            error_text(rendered);
        }
    }

    /// One of several errors: on stderr; with `--json` the document has it.
    pub fn error(&self, what: &Report) {
        if !self.json {
            error_text(&report(what, self.error_look));
        }
    }

    /// The error that ended a verb.
    pub fn problem(&self, problem: &CliError) {
        let shown = match problem {
            CliError::Report { report, .. } if self.json => self.document(report),
            CliError::Report { report, .. } => {
                self.error(report);
                Ok(())
            }
            CliError::Config(errors) if self.json => {
                let findings: Vec<_> = errors.iter().flat_map(ConfigErrors::findings).collect();
                let errors: usize = errors.iter().map(ConfigErrors::len).sum();
                let message = format!("{} in the configuration", count(errors as u64, "error"));
                self.document(&Refused {
                    report: Report::new("config", message),
                    findings,
                })
            }
            CliError::Config(errors) => {
                errors.iter().for_each(|errors| self.config(errors));
                Ok(())
            }
            CliError::Interrupted if self.json => {
                self.document(&Report::new("interrupted", DETACHED))
            }
            CliError::Interrupted => {
                // After the ^C that the terminal shows.
                error_text(&format!("\n{DETACHED}\n"));
                Ok(())
            }
            CliError::AlreadyReported(_) | CliError::BrokenPipe => Ok(()),
        };
        // The exit code is still true. With --json, stderr takes what stdout does not.
        if let Err(CliError::Report { report: why, .. }) = shown {
            if let CliError::Report { report: what, .. } = problem {
                error_text(&report(what, self.error_look));
            }
            error_text(&report(&why, self.error_look));
        }
    }

    fn config(&self, errors: &ConfigErrors) {
        error_text(&errors.render(self.error_look.color));
    }
}

fn written(error: io::Error) -> CliError {
    match error.kind() {
        ErrorKind::BrokenPipe => CliError::BrokenPipe,
        _ => CliError::failed("local", format!("cannot write to stdout: {error}")),
    }
}

/// Writes to stderr, and ignores a failure, which could not be shown anywhere.
pub fn error_text(text: &str) {
    stderr::text(text);
}
