//! Calls from clients: what is answered at once, and what is waited for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::state::Ending;
use super::{Daemon, Event, now, spawn};
use crate::config::{AppName, AppSpec, HidePort};
use crate::control::{
    Accepted, Answer, Call, Failure, FailureCode, LogFiles, Outcome, Reply, Request, ScaleTo,
    Target, WorkerEnv,
};
use crate::core::{self, Description, Input, OpError, OpId, OperationKind, Progress, Time};
use crate::exit::signal_name;
use crate::sys::procfs;
use crate::sys::takeover::Support;

/// Results that are remembered for clients that lost their daemon.
const RESULTS: usize = 64;

/// How long the log thread may take to hand out a worker's last lines.
const TAIL_PATIENCE: Duration = Duration::from_secs(1);

/// In the answer of the start that found it out, and in `describe`.
const TESTS_ITS_PORT: &str = "it tests its port by connecting to it; rsup hides the port from each worker until it has bound it";

/// Long actions that somebody waits for.
#[derive(Default)]
pub struct Calls {
    next_op: u64,
    next_call: u64,
    open: HashMap<u64, Open>,
    /// Which call an action belongs to.
    ops: HashMap<OpId, u64>,
    /// Set for the start that `--foreground` was given: its failure is the daemon's.
    start: Option<Start>,
}

struct Open {
    answer: UnboundedSender<Answer>,
    since: Time,
    /// In the order asked for.
    actions: Vec<Action>,
    /// `kill` ends the daemon after them.
    kill: bool,
}

struct Action {
    op: OpId,
    app: AppName,
    kind: OperationKind,
    outcome: Option<Outcome>,
}

enum Start {
    Asked,
    Call(u64),
    Failed(String),
}

impl Calls {
    fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    fn wait_for(
        &mut self,
        number: u64,
        actions: Vec<Accepted>,
        kill: bool,
        answer: UnboundedSender<Answer>,
    ) {
        self.ops
            .extend(actions.iter().map(|action| (action.op, number)));
        let actions = actions
            .into_iter()
            .map(|Accepted { op, app, kind }| Action {
                op,
                app,
                kind,
                outcome: None,
            })
            .collect();
        self.open.insert(
            number,
            Open {
                answer,
                since: now(),
                actions,
                kill,
            },
        );
    }

    pub fn finished(&self) -> bool {
        self.open.is_empty()
    }

    /// Actions of a former daemon may still be under way: new ones get other names.
    pub fn go_on_after(&mut self, last: Option<OpId>) {
        self.next_op = self.next_op.max(last.map_or(0, |op| op.0));
    }

    /// The next call is the one that `--foreground` was given.
    pub fn report_start(&mut self) {
        self.start = Some(Start::Asked);
    }

    /// Why nothing of what `--foreground` was given could be started.
    pub fn exit_failure(self) -> Option<String> {
        match self.start {
            Some(Start::Failed(why)) => Some(why),
            Some(Start::Asked | Start::Call(_)) | None => None,
        }
    }

    pub fn progress(&self, progress: &Progress) {
        for open in self.open.values() {
            if open
                .actions
                .iter()
                .any(|a| a.app == progress.app && a.outcome.is_none())
            {
                let _ = open.answer.send(Answer::Progress(progress.clone()));
            }
        }
    }
}

impl Daemon {
    pub(super) fn on_call(&mut self, call: Call, answer: UnboundedSender<Answer>) {
        let reply = |answer: &UnboundedSender<Answer>, result: Result<Reply, Failure>| {
            let _ = answer.send(match result {
                Ok(reply) => Answer::Done(reply),
                Err(failure) => Answer::Failed(failure),
            });
        };
        match call.request {
            Request::Ping => reply(&answer, Ok(self.pong())),
            Request::Supervise { settings } => {
                let supervised = self.supervise(settings);
                reply(&answer, Ok(supervised));
            }
            Request::List => reply(&answer, Ok(self.list())),
            Request::Describe { target } => {
                let result = self.apps_of(&target).map(|apps| {
                    Reply::Descriptions(apps.iter().filter_map(|a| self.describe(a)).collect())
                });
                reply(&answer, result);
            }
            Request::Env { target } => reply(&answer, self.env(&target).map(Reply::Env)),
            Request::Specs { target } => {
                let result = self
                    .apps_of(&target)
                    .map(|apps| Reply::Specs(apps.iter().filter_map(|a| self.spec(a)).collect()));
                reply(&answer, result);
            }
            Request::LogFiles { target } => {
                let result = self.apps_of(&target).map(|apps| {
                    Reply::LogFiles(apps.iter().filter_map(|a| self.log_files(a)).collect())
                });
                reply(&answer, result);
            }
            Request::Signal { target, signal } => reply(
                &answer,
                self.signal_target(&target, signal).map(Reply::Signalled),
            ),
            Request::Upgrade {
                program,
                token,
                force,
            } => self.upgrade(program, token, force, answer),
            Request::HowUpgraded { token } => {
                reply(&answer, Ok(Reply::HowUpgraded(self.how_upgraded(token))))
            }
            Request::Await { actions, kill } => self.go_on_waiting(actions, kill, answer),
            request => match self.actions(request) {
                Ok((actions, kill)) => self.begin(actions, kill, call.wait, answer),
                Err(failure) => {
                    self.refuse_start(&failure);
                    reply(&answer, Err(failure));
                }
            },
        }
    }

