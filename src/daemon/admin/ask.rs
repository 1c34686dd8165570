//! Questions to the main loop, and its answers: facts, which other modules put into words.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Reloads;
use super::readiness::Readiness;
use crate::config::AppName;
use crate::core::{AppView, Completion};
use crate::daemon::{Daemon, now};
use crate::logs::{Loss, Stats};
use crate::sys::procfs;

/// A question, which holds one of the few places in the loop's queue until it is answered.
pub struct Ask {
    pub question: Question,
    pub place: OwnedSemaphorePermit,
}

pub enum Question {
    Health(oneshot::Sender<Health>),
    Readiness(oneshot::Sender<Readiness>),
    Metrics(oneshot::Sender<Box<Facts>>),
}

/// The answer itself shows that the loop runs.
pub struct Health {
    pub uptime: Duration,
    pub apps: usize,
    /// Problems of rsup itself.
    pub troubles: Vec<String>,
    /// Lines of its own messages that were lost.
    pub lost_messages: u64,
    /// From the log thread, once it answers.
    pub logs: oneshot::Receiver<Stats>,
}

/// The facts for the metrics.
pub struct Facts {
    pub uptime: Duration,
    /// Resident bytes of rsup itself.
    pub memory: Option<u64>,
    pub apps: Vec<AppFacts>,
    pub reloads: Vec<(AppName, Reloads)>,
    /// The loss of rsup's own output, in the foreground.
    pub console: Option<Loss>,
    /// The loss of its own messages, where they go to stderr.
    pub messages: Option<Loss>,
    pub logs: oneshot::Receiver<Stats>,
}

pub struct AppFacts {
    pub view: AppView,
    pub end: Option<Completion>,
    /// Processor time by generation.
    pub cpu: HashMap<u64, Duration>,
}

impl Daemon {
    pub(in crate::daemon) fn on_ask(&mut self, Ask { question, place }: Ask) {
        // The asking task may have given up.
        match question {
            Question::Health(answer) => {
                let health = Health {
                    uptime: now().since(self.started),
                    apps: self.supervisor.names().count(),
                    troubles: self.own_troubles(),
                    lost_messages: self.lost_messages().lines,
                    logs: self.output.pump.stats(),
                };
                let _ = answer.send(health);
            }
            Question::Readiness(answer) => {
                let _ = answer.send(Readiness::of(self.ending, &self.app_facts()));
            }
            Question::Metrics(answer) => {
                let _ = answer.send(Box::new(self.facts()));
            }
        }
        drop(place);
    }

    fn app_facts(&self) -> Vec<AppFacts> {
        let facts = |name: &AppName| {
            let view = self.supervisor.view(name, now())?;
            Some(AppFacts {
                view,
                end: self.supervisor.completion_of(name),
                cpu: HashMap::new(),
            })
        };
        self.supervisor.names().filter_map(facts).collect()
    }

    fn facts(&mut self) -> Facts {
        let mut apps = self.app_facts();
        let mut views: Vec<AppView> = apps.iter().map(|app| app.view.clone()).collect();
        self.complete(&mut views);
        let times = self.fleet.processor_times(&views);
        for ((app, view), cpu) in apps.iter_mut().zip(views).zip(times) {
            (app.view, app.cpu) = (view, cpu);
        }
        Facts {
            uptime: now().since(self.started),
            memory: procfs::resident(std::process::id()).ok(),
            apps,
            reloads: self
                .admin
                .reloads
                .iter()
                .map(|(app, count)| (app.clone(), *count))
                .collect(),
            console: self
                .options
                .console
                .as_ref()
                .map(crate::logs::Console::lost),
            messages: self.options.console.is_none().then(|| self.lost_messages()),
            logs: self.output.pump.stats(),
        }
    }
}
