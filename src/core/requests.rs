//! What each verb changes in the wanted state.

use std::sync::Arc;

use super::after;
use super::app::{App, Context, Wanted};
use super::apps::Apps;
use super::io::{Effect, Env, Request};
use super::restart::RestartState;
use super::rollout::{Before, Phase, Queued, Rollout};
use super::types::{OpId, Revision};
use super::view::OperationKind;
use crate::config::{AppName, AppSpec};
use crate::model::{ActionError, Cause, What};

/// The origin of an action.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub op: OpId,
    pub cause: Cause,
}

impl Asked {
    /// A reload, or a start, for the queue.
    fn later(self, spec: Box<AppSpec>, base_env: Option<Env>) -> Queued {
        Queued {
            op: self.op,
            spec,
            base_env,
            cause: self.cause,
        }
    }
}

/// Begins the action, or refuses it with a reason and changes nothing.
pub fn handle(
    apps: &mut Apps,
    name: &AppName,
    asked: Asked,
    request: Request,
    cx: &mut Context<'_>,
) {
    match begin(apps, name, asked, request, cx) {
        Ok(()) => after(apps, name, cx),
        Err(error) => cx.out.push_back(Effect::Finished {
            op: asked.op,
            result: Err(error),
        }),
    }
}

fn begin(
    apps: &mut Apps,
    name: &AppName,
    asked: Asked,
    request: Request,
    cx: &mut Context<'_>,
) -> Result<(), ActionError> {
    let kind = request.kind();
    let Some(app) = apps.get_mut(name) else {
        let app = first(asked, request, cx)?;
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
            go_down(app, kind, asked, cx);
            Ok(())
        }
        Request::Halt => {
            supersede(app, kind, cx);
            app.halted = true;
            go_down(app, kind, asked, cx);
            Ok(())
        }
        Request::Start { spec, base_env } => {
            if leaves(app) {
                app.queue.push_back(asked.later(spec, Some(base_env)));
                return Ok(());
            }
            not_busy(app, cx)?;
            if app.workers().next().is_some() || !missing(app) {
                not_running(app)?;
            }
            next_revision(app, *spec, Some(base_env));
            come_up(app, kind, asked, None, cx);
            Ok(())
        }
        Request::StartStopped => {
            if leaves(app) && app.goal() == Wanted::Down {
                let spec = AppSpec {
                    instances: app.instances,
                    ..app.spec().clone()
                };
                let base_env = app.target().base_env.clone();
                app.queue
                    .push_back(asked.later(Box::new(spec), Some(base_env)));
                return Ok(());
            }
            not_busy(app, cx)?;
            // A caller waits until the app is ready.
            if app.all_serve(cx.now) {
                not_running(app)?;
            }
            come_up(app, kind, asked, None, cx);
            Ok(())
        }
        Request::Restart { spec, base_env } => {
            not_busy(app, cx)?;
            let before = before(app);
            next_revision(app, *spec, base_env);
            come_up(app, kind, asked, Some(before), cx);
            Ok(())
        }
        Request::Reload {
            spec,
            base_env,
            queue,
        } => {
            not_stopped(app)?;
            if queue && app.rollout.is_some() {
                app.queue.push_back(asked.later(spec, base_env));
                return Ok(());
            }
            not_busy(app, cx)?;
            let before = before(app);
            next_revision(app, *spec, base_env);
            come_up(app, kind, asked, Some(before), cx);
            Ok(())
        }
        Request::Scale { instances } => scale(app, instances, asked, cx),
    }
}

/// Whether workers were given up, have ended, or wait for their next start.
fn missing(app: &App) -> bool {
    let waits = |state: &RestartState| match state {
        RestartState::Errored | RestartState::Exited | RestartState::Backoff { .. } => true,
        RestartState::Open => false,
    };
    app.sets
        .values()
        .flat_map(|set| set.instances.values())
        .any(|instance| waits(&instance.state))
}

fn scale(
    app: &mut App,
    instances: u16,
    asked: Asked,
    cx: &mut Context<'_>,
) -> Result<(), ActionError> {
    not_busy(app, cx)?;
    if instances == 0 {
        return Err(ActionError::NoInstances);
    }
    let before = before(app);
    app.instances = instances;
    if app.goal() == Wanted::Up {
        // This many shall run: workers that were given up are tried again.
        app.listening.again = None;
        for set in app.sets.values_mut() {
            set.instances
                .values_mut()
                .filter(|i| i.state != RestartState::Exited)
                .for_each(|i| i.reopen());
        }
        forward(app, OperationKind::Scale, asked, Some(before), cx);
    } else {
        began(app, OperationKind::Scale, asked.cause, cx);
        cx.out.push_back(Effect::Finished {
            op: asked.op,
            result: Ok(()),
        });
    }
    Ok(())
}

