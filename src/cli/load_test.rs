//! A load test: steady load on an app, reloads meanwhile, and the verdict. `rsup demo` and `rsup
//! verify` share it.
//!
//! The load has a thread of its own, so that rendering does not disturb what is measured.

use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::sync::oneshot;

use super::action;
use super::client::{CallError, Client, Interrupt, Meanwhile};
use super::error::{self, CliError, FAILED, INTERRUPTED};
use super::render::{self, Moment, Output};
use crate::config::{AppName, AppSpec};
use crate::control::{Act, Action, ActionId, List, Outcome};
use crate::core::{Settings, WorkerPhase};
use crate::load::{self, Handle, Phase, Plan};
use crate::model::Cause;

/// How often Ctrl-C and the load are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The result of a load test. `--json` prints it as it is; fields may be added, none changes its
/// meaning.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub app: AppName,
    /// Requests were sent, none failed, and each reload ended as expected.
    pub passed: bool,
    /// Ctrl-C ended the test early.
    pub interrupted: bool,
    /// Why it did not pass, as sentences.
    pub reasons: Vec<String>,
    pub reloads: Vec<Change>,
    pub load: load::Report,
    /// Remarks for people, without influence on the verdict.
    #[serde(skip)]
    pub remarks: Vec<String>,
}

/// One reload of a load test.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The same label as on the chart.
    pub label: String,
    /// When the reload began, in milliseconds since the load did.
    pub at_ms: u64,
    pub took_ms: u64,
    pub expected: Expected,
    pub as_expected: bool,
    /// The revision that runs now, where the reload was done.
    pub revision: Option<u64>,
    /// Why the reload was not done.
    pub failure: Option<error::Report>,
    /// Whether exactly the workers that were ready before it are ready now.
    pub old_workers_serve: bool,
    #[serde(skip)]
    pub ready: u64,
}

/// The expected end of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    Done,
    /// Refused, with the old workers still serving.
    Refused,
}

/// A reload to make.
#[derive(Debug)]
pub struct Step {
    /// One word, for the chart.
    pub label: &'static str,
    /// A sentence for the account: what is done.
    pub words: &'static str,
    pub spec: AppSpec,
    /// `[supervisor]` of the app's file.
    pub settings: Vec<Settings>,
    pub expected: Expected,
    /// No reload follows: from now on the load measures the time after it.
    pub last: bool,
}

/// Why a load test ends early.
pub enum Halt {
    Interrupted,
    /// The test cannot show anything any more.
    Early(String),
    CliError(CliError),
}

impl From<CliError> for Halt {
    fn from(problem: CliError) -> Self {
        Self::CliError(problem)
    }
}

/// A load test under way.
pub struct LoadTest<'a> {
    out: &'a Output,
    client: &'a Client,
    interrupt: &'a Interrupt,
    app: AppName,
    load: Handle,
    since: Instant,
    status: Status,
    reloads: Vec<Change>,
}

