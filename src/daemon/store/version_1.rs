//! The whole state as version 1 wrote it, for a program that reads no later one.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::Serialize;

use super::record::{DaemonState, Ending, Process, Upgrade};
use crate::config::AppName;
use crate::core::{OpError, OpId, OperationKind, Supervisor, Version1};
use crate::daemon::clients::remembered::{Begun, How, Part};

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    rsup: &'static str,
    boot: &'a str,
    daemon: Rest<'a>,
    supervisor: Version1<'a>,
}

#[derive(Serialize)]
struct Rest<'a> {
    ending: Option<Ending>,
    foreground: bool,
    processes: &'a BTreeMap<u64, Process>,
    results: Vec<(OpId, Result<(), OpError>)>,
    /// Version 1 ignores them; if its program cannot begin, this one goes on with them.
    actions: &'a VecDeque<Begun>,
    upgrade: &'a Option<Upgrade>,
    written: u64,
}

/// # Errors
/// When version 1 has no words for what is under way.
pub fn encode(boot: &str, daemon: &DaemonState, of: &Supervisor) -> Result<Vec<u8>, String> {
    let document = Document {
        version: 1,
        rsup: env!("CARGO_PKG_VERSION"),
        boot,
        daemon: Rest {
            ending: daemon.ending,
            foreground: daemon.foreground,
            processes: &daemon.processes,
            results: results(daemon),
            actions: &daemon.actions,
            upgrade: &daemon.upgrade,
            written: daemon.written,
        },
        supervisor: of.as_version_1()?,
    };
    serde_json::to_vec(&document).map_err(|why| why.to_string())
}

/// An error is a sentence there, for which it takes the app. Of actions that are not remembered no client asks.
fn results(daemon: &DaemonState) -> Vec<(OpId, Result<(), OpError>)> {
    let parts = daemon.actions.iter().flat_map(|begun| &begun.parts);
    let of_op = |part: &'_ Part| match part.how {
        How::Op(op) => Some((op, (part.app.clone(), part.kind))),
        How::Untouched(_) | How::Refused(_) => None,
    };
    let parts: HashMap<OpId, (AppName, OperationKind)> = parts.filter_map(of_op).collect();
    let results = daemon.results.iter().filter_map(|(op, result)| {
        let result = match result {
            Ok(()) => Ok(()),
            Err(error) => {
                let (app, kind) = parts.get(op)?;
                Err(OpError::new(app, *kind, error))
            }
        };
        Some((*op, result))
    });
    results.collect()
}
