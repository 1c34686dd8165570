//! The answers of `rsup startup` and `rsup unstartup`.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// What `rsup startup` installed.
#[derive(Debug, Serialize)]
pub struct Installed {
    pub unit: PathBuf,
    pub socket: Option<PathBuf>,
    /// `system` or `user`.
    pub scope: &'static str,
    pub timeout_stop_s: u64,
    /// What [`Self::timeout_stop_s`] was computed from.
    pub computed_from: String,
    /// The service runs, and every app is ready or has failed for good.
    pub started: bool,
    /// Pid of a daemon that is not the service's and must end first.
    pub waits_for: Option<u32>,
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "wrote {}", self.unit.display())?;
        if let Some(socket) = &self.socket {
            writeln!(f, "wrote {}", socket.display())?;
        }
        writeln!(
            f,
            "TimeoutStopSec={}: {}",
            self.timeout_stop_s, self.computed_from
        )?;
        f.write_str(if self.started {
            "rsup runs under systemd now, and from boot on\n"
        } else {
            "rsup runs under systemd from the next boot on\n"
        })
    }
}

/// One file of `rsup startup --print`.
#[derive(Debug, Serialize)]
pub struct UnitFile {
    pub file: PathBuf,
    pub text: String,
}

/// The files one after the other. A single one is printed unchanged, so that it can be piped into
/// place.
pub fn units(files: &[UnitFile]) -> String {
    match files {
        [one] => one.text.clone(),
        _ => files
            .iter()
            .map(|file| format!("# {}\n{}\n", file.file.display(), file.text))
            .collect(),
    }
}

/// What `rsup unstartup` removed.
#[derive(Debug, Serialize)]
pub struct Removed {
    pub removed: Vec<PathBuf>,
    pub stopped: bool,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for path in &self.removed {
            writeln!(f, "removed {}", path.display())?;
        }
        f.write_str(if self.stopped {
            "rsup and its apps are stopped\n"
        } else {
            "rsup runs until it is stopped: rsup kill\n"
        })
    }
}
