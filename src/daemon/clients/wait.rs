//! Long actions: which client waits for which, and the outcome of each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::queries::TESTS_ITS_PORT;
use super::remembered::{Begun, How, Part};
use super::verbs::{Step, Task};
use super::{Caller, reply};
use crate::config::AppName;
use crate::control::{
    Accepted, Act, ActionId, Answer, Failure, FailureCode, Kill, Killed, Outcome, Untouched,
};
use crate::core::{self, AppView, Input, OpId, OperationKind, Progress, Time, WorkerId};
use crate::daemon::fleet::Explanation;
use crate::daemon::store::Ending;
use crate::daemon::{Daemon, Event, now};
use crate::model::{ActionError, Cause};

/// How long the log thread may take to return a worker's last lines.
const TAIL_PATIENCE: Duration = Duration::from_secs(1);

/// Long actions that a client waits for.
#[derive(Default)]
pub struct Calls {
    next_op: u64,
    next_call: u64,
    open: BTreeMap<u64, Open>,
    /// The calls that wait for the end of an action, and which of their parts does.
    waiting: HashMap<OpId, Vec<(u64, usize)>>,
    /// The calls that have no outcome of an app yet.
    watching: HashMap<AppName, Vec<u64>>,
    /// The start of `--foreground`: its failure is the daemon's.
    start: Option<Start>,
}

struct Open {
    answer: Caller,
    since: Time,
    /// In the order of the request.
    parts: Vec<Waiting>,
    /// How many of them have no end yet.
    left: usize,
    /// A `kill`: the daemon ends after them.
    kill: bool,
}

/// What became of one app, or what the call waits for.
struct Waiting {
    app: AppName,
    kind: OperationKind,
    op: Option<OpId>,
    end: Option<End>,
}

/// How the part of one app ended. The rest of its outcome is looked up when the call is answered: for all
/// of them at once, since memory and processor time of all cost little more than those of one.
struct End {
    took_ms: u64,
    failure: Option<Failure>,
    untouched: Option<Untouched>,
}

impl End {
    fn of(since: Time, failure: Option<Failure>) -> Self {
        Self {
            took_ms: now().since(since).as_millis() as u64,
            failure,
            untouched: None,
        }
    }
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

    pub fn finished(&self) -> bool {
        self.open.is_empty()
    }

    /// Counts action ids on from those of a former daemon, which may still be under way.
    pub fn go_on_after(&mut self, last: Option<OpId>) {
        self.next_op = self.next_op.max(last.map_or(0, |op| op.0));
    }

    /// The next call is the start of `--foreground`.
    pub fn report_start(&mut self) {
        self.start = Some(Start::Asked);
    }

    /// Why nothing of the start of `--foreground` could be started.
    pub fn exit_failure(self) -> Option<String> {
        match self.start {
            Some(Start::Failed(why)) => Some(why),
            Some(Start::Asked | Start::Call(_)) | None => None,
        }
    }

    pub fn progress(&self, progress: &Progress) {
        for number in self.watching.get(&progress.app).into_iter().flatten() {
            if let Some(open) = self.open.get(number) {
                let _ = open.answer.send(Answer::Progress(progress.clone()));
            }
        }
    }

    /// A call waits for its parts from now on.
    fn open(&mut self, open: Open) -> u64 {
        self.next_call += 1;
        let number = self.next_call;
        for (at, part) in open.parts.iter().enumerate() {
            if let Some(op) = part.op {
                self.waiting.entry(op).or_default().push((number, at));
            }
            if part.end.is_none() {
                self.watching
                    .entry(part.app.clone())
                    .or_default()
                    .push(number);
            }
        }
        self.open.insert(number, open);
        number
    }

    /// The call does not wait for this part any more.
    fn end(&mut self, number: u64, at: usize, end: impl FnOnce(Time) -> End) {
        let Some(open) = self.open.get_mut(&number) else {
            return;
        };
        let since = open.since;
        let Some(part) = open.parts.get_mut(at).filter(|part| part.end.is_none()) else {
            return;
        };
        part.end = Some(end(since));
        open.left -= 1;
        // An app may be in two parts of one call: the other one is still watched.
        if let Some(numbers) = self.watching.get_mut(&part.app) {
            if let Some(found) = numbers.iter().position(|other| *other == number) {
                numbers.remove(found);
            }
            if numbers.is_empty() {
                self.watching.remove(&part.app);
            }
        }
    }

