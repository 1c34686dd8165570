//! The admin listener: how an outer orchestrator learns over HTTP how rsup and its apps do.
//!
//! It has a thread of its own, which asks the main loop. So a loop that is stuck is told from one that
//! works, and what clients do there costs the loop a bounded number of short answers.

mod ask;
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

/// What the daemon keeps for it.
#[derive(Default)]
pub struct Admin {
    server: Option<http::Server>,
    /// Why nothing listens although it should.
    problem: Option<String>,
    /// Reloads under way.
    reloading: BTreeMap<OpId, AppName>,
    reloads: BTreeMap<AppName, Reloads>,
}

/// How many reloads of an app have ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reloads {
    succeeded: u64,
    failed: u64,
}

impl Admin {
    /// An action was begun that is a reload.
    pub fn reload_begins(&mut self, op: OpId, app: &AppName) {
        self.reloading.insert(op, app.clone());
    }

    /// An action has ended, whatever it was.
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

    /// Nothing listens although it should.
    pub fn in_trouble(&self) -> bool {
        self.problem.is_some()
    }

    /// The app is deleted.
    pub fn forget(&mut self, app: &AppName) {
        self.reloads.remove(app);
    }
}

impl Daemon {
    /// Takes in `[supervisor]` of a file. The last file that names an address has its way; one that
    /// names none has no say, unless it is the one that did before. What the user should know of it.
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
        self.unsaved_for_reboot();
        self.open_admin();
        notes.extend(self.admin.problem.clone());
        notes
    }

    /// Listens where it should, and nowhere else.
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
        // An address that overlaps has to be free first.
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

    /// An address may come later than rsup, or be free later.
    pub(super) fn open_admin_again(&mut self) {
        if self.admin.in_trouble() {
            self.open_admin();
        }
    }

    /// For `ping`.
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
