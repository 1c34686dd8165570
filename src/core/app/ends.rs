//! The ends of things: of a start, a stop, a reload, and of a worker that was to stay.

use super::super::io::{Effect, OpError};
use super::super::operation::{Before, Course, Operation};
use super::super::plan::Stage;
use super::super::reason::Explains;
use super::super::seat::{Ending, Hold, Seat};
use super::super::types::OpId;
use super::super::view::{Exit, FailureCode, OperationKind, Step};
use super::super::worker::Worker;
use super::{App, Context, RESTARTED, Wanted, stage};
use crate::human::format_duration;

impl App {
    /// Ends what is finished: a stop, a delete, a start, a reload, a rollback. True if that changes
    /// what is to be done.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(mut operation) = self.operation.take() else {
            return false;
        };
        let mut news = false;
        if self.goal() == Wanted::Up
            && let Course::Forward { .. } = operation.course
            && self.available(cx)
        {
            operation.course = Course::Ending {
                generation: *cx.next_generation,
            };
            news = true;
        }
        let idle = self.listening.pending.is_none();
        let done = match (self.goal(), &operation.course) {
            (Wanted::Up, Course::Forward { .. }) => false,
            (Wanted::Up, Course::Ending { generation }) => {
                idle && self
                    .workers()
                    .all(|w| w.active() || w.id.generation > *generation)
            }
            (Wanted::Up, Course::Back { .. }) => {
                self.available(cx) && self.workers().all(Worker::fresh)
            }
            (Wanted::Down | Wanted::Deleted, _) => self.gone(),
        };
        if !done {
            self.operation = Some(operation);
            return news;
        }
        let result = match operation.course {
            Course::Back { error, .. } => Err(error),
            Course::Forward { .. } | Course::Ending { .. } => {
                if self.goal() == Wanted::Up {
                    self.reason = None;
                }
                self.note(
                    format!(
                        "{} done after {}",
                        operation.kind.as_str(),
                        format_duration(cx.now.since(operation.since))
                    ),
                    false,
                    cx,
                );
                Ok(())
            }
        };
        cx.out.push_back(Effect::Finished {
            op: operation.op,
            result,
        });
        true
    }

    /// Whether every wanted worker is available (or has ended, as its policy has it), with the
    /// sockets that are wanted, and nobody else is to go.
    fn available(&self, cx: &Context<'_>) -> bool {
        let available = |instance: u16| {
            self.workers()
                .any(|w| w.instance == instance && w.fresh() && stage(w, cx.now) == Stage::Serving)
        };
        let ended = |instance: u16| {
            self.seats
                .get(usize::from(instance))
                .is_some_and(|s| s.hold == Hold::Exited)
        };
        self.listening.pending.is_none() && (0..self.instances).all(|i| available(i) || ended(i))
    }

    /// The action cannot succeed any more. A start goes on trying without its asker; a reload goes back.
    pub(super) fn fail_operation(&mut self, error: OpError, cx: &mut Context<'_>) {
        let Some(Operation {
            kind,
            since,
            op,
            before,
            course,
        }) = self.operation.take()
        else {
            return;
        };
        let error = match (course, before) {
            (Course::Back { error: first, .. }, _) => OpError {
                message: format!(
                    "{}; going back failed too: {}",
                    first.message, error.message
                ),
                ..first
            },
            (Course::Forward { .. }, Some(before))
                if kind == OperationKind::Reload || error.code == FailureCode::Listen =>
            {
                self.go_back(kind, &before, &error, cx);
                let stays = |w: &Worker| {
                    w.active() && (w.fresh() || w.revision.number == self.target.number)
                };
                let whole = (0..self.instances)
                    .all(|i| self.workers().any(|w| w.instance == i && stays(w)));
                if !whole {
                    let course = Course::Back {
                        deadline: cx.now + self.spec().reload.deadline,
                        error,
                    };
                    self.operation = Some(Operation {
                        kind,
                        since,
                        op,
                        before: Some(before),
                        course,
                    });
                    return;
                }
                error
            }
            (Course::Forward { .. } | Course::Ending { .. }, _) => error,
        };
        cx.out.push_back(Effect::Finished {
            op,
            result: Err(error),
        });
    }

    /// Ends the action and whatever waits for it: there will be nothing to act on.
    pub(super) fn answer_all(&mut self, error: &OpError, cx: &mut Context<'_>) {
        let waiting = self.queue.drain(..).map(|(op, ..)| op);
        let all: Vec<OpId> = self
            .operation
            .take()
            .map(|o| o.op)
            .into_iter()
            .chain(waiting)
            .collect();
        for op in all {
            cx.out.push_back(Effect::Finished {
                op,
                result: Err(error.clone()),
            });
        }
    }

    /// To what was wanted before: old workers stay, replacements that are not ready go, and those
    /// that are ready go as soon as an old one has taken their place again.
    fn go_back(
        &mut self,
        kind: OperationKind,
        before: &Before,
        error: &OpError,
        cx: &mut Context<'_>,
    ) {
        let failed = std::mem::replace(&mut self.target, before.target.clone());
        self.instances = before.instances;
        self.seats.iter_mut().for_each(Seat::reopen);
        let what = kind.as_str();
        self.blame(
            Explains::Action,
            format!("{what} failed: {}", error.message),
        );
        for worker in self.workers_mut().filter(|w| w.active()) {
            if worker.goes_by_reload() || worker.condemned.as_deref() == Some(RESTARTED) {
                worker.condemned = None;
            }
        }
        let mut replaced = 0;
        if failed.number != before.target.number {
            let old: Vec<u16> = self
                .workers()
                .filter(|w| w.active() && w.revision.number != failed.number)
                .map(|w| w.instance)
                .collect();
            for worker in self
                .workers_mut()
                .filter(|w| w.active() && w.revision.number == failed.number)
            {
                if failed.spec.reload.auto_rollback
                    || !worker.ready()
                    || old.contains(&worker.instance)
                {
                    replaced += usize::from(worker.ready());
                    worker.condemned = Some(format!("revision {} failed", failed.number));
                }
            }
        }
        let tail = match replaced {
            0 => String::new(),
            n => format!(
                "; {n} replaced worker(s) go back to revision {}",
                before.target.number
            ),
        };
        self.note(format!("{what} aborted: {}{tail}", error.message), true, cx);
    }

    /// A worker is lost that nobody asked to go: its seat's policy decides, and a reload ends.
    pub(super) fn lost(
        &mut self,
        worker: &Worker,
        exit: Option<Exit>,
        reason: &str,
        code: FailureCode,
        cx: &mut Context<'_>,
    ) {
        self.progress_of(
            worker,
            Step::Failed {
                reason: reason.to_owned(),
            },
            cx,
        );
        let ending = Ending {
            now: cx.now,
            uptime: cx.now.since(worker.started),
            was_ready: worker.ready(),
            exit,
            reason,
        };
        if !worker.fresh() {
            self.lost_old(worker, &ending);
            return;
        }
        // A release that fails is no restart of the instance, which its old worker still serves.
        let on_trial = worker.revision.number == self.target.number
            && self.operation.as_ref().is_some_and(Operation::may_go_back);
        if let Some(seat) = self
            .seats
            .get_mut(usize::from(worker.instance))
            .filter(|_| !on_trial)
        {
            seat.ended(&worker.revision.spec, ending, cx.random);
            if let (Hold::Errored, Some(why)) = (&seat.hold, seat.reason.clone()) {
                self.note(format!("{} is errored: {why}", worker.instance), true, cx);
            }
        }
        self.blame(
            Explains::Instance(worker.instance),
            format!("{}: {reason}", worker.instance),
        );
        let Some(Operation {
            kind,
            course: Course::Forward { .. } | Course::Back { .. },
            ..
        }) = self.operation
        else {
            return;
        };
        if worker.revision.number != self.target.number {
            return;
        }
        let name = &self.name;
        let trying = self
            .seats
            .get(usize::from(worker.instance))
            .is_some_and(|s| matches!(s.hold, Hold::Open | Hold::Backoff { .. }));
        let hint = match kind {
            OperationKind::Start | OperationKind::Restart | OperationKind::Scale if trying => {
                format!(
                    "rsup keeps trying; see its log: rsup logs {name}; end it: rsup delete {name}"
                )
            }
            OperationKind::Start
            | OperationKind::Stop
            | OperationKind::Restart
            | OperationKind::Reload
            | OperationKind::Scale
            | OperationKind::Delete => format!("see its log: rsup logs {name}"),
        };
        let colon = if code == FailureCode::Spawn { ":" } else { "" };
        let message = format!("worker {name}:{}{colon} {reason}", worker.instance);
        self.fail_operation(
            OpError {
                code,
                message,
                hint: Some(hint),
                worker: Some(worker.id.clone()),
            },
            cx,
        );
    }

    /// An old worker that ends by itself while its replacement is tried comes back from its own
    /// revision: should the new one never get ready, the app has not run with fewer workers for
    /// that long. Not so one that ended early, which a new start would not help; and one that was
    /// condemned for a fault of its own is being replaced from the wanted revision anyway.
    fn lost_old(&mut self, worker: &Worker, ending: &Ending<'_>) {
        let tried = self.operation.as_ref().is_some_and(Operation::may_go_back);
        let steady = ending.was_ready && ending.uptime >= worker.spec().restart.min_uptime;
        if tried
            && steady
            && worker.goes_by_reload()
            && let Some(seat) = self.seats.get_mut(usize::from(worker.instance))
        {
            seat.bereft_of = Some(worker.revision.clone());
            seat.reason = Some(ending.reason.to_owned());
            seat.restarts = seat.restarts.saturating_add(1);
        }
    }
}