    /// What `--foreground` was given cannot even be tried.
    fn refuse_start(&mut self, failure: &Failure) {
        if matches!(self.calls.start, Some(Start::Asked)) {
            self.calls.start = Some(Start::Failed(failure.message.clone()));
            self.ending = true;
        }
    }

    /// What a long action asks of each app.
    #[allow(clippy::type_complexity)]
    fn actions(
        &mut self,
        request: Request,
    ) -> Result<(Vec<(AppName, core::Request)>, bool), Failure> {
        let each = |apps: Vec<AppName>, make: fn() -> core::Request| {
            apps.into_iter()
                .map(|app| (app, make()))
                .collect::<Vec<_>>()
        };
        if self.ending {
            return Err(Failure::new(
                FailureCode::Busy,
                "the daemon is stopping every app and will end",
            ));
        }
        Ok((
            match request {
                Request::Start { apps, base_env } => {
                    self.check_specs(&apps)?;
                    let base_env = Arc::new(base_env);
                    let start = |spec: AppSpec| {
                        (
                            spec.name.clone(),
                            core::Request::Start {
                                spec: Box::new(spec),
                                base_env: base_env.clone(),
                            },
                        )
                    };
                    apps.into_iter().map(start).collect()
                }
                Request::StartStopped { target } => {
                    each(self.whole_apps(&target, "start")?, || {
                        core::Request::StartStopped
                    })
                }
                Request::Stop { target } => {
                    each(self.whole_apps(&target, "stop")?, || core::Request::Stop)
                }
                Request::Delete { target } => each(self.whole_apps(&target, "delete")?, || {
                    core::Request::Delete
                }),
                Request::Restart { apps, base_env } => {
                    self.check_specs(&apps)?;
                    let base_env = base_env.map(Arc::new);
                    let restart = |spec: AppSpec| {
                        (
                            spec.name.clone(),
                            core::Request::Restart {
                                spec: Box::new(spec),
                                base_env: base_env.clone(),
                            },
                        )
                    };
                    apps.into_iter().map(restart).collect()
                }
                Request::Reload {
                    apps,
                    base_env,
                    queue,
                } => {
                    self.check_specs(&apps)?;
                    let base_env = base_env.map(Arc::new);
                    let reload = |spec: AppSpec| {
                        (
                            spec.name.clone(),
                            core::Request::Reload {
                                spec: Box::new(spec),
                                base_env: base_env.clone(),
                                queue,
                            },
                        )
                    };
                    apps.into_iter().map(reload).collect()
                }
                Request::Scale { app, to } => {
                    let view = self
                        .supervisor
                        .view(&app, now())
                        .ok_or_else(|| unknown(&app))?;
                    let wanted = match to {
                        ScaleTo::Exactly(n) => i64::from(n),
                        ScaleTo::By(by) => i64::from(view.instances) + i64::from(by),
                    };
                    let most = i64::from(crate::config::MOST_INSTANCES);
                    if !(1..=most).contains(&wanted) {
                        let why = format!(
                            "`{app}` cannot have {wanted} workers: 1 to {most} are possible"
                        );
                        let hint = if wanted < 1 {
                            format!("rsup stop {app} stops it")
                        } else {
                            format!("rsup scale {app} {most}")
                        };
                        return Err(Failure::new(FailureCode::BadRequest, why).hint(hint));
                    }
                    if let Some(mut spec) = self.spec(&app) {
                        spec.instances = wanted as u16;
                        if let Some(too_many) = crate::config::too_many_slots(&spec) {
                            return Err(Failure::new(
                                FailureCode::BadRequest,
                                format!("`{app}`: {}", too_many.message),
                            )
                            .hint(too_many.hint));
                        }
                        self.isolation.refuse(&spec)?;
                    }
                    vec![(
                        app,
                        core::Request::Scale {
                            instances: wanted as u16,
                        },
                    )]
                }
                Request::Kill => {
                    self.note_end(Ending::Kill);
                    return Ok((
                        each(self.supervisor.names().cloned().collect(), || {
                            core::Request::Halt
                        }),
                        true,
                    ));
                }
                Request::Ping
                | Request::Supervise { .. }
                | Request::List
                | Request::Describe { .. }
                | Request::Env { .. }
                | Request::Specs { .. }
                | Request::LogFiles { .. }
                | Request::Signal { .. }
                | Request::Upgrade { .. }
                | Request::HowUpgraded { .. }
                | Request::Await { .. } => Vec::new(),
            },
            false,
        ))
    }

