//! The daemon: the only event loop, and the tasks whose job is waiting. Tasks send events and decide
//! nothing; the supervisor decides; [`effects`] carries out.

// A new state has to be thought of everywhere.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

mod admin;
mod adopt;
mod clients;
mod effects;
pub mod event_log;
mod events;
mod fdstore;
mod fleet;
mod foreground;
mod log_health;
mod messages;
mod network;
mod options;
mod output;
mod presence;
mod probe;
mod run;
mod saving;
mod signals;
mod start;
mod store;
pub mod systemd;
mod triggers;
mod upgrade;

use std::collections::HashSet;
use std::io;
use std::sync::Weak;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::config::{AppName, Listen};
use crate::control::{Answer, Call, Failure};
use crate::core::{Input, OpId, Supervisor, Time, Traces, WorkerId};
use crate::exit::Exit;
use crate::logs::{self, Console, stderr};
use crate::paths::Paths;
use crate::sys::{process, takeover};
use clients::Calls;
use fleet::{Fleet, binds, takeover_support, tree};
pub use foreground::ExitWhen;
use foreground::Verdict;
use network::Network;
pub use options::{Options, StartRequest};
use output::Output;
use run::system;
pub use run::{Error, run};
use signals::{Caught, Signals};
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
    /// A worker's `bind` was answered with a socket of the address, or could not be.
    Given {
        worker: WorkerId,
        address: Listen,
        bind: takeover::Bind,
        result: io::Result<takeover::Answer>,
    },
    /// A process reports that a worker is ready; `by` is its pid, if the kernel tells.
    Notified {
        worker: WorkerId,
        by: Option<u32>,
    },
    /// A bind of the app could not be looked at, so it was let go on.
    Unseen {
        app: AppName,
        why: String,
    },
    /// What was found of a worker that has not bound its port, and the end that waits for that.
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
    RelayAgain {
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
    fleet: Fleet,
    network: Network,
    output: Output,
    calls: Calls,
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
    control_sockets: clients::server::ControlSockets,
    upgrading: Option<upgrade::Pending>,
}

/// A daemon that is up, and what its loop listens to.
struct Started {
    daemon: Daemon,
    inbox: mpsc::UnboundedReceiver<Event>,
    log_problems: output::Problems,
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
    let mut housekeeping = tokio::time::interval(Duration::from_secs(10));
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
        daemon.fleet.turn();
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
            Some(problem) = log_problems.recv() => daemon.output.troubles.note(problem),
            _ = every_second.tick(), if daemon.fleet.measures() => daemon.measure(),
            () = sleep_until(systemd_wakes) => {}
            _ = housekeeping.tick(), if daemon.has_housekeeping() => daemon.housekeeping(),
            () = sleep_until(daemon.fleet.reaping_wakes()) => daemon.fleet.reap(),
            // Behind everything that comes more rarely: a stream of events must not keep that away.
            Some(event) = inbox.recv() => daemon.on_event(event),
            // The next forks, once every task had its turn.
            () = tokio::task::yield_now(), if daemon.fleet.has_forks() => {}
        }
        daemon.on_events(&mut inbox);
    }
    tree::sweep_all(daemon.fdstore.made_keeper()).await;
    let _ = std::fs::remove_file(paths.socket());
    presence::move_out(paths);
    // No worker is left, so its holder has nothing to hold.
    let _ = std::fs::remove_file(paths.binds());
    daemon.output.pump.shutdown();
    daemon.end_of_state();
    let Daemon {
        calls,
        verdict,
        fleet,
        control_sockets,
        ..
    } = daemon;
    drop(control_sockets);
    fleet.isolation.end();
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

    /// Reads the memory of workers that have a limit.
    fn measure(&mut self) {
        let news = self.fleet.measure(&self.supervisor);
        self.handle_any(news);
    }

    fn on_signal(&mut self, caught: Caught) {
        match caught {
            Caught::Child => self.fleet.reap_soon(),
            Caught::Reopen => self.output.pump.reopen(),
            Caught::Hangup if !self.options.foreground => {}
            Caught::Hangup if !self.ending && !foreground::has_terminal() => self.on_hangup(),
            Caught::Hangup => self.told_to_stop(Signal::SIGHUP as i32),
            Caught::Stop(signal) => self.told_to_stop(signal),
        }
    }

    fn told_to_stop(&mut self, signal: i32) {
        if self.ending {
            warn!("told again to stop: killing what is left");
            self.verdict.forced(signal);
            self.handle(Input::ForceStop);
        } else {
            info!("told to stop: stopping every app");
            self.stop_everything();
        }
    }

    /// Whether there is anything that [`Self::housekeeping`] is for.
    fn has_housekeeping(&self) -> bool {
        !self.network.is_empty()
            || self.store.troubles().next().is_some()
            || self.admin.in_trouble()
            || self.presence.needs_looks()
    }

    fn housekeeping(&mut self) {
        let fleet = &mut self.fleet;
        self.network
            .check_port_conflicts(|app, pid| fleet.owns(app, pid));
        fleet.isolation.look_at_memory();
        self.save_again();
        self.open_admin_again();
        self.fdstore.store_again();
        self.fleet.tend_bind_holder(&self.fdstore);
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
}

/// Logs a failure that is not the user's doing, and that waiting does not cure.
fn log_error(what: &str, why: impl std::fmt::Display) {
    error!("{what}: {why}");
}

/// A task that has no reason to go on without its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
