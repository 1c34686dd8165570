//! How a daemon is started.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::foreground::ExitWhen;
use crate::config::AppSpec;
use crate::core::Settings;
use crate::logs::{self, Console};

/// How the daemon was started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Options {
    /// In the foreground: a signal stops every app gracefully and ends the daemon.
    pub foreground: bool,
    /// To be started at once, with the environment of the caller.
    #[serde(skip)]
    pub start: Option<StartRequest>,
    /// The same apps are given at each start: a reboot has nothing to remember.
    #[serde(default)]
    pub given_anew: bool,
    /// `[supervisor]` of their file.
    #[serde(skip)]
    pub settings: Option<Settings>,
    /// The daemon's own messages as JSON.
    pub json_log: bool,
    /// As a service: another daemon that runs here is waited for, not an error, and the manager's
    /// store of descriptors takes the keeper's place.
    #[serde(default)]
    pub service: bool,
    /// Only to stop, gracefully, what a dead daemon has left behind.
    #[serde(skip)]
    pub only_stop: bool,
    /// Apps that ran when the daemon ended are started again.
    pub resurrect: bool,
    /// They go to the console instead of stderr, and the lines of the workers as well, and look like this.
    #[serde(default)]
    pub log_format: Option<logs::Format>,
    /// Makes the console: the command line alone writes to stdout.
    #[serde(skip)]
    pub open_console: Option<fn(logs::Format) -> io::Result<Console>>,
    /// Once it is made.
    #[serde(skip)]
    pub console: Option<Console>,
    /// Where the daemon's own messages go in: the console, or the way to stderr.
    #[serde(skip)]
    pub messages: Option<Console>,
    /// Lines go to files only where the configuration names them.
    #[serde(default)]
    pub no_log_files: bool,
    /// In the foreground: when to end without being told to.
    #[serde(default)]
    pub exit_when: ExitWhen,
}

/// As [`crate::control::Action::Start`].
#[derive(Clone, Debug)]
pub struct StartRequest {
    pub apps: Vec<AppSpec>,
    pub base_env: BTreeMap<String, String>,
}
