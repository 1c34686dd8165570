//! Which apps are accepted: a client may be any program, and does not know the other apps.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::config::{AppName, AppSpec, Listen};
use crate::control::{Failure, FailureCode};
use crate::daemon::Daemon;

impl Daemon {
    /// The client has checked the file; this checks what only the daemon knows: the other apps.
    pub(super) fn check_specs(&self, specs: &[AppSpec]) -> Result<(), Failure> {
        let taken = self.taken();
        let mut names = HashSet::new();
        for spec in specs {
            if !names.insert(&spec.name) {
                return Err(Failure::new(
                    FailureCode::BadRequest,
                    format!("`{}` is named twice", spec.name),
                ));
            }
            spec.validate()
                .map_err(|why| Failure::new(FailureCode::BadRequest, why))?;
            self.fleet.isolation.refuse(spec)?;
            let by_another = |address| {
                let mut owners = taken.get(address)?.iter();
                Some((address, owners.find(|owner| ***owner != spec.name)?))
            };
            if let Some((address, other)) = spec.listen.iter().find_map(by_another) {
                let why = format!(
                    "`{}` wants to listen on {address}, which app `{other}` has",
                    spec.name
                );
                return Err(Failure::new(FailureCode::Listen, why)
                    .hint(format!("rsup stop {other}, or choose another address")));
            }
        }
        Ok(())
    }

    /// The addresses that apps with workers have.
    fn taken(&self) -> BTreeMap<&Listen, BTreeSet<&AppName>> {
        let mut taken: BTreeMap<&Listen, BTreeSet<&AppName>> = BTreeMap::new();
        for app in self.supervisor.names() {
            let workers = self.supervisor.workers(app);
            let revisions: BTreeSet<u64> = workers.map(|w| w.revision).collect();
            let addresses = revisions
                .into_iter()
                .filter_map(|revision| self.supervisor.release(app, revision))
                .flat_map(|revision| &revision.spec.listen);
            for address in addresses {
                taken.entry(address).or_default().insert(app);
            }
        }
        taken
    }
}