    /// Removes the call, if all that it waits for is over.
    fn close(&mut self, number: u64) -> Option<Open> {
        if self.open.get(&number)?.left > 0 {
            return None;
        }
        let open = self.open.remove(&number)?;
        for op in open.parts.iter().filter_map(|part| part.op) {
            if let Some(numbers) = self.waiting.get_mut(&op) {
                numbers.retain(|(other, _)| *other != number);
                if numbers.is_empty() {
                    self.waiting.remove(&op);
                }
            }
        }
        Some(open)
    }
}

impl Daemon {
    /// What was begun under this id, by this daemon or one before it.
    pub(super) fn begun(&self, id: ActionId) -> Option<Begun> {
        self.store.begun(id).cloned()
    }

    /// Begins an action on several apps as one: a later daemon knows either all of it, or nothing.
    pub(super) fn begin(
        &mut self,
        id: ActionId,
        tasks: Vec<Task>,
        cause: Cause,
        (kill, wait): (bool, bool),
        answer: Caller,
    ) {
        let mut inputs = Vec::new();
        let mut parts = Vec::new();
        for Task { app, kind, step } in tasks {
            let how = match step {
                Step::Begin(request) => {
                    let op = self.calls.op();
                    if kind == OperationKind::Reload {
                        self.admin.reload_begins(op, &app);
                    }
                    let app = app.clone();
                    inputs.push(Input::Request {
                        op,
                        app,
                        request,
                        cause,
                    });
                    How::Op(op)
                }
                Step::Join(op) => How::Op(op),
                Step::Leave(why) => How::Untouched(why),
                Step::Refuse(failure) => How::Refused(failure),
            };
            parts.push(Part { app, kind, how });
        }
        let begun = Begun { id, kill, parts };
        let number = self.wait_for(&begun.parts, kill, answer);
        if matches!(self.calls.start, Some(Start::Asked)) {
            self.calls.start = Some(Start::Call(number));
        }
        self.store.note_action(begun);
        for input in inputs {
            self.supervisor.handle(now(), input);
        }
        // Saved before the first effect.
        self.settle();
        if !wait {
            self.answer_early(number);
        }
        self.close_if_done(number);
    }

    /// Answers a client that lost the daemon which began its action, or its answer.
    pub(super) fn go_on_with(&mut self, begun: &Begun, wait: bool, answer: Caller) {
        let under_way;
        let parts = if begun.kill && self.ending {
            // This daemon has begun each stop of the end anew, under another id.
            under_way = self.under_way();
            &under_way
        } else {
            &begun.parts
        };
        let number = self.wait_for(parts, begun.kill, answer);
        self.tell_results(parts);
        if !wait {
            self.answer_early(number);
        }
        self.close_if_done(number);
    }

    /// The same for a client of version 1 of the protocol.
    pub(super) fn go_on_waiting(&mut self, actions: Vec<Accepted>, kill: bool, answer: Caller) {
        let part = |Accepted { op, app, kind }| Part {
            app,
            kind,
            how: How::Op(op),
        };
        let begun = Begun {
            id: ActionId::new(),
            kill,
            parts: actions.into_iter().map(part).collect(),
        };
        self.go_on_with(&begun, true, answer);
    }

    /// Gives the results of parts that are not under way any more.
    fn tell_results(&mut self, parts: &[Part]) {
        let under_way: BTreeSet<OpId> = self.supervisor.ops();
        let known: HashMap<OpId, Result<(), ActionError>> = self.store.results().collect();
        for part in parts {
            let How::Op(op) = part.how else { continue };
            if under_way.contains(&op) {
                continue;
            }
            let result = known.get(&op).cloned();
            self.on_finished(op, result.unwrap_or(Err(ActionError::NotBegun)));
        }
    }

    fn wait_for(&mut self, parts: &[Part], kill: bool, answer: Caller) -> u64 {
        let since = now();
        let waiting = |Part { app, kind, how }| {
            let (op, end) = match how {
                How::Op(op) => (Some(op), None),
                How::Untouched(why) => {
                    let untouched = Some(why);
                    let end = End::of(since, None);
                    (None, Some(End { untouched, ..end }))
                }
                How::Refused(failure) => (None, Some(End::of(since, Some(failure)))),
            };
            Waiting { app, kind, op, end }
        };
        let parts: Vec<Waiting> = parts.iter().cloned().map(waiting).collect();
        let left = parts.iter().filter(|part| part.end.is_none()).count();
        self.calls.open(Open {
            answer,
            since,
            parts,
            left,
            kill,
        })
    }

