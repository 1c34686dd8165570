//! A daemon in the foreground, as in a container: when it ends by itself, with which code, and what
//! SIGHUP means to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{Daemon, Error, Event, StartRequest, now};
use crate::config::{self, AppName, AppSpec, Loaded};
use crate::control::{Answer, Call, Reply, Request, Target, VERSION};
use crate::core::{AppPhase, Completion, Settings};
use crate::sys::needs;

/// When a daemon in the foreground ends though nobody told it to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitWhen {
    /// Every app has ended by itself and is not started again.
    #[default]
    All,
    /// One of them has: the others are stopped.
    Any,
    Never,
}

/// What the end of the daemon is to be called.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    ended: Option<Completion>,
    /// The signal that was a second one.
    hurried: Option<i32>,
}

impl Verdict {
    /// Workers are killed because of this signal.
    pub fn hurried(&mut self, signal: i32) {
        self.hurried = Some(signal);
    }

    /// The code that tells it: 0 after a graceful stop, 128 and the signal's number after one that
    /// was cut short, and that of the apps if they have ended by themselves.
    pub fn result(self) -> Result<(), Error> {
        let hurried = self
            .hurried
            .map(|signal| u8::try_from(128 + signal).unwrap_or(1));
        match hurried.or(self.ended.map(Completion::code)) {
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
    /// reloaded where it is to be otherwise now. One that died while it stopped everything has nothing to go on with.
    pub(super) fn start_given(&mut self) {
        if let Some(settings) = self.options.settings.take()
            && let Reply::Supervised { notes } = self.supervise(settings)
        {
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
            let others: Vec<AppName> = others.cloned().collect();
            for name in others {
                self.call_myself(Request::Delete {
                    target: Target::App(name),
                });
            }
        }
        let goes_on =
            |app: &AppSpec| !self.cut_short && self.supervisor.revision(&app.name).is_some();
        let (known, fresh): (Vec<AppSpec>, Vec<AppSpec>) = apps.into_iter().partition(goes_on);
        let changed: Vec<AppSpec> = known
            .into_iter()
            .filter(|app| self.spec(&app.name).as_ref() != Some(app))
            .collect();
        if !changed.is_empty() {
            self.call_myself(Request::Reload {
                apps: changed,
                base_env: Some(base_env.clone()),
                queue: true,
            });
        }
        if !fresh.is_empty() {
            self.calls.report_start();
            self.call_myself(Request::Start {
                apps: fresh,
                base_env,
            });
        }
    }

    /// The log tells what becomes of it; nobody reads the answers.
    fn call_myself(&mut self, request: Request) {
        let (answer, mut answers) = mpsc::unbounded_channel();
        self.on_call(
            Call {
                version: VERSION,
                request,
                wait: true,
            },
            answer,
        );
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

    /// SIGHUP: does what `rsup reload` would for every app that is not stopped.
    pub(super) fn reread(&mut self) {
        info!("told to reload: reading the configuration again");
        let names: Vec<_> = self.supervisor.names().cloned().collect();
        let runs = |phase| match phase {
            AppPhase::Starting
            | AppPhase::Ready
            | AppPhase::Degraded
            | AppPhase::Reloading
            | AppPhase::Errored => true,
            AppPhase::Stopping | AppPhase::Stopped => false,
        };
        let running: Vec<AppSpec> = names
            .iter()
            .filter(|name| {
                self.supervisor
                    .view(name, now())
                    .is_some_and(|view| runs(view.phase))
            })
            .filter_map(|name| self.spec(name))
            .collect();
        let settings = self
            .supervisor
            .settings
            .as_ref()
            .map(|settings| settings.source.clone());
        let events = self.events.clone();
        // Files may be on a disk that is slow.
        let begun = super::aside("rsup-reread", move || {
            let Some(requests) = reread(&names, running, settings) else {
                return warn!("nothing was reloaded");
            };
            for request in requests {
                let (answer, answers) = mpsc::unbounded_channel();
                let call = Call {
                    version: VERSION,
                    request,
                    wait: true,
                };
                if events.send(Event::Call { call, answer }).is_ok() {
                    tell(answers);
                }
            }
        });
        if let Err(why) = begun {
            warn!("{}", needs::words("nothing was reloaded", &why));
        }
    }
}

/// Adds an app to those that are reloaded; says where a link was perhaps not switched.
fn take(old: &AppSpec, new: AppSpec, apps: &mut Vec<AppSpec>) {
    if let Some(words) = config::same_folder(old, &new) {
        info!("{}: {words}", new.name);
    }
    apps.push(new);
}

/// What to ask for; `None`, and it has been said why, if a file has errors. `known` are all apps of the daemon.
fn reread(
    known: &[AppName],
    running: Vec<AppSpec>,
    settings: Option<PathBuf>,
) -> Option<Vec<Request>> {
    let mut files: BTreeMap<PathBuf, Loaded> = BTreeMap::new();
    let mut broken = false;
    for source in running
        .iter()
        .filter_map(|spec| spec.source.clone())
        .chain(settings)
    {
        match config::load(&source) {
            Ok(loaded) => {
                files.insert(source, loaded);
            }
            Err(errors) => {
                broken = true;
                for line in errors.to_string().lines() {
                    error!("{line}");
                }
            }
        }
    }
    if broken {
        return None;
    }
    for (source, loaded) in &files {
        for new in loaded
            .config
            .apps
            .iter()
            .filter(|app| !known.contains(&app.name))
        {
            info!(
                "{} is new in its file and not started; `rsup start {}` starts it",
                new.name,
                source.display()
            );
        }
    }
    let mut apps = Vec::new();
    for old in running {
        let Some(loaded) = old.source.as_ref().and_then(|source| files.get(source)) else {
            let mut new = old.clone();
            match config::resolve_cwd(&mut new) {
                Ok(()) => take(&old, new, &mut apps),
                Err(why) => warn!("{} stays as it is: {}: {why}", old.name, old.cwd.display()),
            }
            continue;
        };
        match loaded.config.apps.iter().find(|new| new.name == old.name) {
            Some(new) => take(&old, new.clone(), &mut apps),
            None => warn!(
                "{0} is no longer in its file and stays as it is; `rsup delete {0}` ends it",
                old.name
            ),
        }
    }
    let supervise = files
        .into_iter()
        .map(|(source, loaded)| Request::Supervise {
            settings: Settings {
                source,
                spec: loaded.config.supervisor,
            },
        });
    let reload = (!apps.is_empty()).then_some(Request::Reload {
        apps,
        base_env: None,
        queue: true,
    });
    Some(supervise.chain(reload).collect())
}

/// Puts into words what became of a call that nobody else waits for.
fn tell(mut answers: mpsc::UnboundedReceiver<Answer>) {
    while let Some(answer) = answers.blocking_recv() {
        match answer {
            Answer::Accepted(_) | Answer::Progress(_) => {}
            Answer::Failed(failure) => warn!("{}", failure.message),
            Answer::Done(Reply::Finished(outcomes)) => {
                for outcome in outcomes {
                    match outcome.failure {
                        Some(failure) => {
                            warn!("{} was not reloaded: {}", outcome.app, failure.message)
                        }
                        None => info!("{} is reloaded", outcome.app),
                    }
                }
            }
            Answer::Done(Reply::Supervised { notes, .. }) => {
                notes.iter().for_each(|note| warn!("{note}"))
            }
            Answer::Done(_) => {}
        }
    }
}
