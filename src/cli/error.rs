//! Why a verb failed, and its exit code.

use std::io::ErrorKind;

use serde::Serialize;

use crate::config::{ConfigErrors, NO_FOLDER, NO_FOLDER_HINT};
use crate::control::Failure;

/// Done.
pub const DONE: u8 = 0;
/// The operation failed.
pub const FAILED: u8 = 1;
/// The command line or a configuration file is wrong; nothing was changed.
pub const USAGE: u8 = 2;
/// Ended by Ctrl-C, as a shell would count it.
pub const INTERRUPTED: u8 = 130;

/// The end of a verb other than success.
#[derive(Debug)]
pub enum CliError {
    /// An error that [`super::run`] prints once.
    Report { exit: u8, report: Report },
    /// Configuration files with their errors.
    Config(Vec<ConfigErrors>),
    /// The error was already printed; holds the exit code.
    AlreadyReported(u8),
    /// Ctrl-C while waiting: the daemon continues the work.
    Interrupted,
    /// The reader of our output has closed it.
    BrokenPipe,
}

/// What happened, why, and what to type next. `--json` prints it as it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// A code of [`crate::control::FailureCode`], or one of the command line's own.
    pub code: String,
    /// The first line says what happened, further lines why.
    pub message: String,
    pub hint: Option<String>,
    /// The last log lines of the app or program that failed, oldest first.
    pub log: Vec<String>,
}

impl Report {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: None,
            log: Vec::new(),
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<crate::daemon::Error> for CliError {
    fn from(error: crate::daemon::Error) -> Self {
        match error {
            // The log has the cause.
            crate::daemon::Error::Ended { code } => Self::AlreadyReported(code),
            other => Self::failed("local", other.to_string()),
        }
    }
}

impl From<&Failure> for Report {
    fn from(failure: &Failure) -> Self {
        let code = serde_json::to_value(failure.code).ok();
        Self {
            code: code
                .as_ref()
                .and_then(|code| code.as_str())
                .unwrap_or("internal")
                .into(),
            message: failure.message.clone(),
            hint: failure.hint.clone(),
            log: failure.log.clone(),
        }
    }
}

impl CliError {
    /// An operation that failed.
    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::Report {
            exit: FAILED,
            report: Report::new(code, message),
        }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Report {
            exit: USAGE,
            report: Report::new("usage", message),
        }
    }

    /// Something with a path that is relative to the current folder failed, which perhaps is no more.
    pub fn of_here(what: &str, error: &std::io::Error) -> Self {
        if crate::cwd::logical().is_err_and(|why| why.kind() == ErrorKind::NotFound) {
            Self::usage(format!("{what}: {NO_FOLDER}")).hint(NO_FOLDER_HINT)
        } else {
            Self::usage(format!("{what}: {error}"))
        }
    }

    /// Adds what to type next, unless there is a hint already.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Report { report, .. } = &mut self {
            report.hint.get_or_insert_with(|| hint.into());
        }
        self
    }

    /// The exit code of the process.
    pub fn exit(&self) -> u8 {
        match self {
            Self::Report { exit, .. } | Self::AlreadyReported(exit) => *exit,
            Self::Config(_) => USAGE,
            Self::Interrupted => INTERRUPTED,
            Self::BrokenPipe => DONE,
        }
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self::Report {
            exit: FAILED,
            report: Report::from(&failure),
        }
    }
}

impl From<ConfigErrors> for CliError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(vec![errors])
    }
}
