//! Load in the background.

use std::thread::JoinHandle;

use rsup::load::{self, Plan, Report, Snapshot};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::wait_for;

pub struct Load {
    handle: Option<load::Handle>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

impl Load {
    /// 20 clients, each request on a connection of its own, 1,000 a second: enough to notice
    /// anything, and modest enough for many tests at the same time.
    pub fn start(port: u16, path: &str) -> Self {
        let mut plan = plan(port, path);
        plan.rate = Some(1000.0);
        Self::with(plan)
    }

    /// 20 clients, each request on a connection of its own, as fast as answers come.
    pub fn hard(port: u16, path: &str) -> Self {
        Self::with(plan(port, path))
    }

    pub fn with(plan: Plan) -> Self {
        let runtime = runtime();
        let handle = {
            let _inside = runtime.enter();
            load::start(plan)
        };
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || runtime.block_on(async { drop(ended.await) }));
        let load = Self {
            handle: Some(handle),
            end: Some(end),
            thread: Some(thread),
        };
        load.more(50);
        load
    }

    pub fn snapshot(&self) -> Snapshot {
        self.handle.as_ref().expect("it runs").snapshot()
    }

    /// Waits until so many more requests have ended.
    #[track_caller]
    pub fn more(&self, requests: u64) {
        let goal = self.snapshot().requests + requests;
        wait_for("more requests", || {
            let now = self.snapshot();
            if now.requests >= goal {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        });
    }

    /// Ends it, waiting for the requests under way.
    pub fn stop(mut self) -> Report {
        let handle = self.handle.take().expect("it runs");
        runtime().block_on(handle.stop())
    }

    /// Ends it; not one request may have failed.
    #[track_caller]
    pub fn lossless(self) -> Report {
        let report = self.stop();
        assert_lossless(&report);
        report
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.handle.take());
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn plan(port: u16, path: &str) -> Plan {
    let mut plan = Plan::for_url(&format!("http://127.0.0.1:{port}{path}")).expect("a URL");
    plan.max_time = std::time::Duration::from_secs(600);
    plan
}

#[track_caller]
pub fn assert_lossless(report: &Report) {
    let first: Vec<_> = report.failures.iter().take(10).collect();
    assert!(
        report.is_lossless(),
        "{} of {} requests failed: {:?}\n{first:#?}",
        report.failed + report.keep_alive_races,
        report.requests,
        kinds(report)
    );
}

/// Failures by kind, in words.
pub fn kinds(report: &Report) -> Vec<(String, u64)> {
    let phases = [&report.before, &report.during, &report.after];
    let mut all = std::collections::BTreeMap::new();
    for (kind, count) in phases.into_iter().flat_map(|p| &p.failures) {
        *all.entry(kind.to_string()).or_default() += count;
    }
    all.into_iter().collect()
}
