//! Which apps are accepted: a client may be any program, and does not know the other apps.

use std::collections::{BTreeMap, HashSet};

use crate::config::AppSpec;
use crate::control::{Failure, FailureCode};
use crate::daemon::Daemon;

impl Daemon {
    /// The client has checked the file; this checks what only the daemon knows: the other apps.
    pub(super) fn check_specs(&self, specs: &[AppSpec]) -> Result<(), Failure> {
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
            self.isolation.refuse(spec)?;
            let taken: BTreeMap<_, _> = self
                .supervisor
                .names()
                .filter(|other| **other != spec.name)
                .flat_map(|other| {
                    let runs = |w| self.supervisor.revision_of(w);
                    let revisions = self.supervisor.workers(other).filter_map(runs);
                    revisions.flat_map(move |revision| {
                        let listen = revision.spec.listen.iter();
                        listen.map(move |l| (l.clone(), other))
                    })
                })
                .collect();
            if let Some((address, other)) = spec.listen.iter().find_map(|l| taken.get_key_value(l))
            {
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
}