    fn begin(
        &mut self,
        requests: Vec<(AppName, core::Request)>,
        kill: bool,
        wait: bool,
        answer: UnboundedSender<Answer>,
    ) {
        self.calls.next_call += 1;
        let number = self.calls.next_call;
        if matches!(self.calls.start, Some(Start::Asked)) {
            self.calls.start = Some(Start::Call(number));
        }
        let with_ops: Vec<_> = requests
            .into_iter()
            .map(|(app, request)| (self.calls.op(), app, request))
            .collect();
        let accepted: Vec<Accepted> = with_ops
            .iter()
            .map(|(op, app, request)| Accepted {
                op: *op,
                app: app.clone(),
                kind: request.kind(),
            })
            .collect();
        if wait {
            let _ = answer.send(Answer::Accepted(accepted.clone()));
        }
        self.calls.wait_for(number, accepted, kill, answer);
        self.unsaved_for_reboot();
        for (op, app, request) in with_ops {
            if request.kind() == OperationKind::Reload {
                self.admin.reload_begins(op, &app);
            }
            self.handle(Input::Request { op, app, request });
        }
        if !wait {
            self.answer_early(number);
        }
        self.close_if_done(number);
    }

    /// For a client that lost the daemon which had accepted its actions.
    fn go_on_waiting(
        &mut self,
        actions: Vec<Accepted>,
        kill: bool,
        answer: UnboundedSender<Answer>,
    ) {
        self.calls.next_call += 1;
        let number = self.calls.next_call;
        // Each stop of an end was begun anew by this daemon, under another name.
        let actions = if kill && self.ending {
            self.under_way()
        } else {
            actions
        };
        self.calls.wait_for(number, actions.clone(), kill, answer);
        for Accepted { op, app, .. } in actions {
            if self.supervisor.is_under_way(op) {
                continue;
            }
            let result = match self.state.results.iter().find(|(of, _)| *of == op) {
                Some((_, result)) => result.clone(),
                None => Err(OpError {
                    code: FailureCode::Internal,
                    message: format!(
                        "rsup was killed before it began with `{app}`, or too long ago; nothing was lost"
                    ),
                    hint: Some("rsup list shows what there is; then try again".into()),
                    worker: None,
                }),
            };
            self.on_finished(op, result);
        }
        self.close_if_done(number);
    }

    /// `--no-wait`: what is not refused at once counts as accepted.
    fn answer_early(&mut self, number: u64) {
        let Some(open) = self.calls.open.get(&number) else {
            return;
        };
        let pending: Vec<(OpId, AppName, OperationKind)> = open
            .actions
            .iter()
            .filter(|a| a.outcome.is_none())
            .map(|a| (a.op, a.app.clone(), a.kind))
            .collect();
        for (op, app, kind) in pending {
            let outcome = self.outcome(app, kind, now(), None);
            self.set_outcome(op, outcome);
        }
    }

    fn under_way(&self) -> Vec<Accepted> {
        self.supervisor
            .under_way()
            .map(|(app, op, kind)| Accepted {
                op,
                app: app.clone(),
                kind,
            })
            .collect()
    }

