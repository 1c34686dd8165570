//! The admin listener: an outer orchestrator asks over HTTP for the condition of rsup and its apps.
//!
//! It has a thread of its own, which asks the main loop. So it can report that the loop is stuck,
//! and its clients cost the loop a bounded number of short answers.

mod ask;
mod connections;
mod http;
mod metrics;
mod readiness;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tracing::info;

pub use ask::Ask;

use super::Daemon;
use crate::config::AppName;
use crate::control::AdminView;
use crate::core::{OpId, Settings};
use crate::sys::holder;

/// The daemon's part of the listener.
#[derive(Default)]
pub struct Admin {
    server: Option<http::Server>,
    /// Why nothing listens although it should.
    problem: Option<String>,
    /// Reloads under way.
    reloading: BTreeMap<OpId, AppName>,
    reloads: BTreeMap<AppName, Reloads>,
}

/// The number of ended reloads of an app.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reloads {
    succeeded: u64,
    failed: u64,
}

impl Admin {
    /// Records that a reload was begun.
    pub fn reload_begins(&mut self, op: OpId, app: &AppName) {
        self.reloading.insert(op, app.clone());
    }

    /// Records the end of an action of any kind.
    pub fn action_ended(&mut self, op: OpId, succeeded: bool) {
        let Some(app) = self.reloading.remove(&op) else {
            return;
        };
        let count = self.reloads.entry(app).or_default();
        *(if succeeded {
            &mut count.succeeded
        } else {
            &mut count.failed
        }) += 1;
    }

    /// Whether nothing listens although it should.
    pub fn in_trouble(&self) -> bool {
        self.problem.is_some()
    }

    /// Forgets a deleted app.
    pub fn forget(&mut self, app: &AppName) {
        self.reloads.remove(app);
    }
}

impl Daemon {
    /// Applies `[supervisor]` of a file. The last file with an address counts; one without an
    /// address changes nothing, unless the present address is its own. Returns notes for the user.
    pub(super) fn supervise(&mut self, new: Settings) -> Vec<String> {
        let mut notes = Vec::new();
        let old = self.supervisor.settings.as_ref();
        let other = old.filter(|old| old.source != new.source);
        match (new.spec.admin, other) {
            (None, Some(_)) => return notes,
            (Some(address), Some(other))
                if other.spec.admin.is_some_and(|former| former != address) =>
            {
                notes.push(format!(
                    "the admin listener moves to {address}, as {} says; {} had it elsewhere",
                    new.source.display(),
                    other.source.display()
                ))
            }
            (Some(_) | None, _) => {}
        }
        self.supervisor.settings = Some(new);
        self.store.unsaved_for_reboot();
        self.open_admin();
        notes.extend(self.admin.problem.clone());
        notes
    }

    /// Opens the wanted listener, and closes any other.
    pub(super) fn open_admin(&mut self) {
        let wanted = self
            .supervisor
            .settings
            .as_ref()
            .and_then(|settings| settings.spec.admin);
        if wanted == self.admin.server.as_ref().map(http::Server::address)
            && self.admin.problem.is_none()
        {
            return;
        }
        // An overlapping address must be free first.
        self.admin.server = None;
        self.admin.problem = None;
        let Some(address) = wanted else { return };
        match http::Server::start(address, self.events.clone()) {
            Ok(server) => {
                info!("the admin listener is at http://{address}/");
                self.admin.server = Some(server);
            }
            Err(why) => {
                let holder = holder::of_tcp(address)
                    .ok()
                    .and_then(|found| found.into_iter().next());
                let by = holder
                    .map(|holder| format!(", held by {holder}"))
                    .unwrap_or_default();
                self.admin.problem = Some(format!(
                    "the admin listener cannot have {address}: {why}{by}; the apps run without it, and rsup goes on trying"
                ));
            }
        }
    }

    /// Tries again: an address may come up, or become free, later than rsup.
    pub(super) fn open_admin_again(&mut self) {
        if self.admin.in_trouble() {
            self.open_admin();
        }
    }

    /// The view for `ping`.
    pub(super) fn admin_view(&self) -> Option<AdminView> {
        let settings = self.supervisor.settings.as_ref()?;
        let address: SocketAddr = settings.spec.admin?;
        Some(AdminView {
            address,
            source: settings.source.clone(),
            problem: self.admin.problem.clone(),
        })
    }
}