/// Creates an app.
fn first(asked: Asked, request: Request, cx: &mut Context<'_>) -> Result<App, ActionError> {
    match request {
        Request::Start { spec, base_env } => {
            let mut app = App::new(Arc::new(Revision {
                number: 1,
                spec: *spec,
                base_env,
            }));
            forward(&mut app, OperationKind::Start, asked, None, cx);
            Ok(app)
        }
        Request::StartStopped
        | Request::Stop
        | Request::Halt
        | Request::Delete
        | Request::Restart { .. }
        | Request::Reload { .. }
        | Request::Scale { .. } => Err(ActionError::UnknownApp),
    }
}

fn go_down(app: &mut App, kind: OperationKind, asked: Asked, cx: &mut Context<'_>) {
    app.refuse(cx);
    app.reason = None;
    app.rollout = Some(Rollout {
        kind,
        cause: asked.cause,
        since: cx.now,
        op: asked.op,
        from: None,
        phase: Phase::Progress { deadline: None },
    });
    began(app, kind, asked.cause, cx);
}

fn come_up(
    app: &mut App,
    kind: OperationKind,
    asked: Asked,
    from: Option<Before>,
    cx: &mut Context<'_>,
) {
    if app.goal() != Wanted::Up {
        let current = app.current;
        app.sets.retain(|revision, _| *revision == current);
    }
    app.wanted = Wanted::Up;
    app.halted = false;
    app.reason = None;
    app.listening.again = None;
    app.sets.values_mut().for_each(|set| set.reopen());
    forward(app, kind, asked, from, cx);
}

fn forward(
    app: &mut App,
    kind: OperationKind,
    asked: Asked,
    from: Option<Before>,
    cx: &mut Context<'_>,
) {
    let deadline = Some(cx.now + app.spec().reload.deadline);
    app.rollout = Some(Rollout {
        kind,
        cause: asked.cause,
        since: cx.now,
        op: asked.op,
        from,
        phase: Phase::Progress { deadline },
    });
    began(app, kind, asked.cause, cx);
}

fn began(app: &App, kind: OperationKind, cause: Cause, cx: &mut Context<'_>) {
    let instances = match kind {
        OperationKind::Stop | OperationKind::Delete => 0,
        OperationKind::Start
        | OperationKind::Restart
        | OperationKind::Reload
        | OperationKind::Scale => app.instances,
    };
    let what = What::ActionBegan {
        kind,
        cause,
        instances,
    };
    app.record(what, cx);
}

fn before(app: &App) -> Before {
    Before {
        revision: app.current,
        instances: app.instances,
    }
}

fn next_revision(app: &mut App, spec: AppSpec, base_env: Option<Env>) {
    app.last_revision += 1;
    let base_env = base_env.unwrap_or_else(|| app.target().base_env.clone());
    app.instances = spec.instances;
    app.releases.add(Arc::new(Revision {
        number: app.last_revision,
        spec,
        base_env,
    }));
    app.current = app.last_revision;
}

/// A stop ends the action under way and all that wait.
fn supersede(app: &mut App, by: OperationKind, cx: &mut Context<'_>) {
    let running = app.rollout.take().map(|rollout| {
        let kind = rollout.kind;
        app.record(What::ActionSuperseded { kind, by }, cx);
        // An unfinished reload has changed nothing.
        app.undo(&rollout);
        (rollout.op, kind)
    });
    // While the app is wanted up, reloads wait; while it is not, a start does.
    let waits = match app.goal() {
        Wanted::Up => OperationKind::Reload,
        Wanted::Down | Wanted::Deleted => OperationKind::Start,
    };
    let queued = app.queue.drain(..).map(|queued| (queued.op, waits));
    for (op, kind) in running.into_iter().chain(queued) {
        cx.out.push_back(Effect::Finished {
            op,
            result: Err(ActionError::Superseded { kind, by }),
        });
    }
}

fn not_busy(app: &App, cx: &Context<'_>) -> Result<(), ActionError> {
    let Some(rollout) = &app.rollout else {
        return Ok(());
    };
    let for_ms = cx.now.since(rollout.since).as_millis();
    Err(ActionError::Busy {
        kind: rollout.kind,
        for_ms: u64::try_from(for_ms).unwrap_or(u64::MAX),
    })
}

/// Whether it is being stopped or deleted and no action waits for that yet: a start can.
fn leaves(app: &App) -> bool {
    app.goal() != Wanted::Up && app.rollout.is_some() && app.queue.is_empty()
}

/// Refuses a stopped app: only a start starts it.
fn not_stopped(app: &App) -> Result<(), ActionError> {
    match app.goal() {
        Wanted::Up => Ok(()),
        Wanted::Down | Wanted::Deleted => Err(ActionError::Stopped),
    }
}

fn not_running(app: &App) -> Result<(), ActionError> {
    if app.goal() == Wanted::Up {
        return Err(ActionError::AlreadyRunning);
    }
    Ok(())
}
