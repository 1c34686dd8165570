//! The daemon: the only event loop, and the tasks whose job is waiting. Tasks send events and decide
//! nothing; the supervisor decides; [`effects`] carries out.

mod calls;
mod drain;
mod effects;
mod memory;
mod notify;
mod probe;
mod relay;
mod server;
mod signals;
mod sockets;
mod spawn;
mod strangers;
mod tree;
mod troubles;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::config::{AppName, AppSpec, Log, LogFormat};
use crate::control::{Answer, Call, Failure};
use crate::logs::{self, Pump};
use crate::paths::Paths;
use crate::supervisor::{Input, OpId, Supervisor, Time, WorkerId};
use crate::sys::{process, takeover};
use calls::Calls;
use relay::{Relay, Relays};
use signals::{Caught, Signals};
use sockets::Sockets;
use spawn::Running;

/// How the daemon was started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// In the foreground: a signal stops every app gracefully and ends the daemon.
    pub foreground: bool,
    /// To be started at once, with the environment of the caller.
    pub start: Option<StartRequest>,
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
    /// A worker ended the listening of a socket of ours.
    ShutDown {
        app: AppName,
    },
    /// An accept queue could not be looked after.
    LookAfter {
        app: AppName,
        slot: Option<u16>,
    },
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
    /// The limit of open files that rsup was started with: workers get that one.
    nofile: Option<process::Limit>,
    apps: HashMap<AppName, AppResources>,
    /// By generation.
    running: HashMap<u64, Running>,
    meter: memory::Memory,
    calls: Calls,
    /// Ended workers whose last log lines are still there.
    remembered: std::collections::VecDeque<u64>,
    strangers: strangers::Strangers,
    troubles: troubles::Troubles,
    /// Results of effects that were known at once.
    inbox: std::collections::VecDeque<Input>,
    ending: bool,
    started: Time,
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// When it cannot begin: another one runs, or its folders or socket cannot be had.
pub fn run(paths: Paths, options: Options) -> Result<(), Error> {
    log_to_stderr(options.json_log);
    let lock = lock(&paths)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("cannot start the event loop"))?;
    let result = runtime.block_on(serve(&paths, options));
    // Tasks that wait for processes which are gone have nothing left to do.
    runtime.shutdown_background();
    drop(lock);
    result
}

fn log_to_stderr(json: bool) {
    // A message that cannot be written (a full disk, a closed pipe) is lost. To complain of it on the
    // same stderr, as the subscriber would, is a panic.
    let builder = tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).log_internal_errors(false);
    // A second call in the same process (tests) keeps the first.
    let _ = if json {
        tracing::subscriber::set_global_default(builder.json().finish())
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&io::stderr());
        tracing::subscriber::set_global_default(builder.with_ansi(ansi).finish())
    };
}

fn lock(paths: &Paths) -> Result<Flock<std::fs::File>, Error> {
    let path = paths.lock();
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(system(format!("cannot open {}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Running(path))
}

async fn serve(paths: &Paths, options: Options) -> Result<(), Error> {
    let listener = bind(paths)?;
    if let Err(why) = process::set_child_subreaper() {
        warn!("cannot become the reaper of orphans, so descendants that leave their worker may be missed: {why}");
    }
    let nofile = process::raise_nofile().inspect_err(|why| warn!("cannot raise the limit of open files: {why}")).ok();
    let (log_events, mut log_problems) = mpsc::unbounded_channel();
    let pump = Pump::start(log_events).map_err(system("cannot start the log thread"))?;
    let takeover = support();
    if let takeover::Support::No { why } = &takeover {
        warn!("takeover of bind(2) is not possible here ({why}); apps must take the sockets of LISTEN_FDS themselves");
    }
    let (events, mut inbox) = mpsc::unbounded_channel();
    let (open, mut conversations) = mpsc::channel(1);
    let server = tokio::spawn(server::accept(listener, events.clone(), open));
    let started = now();
    let mut daemon = Daemon {
        supervisor: Supervisor::new(fastrand::u64(..)),
        events,
        paths: paths.clone(),
        options,
        pump,
        takeover,
        nofile,
        apps: HashMap::new(),
        running: HashMap::new(),
        meter: memory::Memory::default(),
        calls: Calls::default(),
        remembered: Default::default(),
        strangers: Default::default(),
        troubles: Default::default(),
        inbox: Default::default(),
        ending: false,
        started,
    };
    let mut signals = Signals::new().map_err(system("cannot catch signals"))?;
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    every_second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut now_and_then = tokio::time::interval(Duration::from_secs(10));
    now_and_then.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    info!(pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "rsup is up");
    daemon.start_given();
    loop {
        daemon.settle();
        if daemon.over() {
            break;
        }
        // What is too far away for a clock is never.
        let wake = daemon.supervisor.poll_timeout(now()).and_then(|at| tokio::time::Instant::now().checked_add(at.since(now())));
        tokio::select! {
            biased;
            Some(event) = inbox.recv() => daemon.on_event(event),
            () = sleep_until(wake) => daemon.handle(Input::Tick),
            stop = signals.next() => daemon.on_signal(stop),
            Some(problem) = log_problems.recv() => daemon.troubles.note(problem),
            _ = every_second.tick(), if daemon.meter.wanted() => daemon.measure(),
            _ = now_and_then.tick(), if !daemon.apps.is_empty() => daemon.look_for_strangers(),
        }
        // What has queued up meanwhile is handled before the next look at the clock.
        while let Ok(event) = inbox.try_recv() {
            daemon.on_event(event);
        }
    }
    tree::sweep_all().await;
    let _ = std::fs::remove_file(paths.socket());
    server.abort();
    daemon.pump.shutdown();
    let Daemon { calls, .. } = daemon;
    // Answers that are on their way still get there.
    let _ = tokio::time::timeout(LAST_WORDS, conversations.recv()).await;
    info!("rsup is down");
    calls.exit_failure().map_or(Ok(()), |why| Err(Error::Start(why)))
}

/// `RSUP_TAKEOVER=off` leaves every `bind` alone, for apps that take their sockets from `LISTEN_FDS`.
fn support() -> takeover::Support {
    if std::env::var_os("RSUP_TAKEOVER").is_some_and(|value| value == "off") {
        return takeover::Support::No { why: "RSUP_TAKEOVER=off".into() };
    }
    takeover::probe_support()
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

/// The control socket: mode 0600 in a folder that nobody else can enter.
fn bind(paths: &Paths) -> Result<UnixListener, Error> {
    let path = paths.socket();
    // We hold the lock, so a socket that is there belongs to nobody.
    let _ = std::fs::remove_file(&path);
    let what = || format!("cannot listen on {}", path.display());
    let listener = UnixListener::bind(&path).map_err(system(what()))?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(system(what()))?;
    Ok(listener)
}

impl Daemon {
    fn handle(&mut self, input: Input) {
        self.supervisor.handle(now(), input);
        self.settle();
    }

    /// Carries out effects until the supervisor wants nothing more.
    fn settle(&mut self) {
        loop {
            while let Some(effect) = self.supervisor.poll_effect() {
                self.carry_out(effect);
            }
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
            Event::ShutDown { app } => self.mend(&app),
            Event::LookAfter { app, slot } => self.look_after(&app, slot),
            Event::Bind { worker, call } => self.on_bind(&worker, call),
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
        self.apps.entry(name.clone()).or_insert_with(|| {
            let (ready, watch) = watch::channel(false);
            AppResources {
                sockets: Sockets::default(),
                relays: Relays::new(name.clone(), watch, self.events.clone()),
                relaying: HashMap::new(),
                ready,
            }
        })
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
