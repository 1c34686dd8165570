//! The daemon: the only event loop, and the tasks whose job is waiting. Tasks send events and decide
//! nothing; the supervisor decides; [`effects`] carries out.

mod adopt;
mod calls;
mod drain;
mod effects;
mod isolation;
mod memory;
mod notify;
mod probe;
mod relay;
mod saving;
mod server;
mod signals;
mod sockets;
mod spawn;
mod start;
mod state;
mod strangers;
mod tree;
mod upgrade;
mod vault;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use serde::{Deserialize, Serialize};

use crate::config::{AppName, AppSpec, Log, LogFormat};
use crate::control::{Answer, Call, Failure};
use crate::exit::Exit;
use crate::logs::{self, Pump};
use crate::paths::Paths;
use crate::supervisor::{Input, OpId, Supervisor, Time, WorkerId};
use crate::sys::{process, takeover};
use calls::Calls;
use relay::{Relay, Relays};
use signals::{Caught, Signals};
use sockets::Sockets;
use spawn::Running;
use start::Inheritance;
pub use upgrade::{CAN_GO_ON, try_state};

/// How the daemon was started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Options {
    /// In the foreground: a signal stops every app gracefully and ends the daemon.
    pub foreground: bool,
    /// To be started at once, with the environment of the caller.
    #[serde(skip)]
    pub start: Option<StartRequest>,
    /// The same apps are given at each start: a reboot has nothing to remember.
    #[serde(default)]
    pub given_anew: bool,
    /// The daemon's own messages as JSON.
    pub json_log: bool,
}

/// As [`crate::control::Request::Start`].
#[derive(Clone, Debug)]
pub struct StartRequest {
    pub apps: Vec<AppSpec>,
    pub base_env: BTreeMap<String, String>,
}

/// Why the daemon could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another rsup daemon runs already (it holds {0})")]
    Running(PathBuf),
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    #[error("{0}")]
    Start(String),
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::System { what, source }
}

/// How long the daemon's end waits for clients that read slowly.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What tasks tell the loop.
enum Event {
    Input(Input),
    Call {
        call: Call,
        answer: mpsc::UnboundedSender<Answer>,
    },
    /// A worker's `bind` waits for an answer.
    Bind {
        worker: WorkerId,
        call: spawn::BindCall,
    },
    /// Somebody says that a worker is ready; who, if the kernel tells.
    Said {
        worker: WorkerId,
        by: Option<u32>,
    },
    /// A worker ended the listening of a socket of ours.
    ShutDown {
        app: AppName,
    },
    /// A worker's program runs.
    Executed {
        worker: WorkerId,
        pid: u32,
        listener: Option<takeover::Listener>,
    },
    /// How did this process end, which was never our child?
    HowEnded {
        pid: u32,
        answer: oneshot::Sender<Exit>,
    },
    /// All that a worker which is gone has printed has been read.
    Silent {
        generation: u64,
    },
    /// A program has shown that it can go on with the state.
    Upgrade(upgrade::Pending),
    /// The saved state was written, or could not be.
    Saved(io::Result<()>),
    /// The failure of an action, now with the log lines that explain it.
    Explained {
        op: OpId,
        failure: Failure,
    },
}

type Events = mpsc::UnboundedSender<Event>;

/// What the daemon keeps for one app.
struct AppResources {
    sockets: Sockets,
    relays: Relays,
    /// By slot (`None`: the lobby): one per address.
    relaying: HashMap<Option<u16>, Vec<Relay>>,
    ready: watch::Sender<bool>,
}

struct Daemon {
    supervisor: Supervisor,
    events: Events,
    paths: Paths,
    options: Options,
    pump: Pump,
    takeover: takeover::Support,
    isolation: isolation::Isolation,
    apps: HashMap<AppName, AppResources>,
    /// By generation.
    running: HashMap<u64, Running>,
    meter: memory::Memory,
    calls: Calls,
    /// Ended workers whose last log lines are still there.
    remembered: std::collections::VecDeque<u64>,
    strangers: strangers::Strangers,
    /// Results of effects that were known at once.
    inbox: std::collections::VecDeque<Input>,
    ending: bool,
    started: Time,
    /// What outlives this process.
    vault: vault::Vault,
    /// The keeper that started us.
    keeper: Option<u32>,
    /// The names in the vault when this daemon came.
    kept_before: HashSet<String>,
    /// What is written down beside the supervisor.
    rest: state::Rest,
    saving: saving::Saving,
    /// What this process passes on if it becomes another program.
    handles: start::Handles,
    upgrading: Option<upgrade::Pending>,
}

