//! An app that has nothing to do with it all.

use std::collections::BTreeSet;

use crate::common::Home;
use crate::common::load::{Load, plan};
use crate::support::Life;

pub struct Bystander {
    load: Load,
    pids: BTreeSet<u32>,
    daemon: u32,
}

impl Bystander {
    /// Starts `calm` in a daemon of its own, with two workers and a request every 10 ms. One failure
    /// of its liveness check would have it replaced.
    pub fn start(home: &Home) -> Self {
        let port = home.web(
            "calm",
            "instances = 2\nliveness = { path = \"/liveness\", interval = \"200ms\", timeout = \"2s\", failure_threshold = 1 }",
        );
        home.ok(&["start"]);
        let mut plan = plan(port, "/");
        plan.rate = Some(100.0);
        Self {
            load: Load::with(plan),
            pids: home.pids("calm"),
            daemon: home.daemon(),
        }
    }

    pub fn daemon(&self) -> u32 {
        self.daemon
    }

    /// It lost no request, though its workers may be others by now.
    #[track_caller]
    pub fn load_was_lossless(self) {
        self.load.more(20);
        self.load.lossless();
    }

    /// The same workers as at first.
    #[track_caller]
    pub fn same_workers(&self, home: &Home) {
        assert_eq!(home.pids("calm"), self.pids, "{:#}", home.view("calm"));
    }

    /// It lost no request and no worker, and the daemon is the same.
    #[track_caller]
    pub fn untouched(self, home: &Home) {
        self.load.more(20);
        self.load.lossless();
        let view = home.view("calm");
        assert_eq!(crate::common::pids(&view), self.pids, "{view:#}");
        assert_eq!(view["phase"], "ready", "{view:#}");
        assert!(
            view["workers"]
                .as_array()
                .unwrap()
                .iter()
                .all(|w| w["restarts"] == 0),
            "{view:#}"
        );
        assert_eq!(home.daemon(), self.daemon, "the daemon is another one");
        let log = home.daemon_log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// What is open in the process.
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count())
}

/// Processor time that the process has used, in clock ticks (100 a second).
pub fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// KiB that the process has in memory and in no file.
pub fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
