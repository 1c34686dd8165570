//! What the tests here ask of an app again and again.
#![allow(
    dead_code,
    reason = "two test programs share it, and neither uses everything"
)]

use std::fs;

use serde_json::Value;

use crate::common::apps::sample;
use crate::common::{Home, command_line, is_alive};

pub trait Life {
    /// Adds `[app.NAME]` to supervisor.toml.
    fn app(&self, name: &str, keys: &str);
    /// Adds the sample app, which listens on the port that is returned.
    fn web(&self, name: &str, keys: &str) -> u16;
    /// The pid of its only worker.
    fn pid(&self, app: &str) -> u32;
    /// Its workers in `list --json`.
    fn workers(&self, app: &str) -> Vec<Value>;
    /// What `describe` tells of the past, a line for each event.
    fn events(&self, app: &str) -> String;
    /// The text of one of its log files, such as `web-out`.
    fn log(&self, file: &str) -> String;
    fn daemon(&self) -> u32;
}

impl Life for Home {
    fn app(&self, name: &str, keys: &str) {
        let path = self.path("supervisor.toml");
        let before = fs::read_to_string(&path).unwrap_or_default();
        self.config(&format!("{before}[app.{name}]\n{keys}\n"));
    }

    fn web(&self, name: &str, keys: &str) -> u16 {
        let port = self.port();
        self.app(
            name,
            &format!(
                "{}\nlisten = \"0.0.0.0:{port}\"\nreadiness = \"/readiness\"\n{keys}",
                sample()
            ),
        );
        port
    }

    #[track_caller]
    fn pid(&self, app: &str) -> u32 {
        let pids = self.pids(app);
        assert_eq!(pids.len(), 1, "{:#}", self.view(app));
        *pids.first().unwrap()
    }

    fn workers(&self, app: &str) -> Vec<Value> {
        self.view(app)["workers"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    fn events(&self, app: &str) -> String {
        let description = self.describe(app);
        let events = description["events"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        events
            .iter()
            .filter_map(|e| e["text"].as_str())
            .map(|t| format!("{t}\n"))
            .collect()
    }

    fn log(&self, file: &str) -> String {
        fs::read_to_string(self.rsup_home().join(format!("state/logs/{file}.log")))
            .unwrap_or_default()
    }

    fn daemon(&self) -> u32 {
        self.ok(&["ping", "--json"]).json()["pid"].as_u64().unwrap() as u32
    }
}

/// None of them lives.
#[track_caller]
pub fn all_gone(pids: &[u32]) {
    let left: Vec<_> = pids
        .iter()
        .filter(|p| is_alive(**p))
        .map(|p| format!("{p} {}", command_line(*p)))
        .collect();
    assert!(left.is_empty(), "still there: {left:#?}");
}
