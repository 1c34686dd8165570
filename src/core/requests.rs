//! Users' wishes: what each verb changes in what is wanted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::after;
use super::app::{App, Context, REPLACED_BY_RELOAD, RESTARTED, Wanted};
use super::io::{Effect, Env, OpError, Request};
use super::operation::{Before, Course, Operation};
use super::seat::{Hold, Seat};
use super::types::{OpId, Revision};
use super::view::{FailureCode, OperationKind};
use crate::config::{AppName, AppSpec};
use crate::human::format_duration;

/// Begins the action, or refuses it with a reason and leaves everything as it is.
pub fn handle(
    apps: &mut BTreeMap<AppName, App>,
    name: &AppName,
    op: OpId,
    request: Request,
    cx: &mut Context<'_>,
) {
    match begin(apps, name, op, request, cx) {
        Ok(()) => after(apps, name, cx),
        Err(error) => cx.out.push_back(Effect::Finished {
            op,
            result: Err(error),
        }),
    }
}

fn begin(
    apps: &mut BTreeMap<AppName, App>,
    name: &AppName,
    op: OpId,
    request: Request,
    cx: &mut Context<'_>,
) -> Result<(), OpError> {
    let kind = request.kind();
    let Some(app) = apps.get_mut(name) else {
        let app = first(name, op, request, cx)?;
        apps.insert(name.clone(), app);
        return Ok(());
    };
    match request {
        Request::Stop | Request::Delete => {
            supersede(app, kind, cx);
            app.wanted = if kind == OperationKind::Stop && app.wanted != Wanted::Deleted {
                Wanted::Down
            } else {
                Wanted::Deleted
            };
            app.reason = None;
            app.operation = Some(Operation {
                kind,
                since: cx.now,
                op,
                before: None,
                course: Course::Forward { deadline: None },
            });
            Ok(())
        }
        Request::Halt => {
            supersede(app, kind, cx);
            app.halted = true;
            app.reason = None;
            app.operation = Some(Operation {
                kind,
                since: cx.now,
                op,
                before: None,
                course: Course::Forward { deadline: None },
            });
            Ok(())
        }
        Request::Start { spec, base_env } => {
            if leaves(app) {
                app.queue.push_back((op, spec, Some(base_env)));
                return Ok(());
            }
            not_busy(app, cx)?;
            if app.workers().next().is_some() || !given_up(app) {
                not_running(app)?;
            }
            app.target = next_revision(app, *spec, Some(base_env));
            come_up(app, kind, op, None, cx);
            Ok(())
        }
        Request::StartStopped => {
            if leaves(app) && app.goal() == Wanted::Down {
                let spec = AppSpec {
                    instances: app.instances,
                    ..app.spec().clone()
                };
                let base_env = app.target.base_env.clone();
                app.queue.push_back((op, Box::new(spec), Some(base_env)));
                return Ok(());
            }
            not_busy(app, cx)?;
            // Whoever asks wants to know when it is ready.
            if app.all_serve(cx.now) {
                not_running(app)?;
            }
            come_up(app, kind, op, None, cx);
            Ok(())
        }
        Request::Restart { spec, base_env } => {
            not_busy(app, cx)?;
            let before = before(app);
            app.target = next_revision(app, *spec, base_env);
            condemn_all(app, RESTARTED);
            come_up(app, kind, op, Some(before), cx);
            Ok(())
        }
        Request::Reload {
            spec,
            base_env,
            queue,
        } => {
            not_stopped(app)?;
            if queue && app.operation.is_some() {
                app.queue.push_back((op, spec, base_env));
                return Ok(());
            }
            not_busy(app, cx)?;
            let before = before(app);
            app.target = next_revision(app, *spec, base_env);
            condemn_all(app, REPLACED_BY_RELOAD);
            come_up(app, kind, op, Some(before), cx);
            app.note(
                format!("reload to revision {}", app.target.number),
                false,
                cx,
            );
            Ok(())
        }
        Request::Scale { instances } => scale(app, instances, op, cx),
    }
}

fn scale(app: &mut App, instances: u16, op: OpId, cx: &mut Context<'_>) -> Result<(), OpError> {
    not_busy(app, cx)?;
    if instances == 0 {
        let hint = format!("rsup stop {}", app.name);
        return Err(refused(
            FailureCode::BadRequest,
            "an app has at least one worker".into(),
            &hint,
        ));
    }
    let before = before(app);
    app.instances = instances;
    app.note(format!("scaled to {instances}"), false, cx);
    if app.goal() == Wanted::Up {
        // So many are to run: those that were given up are tried again.
        app.listening.again = None;
        app.seats
            .iter_mut()
            .filter(|s| s.hold != Hold::Exited)
            .for_each(Seat::reopen);
        app.operation = Some(forward(app, OperationKind::Scale, op, Some(before), cx));
    } else {
        cx.out.push_back(Effect::Finished { op, result: Ok(()) });
    }
    Ok(())
}