    /// `--no-wait`: what is not refused at once counts as accepted.
    fn answer_early(&mut self, number: u64) {
        let Some(open) = self.calls.open.get(&number) else {
            return;
        };
        for at in 0..open.parts.len() {
            self.calls.end(number, at, |_| End::of(now(), None));
        }
    }

    pub(super) fn under_way(&self) -> Vec<Part> {
        let all = self.supervisor.under_way();
        all.map(|(app, op, kind)| Part {
            app: app.clone(),
            kind,
            how: How::Op(op),
        })
        .collect()
    }

    /// The latest action that an earlier daemon may have begun.
    pub(in crate::daemon) fn last_op(&self) -> Option<OpId> {
        self.supervisor.last_op().max(self.store.last_op())
    }

    /// Called before the state is saved that no longer has these actions.
    pub(in crate::daemon) fn note_results(&mut self) {
        let ends = self.supervisor.ends();
        let ends = ends.map(|(op, result)| (op, result.clone()));
        self.store.note_results(ends);
    }

    /// Whose action it is, and which, if a client waits for it.
    fn app_of(&self, op: OpId) -> Option<(AppName, OperationKind)> {
        let (number, at) = self.calls.waiting.get(&op)?.first()?;
        let part = self.calls.open.get(number)?.parts.get(*at)?;
        Some((part.app.clone(), part.kind))
    }

