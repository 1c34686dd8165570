//! The whole state as version 1 wrote it, for a program that reads no later one.

use serde::Serialize;

use super::record::{DaemonState, Ending, Process, Upgrade};
use crate::core::{Supervisor, Version1};

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    rsup: &'static str,
    boot: &'a str,
    daemon: Rest<'a>,
    supervisor: Version1<'a>,
}

/// Ends of actions are left out: that version has other words for them, and no client asks it for one.
#[derive(Serialize)]
struct Rest<'a> {
    ending: Option<Ending>,
    foreground: bool,
    processes: &'a std::collections::BTreeMap<u64, Process>,
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
            upgrade: &daemon.upgrade,
            written: daemon.written,
        },
        supervisor: of.as_version_1()?,
    };
    serde_json::to_vec(&document).map_err(|why| why.to_string())
}
