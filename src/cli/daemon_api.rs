//! What the command line needs of the daemon.
//!
//! Stands in for [`crate::daemon`]; once that is there, this file is
//! `pub use crate::daemon::{DaemonOptions, StartRequest, run};`.

use std::collections::BTreeMap;

use crate::config::AppSpec;
use crate::control::{Failure, FailureCode};
use crate::paths::Paths;

/// How the daemon is to run.
#[allow(dead_code)]
#[derive(Debug, Default)]
pub struct DaemonOptions {
    /// In the foreground of a terminal or container: apps' output and events go to stdout.
    pub foreground: bool,
    /// Started at once.
    pub start: Option<StartRequest>,
    /// Events as JSON.
    pub json_log: bool,
}

/// As [`crate::control::Request::Start`].
#[derive(Debug)]
#[allow(dead_code)]
pub struct StartRequest {
    pub apps: Vec<AppSpec>,
    pub base_env: BTreeMap<String, String>,
}

/// Runs until it is told to end.
pub fn run(_paths: Paths, _options: DaemonOptions) -> Result<(), Failure> {
    Err(Failure::new(FailureCode::Internal, "the daemon is not built in yet"))
}