    /// The latest action that an earlier daemon may have begun.
    pub(super) fn last_op(&self) -> Option<OpId> {
        self.supervisor
            .last_op()
            .max(self.state.results.iter().map(|(op, _)| *op).max())
    }

    /// Before the state is written that knows nothing of these actions any more.
    pub(super) fn note_results(&mut self) {
        self.state.results.extend(
            self.supervisor
                .ends()
                .map(|(op, result)| (op, result.clone())),
        );
        let surplus = self.state.results.len().saturating_sub(RESULTS);
        self.state.results.drain(..surplus);
    }

    pub(super) fn on_finished(&mut self, op: OpId, result: Result<(), OpError>) {
        self.admin.action_ended(op, result.is_ok());
        let Err(error) = result else {
            return self.conclude(op, None);
        };
        // Only a worker that came to nothing may have failed for that.
        let message = match self.without_takeover(op).filter(|_| error.worker.is_some()) {
            Some(first) => format!("{first}\n{}", error.message),
            None => error.message,
        };
        let failure = Failure {
            code: error.code,
            message,
            hint: error.hint,
            log: Vec::new(),
        };
        let Some(worker) = error.worker else {
            return self.conclude(op, Some(failure));
        };
        // Its last words explain more than its exit code.
        let tail = self.pump.tail(worker.generation);
        let events = self.events.clone();
        tokio::spawn(async move {
            let lines = tokio::time::timeout(TAIL_PATIENCE, tail)
                .await
                .ok()
                .and_then(Result::ok)
                .unwrap_or_default();
            let log = lines.into_iter().map(|line| line.text).collect();
            let _ = events.send(Event::Explained {
                op,
                failure: Failure { log, ..failure },
            });
        });
    }

    /// Without takeover, an app that binds its port itself cannot start: that is the first thing to know.
    fn without_takeover(&self, op: OpId) -> Option<String> {
        let open = self.calls.open.get(self.calls.ops.get(&op)?)?;
        let app = &open.actions.iter().find(|a| a.op == op)?.app;
        self.takeover
            .lacking(&self.isolation, &self.supervisor.revision(app)?.spec)
    }

    pub(super) fn on_explained(&mut self, op: OpId, failure: Failure) {
        self.conclude(op, Some(failure));
    }

    fn conclude(&mut self, op: OpId, failure: Option<Failure>) {
        let Some(number) = self.calls.ops.get(&op).copied() else {
            return;
        };
        let Some(open) = self.calls.open.get(&number) else {
            return;
        };
        let Some(action) = open.actions.iter().find(|a| a.op == op) else {
            return;
        };
        let outcome = self.outcome(action.app.clone(), action.kind, open.since, failure);
        self.set_outcome(op, outcome);
        self.close_if_done(number);
    }

    fn outcome(
        &mut self,
        app: AppName,
        kind: OperationKind,
        since: Time,
        failure: Option<Failure>,
    ) -> Outcome {
        let mut view = self.supervisor.view(&app, now());
        if let Some(view) = &mut view {
            self.complete(std::slice::from_mut(view));
        }
        if kind == OperationKind::Delete && failure.is_none() {
            view = None;
        }
        let begun = matches!(
            kind,
            OperationKind::Start | OperationKind::Restart | OperationKind::Reload
        );
        let spec = self
            .supervisor
            .revision(&app)
            .map(|revision| &revision.spec)
            .filter(|_| begun);
        let limits = spec.and_then(|spec| self.isolation.lacking(spec));
        // The failure says it already.
        let takeover = spec
            .filter(|_| failure.is_none())
            .and_then(|spec| self.takeover.lacking(&self.isolation, spec));
        let learned = self
            .supervisor
            .hides_since(&app)
            .filter(|at| begun && *at >= since)
            .map(|_| TESTS_ITS_PORT.to_owned());
        let notes = limits.into_iter().chain(takeover).chain(learned).collect();
        Outcome {
            app,
            kind,
            took_ms: now().since(since).as_millis() as u64,
            view,
            failure,
            notes,
        }
    }

    fn set_outcome(&mut self, op: OpId, outcome: Outcome) {
        let Some(number) = self.calls.ops.remove(&op) else {
            return;
        };
        if let Some(action) = self
            .calls
            .open
            .get_mut(&number)
            .and_then(|open| open.actions.iter_mut().find(|a| a.op == op))
        {
            action.outcome = Some(outcome);
        }
    }