/// Puts the load on the app while `script` runs, and judges.
pub fn run(
    out: &Output,
    client: &Client,
    interrupt: &Interrupt,
    app: &AppName,
    plan: Plan,
    script: impl FnOnce(&mut LoadTest<'_>) -> Result<(), Halt>,
) -> Result<Verdict, CliError> {
    let (load, thread) = begin(plan)?;
    let status = Status::new(out);
    let mut test = LoadTest {
        out,
        client,
        interrupt,
        app: app.clone(),
        load,
        since: Instant::now(),
        status,
        reloads: Vec::new(),
    };
    let (mut interrupted, mut early) = (false, None);
    match test
        .say(&Moment::Begin)
        .map_err(Halt::from)
        .and_then(|()| script(&mut test))
    {
        Ok(()) => test.say(&Moment::End)?,
        Err(Halt::Interrupted) => {
            interrupted = true;
            interrupt.take();
        }
        Err(Halt::Early(why)) => early = Some(why),
        Err(Halt::CliError(problem)) => return Err(problem),
    }
    let LoadTest { load, reloads, .. } = test;
    let report = thread.end(load, interrupt)?;
    Ok(Verdict::new(app, interrupted, early, reloads, report))
}

impl LoadTest<'_> {
    /// Keeps the load on until it has lasted so long.
    pub fn until(&mut self, end: Duration) -> Result<(), Halt> {
        loop {
            let left = end.saturating_sub(self.since.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            if self.interrupt.wait(left.min(POLL_INTERVAL)) {
                return Err(Halt::Interrupted);
            }
            self.status.show(&self.load, "");
            // A failure before any reload is the app's own; a reload would hide that.
            if self.reloads.is_empty() && self.load.snapshot().failed > 0 {
                return Err(Halt::Early(
                    "requests failed before there was a reload, so none was made".into(),
                ));
            }
        }
    }

    /// As [`Self::until`], counted from now.
    pub fn hold(&mut self, time: Duration) -> Result<(), Halt> {
        self.until(self.since.elapsed() + time)
    }

    /// Reloads as `rsup reload` does, and reports the outcome.
    pub fn reload(&mut self, step: Step) -> Result<(), Halt> {
        let before = self.serving()?;
        self.say(&Moment::Reload(step.words))?;
        let at_ms = ms(self.since.elapsed());
        let action = Action::Reload {
            apps: vec![step.spec],
            base_env: None,
            queue: false,
        };
        let act = Act {
            id: ActionId::new(),
            action,
            settings: step.settings,
            cause: Cause::Command,
        };
        let began = Instant::now();
        self.load.mark(Phase::During);
        self.load.marker(step.label);
        let (reply, took) = self.call(&act, began, step.label, step.last);
        let outcome = match reply {
            Ok(outcomes) => action::only(outcomes)?,
            Err(CallError::Interrupted) => return Err(Halt::Interrupted),
            Err(CallError::Failed(failure)) => {
                let (app, kind) = (self.app.clone(), crate::core::OperationKind::Reload);
                Outcome {
                    app,
                    kind,
                    took_ms: ms(took),
                    view: None,
                    failure: Some(failure),
                    untouched: None,
                    notes: Vec::new(),
                }
            }
            Err(error) => return Err(self.client.explain(error).into()),
        };
        let after = self.serving()?;
        let old_workers_serve = before == after;
        let refused = outcome.failure.is_some();
        let as_expected = match step.expected {
            Expected::Done => !refused,
            Expected::Refused => refused && old_workers_serve,
        };
        let change = Change {
            label: step.label.into(),
            at_ms,
            took_ms: ms(took),
            expected: step.expected,
            as_expected,
            revision: outcome.view.filter(|_| !refused).map(|view| view.revision),
            failure: outcome.failure.as_ref().map(error::Report::from),
            old_workers_serve,
            ready: after.len() as u64,
        };
        self.say(&Moment::Reloaded(&change))?;
        self.reloads.push(change);
        Ok(())
    }

    /// Calls the daemon in another thread while the status line is drawn. The time after a last
    /// reload begins with the daemon's answer.
    fn call(
        &self,
        act: &Act,
        began: Instant,
        label: &str,
        last: bool,
    ) -> (Result<Vec<Outcome>, CallError>, Duration) {
        let activity = Mutex::new(String::new());
        let doing = || activity.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            let reply = self.client.act(act, true, self.interrupt, &|meanwhile| {
                if let Meanwhile::Progress(step) = meanwhile {
                    *doing() = render::activity(&step);
                }
            });
            let took = began.elapsed();
            self.load
                .marker(format!("{label}{}", load::stats::MARKER_END));
            if last {
                self.load.mark(Phase::After);
            }
            (reply, took)
        };
        std::thread::scope(|scope| {
            let call = match std::thread::Builder::new().spawn_scoped(scope, work) {
                Ok(call) => call,
                Err(error) => {
                    return (
                        Err(CallError::Local(crate::sys::needs::words(
                            "cannot start a thread",
                            &error,
                        ))),
                        began.elapsed(),
                    );
                }
            };
            while !call.is_finished() {
                self.status.show(&self.load, &doing());
                std::thread::sleep(POLL_INTERVAL);
            }
            let lost = |_| {
                (
                    Err(CallError::Local("a thread of rsup ended early".into())),
                    began.elapsed(),
                )
            };
            call.join().unwrap_or_else(lost)
        })
    }

    /// The pids of the workers that take traffic.
    fn serving(&self) -> Result<Vec<u32>, CliError> {
        let views = self.client.ask(&List)?.apps;
        let workers = views
            .iter()
            .filter(|view| view.name == self.app)
            .flat_map(|view| &view.workers);
        let mut pids: Vec<u32> = workers
            .filter(|w| w.phase == WorkerPhase::Ready)
            .filter_map(|w| w.pid)
            .collect();
        pids.sort_unstable();
        Ok(pids)
    }

    fn say(&self, moment: &Moment<'_>) -> Result<(), CliError> {
        if self.out.json {
            return Ok(());
        }
        let line = render::moment(self.since.elapsed(), moment, self.out.look);
        self.status.aside(|| self.out.text(&line))
    }
}

