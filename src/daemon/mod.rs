//! The daemon: the only event loop, and the tasks whose job is waiting. Tasks send events and decide
//! nothing; the supervisor decides; [`effects`] carries out.

// A new state has to be thought of everywhere.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod admin;
mod adopt;
mod binds;
mod bound;
mod census;
mod clients;
mod command;
mod effects;
pub mod event_log;
mod fdstore;
mod foreground;
mod forks;
mod hiding;
mod isolation;
mod limit;
mod log_health;
mod memory;
mod messages;
mod network;
mod notify;
mod options;
mod presence;
mod probe;
mod run;
mod saving;
mod signals;
mod spawn;
mod start;
mod store;
pub mod systemd;
mod takeover_support;
mod tree;
mod triggers;
mod upgrade;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::config::{AppName, Log, LogFormat};
use crate::control::{Answer, Call, Failure};
use crate::core::{Input, OpId, Supervisor, Time, Traces, WorkerId};
use crate::exit::Exit;
use crate::keeper;
use crate::logs::{self, Console, Pump, stderr};
use crate::paths::Paths;
use crate::sys::{process, takeover};
use clients::Calls;
pub use foreground::ExitWhen;
use foreground::Verdict;
use network::Network;
pub use options::{Options, StartRequest};
use run::system;
pub use run::{Error, run};
use signals::{Caught, Signals};
use spawn::Running;
use start::Inheritance;
pub use store::{State, decode as decode_state, is_of_foreground, known_from_before, left_behind};
pub use triggers::REREAD;
pub use upgrade::{CAN_GO_ON, takes_over, try_state};

/// How long the daemon's end waits for clients that read slowly.
const LAST_WORDS: Duration = stderr::LAST_WORDS;