    fn close_if_done(&mut self, number: u64) {
        let done = self
            .calls
            .open
            .get(&number)
            .is_some_and(|open| open.actions.iter().all(|a| a.outcome.is_some()));
        if !done {
            return;
        }
        let Some(open) = self.calls.open.remove(&number) else {
            return;
        };
        let outcomes: Vec<Outcome> = open.actions.into_iter().filter_map(|a| a.outcome).collect();
        if matches!(self.calls.start, Some(Start::Call(call)) if call == number) {
            self.judge_start(&outcomes);
        }
        let _ = open.answer.send(match open.kill {
            true if self.ending => Answer::Done(Reply::Killed),
            true => Answer::Failed(
                Failure::new(
                    FailureCode::Superseded,
                    "rsup was killed while it stopped every app, and then started again",
                )
                .hint("rsup list shows what there is; `rsup kill` stops it"),
            ),
            false => Answer::Done(Reply::Finished(outcomes)),
        });
    }

    /// In the foreground, a start that left no app at all ends the daemon with its reason.
    fn judge_start(&mut self, outcomes: &[Outcome]) {
        self.calls.start = None;
        let failures: Vec<String> = outcomes
            .iter()
            .filter_map(|o| {
                o.failure
                    .as_ref()
                    .map(|f| format!("{}: {}", o.app, f.message))
            })
            .collect();
        if !failures.is_empty()
            && outcomes.iter().all(|o| {
                o.failure
                    .as_ref()
                    .is_some_and(|f| f.code == FailureCode::Listen)
            })
        {
            self.calls.start = Some(Start::Failed(failures.join("; ")));
            self.stop_everything();
        }
    }

    /// A signal, or the end of a foreground start: every app is stopped gracefully, then the daemon ends.
    pub(super) fn stop_everything(&mut self) {
        self.note_end(Ending::Signal);
        self.stop_all_apps();
    }

    pub(super) fn stop_all_apps(&mut self) {
        let apps: Vec<AppName> = self.supervisor.names().cloned().collect();
        for app in apps {
            let op = self.calls.op();
            self.handle(Input::Request {
                op,
                app,
                request: core::Request::Halt,
            });
        }
    }

    fn pong(&mut self) -> Reply {
        let pid = std::process::id();
        let memory = procfs::resident(pid).ok();
        let uptime_ms = now().since(self.started).as_millis() as u64;
        let (version, admin) = (env!("CARGO_PKG_VERSION").into(), self.admin_view());
        let troubles = self.own_troubles();
        Reply::Pong {
            pid,
            version,
            protocol: crate::control::VERSION,
            uptime_ms,
            memory,
            admin,
            troubles,
        }
    }

    fn list(&mut self) -> Reply {
        let mut views: Vec<_> = self
            .supervisor
            .names()
            .filter_map(|app| self.supervisor.view(app, now()))
            .collect();
        self.complete(&mut views);
        for view in &mut views {
            if let Some(logs) = self.log_files(&view.name).filter(|_| view.reason.is_none()) {
                view.reason = self.troubles.of(&[&logs.out, &logs.err]).next();
            }
        }
        Reply::List(views)
    }