/// A new app.
fn first(name: &AppName, op: OpId, request: Request, cx: &mut Context<'_>) -> Result<App, OpError> {
    match request {
        Request::Start { spec, base_env } => {
            let mut app = App::new(Arc::new(Revision {
                number: 1,
                spec: *spec,
                base_env,
            }));
            app.operation = Some(forward(&app, OperationKind::Start, op, None, cx));
            app.note("started".into(), false, cx);
            Ok(app)
        }
        Request::StartStopped
        | Request::Stop
        | Request::Halt
        | Request::Delete
        | Request::Restart { .. }
        | Request::Reload { .. }
        | Request::Scale { .. } => Err(refused(
            FailureCode::UnknownApp,
            format!("there is no app `{name}`"),
            "rsup list",
        )),
    }
}

fn come_up(
    app: &mut App,
    kind: OperationKind,
    op: OpId,
    before: Option<Before>,
    cx: &mut Context<'_>,
) {
    app.wanted = Wanted::Up;
    app.halted = false;
    app.reason = None;
    app.listening.again = None;
    app.seats.iter_mut().for_each(Seat::reopen);
    app.operation = Some(forward(app, kind, op, before, cx));
}

fn forward(
    app: &App,
    kind: OperationKind,
    op: OpId,
    before: Option<Before>,
    cx: &Context<'_>,
) -> Operation {
    let deadline = Some(cx.now + app.spec().reload.deadline);
    Operation {
        kind,
        since: cx.now,
        op,
        before,
        course: Course::Forward { deadline },
    }
}

fn before(app: &App) -> Before {
    Before {
        target: app.target.clone(),
        instances: app.instances,
    }
}

fn condemn_all(app: &mut App, why: &str) {
    for worker in app
        .slots
        .iter_mut()
        .flatten()
        .filter(|w| w.active() && w.fresh())
    {
        worker.condemned = Some(why.to_owned());
    }
}

fn next_revision(app: &mut App, spec: AppSpec, base_env: Option<Env>) -> Arc<Revision> {
    app.last_revision += 1;
    let base_env = base_env.unwrap_or_else(|| app.target.base_env.clone());
    app.instances = spec.instances;
    Arc::new(Revision {
        number: app.last_revision,
        spec,
        base_env,
    })
}

/// A stop ends whatever is under way and whatever waits.
fn supersede(app: &mut App, by: OperationKind, cx: &mut Context<'_>) {
    let running = app.operation.take().map(|o| {
        // A reload that did not get to its end has changed nothing.
        if o.may_go_back()
            && let Some(before) = o.before
        {
            app.target = before.target;
            app.instances = before.instances;
        }
        (o.op, o.kind)
    });
    // While it is to be up, reloads wait; while it is not, a start does.
    let waits = match app.goal() {
        Wanted::Up => OperationKind::Reload,
        Wanted::Down | Wanted::Deleted => OperationKind::Start,
    };
    let queued = app.queue.drain(..).map(|(op, ..)| (op, waits));
    for (op, kind) in running.into_iter().chain(queued) {
        let message = format!(
            "the {} of `{}` was ended by a {}",
            kind.as_str(),
            app.name,
            by.as_str()
        );
        cx.out.push_back(Effect::Finished {
            op,
            result: Err(refused(FailureCode::Superseded, message, "rsup list")),
        });
    }
}

fn not_busy(app: &App, cx: &Context<'_>) -> Result<(), OpError> {
    let Some(operation) = &app.operation else {
        return Ok(());
    };
    let kind = operation.kind.as_str();
    let message = format!(
        "`{}` is busy: {kind} in progress since {}",
        app.name,
        format_duration(cx.now.since(operation.since))
    );
    let hint = format!(
        "wait for it (rsup reload {} --wait), or end it: rsup stop {}",
        app.name, app.name
    );
    Err(OpError {
        code: FailureCode::Busy,
        message,
        hint: Some(hint),
        worker: None,
    })
}

/// It is being stopped or deleted, and nothing waits for that yet: a start can.
fn leaves(app: &App) -> bool {
    app.goal() != Wanted::Up && app.operation.is_some() && app.queue.is_empty()
}

/// Some workers have ended for good, or wait for their next try.
fn given_up(app: &App) -> bool {
    let given_up = |seat: &Seat| {
        matches!(
            seat.hold,
            Hold::Errored | Hold::Exited | Hold::Backoff { .. }
        )
    };
    app.seats.iter().any(given_up)
}

/// What is stopped is started by a start alone.
fn not_stopped(app: &App) -> Result<(), OpError> {
    if app.goal() == Wanted::Up {
        return Ok(());
    }
    let hint = format!("rsup start {}", app.name);
    let message = format!("`{}` is stopped", app.name);
    Err(refused(FailureCode::Stopped, message, &hint))
}

fn not_running(app: &App) -> Result<(), OpError> {
    if app.goal() != Wanted::Up {
        return Ok(());
    }
    let hint = format!(
        "rsup reload {} replaces its workers without a gap",
        app.name
    );
    Err(OpError {
        code: FailureCode::AlreadyRunning,
        message: format!("`{}` runs already", app.name),
        hint: Some(hint),
        worker: None,
    })
}

fn refused(code: FailureCode, message: String, hint: &str) -> OpError {
    OpError {
        code,
        message,
        hint: Some(hint.to_owned()),
        worker: None,
    }
}
