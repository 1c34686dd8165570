//! Queries, answered at once from the daemon's state.

use super::{Caller, reply};
use crate::config::{AppName, AppSpec, HidePort};
use crate::control::{
    Describe, Env, Failure, FindLogs, Known, List, Listing, LogFiles, Pong, Query, Snapshot,
    Target, VERSION, WorkerEnv,
};
use crate::core::{AppView, Description};
use crate::daemon::fleet::environment;
use crate::daemon::{Daemon, now};
use crate::sys::procfs;
use crate::sys::takeover::Support;

/// The note in the answer of the start that found this out, and in `describe`.
pub const TESTS_ITS_PORT: &str = "it tests its port by connecting to it; rsup hides the port from each worker until it has bound it";

impl Daemon {
    pub(super) fn on_query(&mut self, query: Query, to: &Caller) {
        match query {
            Query::List => reply::<List>(to, Ok(self.list())),
            Query::Snapshot => reply::<Snapshot>(to, Ok(self.snapshot())),
            Query::Describe { targets } => {
                let all = self.apps_of(&targets).map(|apps| {
                    let described = apps.iter().filter_map(|app| self.describe(app));
                    described.collect()
                });
                reply::<Describe>(to, all);
            }
            Query::Env { targets } => reply::<Env>(to, self.env(&targets)),
            Query::LogFiles { targets } => {
                let all = self
                    .apps_of(&targets)
                    .map(|apps| apps.iter().filter_map(|app| self.log_files(app)).collect());
                reply::<FindLogs>(to, all);
            }
        }
    }

    pub(super) fn pong(&mut self) -> Pong {
        let pid = std::process::id();
        let memory = procfs::resident(pid).ok();
        let uptime_ms = now().since(self.started).as_millis() as u64;
        let (version, admin) = (env!("CARGO_PKG_VERSION").into(), self.admin_view());
        let troubles = self.own_troubles();
        Pong {
            pid,
            version,
            protocol: VERSION,
            uptime_ms,
            memory,
            admin,
            troubles,
        }
    }

    fn views(&mut self) -> Vec<AppView> {
        let mut views: Vec<_> = self
            .supervisor
            .names()
            .filter_map(|app| self.supervisor.view(app, now()))
            .collect();
        self.complete(&mut views);
        for view in &mut views {
            if let Some(logs) = self.log_files(&view.name).filter(|_| view.reason.is_none()) {
                view.reason = self.output.troubles_of(&[&logs.out, &logs.err]).next();
            }
        }
        views
    }

    /// Adds to views what only the daemon knows.
    pub(in crate::daemon) fn complete(&mut self, views: &mut [AppView]) {
        for view in views.iter_mut() {
            if let Some(revision) = self.supervisor.revision(&view.name) {
                self.network.complete(view, &revision.spec.listen);
            }
        }
        self.fleet.add_usage(views);
    }

    fn list(&mut self) -> Listing {
        Listing {
            apps: self.views(),
            troubles: self.own_troubles(),
        }
    }

    fn snapshot(&mut self) -> Vec<Known> {
        let views = self.views();
        let known = |view: AppView| {
            let spec = self.as_it_runs(&view.name)?;
            Some(Known { spec, view })
        };
        views.into_iter().filter_map(known).collect()
    }

    fn describe(&mut self, name: &AppName) -> Option<Description> {
        let mut app = self.supervisor.view(name, now())?;
        self.complete(std::slice::from_mut(&mut app));
        let spec = self.as_it_runs(name)?;
        let logs = self.log_files(name)?;
        let mut notes = Vec::new();
        notes.extend(self.fleet.takeover.lacking(&self.fleet.isolation, &spec));
        notes.extend(self.output.troubles_of(&[&logs.out, &logs.err]));
        notes.extend(self.store.troubles().map(str::to_owned));
        if spec.listen.iter().any(|l| l.tcp().is_none()) {
            notes.push(
                "a unix socket is one descriptor for all workers: its connections cannot be steered, weighed or probed by worker"
                    .into(),
            );
        }
        notes.extend(self.fleet.isolation.lacking(&spec));
        notes.extend(self.fleet.bind_notes(name, &spec, &self.network));
        let mut sockets = self.fleet.way_to_sockets(&spec).words().map(str::to_owned);
        let hides = match spec.hide_port {
            HidePort::Auto => self.supervisor.hides_since(name).map(|_| TESTS_ITS_PORT),
            HidePort::Always => {
                Some("hide_port = true: rsup hides the port from each worker until it has bound it")
            }
            HidePort::Never => None,
        };
        match (
            self.fleet.takeover.of(&self.fleet.isolation, &spec),
            &mut sockets,
            hides,
        ) {
            (Some(Support::No { .. }), Some(_), Some(_)) if spec.hide_port == HidePort::Always => {
                notes.push("hide_port has no effect where takeover is not possible".into());
            }
            (Some(Support::Yes { .. }) | None, Some(sockets), Some(hides)) => {
                sockets.push_str(&format!("; {hides}"))
            }
            (Some(Support::Yes { .. } | Support::No { .. }) | None, _, _) => {}
        }
        let spec = spec.without_secrets();
        Some(Description {
            app,
            spec,
            sockets,
            out_log: logs.out,
            err_log: logs.err,
            events: self.event_log.of(name, now()),
            notes,
        })
    }

    fn log_files(&self, name: &AppName) -> Option<LogFiles> {
        let spec = &self.supervisor.revision(name)?.spec;
        Some(self.output.files(name, &spec.log, spec.run_as.as_ref()))
    }

    fn env(&self, targets: &[Target]) -> Result<Vec<WorkerEnv>, Failure> {
        let mut all = Vec::new();
        for target in targets {
            let instance = target.instance();
            for app in self.apps_of_one(target)? {
                let of_target = self
                    .supervisor
                    .workers(&app)
                    .filter(|w| instance.is_none_or(|i| w.instance == i));
                all.extend(of_target.filter_map(|w| {
                    let revision = self.supervisor.revision_of(w)?;
                    let inherits = self.fleet.way_to_sockets(&revision.spec).inherits();
                    Some(WorkerEnv {
                        app: app.clone(),
                        instance: w.instance,
                        pid: w.pid,
                        env: environment(&w.id, w.instance, revision, inherits),
                    })
                }));
            }
        }
        Ok(all)
    }

    /// The spec that runs; for an app from the command line, which has no file, with the number of
    /// workers that it was scaled to.
    pub(in crate::daemon) fn as_it_runs(&self, name: &AppName) -> Option<AppSpec> {
        let mut spec = self.supervisor.revision(name)?.spec.clone();
        if spec.source.is_none() {
            spec.instances = self.supervisor.view(name, now())?.instances;
        }
        Some(spec)
    }
}
