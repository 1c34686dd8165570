//! The model in English: the texts of the log, `list`, `describe` and the commands' answers.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::event::Killed;
use super::view::OperationKind;
use super::{ActionError, Because, Cause, Doubt, Event, Loss, Retire, What, foreground};
use crate::config::AppName;
use crate::human::{format_duration, size};

fn ms(ms: u64) -> String {
    format_duration(Duration::from_millis(ms))
}

impl Display for Retire {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { bytes, limit } => {
                let (bytes, limit) = (size(*bytes), size(*limit));
                write!(f, "memory {bytes} is over max_memory {limit}")
            }
            Self::Liveness { failure } => write!(f, "liveness failed: {failure}"),
            Self::TooSlow { timeout_ms, last } => too_slow(f, *timeout_ms, last.as_ref()),
            Self::OutOfReach => f.write_str(
                "rsup was killed together with its keeper, and may not take the worker's sockets back",
            ),
            Self::Deaf => f.write_str(
                "rsup was killed, and cannot answer the worker's calls of bind and connect any more",
            ),
            Self::PortTest => f.write_str(
                "it seems to have tested its port by connecting to it, and found rsup there",
            ),
            Self::ScaledDown => f.write_str("scaled down"),
            Self::Replaced => f.write_str("replaced by a reload"),
            Self::Stopped => f.write_str("stopped"),
            Self::ReleaseFailed { revision } => write!(f, "revision {revision} failed"),
            Self::Told(text) => f.write_str(text),
        }
    }
}

fn too_slow(f: &mut Formatter<'_>, timeout_ms: u64, last: Option<&Doubt>) -> fmt::Result {
    write!(f, "was not ready within listen_timeout {}", ms(timeout_ms))?;
    match last {
        Some(last) => write!(f, " ({last})"),
        None => Ok(()),
    }
}

impl Display for Loss {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited {
                exit,
                uptime_ms,
                ready,
                background,
            } => {
                write!(f, "{exit} after {}", ms(*uptime_ms))?;
                f.write_str(if *ready { "" } else { ", before it was ready" })?;
                background.as_ref().map_or(Ok(()), |program| {
                    write!(
                        f,
                        ", and left processes in the background: {program} has to stay in the foreground"
                    )
                })
            }
            Self::NotStarted { why } => f.write_str(why),
            Self::TooSlow { timeout_ms, last } => too_slow(f, *timeout_ms, last.as_ref()),
        }
    }
}

impl Display for Doubt {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady { why } => write!(f, "not ready: {why}"),
            Self::NotAlive { why } => write!(f, "liveness: {why}"),
            Self::NotAsked { purpose, why } => write!(f, "{purpose}: rsup could not ask: {why}"),
            Self::Told(text) => f.write_str(text),
        }
    }
}

impl Display for Because {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { loss } => loss.fmt(f),
            Self::GivenUp { loss, restarts } => {
                write!(f, "{loss}; given up after {restarts} restarts")
            }
            Self::Retired { why } => why.fmt(f),
            Self::Told(text) => f.write_str(text),
        }
    }
}

impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "a command",
            Self::Hangup => "SIGHUP",
            Self::Startup => "the start of rsup",
            Self::Shutdown => "the end of rsup",
        })
    }
}

impl ActionError {
    /// What happened, to what, and why.
    pub fn message(&self, app: &AppName) -> String {
        match self {
            Self::UnknownApp => format!("there is no app `{app}`"),
            Self::AlreadyRunning => format!("`{app}` runs already"),
            Self::Stopped => format!("`{app}` is stopped"),
            Self::NoInstances => "an app has at least one worker".into(),
            Self::Busy { kind, for_ms } => {
                let kind = kind.as_str();
                format!("`{app}` is busy: {kind} in progress since {}", ms(*for_ms))
            }
            Self::Superseded { kind, by } => {
                format!(
                    "the {} of `{app}` was ended by a {}",
                    kind.as_str(),
                    by.as_str()
                )
            }
            Self::Listen { why } => why.clone(),
            Self::Worker { instance, loss, .. } => {
                let colon = if matches!(loss, Loss::NotStarted { .. }) {
                    ":"
                } else {
                    ""
                };
                format!("worker {app}:{instance}{colon} {loss}")
            }
            Self::Deadline {
                kind, deadline_ms, ..
            } => {
                let what = kind.map_or("the way back", OperationKind::as_str);
                format!(
                    "{what} was not done within reload.deadline {}",
                    ms(*deadline_ms)
                )
            }
            Self::NoWayBack { first, second } => format!(
                "{}; going back failed too: {}",
                first.message(app),
                second.message(app)
            ),
            Self::SameFolder {
                failed,
                revision,
                folder,
            } => format!(
                "{}; revision {revision} is started again from {}, which the failed release uses too: \
                 it runs what is there now",
                failed.message(app),
                folder.display()
            ),
            Self::NotBegun => format!(
                "rsup was killed before it began with `{app}`, or too long ago; nothing was lost"
            ),
            Self::Told { message, .. } => message.clone(),
        }
    }