/// A daemon that is up, and what its loop listens to.
struct Started {
    daemon: Daemon,
    inbox: mpsc::UnboundedReceiver<Event>,
    log_problems: mpsc::UnboundedReceiver<logs::Event>,
    signals: Signals,
    server: tokio::task::JoinHandle<()>,
    /// Ends when the last conversation with a client has.
    conversations: mpsc::Receiver<()>,
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// When it cannot begin: another one runs, or its folders or socket cannot be had.
pub fn run(paths: Paths, options: Options) -> Result<(), Error> {
    let (inheritance, back) = match upgrade::inherited() {
        None => (Inheritance::of_new(&paths, options)?, None),
        Some(inherited) => {
            let (inheritance, back) = inherited.map_err(system("cannot take over from the former program"))?;
            (inheritance, Some(back))
        }
    };
    log_to_stderr(inheritance.options.json_log);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("cannot start the event loop"))?;
    let result = runtime.block_on(serve(&paths, inheritance, back));
    // Tasks that wait for processes which are gone have nothing left to do.
    runtime.shutdown_background();
    result
}

fn log_to_stderr(json: bool) {
    let builder = tracing_subscriber::fmt().with_writer(io::stderr).with_target(false);
    // A second call in the same process (tests) keeps the first.
    let _ = if json {
        tracing::subscriber::set_global_default(builder.json().finish())
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&io::stderr());
        tracing::subscriber::set_global_default(builder.with_ansi(ansi).finish())
    };
}

async fn serve(paths: &Paths, inheritance: Inheritance, back: Option<upgrade::Back>) -> Result<(), Error> {
    let started = Daemon::start(paths, inheritance).await;
    let Started { mut daemon, mut inbox, mut log_problems, mut signals, server, mut conversations } = match (started, back) {
        (Ok(started), back) => {
            // Up: there is no way back from here.
            drop(back);
            started
        }
        (Err(why), Some(back)) => return Err(system("the former program cannot go on either")(back.go(&why.to_string()))),
        (Err(why), None) => return Err(why),
    };
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    every_second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut now_and_then = tokio::time::interval(Duration::from_secs(10));
    now_and_then.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        daemon.settle();
        daemon.upgrade_if_due();
        if daemon.over() {
            break;
        }
        let wake = daemon.supervisor.poll_timeout(now()).map(|at| tokio::time::Instant::now() + at.since(now()));
        let upgrade_wakes = daemon.upgrade_wakes();
        tokio::select! {
            biased;
            Some(event) = inbox.recv() => daemon.on_event(event),
            () = sleep_until(wake) => daemon.handle(Input::Tick),
            () = daemon.vault.turn() => {}
            () = sleep_until(upgrade_wakes) => {}
            stop = signals.next() => daemon.on_signal(stop),
            Some(problem) = log_problems.recv() => warn!("log: {problem:?}"),
            _ = every_second.tick(), if daemon.meter.wanted() => daemon.measure(),
            _ = now_and_then.tick(), if !daemon.apps.is_empty() => daemon.now_and_then(),
        }
        // What has queued up meanwhile is handled before the next look at the clock.
        while let Ok(event) = inbox.try_recv() {
            daemon.on_event(event);
        }
    }
    tree::sweep_all(daemon.vault.made_keeper()).await;
    let _ = std::fs::remove_file(paths.socket());
    server.abort();
    daemon.pump.shutdown();
    daemon.end_of_state();
    let Daemon { calls, isolation, .. } = daemon;
    isolation.end();
    let _ = std::fs::remove_dir(paths.notify_of_others());
    // Answers that are on their way still get there.
    let _ = tokio::time::timeout(LAST_WORDS, conversations.recv()).await;
    info!("rsup is down");
    calls.exit_failure().map_or(Ok(()), |why| Err(Error::Start(why)))
}

fn now() -> Time {
    Time(process::now())
}

