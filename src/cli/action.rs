//! Long actions: send, show the steps, wait, tell what became of each app.

use std::time::Instant;

use super::client::{CallError, Client, Interrupt};
use super::error::{CliError, FAILED, Report};
use super::progress::Progress;
use super::render::{self, Output};
use super::targets;
use crate::config::AppName;
use crate::control::{Failure, Outcome, Reply, Request, Target};
use crate::core::OperationKind;

/// Sends one request and waits for its outcomes.
pub fn one(
    out: &Output,
    client: &Client,
    request: Request,
    wait: bool,
) -> Result<Vec<Outcome>, CliError> {
    let interrupt = if wait {
        Interrupt::hold()
    } else {
        Interrupt::none()
    };
    let progress = Progress::new(out);
    let reply = client.act(request, wait, &interrupt, &|step| progress.show(step));
    progress.clear();
    match reply.map_err(|error| client.explain(error))? {
        Reply::Finished(outcomes) => Ok(outcomes),
        _ => Err(targets::unexpected()),
    }
}

/// Sends a request for each target, all at the same time; the daemon's refusal of one is its outcome.
pub fn each(
    out: &Output,
    client: &Client,
    targets: &[Target],
    kind: OperationKind,
    request: impl Fn(Target) -> Request,
    wait: bool,
) -> Result<Vec<Outcome>, CliError> {
    if let [target] = targets {
        return one(out, client, request(target.clone()), wait);
    }
    let interrupt = if wait {
        Interrupt::hold()
    } else {
        Interrupt::none()
    };
    let progress = Progress::new(out);
    let begin = Instant::now();
    let replies: Vec<Result<Reply, CallError>> = std::thread::scope(|scope| {
        let calls: Vec<_> = targets
            .iter()
            .map(|target| {
                let request = request(target.clone());
                let (interrupt, progress) = (&interrupt, &progress);
                std::thread::Builder::new().spawn_scoped(scope, move || {
                    client.act(request, wait, interrupt, &|step| progress.show(step))
                })
            })
            .collect();
        let joined = |(call, target): (
            std::io::Result<std::thread::ScopedJoinHandle<'_, _>>,
            &Target,
        )| match call {
            Ok(call) => call
                .join()
                .unwrap_or_else(|_| Err(CallError::Local("a thread of rsup ended early".into()))),
            // There is no room for one: then one after the other, so that a stop can make room.
            Err(_) => client.act(request(target.clone()), wait, &interrupt, &|step| {
                progress.show(step)
            }),
        };
        calls.into_iter().zip(targets).map(joined).collect()
    });
    progress.clear();
    let mut outcomes = Vec::new();
    for (target, reply) in targets.iter().zip(replies) {
        match (reply, target) {
            (Ok(Reply::Finished(finished)), _) => outcomes.extend(finished),
            (Err(CallError::Failed(failure)), Target::App(app) | Target::Worker(app, _)) => {
                let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
                outcomes.push(failed(app, kind, took_ms, failure));
            }
            (Err(error), _) => return Err(client.explain(error)),
            (Ok(_), _) => return Err(targets::unexpected()),
        }
    }
    Ok(outcomes)
}

/// The outcome of an action that the daemon, or we, refused.
pub fn failed(app: &AppName, kind: OperationKind, took_ms: u64, failure: Failure) -> Outcome {
    Outcome {
        app: app.clone(),
        kind,
        took_ms,
        view: None,
        failure: Some(failure),
        notes: Vec::new(),
    }
}

/// Prints what became of each app; an error if one of them failed.
pub fn conclude(out: &Output, outcomes: &[Outcome], wait: bool) -> Result<(), CliError> {
    if out.json {
        out.document(outcomes)?;
    }
    for outcome in outcomes {
        match &outcome.failure {
            Some(failure) => {
                let mut report = Report::from(failure);
                // Which of several apps; the daemon's words may begin with it already.
                if !report.message.contains(outcome.app.as_str()) {
                    report.message = format!("{}: {}", outcome.app, report.message);
                }
                out.error(&report);
            }
            None if !out.json => out.text(&render::outcome(outcome, !wait, out.look))?,
            None => {}
        }
        for note in &outcome.notes {
            out.note(&format!("{}: {note}", outcome.app));
        }
    }
    if outcomes.iter().any(|outcome| outcome.failure.is_some()) {
        Err(CliError::AlreadyReported(FAILED))
    } else {
        Ok(())
    }
}