    /// What to type next, for the one who asked for `asked`.
    pub fn hint(&self, app: &AppName, asked: OperationKind) -> Option<String> {
        match self {
            Self::UnknownApp | Self::Superseded { .. } => Some("rsup list".into()),
            Self::AlreadyRunning => Some(format!(
                "rsup reload {app} replaces its workers without a gap"
            )),
            Self::Stopped => Some(format!("rsup start {app}")),
            Self::NoInstances => Some(format!("rsup stop {app}")),
            Self::Busy { .. } => Some(busy(app, asked)),
            Self::Listen { .. } => None,
            Self::Worker { trying, loss, .. } => {
                let next = if *trying {
                    format!(
                        "rsup keeps trying; see its log: rsup logs {app}; end it: rsup delete {app}"
                    )
                } else {
                    format!("see its log: rsup logs {app}")
                };
                Some(match loss {
                    Loss::Exited {
                        background: Some(program),
                        ..
                    } => format!("{}; {next}", foreground::how(program)),
                    Loss::Exited { .. } | Loss::NotStarted { .. } | Loss::TooSlow { .. } => next,
                })
            }
            Self::Deadline { .. } => {
                Some("raise reload.deadline, or look at the log of the worker".into())
            }
            Self::NoWayBack { first, .. } => first.hint(app, asked),
            Self::SameFolder { .. } => Some(format!(
                "put the files of the old version back and reload; a folder for each release \
                 (`current` as a link) makes a way back possible; rsup logs {app}"
            )),
            Self::NotBegun => Some("rsup list shows what there is; then try again".into()),
            Self::Told { hint, .. } => hint.clone(),
        }
    }
}

/// How to wait until another action on the app is done. Only a reload can wait for its turn.
fn busy(app: &AppName, asked: OperationKind) -> String {
    let wait = match asked {
        OperationKind::Reload => format!("`rsup reload {app} --wait` waits for its turn"),
        OperationKind::Scale => {
            format!("`rsup list` shows when it is done; then `rsup scale {app} N` again")
        }
        OperationKind::Start
        | OperationKind::Restart
        | OperationKind::Stop
        | OperationKind::Delete => {
            let verb = asked.as_str();
            format!("`rsup list` shows when it is done; then `rsup {verb} {app}` again")
        }
    };
    format!("{wait}; `rsup stop {app}` ends it, and stops the app")
}

impl Event {
    /// One line, without the app's name.
    pub fn line(&self) -> String {
        let who = self
            .worker
            .as_ref()
            .map_or(String::new(), |w| w.instance.to_string());
        let whom = self.worker.as_ref().map_or(String::new(), |w| {
            format!("{} (pid {})", w.instance, w.pid.unwrap_or(0))
        });
        match &self.what {
            What::ActionBegan {
                kind,
                cause,
                instances,
            } => self.began(*kind, *cause, *instances),
            What::ActionDone { kind, after_ms } => {
                format!("{} done after {}", kind.as_str(), ms(*after_ms))
            }
            What::ActionFailed {
                kind,
                error,
                back,
                to,
            } => {
                let tail = match (back, to) {
                    (0, _) | (_, None) => String::new(),
                    (n, Some(to)) => format!("; {n} replaced worker(s) go back to revision {to}"),
                };
                format!("{} failed: {}{tail}", kind.as_str(), error.message(&self.app))
            }
            What::ActionSuperseded { kind, by } => {
                format!("the {} was ended by a {}", kind.as_str(), by.as_str())
            }
            What::WorkerReady { after_ms } => format!("{whom} is ready after {}", ms(*after_ms)),
            What::WorkerUnready { why } => format!("{who} is unready: {why}"),
            What::WorkerReadyAgain => format!("{who} is ready: its readiness check passes again"),
            What::WorkerRetired { why } => format!("{who} is replaced: {why}"),
            What::WorkerReturned => format!("{whom} takes traffic again"),
            What::WorkerKilled { why } => format!("{who} was killed: {why}"),
            What::WorkerStopped { exit } => format!("{whom} {exit}"),
            What::WorkerLost { loss } => match loss {
                Loss::NotStarted { why } => format!("{who}: {why}"),
                Loss::Exited { .. } | Loss::TooSlow { .. } => format!("{whom} {loss}"),
            },
            What::InstanceGivenUp { loss, restarts } => {
                format!("{who} is errored: {loss}; given up after {restarts} restarts")
            }
            What::PortTested { loss } => {
                let how = loss
                    .as_ref()
                    .map_or("has not bound its port".to_owned(), ToString::to_string);
                let why = Retire::PortTest;
                format!(
                    "{whom} {how}: {why}; it is started again, with the port hidden until it has bound it"
                )
            }
            What::PortHidden => format!(
                "{who}: it tests its port by connecting to it: from now on rsup hides the port until it has bound it"
            ),
            What::NotListening { why } => why.clone(),
            What::Refusing => "no worker is ready and none is coming: connections are refused until the next start".into(),
            What::StoodStill { for_ms } => format!(
                "rsup or its machine stood still for {}: no deadline counts it",
                ms(*for_ms)
            ),
            What::Adopted { live, of } => format!("rsup is back; {live} of {of} worker(s) live on"),
        }
    }

    fn began(&self, kind: OperationKind, cause: Cause, instances: u16) -> String {
        let what = match (kind, self.revision) {
            (OperationKind::Reload, Some(revision)) => format!("reload to revision {revision}"),
            (OperationKind::Restart, Some(revision)) => format!("restart as revision {revision}"),
            (OperationKind::Scale, _) => format!("scaled to {instances}"),
            (OperationKind::Start, _) => "started".into(),
            (OperationKind::Stop, _) => "stop".into(),
            (OperationKind::Delete, _) => "delete".into(),
            (OperationKind::Reload | OperationKind::Restart, None) => kind.as_str().into(),
        };
        match cause {
            Cause::Command => what,
            Cause::Hangup | Cause::Startup | Cause::Shutdown => format!("{what}, by {cause}"),
        }
    }
}

impl Display for Killed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { timeout_ms } => {
                write!(
                    f,
                    "it had not ended within kill_timeout {}",
                    ms(*timeout_ms)
                )
            }
            Self::Forced => f.write_str("it was to end at once"),
        }
    }
}