async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    fn handle(&mut self, input: Input) {
        self.supervisor.handle(now(), input);
        self.settle();
    }

    /// Carries out effects until the supervisor wants nothing more.
    fn settle(&mut self) {
        loop {
            // Before the effects, so that whatever was done is known to have been wanted; and after
            // those that must not be done twice.
            self.save_if_needed();
            while let Some(effect) = self.supervisor.poll_effect() {
                self.carry_out(effect);
            }
            self.save_if_needed();
            let Some(input) = self.inbox.pop_front() else { return };
            self.supervisor.handle(now(), input);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Input(input) => {
                let input = self.complete_end(input);
                self.handle(input);
            }
            Event::Call { call, answer } => self.on_call(call, answer),
            Event::Said { worker, by } => self.on_said(&worker, by),
            Event::ShutDown { app } => self.mend(&app),
            Event::Bind { worker, call } => self.on_bind(&worker, call),
            Event::Executed { worker, pid, listener } => self.on_executed(worker, pid, listener),
            Event::HowEnded { pid, answer } => self.vault.how_ended(pid, answer),
            Event::Silent { generation } => self.vault.forget_all(&[format!("out/{generation}/"), format!("err/{generation}/")]),
            Event::Saved(how) => self.on_saved(how),
            Event::Upgrade(pending) => self.on_upgrade(pending),
            Event::Explained { op, failure } => self.on_explained(op, failure),
        }
    }

    fn on_signal(&mut self, caught: Caught) {
        match caught {
            Caught::Child => self.reap(),
            Caught::Reopen => self.pump.reopen(),
            Caught::Hangup if !self.options.foreground => {}
            Caught::Stop | Caught::Hangup if self.ending => {
                warn!("told again to stop: killing what is left");
                self.handle(Input::Hurry);
            }
            Caught::Stop | Caught::Hangup => {
                info!("told to stop: stopping every app");
                self.stop_everything();
            }
        }
    }

    fn now_and_then(&mut self) {
        self.look_for_strangers();
        self.save_again();
    }

    /// Everything is stopped and everybody has his answer.
    fn over(&self) -> bool {
        self.ending && self.supervisor.idle() && self.calls.finished()
    }

    /// Where the lines of an app go.
    fn log_settings(&self, name: &AppName, log: &Log) -> logs::Settings {
        let folder = self.paths.logs();
        let file =
            |given: &Option<PathBuf>, kind: &str| given.clone().unwrap_or_else(|| folder.join(format!("{name}-{kind}.log")));
        logs::Settings {
            out: file(&log.out, "out"),
            err: file(&log.err, "err"),
            format: match log.format {
                LogFormat::Text => logs::Format::Text,
                LogFormat::Json => logs::Format::Json,
            },
            timestamps: log.timestamps,
            max_size: log.max_size,
            keep: log.keep as usize,
            compress: log.compress,
        }
    }

    fn app(&mut self, name: &AppName) -> &mut AppResources {
        Self::resources(&mut self.apps, &self.events, name)
    }

    fn resources<'a>(apps: &'a mut HashMap<AppName, AppResources>, events: &Events, name: &AppName) -> &'a mut AppResources {
        apps.entry(name.clone()).or_insert_with(|| {
            let (ready, watch) = watch::channel(false);
            AppResources {
                sockets: Sockets::default(),
                relays: Relays::new(name.clone(), watch, events.clone()),
                relaying: HashMap::new(),
                ready,
            }
        })
    }

    /// Makes the vault hold the app's sockets as they are now.
    fn keep_sockets(&mut self, name: &AppName) {
        let beginning = vault::name::sockets(name);
        let wanted = self.apps.get(name).into_iter().flat_map(|app| app.sockets.all());
        let wanted = wanted.map(|(address, place, fd)| (vault::name::socket(name, address, place), fd)).collect();
        self.vault.keep_exactly(&beginning, wanted);
    }

    fn start_given(&mut self) {
        let Some(StartRequest { apps, base_env }) = self.options.start.take() else { return };
        let (answer, mut answers) = mpsc::unbounded_channel();
        self.calls.report_start();
        self.on_call(
            Call { version: crate::control::VERSION, request: crate::control::Request::Start { apps, base_env }, wait: true },
            answer,
        );
        // The log tells the rest; nobody reads the answers.
        tokio::spawn(async move { while answers.recv().await.is_some() {} });
    }
}

/// Says what went wrong with something that is not the user's doing and cannot be waited out.
fn complain(what: &str, why: impl std::fmt::Display) {
    error!("{what}: {why}");
}

/// A task that has no reason to go on without its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