    pub(in crate::daemon) fn on_finished(&mut self, op: OpId, result: Result<(), ActionError>) {
        self.admin.action_ended(op, result.is_ok());
        let Err(error) = result else {
            return self.conclude(op, None);
        };
        let Some((app, asked)) = self.app_of(op) else {
            return self.conclude(op, None);
        };
        let (worker, message) = (error.worker().cloned(), error.message(&app));
        // Only a worker that never became ready may have failed for that.
        let mut message = match self.without_takeover(&app).filter(|_| worker.is_some()) {
            Some(first) => format!("{first}\n{message}"),
            None => message,
        };
        let mut hint = error.hint(&app, asked);
        if let Some(by_binds) = worker.as_ref().and_then(|w| self.explain_by_binds(w)) {
            message = format!("{message}\n{}", by_binds.what);
            hint = Some(match hint {
                Some(hint) => format!("{}; {hint}", by_binds.hint),
                None => by_binds.hint,
            });
        }
        let failure = Failure {
            code: error.code(),
            message,
            hint,
            log: Vec::new(),
        };
        let Some(worker) = worker else {
            return self.conclude(op, Some(&failure));
        };
        // Its last lines explain more than its exit code.
        let tail = self.output.pump.tail(worker.generation);
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

    /// Whether the binds of a worker explain that it failed.
    fn explain_by_binds(&self, worker: &WorkerId) -> Option<Explanation> {
        let spec = self.as_it_runs(&worker.app)?;
        self.fleet.explain_by_binds(worker, &spec, &self.supervisor)
    }

    /// The message that takeover is missing, where an app binds its port itself: the likeliest
    /// cause of its failure.
    fn without_takeover(&self, app: &AppName) -> Option<String> {
        let spec = &self.supervisor.revision(app)?.spec;
        self.fleet.takeover.lacking(&self.fleet.isolation, spec)
    }

    pub(in crate::daemon) fn on_explained(&mut self, op: OpId, failure: Failure) {
        self.conclude(op, Some(&failure));
    }

    fn conclude(&mut self, op: OpId, failure: Option<&Failure>) {
        let waiting = self.calls.waiting.get(&op).cloned().unwrap_or_default();
        for (number, at) in waiting {
            let end = |since| End::of(since, failure.cloned());
            self.calls.end(number, at, end);
            self.close_if_done(number);
        }
    }

    /// The views of all parts' apps, completed by one look.
    fn views_of(&mut self, parts: &[Waiting]) -> HashMap<AppName, AppView> {
        let names: BTreeSet<&AppName> = parts.iter().map(|part| &part.app).collect();
        let mut views: Vec<AppView> = names
            .into_iter()
            .filter_map(|app| self.supervisor.view(app, now()))
            .collect();
        self.complete(&mut views);
        views
            .into_iter()
            .map(|view| (view.name.clone(), view))
            .collect()
    }

    fn outcome(
        &self,
        part: Waiting,
        since: Time,
        views: &HashMap<AppName, AppView>,
    ) -> Option<Outcome> {
        let Waiting { app, kind, end, .. } = part;
        let End {
            took_ms,
            failure,
            untouched,
        } = end?;
        let deleted = kind == OperationKind::Delete && failure.is_none();
        let view = views.get(&app).filter(|_| !deleted).cloned();
        let begun = matches!(
            kind,
            OperationKind::Start | OperationKind::Restart | OperationKind::Reload
        );
        let spec = self
            .supervisor
            .revision(&app)
            .map(|revision| &revision.spec)
            .filter(|_| begun);
        let limits = spec.and_then(|spec| self.fleet.isolation.lacking(spec));
        // The failure has it already.
        let takeover = spec
            .filter(|_| failure.is_none())
            .and_then(|spec| self.fleet.takeover.lacking(&self.fleet.isolation, spec));
        let learned = self
            .supervisor
            .hides_since(&app)
            .filter(|at| begun && *at >= since)
            .map(|_| TESTS_ITS_PORT.to_owned());
        let binds = spec
            .filter(|_| failure.is_none())
            .map(|spec| self.fleet.bind_notes(&app, spec, &self.network))
            .unwrap_or_default();
        let notes = limits.into_iter().chain(takeover).chain(learned);
        let notes = notes.chain(binds).collect();
        Some(Outcome {
            app,
            kind,
            took_ms,
            view,
            failure,
            untouched,
            notes,
        })
    }

    fn close_if_done(&mut self, number: u64) {
        let Some(open) = self.calls.close(number) else {
            return;
        };
        let views = self.views_of(&open.parts);
        let parts = open.parts.into_iter();
        let outcomes: Vec<Outcome> = parts
            .filter_map(|part| self.outcome(part, open.since, &views))
            .collect();
        if matches!(self.calls.start, Some(Start::Call(call)) if call == number) {
            self.judge_start(&outcomes);
        }
        match open.kill {
            true if self.ending => reply::<Kill>(&open.answer, Ok(Killed)),
            true => {
                let why = "rsup was killed while it stopped every app, and then started again";
                let failure = Failure::new(FailureCode::Superseded, why)
                    .hint("rsup list shows what there is; `rsup kill` stops it");
                reply::<Kill>(&open.answer, Err(failure));
            }
            false => reply::<Act>(&open.answer, Ok(outcomes)),
        }
    }

    /// The start of `--foreground` cannot even be tried.
    pub(super) fn refuse_start(&mut self, failure: &Failure) {
        if matches!(self.calls.start, Some(Start::Asked)) {
            self.calls.start = Some(Start::Failed(failure.message.clone()));
            self.ending = true;
        }
    }

    /// In the foreground, a start that left no app at all ends the daemon with its reason.
    fn judge_start(&mut self, outcomes: &[Outcome]) {
        self.calls.start = None;
        let failed = outcomes
            .iter()
            .filter_map(|o| Some((&o.app, o.failure.as_ref()?)));
        let failures: Vec<_> = failed.collect();
        if !failures.is_empty()
            && failures.len() == outcomes.len()
            && failures.iter().all(|(_, f)| f.code == FailureCode::Listen)
        {
            let words = failures
                .iter()
                .map(|(app, f)| format!("{app}: {}", f.message));
            let words: Vec<String> = words.collect();
            self.calls.start = Some(Start::Failed(words.join("; ")));
            self.stop_everything();
        }
    }

    /// On a signal, or after a foreground start: stops every app gracefully, then ends the daemon.
    pub(in crate::daemon) fn stop_everything(&mut self) {
        self.note_end(Ending::Signal);
        self.stop_all_apps();
    }

    pub(in crate::daemon) fn stop_all_apps(&mut self) {
        let apps: Vec<AppName> = self.supervisor.names().cloned().collect();
        for app in apps {
            let op = self.calls.op();
            self.handle(Input::Request {
                op,
                app,
                request: core::Request::Halt,
                cause: Cause::Shutdown,
            });
        }
    }
}
