//! A daemon in the foreground, as in a container: what it starts, when it ends by itself, and with
//! which code.

use std::fs::File;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{Daemon, Error, StartRequest};
use crate::config::AppSpec;
use crate::control::{Action, ActionId, Call, Request, Target};
use crate::core::Completion;
use crate::model::Cause;

/// When a daemon in the foreground ends without a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitWhen {
    /// Every app has ended by itself and is not started again.
    #[default]
    All,
    /// One of them has: the others are stopped.
    Any,
    Never,
}

/// How the daemon's end is reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    ended: Option<Completion>,
    /// The signal that was a second one.
    forced: Option<i32>,
}

impl Verdict {
    /// Workers are killed because of this signal.
    pub fn forced(&mut self, signal: i32) {
        self.forced = Some(signal);
    }

    /// The code that tells it: 0 after a graceful stop, 128 and the signal's number after one that
    /// was cut short, and that of the apps if they have ended by themselves.
    pub fn result(self) -> Result<(), Error> {
        let forced = self
            .forced
            .map(|signal| u8::try_from(128 + signal).unwrap_or(1));
        match forced.or(self.ended.map(Completion::code)) {
            None | Some(0) => Ok(()),
            Some(code) => Err(Error::Ended { code }),
        }
    }
}

/// Whether SIGHUP can mean that the terminal is gone. The first process of a container is told other
/// things by it, with a terminal or without.
pub fn has_terminal() -> bool {
    std::process::id() != 1 && File::open("/dev/tty").is_ok()
}

impl Daemon {
    /// Starts what the command line gave. An earlier daemon may have died with some of it: that goes on, and is
    /// reloaded where its settings differ now. One that died while it stopped everything has nothing to go on with.
    pub(super) fn start_given(&mut self) {
        if let Some(settings) = self.options.settings.take() {
            let notes = self.supervise(settings);
            notes.iter().for_each(|note| warn!("{note}"));
        }
        let Some(StartRequest { apps, base_env }) = self.options.start.take() else {
            return;
        };
        if self.cut_short {
            // What is left of others ends, and is not known any more.
            let others = self
                .supervisor
                .names()
                .filter(|name| apps.iter().all(|app| app.name != **name));
            let targets: Vec<Target> = others.cloned().map(Target::App).collect();
            if !targets.is_empty() {
                self.call_myself(Action::Delete { targets });
            }
        }
        let goes_on =
            |app: &AppSpec| !self.cut_short && self.supervisor.revision(&app.name).is_some();
        let (known, fresh): (Vec<AppSpec>, Vec<AppSpec>) = apps.into_iter().partition(goes_on);
        let changed = known
            .into_iter()
            .filter(|app| self.as_it_runs(&app.name).as_ref() != Some(app));
        let (changed, stopped): (Vec<_>, Vec<_>) =
            changed.partition(|app| self.runs(&app.name).is_some());
        let fresh = [fresh, stopped].concat();
        if !changed.is_empty() {
            self.call_myself(Action::Reload {
                apps: changed,
                base_env: Some(base_env.clone()),
                queue: true,
            });
        }
        if !fresh.is_empty() {
            self.calls.report_start();
            self.call_myself(Action::Start {
                apps: fresh,
                base_env,
            });
        }
    }

    /// The log tells what becomes of it; no client reads the answers.
    fn call_myself(&mut self, action: Action) {
        let (answer, mut answers) = mpsc::unbounded_channel();
        let request = Request::Action {
            id: ActionId::new(),
            action,
            settings: Vec::new(),
            cause: Cause::Startup,
        };
        self.on_call(Call::new(request, true), answer);
        tokio::spawn(async move { while answers.recv().await.is_some() {} });
    }

    /// Begins to end, once the apps have.
    pub(super) fn look_for_the_end(&mut self) {
        if self.ending || !self.options.foreground {
            return;
        }
        let (who, end) = match self.options.exit_when {
            ExitWhen::Never => return,
            ExitWhen::All => match self.supervisor.completion_of_all() {
                Some(end) => ("every app".to_owned(), end),
                None => return,
            },
            ExitWhen::Any => match self.supervisor.completion_of_any() {
                Some((app, end)) => (app.to_string(), end),
                None => return,
            },
        };
        match end {
            Completion::Succeeded => info!("{who} has ended by itself, and so does rsup"),
            Completion::Failed(code) => {
                error!("{who} has ended by itself, and so does rsup: exit code {code}")
            }
        }
        self.verdict.ended = Some(end);
        self.stop_everything();
    }
}
