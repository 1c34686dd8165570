//! The part of the daemon that owns what workers print: the log pump, which file each line goes to,
//! and which files cannot be written.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::log_health::Troubles;
use super::{Event, Events};
use crate::config::{AppName, Log, LogFormat, RunAs};
use crate::control::LogFiles;
use crate::logs::{Format, Pump, Settings};
use crate::paths::Paths;

/// The output of workers.
pub struct Output {
    pub pump: Pump,
    pub troubles: Troubles,
    events: Events,
    folder: PathBuf,
    /// No files, but those that an app names (`--no-log-files`).
    no_files: bool,
}

impl Output {
    pub fn new(pump: Pump, events: Events, paths: &Paths, no_files: bool) -> Self {
        Self {
            pump,
            troubles: Troubles::default(),
            events,
            folder: paths.logs(),
            no_files,
        }
    }

    /// Where the lines of an app go.
    pub fn settings(&self, name: &AppName, log: &Log, run_as: Option<&RunAs>) -> Settings {
        let default = |kind: &str| match self.no_files {
            true => "/dev/null".into(),
            false => self.folder.join(format!("{name}-{kind}.log")),
        };
        let file =
            |given: &Option<PathBuf>, kind: &str| given.clone().unwrap_or_else(|| default(kind));
        Settings {
            out: file(&log.out, "out"),
            err: file(&log.err, "err"),
            format: match log.format {
                LogFormat::Text => Format::Text,
                LogFormat::Json => Format::Json,
            },
            timestamps: log.timestamps,
            max_size: log.max_size,
            keep: log.keep as usize,
            compress: log.compress,
            user: run_as.map(|run_as| run_as.uid),
        }
    }

    /// The files of an app.
    pub fn files(&self, name: &AppName, log: &Log, run_as: Option<&RunAs>) -> LogFiles {
        let settings = self.settings(name, log, run_as);
        LogFiles {
            app: name.clone(),
            out: settings.out,
            err: settings.err,
            user: settings.user,
        }
    }

    /// The present problems of these files.
    pub fn troubles_of<'a>(&'a self, files: &'a [&Path]) -> impl Iterator<Item = String> + 'a {
        self.troubles.of(files)
    }

    /// Nothing is written to a worker's pipes any more: reports when they are empty, so that they need not be kept.
    pub fn await_silence(&self, generation: u64) {
        let read = self.pump.tail(generation);
        let events = self.events.clone();
        tokio::spawn(async move {
            let _ = read.await;
            let _ = events.send(Event::Silent { generation });
        });
    }
}

/// The problems that the pump reports.
pub type Problems = mpsc::UnboundedReceiver<crate::logs::Event>;