    fn describe(&mut self, name: &AppName) -> Option<Description> {
        let mut app = self.supervisor.view(name, now())?;
        self.complete(std::slice::from_mut(&mut app));
        let spec = self.spec(name)?;
        let logs = self.log_files(name)?;
        let mut notes = Vec::new();
        notes.extend(self.takeover.lacking(&self.isolation, &spec));
        notes.extend(self.troubles.of(&[&logs.out, &logs.err]));
        notes.extend(self.saving.troubles().map(str::to_owned));
        if spec.listen.iter().any(|l| l.tcp().is_none()) {
            notes.push(
                "a unix socket is one descriptor for all workers: its connections cannot be steered, weighed or probed by worker"
                    .into(),
            );
        }
        notes.extend(self.isolation.lacking(&spec));
        let mut sockets = self.way_to_sockets(&spec).words().map(str::to_owned);
        let hides = match spec.hide_port {
            HidePort::Auto => self.supervisor.hides_since(name).map(|_| TESTS_ITS_PORT),
            HidePort::Always => {
                Some("hide_port = true: rsup hides the port from each worker until it has bound it")
            }
            HidePort::Never => None,
        };
        match (
            self.takeover.of(&self.isolation, &spec),
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
            events: self.supervisor.events(name, now()),
            notes,
        })
    }

    /// As it runs; one given on the command line has no file that a changed number of workers could come from.
    pub(super) fn spec(&self, name: &AppName) -> Option<AppSpec> {
        let mut spec = self.supervisor.revision(name)?.spec.clone();
        if spec.source.is_none() {
            spec.instances = self.supervisor.view(name, now())?.instances;
        }
        Some(spec)
    }

    fn log_files(&self, name: &AppName) -> Option<LogFiles> {
        let settings = self.log_settings(name, &self.supervisor.revision(name)?.spec.log);
        Some(LogFiles {
            app: name.clone(),
            out: settings.out,
            err: settings.err,
        })
    }

    fn env(&self, target: &Target) -> Result<Vec<WorkerEnv>, Failure> {
        let instance = instance_of(target);
        let mut all = Vec::new();
        for app in self.apps_of(target)? {
            let of_target = self
                .supervisor
                .workers(&app)
                .filter(|w| instance.is_none_or(|i| w.instance == i));
            all.extend(of_target.map(|w| WorkerEnv {
                app: app.clone(),
                instance: w.instance,
                pid: w.pid,
                env: spawn::environment(
                    &w.id,
                    w.instance,
                    &w.revision,
                    self.way_to_sockets(w.spec()).inherits(),
                ),
            }));
        }
        Ok(all)
    }

    fn signal_target(&mut self, target: &Target, signal: i32) -> Result<Vec<u32>, Failure> {
        let instance = instance_of(target);
        let mut reached = Vec::new();
        for app in self.apps_of(target)? {
            let workers: Vec<_> = self
                .supervisor
                .workers(&app)
                .filter(|w| instance.is_none_or(|i| w.instance == i))
                .map(|w| w.id.generation)
                .collect();
            for generation in workers {
                let Some(running) = self.running.get(&generation).filter(|r| !r.exited) else {
                    continue;
                };
                let failed = |why: std::io::Error| {
                    Failure::new(
                        FailureCode::Internal,
                        format!(
                            "cannot send {} to pid {}: {why}",
                            signal_name(signal),
                            running.pid
                        ),
                    )
                };
                running.signal(signal).map_err(failed)?;
                reached.push(running.pid);
            }
        }
        if reached.is_empty() {
            return Err(Failure::new(
                FailureCode::UnknownWorker,
                format!("`{target}` has no running worker"),
            )
            .hint("rsup list"));
        }
        Ok(reached)
    }

    fn apps_of(&self, target: &Target) -> Result<Vec<AppName>, Failure> {
        match target {
            Target::All => Ok(self.supervisor.names().cloned().collect()),
            Target::App(app) => self
                .supervisor
                .view(app, now())
                .map(|_| vec![app.clone()])
                .ok_or_else(|| unknown(app)),
            Target::Worker(app, instance) => {
                let view = self
                    .supervisor
                    .view(app, now())
                    .ok_or_else(|| unknown(app))?;
                if view.workers.iter().any(|w| w.instance == *instance) {
                    return Ok(vec![app.clone()]);
                }
                let why = format!(
                    "`{app}` has no worker {instance}; it has {}",
                    view.instances
                );
                Err(Failure::new(FailureCode::UnknownWorker, why)
                    .hint(format!("rsup describe {app}")))
            }
        }
    }

    fn whole_apps(&self, target: &Target, verb: &str) -> Result<Vec<AppName>, Failure> {
        if let Target::Worker(app, _) = target {
            let why = format!("`{target}` is one worker; {verb} is for whole apps");
            return Err(Failure::new(FailureCode::BadRequest, why)
                .hint(format!("rsup {verb} {app}, or rsup signal TERM {target}")));
        }
        self.apps_of(target)
    }

    /// The client has checked the file; what it cannot know is what the other apps have.
    fn check_specs(&self, specs: &[AppSpec]) -> Result<(), Failure> {
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
                    self.supervisor.workers(other).flat_map(move |w| {
                        w.revision
                            .spec
                            .listen
                            .iter()
                            .map(move |l| (l.clone(), other))
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

fn instance_of(target: &Target) -> Option<u16> {
    match target {
        Target::Worker(_, instance) => Some(*instance),
        Target::All | Target::App(_) => None,
    }
}

fn unknown(app: &AppName) -> Failure {
    Failure::new(FailureCode::UnknownApp, format!("there is no app `{app}`"))
        .hint("rsup list shows what there is")
}
