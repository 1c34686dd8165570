//! How a daemon begins: with nothing, after another one's death, or in place of another program.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::clients::Calls;
use super::clients::server::ControlSockets;
use super::event_log::EventLog;
use super::fdstore::{self, FdStore};
use super::fleet::Fleet;
use super::network::Network;
use super::output::Output;
use super::presence::{self, Handles, Presence};
use super::signals::Signals;
use super::store::{self, Store};
use super::systemd::{self, Received};
use super::{Daemon, Error, Options, Started, now, system};
use crate::core::Supervisor;
use crate::keeper::LOST;
use crate::logs::{self, Pump, stderr};
use crate::paths::Paths;
use crate::sys::process;

/// What a daemon begins with.
pub struct Inheritance {
    pub options: Options,
    pub handles: Handles,
    /// From the service manager.
    pub received: Received,
    /// What the program before had in its fdstore.
    pub held: BTreeMap<String, OwnedFd>,
    pub keeper: Option<OwnedFd>,
    pub made_keeper: Option<u32>,
    pub born_of: Option<u32>,
    /// None: it is on file, if there is one.
    pub state: Option<String>,
    /// Why another program could not begin.
    pub failed: Option<String>,
}

impl Inheritance {
    /// That of a new process.
    ///
    /// # Errors
    /// When another daemon runs, or the control socket cannot be had.
    pub fn of_new(paths: &Paths, options: Options, received: Received) -> Result<Self, Error> {
        let (lock, former_locks) = if options.service {
            systemd::wait_for_lock(paths, &received.notifier, presence::lock)?
        } else {
            presence::lock(paths)?
        };
        let control = presence::bind(paths)?;
        presence::move_in(paths);
        Ok(Self {
            options,
            handles: Handles {
                lock,
                former_locks,
                control,
            },
            received,
            held: BTreeMap::new(),
            keeper: None,
            made_keeper: None,
            born_of: None,
            state: None,
            failed: None,
        })
    }
}

impl Daemon {
    /// Everything up to the first turn of the loop.
    pub(super) async fn start(
        paths: &Paths,
        mut inheritance: Inheritance,
    ) -> Result<Started, Error> {
        let is_upgrade = inheritance.state.is_some();
        // Looked at before anything is touched: what cannot be read is the former program's to keep.
        let state = match inheritance.state.take() {
            Some(text) => {
                Some(store::decode(text.as_bytes()).map_err(|why| Error::Start(why.to_string()))?)
            }
            None => None,
        };
        // For the tests: nothing outside could make a start fail here that would not fail the former program too.
        #[cfg(debug_assertions)]
        if is_upgrade
            && inheritance.failed.is_none()
            && std::env::var_os("RSUP_FAIL_AT_START").is_some()
        {
            return Err(Error::Start("RSUP_FAIL_AT_START is set".into()));
        }
        if let Err(why) = process::set_child_subreaper() {
            warn!(
                "cannot become the reaper of orphans, so descendants that leave their worker may be missed: {why}"
            );
        }
        let nofile = process::raise_nofile()
            .inspect_err(|why| warn!("cannot raise the limit of open files: {why}"))
            .ok();
        let received = std::mem::take(&mut inheritance.received);
        let systemd = received.notifier.link().cloned();
        let mut fdstore = match is_upgrade {
            true => inheritance.fdstore(systemd),
            false => FdStore::open(systemd, received.stored),
        };
        let keeper = if is_upgrade {
            inheritance.born_of
        } else {
            fdstore.has_keeper().then(std::os::unix::process::parent_id)
        };
        let kept_before = fdstore.names().map(str::to_owned).collect();
        let (log_events, log_problems) = mpsc::unbounded_channel();
        let pump = start_pump(paths, &mut fdstore, log_events).map_err(|why| {
            let limit =
                " (its journal, a sparse file in memory, is larger than `ulimit -f` allows)";
            let limit = if why.kind() == io::ErrorKind::FileTooLarge {
                limit
            } else {
                ""
            };
            system(format!("cannot start the log thread{limit}"))(why)
        })?;
        if let Some(console) = inheritance.options.console.clone() {
            pump.show_on(console);
        }
        let (events, inbox) = mpsc::unbounded_channel();
        let Inheritance {
            options,
            mut handles,
            failed,
            ..
        } = inheritance;
        let former_socket = handles.complete(paths)?;
        let signals = Signals::new().map_err(system("cannot catch signals"))?;
        let store = Store::start(paths, &options, &events)
            .map_err(system("cannot start the thread that saves"))?;
        let (open, conversations) = mpsc::channel(1);
        let control_sockets = ControlSockets::new(events.clone(), open);
        let mut daemon = Daemon {
            supervisor: Supervisor::new(fastrand::u64(..)),
            events: events.clone(),
            paths: paths.clone(),
            output: Output::new(pump, events.clone(), paths, options.no_log_files),
            options,
            fleet: Fleet::new(paths, events.clone(), nofile),
            network: Network::new(events.clone(), systemd::given(received.sockets)),
            calls: Calls::default(),
            inbox: VecDeque::new(),
            ending: false,
            cut_short: false,
            verdict: Default::default(),
            admin: Default::default(),
            started: now(),
            systemd: received.notifier,
            fdstore,
            keeper,
            lost_by_keeper: std::env::var(LOST)
                .ok()
                .and_then(|lost| lost.parse().ok())
                .unwrap_or(0),
            kept_before,
            event_log: EventLog::open(paths.events(), store.boot().to_owned()),
            store,
            presence: Presence::begin(paths, handles),
            control_sockets,
            upgrading: None,
        };
        info!(
            pid = std::process::id(),
            version = env!("CARGO_PKG_VERSION"),
            "rsup is up"
        );
        match state {
            Some(state) => daemon.go_on_as(state, failed),
            None => daemon.go_on(),
        }
        daemon.fdstore.keep_program();
        daemon.start_given();
        daemon.open_admin();
        // It is up: what becomes of it from here on, a client may ask.
        stderr::dismiss_witness();
        // From now on commands are heard; until then they wait in the queue.
        let socket = daemon.presence.handles().control.try_clone();
        let no_socket = || system("cannot listen on the control socket");
        let opened = socket.and_then(|socket| daemon.control_sockets.open(socket));
        opened.map_err(no_socket())?;
        if let Some(former) = former_socket {
            daemon
                .control_sockets
                .open_too(former)
                .map_err(no_socket())?;
        }
        if is_upgrade {
            // The program before may have been of an earlier version.
            presence::move_in(paths);
        }
        Ok(Started {
            daemon,
            inbox,
            log_problems,
            signals,
            conversations,
        })
    }
}

/// With the journal of an earlier daemon, if there is one: then none of its lines is lost.
fn start_pump(
    paths: &Paths,
    fdstore: &mut FdStore,
    events: mpsc::UnboundedSender<logs::Event>,
) -> io::Result<Pump> {
    if let Some(journal) = fdstore.get(fdstore::name::JOURNAL) {
        match Pump::start_with_journal(events.clone(), journal) {
            Ok(pump) => return Ok(pump),
            Err(why) => warn!(
                "the journal of the logs is of no use, so a line that was being written may be cut: {why}"
            ),
        }
    }
    let journal = logs::Journal::create(&paths.runtime)?;
    fdstore.keep(fdstore::name::JOURNAL.to_owned(), &journal);
    Pump::start_with_journal(events, journal)
}