impl Verdict {
    fn new(
        app: &AppName,
        interrupted: bool,
        early: Option<String>,
        reloads: Vec<Change>,
        load: load::Report,
    ) -> Self {
        let mut verdict = Self {
            app: app.clone(),
            passed: false,
            interrupted,
            reasons: Vec::new(),
            reloads,
            load,
            remarks: Vec::new(),
        };
        if !verdict.load.is_lossless() || verdict.load.requests == 0 {
            verdict.reasons.push(
                load::report::verdict(&verdict.load, false)
                    .trim_start_matches(['✗', '!', ' '])
                    .to_owned(),
            );
        }
        verdict.reasons.extend(early);
        for change in verdict.reloads.iter().filter(|change| !change.as_expected) {
            let kept = if change.old_workers_serve {
                "the old workers go on serving"
            } else {
                "not all of the old workers go on"
            };
            verdict
                .reasons
                .push(match (change.expected, &change.failure) {
                    (Expected::Done, Some(_)) => {
                        format!("the reload failed ({}); {kept}", change.label)
                    }
                    (_, None) => format!(
                        "a reload that should have been refused was done ({})",
                        change.label
                    ),
                    (Expected::Refused, Some(_)) => format!(
                        "a reload was refused, as it should be, but {kept} ({})",
                        change.label
                    ),
                });
        }
        if interrupted {
            verdict.reasons.push("interrupted before the end".into());
        }
        verdict.passed = verdict.reasons.is_empty();
        verdict
    }

    /// Whether lost keep-alive races are the only failures.
    pub fn only_races(&self) -> bool {
        self.load.failed == 0 && self.load.keep_alive_races > 0 && self.reasons.len() == 1
    }

    /// Prints the verdict; an error if the test did not pass.
    pub fn conclude(&self, out: &Output) -> Result<(), CliError> {
        out.result("the test", self, &render::verdict(self, out.look));
        match (self.interrupted, self.passed) {
            (true, _) => Err(CliError::AlreadyReported(INTERRUPTED)),
            (false, false) => Err(CliError::AlreadyReported(FAILED)),
            (false, true) => Ok(()),
        }
    }
}

/// Sends one request before the test; returns its report.
pub fn one_request(plan: &Plan, interrupt: &Interrupt) -> Result<load::Report, CliError> {
    let plan = Plan {
        connections: 1,
        max_requests: Some(1),
        rate: None,
        ..plan.clone()
    };
    let (load, thread) = begin(plan)?;
    while !load.is_finished() {
        if interrupt.wait(Duration::from_millis(5)) {
            return Err(CliError::AlreadyReported(INTERRUPTED));
        }
    }
    thread.end(load, interrupt)
}

/// The thread that drives a load.
struct LoadThread {
    thread: JoinHandle<Option<load::Report>>,
    end: oneshot::Sender<Handle>,
}

fn begin(plan: Plan) -> Result<(Handle, LoadThread), CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed("local", format!("cannot start the load: {error}"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (end, ended) = oneshot::channel::<Handle>();
    let (begun, handle) = mpsc::sync_channel(1);
    let drive = move || {
        runtime.block_on(async {
            begun.send(load::start(plan)).ok()?;
            Some(ended.await.ok()?.stop().await)
        })
    };
    let thread = std::thread::Builder::new()
        .name("load".into())
        .spawn(drive)
        .map_err(failed)?;
    let handle = handle.recv().map_err(|_| lost())?;
    Ok((handle, LoadThread { thread, end }))
}

impl LoadThread {
    /// Begins no more requests, waits for those under way, and reports. A signal ends the wait.
    fn end(self, load: Handle, interrupt: &Interrupt) -> Result<load::Report, CliError> {
        self.end.send(load).map_err(|_| lost())?;
        while !self.thread.is_finished() {
            if interrupt.wait(Duration::from_millis(5)) {
                return Err(CliError::AlreadyReported(INTERRUPTED));
            }
        }
        self.thread.join().ok().flatten().ok_or_else(lost)
    }
}

fn lost() -> CliError {
    CliError::failed("local", "the load ended early")
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The progress line at the bottom of a terminal; nothing elsewhere.
struct Status(Option<ProgressBar>);

impl Status {
    fn new(out: &Output) -> Self {
        if out.json || !out.error_look.terminal {
            return Self(None);
        }
        let template = if out.error_look.color {
            "{spinner:.yellow} {wide_msg:.dim}"
        } else {
            "{spinner} {wide_msg}"
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }

    fn show(&self, load: &Handle, activity: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(render::activity_line(&load.snapshot(), activity));
        }
    }

    /// Hides the line while `write` writes to the terminal.
    fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