/// What tasks tell the loop.
enum Event {
    Input(Input),
    Ask(admin::Ask),
    Call {
        call: Call,
        answer: mpsc::UnboundedSender<Answer>,
    },
    /// A worker's `bind` or `connect` waits for an answer.
    Trapped {
        worker: WorkerId,
        call: binds::Trapped,
    },
    /// Nothing is queued at the worker's slot any more; dead if that drain was called off.
    Drained {
        worker: WorkerId,
        of: Weak<()>,
    },
    /// Somebody says that a worker is ready; who, if the kernel tells.
    Said {
        worker: WorkerId,
        by: Option<u32>,
    },
    /// A bind of the app could not be looked at, so it was let go on.
    Unseen {
        app: AppName,
        why: String,
    },
    /// What was found of a worker that has not bound its port, and what then is to be made of its end.
    Traces {
        worker: WorkerId,
        traces: Traces,
        and_then: Option<Input>,
    },
    /// Takeover was tried.
    Tried {
        who: takeover_support::Who,
        tried: Result<Vec<(takeover_support::Who, takeover::Support)>, takeover::Untried>,
    },
    /// A worker ended the listening of a socket of ours.
    ShutDown {
        app: AppName,
    },
    /// Connections of the app could not be steered.
    SteerAgain {
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
    Saved(store::Saved),
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

struct Daemon {
    supervisor: Supervisor,
    events: Events,
    paths: Paths,
    options: Options,
    pump: Pump,
    takeover: takeover_support::TakeoverSupport,
    isolation: isolation::Isolation,
    network: Network,
    /// Workers that are to be forked.
    forks: forks::Forks,
    /// By generation.
    running: HashMap<u64, Running>,
    census: census::Census,
    reaping: census::Reaping,
    meter: memory::Memory,
    calls: Calls,
    commands: command::Commands,
    /// Ended workers whose last log lines are still there.
    remembered: std::collections::VecDeque<u64>,
    troubles: log_health::Troubles,
    /// Results of effects that were known at once.
    inbox: std::collections::VecDeque<Input>,
    ending: bool,
    /// An earlier daemon died while it stopped everything, and this one does not go on with that.
    cut_short: bool,
    verdict: Verdict,
    admin: admin::Admin,
    started: Time,
    systemd: systemd::Notifier,
    /// What outlives this process.
    fdstore: fdstore::FdStore,
    /// What workers have bound.
    bound: bound::Bound,
    /// Who holds listeners of filters that workers may not hold themselves.
    bind_holder: keeper::binds_link::Link,
    /// The keeper that started us.
    keeper: Option<u32>,
    /// Lines of the keeper that had been lost when it started us.
    lost_by_keeper: u64,
    /// The names in the fdstore when this daemon came.
    kept_before: HashSet<String>,
    /// What is written down beside the supervisor.
    store: store::Store,
    event_log: event_log::EventLog,
    presence: presence::Presence,
    doors: clients::server::Doors,
    upgrading: Option<upgrade::Pending>,
}

/// A daemon that is up, and what its loop listens to.
struct Started {
    daemon: Daemon,
    inbox: mpsc::UnboundedReceiver<Event>,
    log_problems: mpsc::UnboundedReceiver<logs::Event>,
    signals: Signals,
    /// Ends when the last conversation with a client has.
    conversations: mpsc::Receiver<()>,
}

async fn serve(
    paths: &Paths,
    inheritance: Inheritance,
    back: Option<upgrade::Back>,
) -> Result<(), Error> {
    let started = Daemon::start(paths, inheritance).await;
    let Started {
        mut daemon,
        mut inbox,
        mut log_problems,
        mut signals,
        mut conversations,
    } = match (started, back) {
        (Ok(started), back) => {
            // Up: there is no way back from here.
            drop(back);
            started
        }
        (Err(why), Some(back)) => {
            return Err(system("the former program cannot go on either")(
                back.go(&paths.runtime, &why.to_string()),
            ));
        }
        (Err(why), None) => return Err(why),
    };
    // Half of them were for the start alone.
    process::forget_program_pages();
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    every_second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut now_and_then = tokio::time::interval(Duration::from_secs(10));
    now_and_then.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        daemon.settle();
        daemon.fork_some();
        daemon.look_for_the_end();
        daemon.upgrade_if_due();
        daemon.tell_systemd();
        if daemon.over() {
            break;
        }
        // What is too far away for a clock is never.
        let wake = daemon
            .supervisor
            .poll_timeout(now())
            .and_then(|at| tokio::time::Instant::now().checked_add(at.since(now())));
        let (upgrade_wakes, systemd_wakes) = (daemon.upgrade_wakes(), daemon.systemd.wake());
        daemon.census.turn();
        tokio::select! {
            biased;
            () = sleep_until(wake) => {
                // What had come before the deadline counts before it.
                daemon.on_events(&mut inbox);
                daemon.handle(Input::Tick);
            }
            () = daemon.fdstore.turn() => {}
            () = daemon.presence.disturbed() => daemon.stay_findable(),
            () = sleep_until(upgrade_wakes) => {}
            stop = signals.next() => daemon.on_signal(stop),
            Some(problem) = log_problems.recv() => daemon.troubles.note(problem),
            _ = every_second.tick(), if daemon.meter.wanted() => daemon.measure(),
            () = sleep_until(systemd_wakes) => {}
            _ = now_and_then.tick(), if daemon.looks_after_something() => daemon.now_and_then(),
            () = sleep_until(daemon.reaping.wake()) => daemon.reap(),
            // Behind everything that comes more rarely: a stream of events must not keep that away.
            Some(event) = inbox.recv() => daemon.on_event(event),
            // The next forks, once every task had its turn.
            () = tokio::task::yield_now(), if !daemon.forks.is_empty() => {}
        }
        daemon.on_events(&mut inbox);
    }
    tree::sweep_all(daemon.fdstore.made_keeper()).await;
    let _ = std::fs::remove_file(paths.socket());
    presence::move_out(paths);
    // No worker is left, so its holder has nothing to hold.
    let _ = std::fs::remove_file(paths.binds());
    daemon.pump.shutdown();
    daemon.end_of_state();
    let Daemon {
        calls,
        verdict,
        isolation,
        doors,
        ..
    } = daemon;
    drop(doors);
    isolation.end();
    let _ = std::fs::remove_dir(paths.notify_of_others());
    // Answers that are on their way still get there.
    let _ = tokio::time::timeout(LAST_WORDS, conversations.recv()).await;
    info!("rsup is down");
    calls
        .exit_failure()
        .map_or_else(|| verdict.result(), |why| Err(Error::Start(why)))
}

/// Does what may take its time in a thread. One of tokio's would end the daemon where no thread can be made.
fn aside(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let _runtime = runtime.enter();
        work();
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
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
            let Some(input) = self.inbox.pop_front() else {
                return;
            };
            self.supervisor.handle(now(), input);
        }
    }

    /// Handles all that tasks have sent so far.
    fn on_events(&mut self, inbox: &mut mpsc::UnboundedReceiver<Event>) {
        while let Ok(event) = inbox.try_recv() {
            self.on_event(event);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.on_input(input),
            Event::Traces {
                worker,
                traces,
                and_then,
            } => {
                self.supervisor
                    .handle(now(), Input::Traces { worker, traces });
                let end = and_then.map(|end| self.complete_end(end));
                end.into_iter()
                    .for_each(|end| self.supervisor.handle(now(), end));
                self.settle();
            }
            Event::Ask(ask) => self.on_ask(ask),
            Event::Call { call, answer } => self.on_call(call, answer),
            Event::Drained { worker, of } => self.on_drained(worker, &of),
            Event::Said { worker, by } => self.on_said(&worker, by),
            Event::ShutDown { app } => self.network.mend(&app),
            Event::SteerAgain { app } => self.network.steer_again(&app),
            Event::LookAfter { app, slot } => self.look_after(&app, slot),
            Event::Trapped { worker, call } => self.on_trapped(&worker, &call),
            Event::Unseen { app, why } => self.on_unseen(&app, why),
            Event::Tried { who, tried } => self.on_tried(&who, tried),
            Event::Executed {
                worker,
                pid,
                listener,
            } => self.on_executed(worker, pid, listener),
            Event::HowEnded { pid, answer } => self.fdstore.how_ended(pid, answer),
            Event::Silent { generation } => self
                .fdstore
                .forget_all(&[format!("out/{generation}/"), format!("err/{generation}/")]),
            Event::Saved(how) => self.on_saved(how),
            Event::Upgrade(pending) => self.on_upgrade(pending),
            Event::Explained { op, failure } => self.on_explained(op, failure),
        }
    }

    fn on_input(&mut self, input: Input) {
        // Why a worker ended that has not bound its port is looked for before its end counts.
        if let Input::Exited { worker, .. } = &input
            && self.supervisor.wonders(worker)
            && self.look_for_traces(worker.clone(), Some(input.clone()))
        {
            return;
        }
        let input = self.complete_end(input);
        self.handle(input);
    }

    fn on_signal(&mut self, caught: Caught) {
        match caught {
            Caught::Child => self.reap_soon(),
            Caught::Reopen => self.pump.reopen(),
            Caught::Hangup if !self.options.foreground => {}
            Caught::Hangup if !self.ending && !foreground::has_terminal() => self.on_hangup(),
            Caught::Hangup => self.told_to_stop(Signal::SIGHUP as i32),
            Caught::Stop(signal) => self.told_to_stop(signal),
        }
    }

    fn told_to_stop(&mut self, signal: i32) {
        if self.ending {
            warn!("told again to stop: killing what is left");
            self.verdict.hurried(signal);
            self.handle(Input::Hurry);
        } else {
            info!("told to stop: stopping every app");
            self.stop_everything();
        }
    }

    /// Whether there is anything to do now and then.
    fn looks_after_something(&self) -> bool {
        !self.network.is_empty()
            || self.store.troubles().next().is_some()
            || self.admin.in_trouble()
            || self.presence.needs_looks()
    }

    fn now_and_then(&mut self) {
        let running = &self.running;
        self.network.look_for_strangers(|app, pid| {
            let mut of_app = running.values().filter(|running| running.id.app == *app);
            of_app.any(|running| running.owns(pid))
        });
        self.isolation.look_at_memory();
        self.save_again();
        self.open_admin_again();
        self.fdstore.store_again();
        self.tend_bind_holder();
        self.store.stay_in_use(&self.paths);
        self.stay_findable();
        self.event_log.tend();
    }

    /// What is wrong with the daemon itself now.
    fn own_troubles(&self) -> Vec<String> {
        let messages = self
            .options
            .messages
            .as_ref()
            .and_then(|messages| Some((messages.trouble()?, self.lost_messages())));
        let messages = messages.map(|(why, lost)| {
            let what = if self.options.console.is_some() {
                "lines for stdout"
            } else {
                "rsup's own messages"
            };
            format!(
                "{what} are being lost ({} so far): {why}; everything else goes on",
                lost.lines
            )
        });
        messages
            .into_iter()
            .chain(self.store.troubles().map(str::to_owned))
            .chain(self.event_log.trouble().map(str::to_owned))
            .chain(self.presence.trouble().map(str::to_owned))
            .collect()
    }

    /// Of the daemon's own messages, those of its keeper included.
    fn lost_messages(&self) -> logs::Loss {
        let mut lost = self
            .options
            .messages
            .as_ref()
            .map(Console::lost)
            .unwrap_or_default();
        lost.lines += self.lost_by_keeper;
        lost
    }

    /// Everything is stopped and everybody has his answer.
    fn over(&self) -> bool {
        self.ending && self.supervisor.idle() && self.calls.finished()
    }

    /// Where the lines of an app go.
    fn log_settings(&self, name: &AppName, log: &Log) -> logs::Settings {
        let folder = self.paths.logs();
        let default = |kind: &str| match self.options.no_log_files {
            true => "/dev/null".into(),
            false => folder.join(format!("{name}-{kind}.log")),
        };
        let file =
            |given: &Option<PathBuf>, kind: &str| given.clone().unwrap_or_else(|| default(kind));
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
