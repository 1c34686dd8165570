//! The service manager's side: what systemd, or another manager with sd_notify(3), passes at the
//! start, and what rsup reports to it. Without `NOTIFY_SOCKET` nothing here does anything.

mod link;
mod state;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{Daemon, Error, now};
use crate::core::{AppView, Time};
use crate::paths::Paths;
use crate::sys::listen::Given;
use crate::sys::service;
pub use link::Link;
use state::{Facts, Phase, State};

/// Pause between two looks at the state of all apps, so that a busy loop has time for its work.
const LOOK: Duration = Duration::from_millis(50);
/// Pause while a slow action is under way: time alone may then change the status.
const SLOW_LOOK: Duration = Duration::from_secs(1);
/// While a slow action is under way systemd is repeatedly asked for this much time.
const EXTENSION: Duration = Duration::from_secs(30);
const EXTEND_EVERY: Duration = Duration::from_secs(5);
/// Added to the time that the apps may take to get ready.
const START_MARGIN: Duration = Duration::from_secs(10);

/// What the service manager passed to this process.
#[derive(Default)]
pub struct Received {
    /// Descriptors from its store, by the names given to [`Link::store`].
    pub stored: BTreeMap<String, OwnedFd>,
    /// Listening sockets of `.socket` units.
    pub sockets: Vec<OwnedFd>,
    pub notifier: Notifier,
}

/// Takes it, once; called before there is a second thread.
pub fn receive() -> Received {
    let service::Inherited { fds, variables } = service::take();
    let (stored, sockets) = link::sort(fds);
    let link = variables
        .get("NOTIFY_SOCKET")
        .and_then(|address| match Link::open(address) {
            Ok(link) => Some(Arc::new(link)),
            Err(why) => {
                warn!("the service manager cannot be told how rsup does: {why}");
                None
            }
        });
    let ping = watchdog(&variables, std::process::id());
    Received {
        stored,
        sockets,
        notifier: Notifier {
            link,
            ping,
            variables,
            ..Notifier::default()
        },
    }
}

/// The interval of pings: half of the limit (sd_watchdog_enabled(3)).
fn watchdog(variables: &BTreeMap<&'static str, String>, pid: u32) -> Option<Duration> {
    if variables
        .get("WATCHDOG_PID")
        .is_some_and(|meant| meant.parse() != Ok(pid))
    {
        return None;
    }
    let usec = variables
        .get("WATCHDOG_USEC")?
        .parse()
        .ok()
        .filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec) / 2)
}

/// The sockets of `.socket` units, for apps that listen on their addresses.
pub fn given(sockets: Vec<OwnedFd>) -> Arc<Given> {
    let (given, rest) = Given::new(sockets);
    if !rest.is_empty() {
        warn!(
            "{} of the descriptors handed over are no listening sockets and are closed",
            rest.len()
        );
    }
    let addresses = given.addresses();
    if !addresses.is_empty() {
        info!(
            "the service manager has handed over sockets that listen on {}",
            addresses.join(", ")
        );
    }
    Arc::new(given)
}

/// Reports changes to the service manager.
#[derive(Default)]
pub struct Notifier {
    link: Option<Arc<Link>>,
    /// The interval of watchdog pings.
    ping: Option<Duration>,
    /// The inherited variables.
    variables: BTreeMap<&'static str, String>,
    told: Told,
    /// When the state was last looked at.
    looked: Option<Instant>,
    next: Option<Instant>,
    failed: bool,
}

/// What the manager was told.
#[derive(Default)]
struct Told {
    state: Option<State>,
    been_ready: bool,
    pinged: Option<Instant>,
    extended: Option<Instant>,
}

impl Notifier {
    /// The descriptor store; `None` where the manager has none.
    pub fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    /// The variables for a program that replaces this one in the same process.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let kept = |name: &str| name == "NOTIFY_SOCKET" || name.starts_with("WATCHDOG_");
        self.variables
            .iter()
            .filter(move |(name, _)| kept(name))
            .map(|(name, value)| (*name, value.as_str()))
    }

    /// When the loop looks again though nothing has happened.
    pub fn wake(&self) -> Option<tokio::time::Instant> {
        self.next.map(Into::into)
    }

    /// Whether a look is due. At the end always: there may be no later one.
    fn due(&mut self, at: Instant, ending: bool) -> bool {
        if self.link.is_none() {
            return false;
        }
        if ending
            && self
                .told
                .state
                .as_ref()
                .is_none_or(|told| told.phase != Phase::Stopping)
        {
            return true;
        }
        if let Some(early) = self
            .looked
            .map(|last| last + LOOK)
            .filter(|early| *early > at)
        {
            self.next = Some(early);
            return false;
        }
        true
    }

    fn tell(&mut self, state: State, at: Instant, now: Time) {
        let Some(link) = &self.link else { return };
        let (message, told) = message(&self.told, state, self.ping, at, now);
        self.looked = Some(at);
        if message.is_empty() {
            self.told = told;
        } else {
            match link.send(&message) {
                Ok(()) => {
                    self.told = told;
                    self.failed = false;
                }
                // Sent again at the next look.
                Err(why) if !self.failed => {
                    self.failed = true;
                    warn!("the service manager does not listen: {why}");
                }
                Err(_) => {}
            }
        }
        let slow = self.told.state.as_ref().is_none_or(|state| state.slow) || self.failed;
        let ping = self
            .ping
            .map(|ping| self.told.pinged.map_or(at, |last| last + ping));
        self.next = [slow.then(|| at + SLOW_LOOK), ping]
            .into_iter()
            .flatten()
            .min();
    }
}

/// The message, and what the manager knows once it is sent.
fn message(
    told: &Told,
    state: State,
    ping: Option<Duration>,
    at: Instant,
    now: Time,
) -> (String, Told) {
    let mut lines = Vec::new();
    let due = |last: Option<Instant>, every: Duration| {
        last.is_none_or(|last| at.duration_since(last) >= every)
    };
    let mut next = Told {
        state: None,
        been_ready: told.been_ready,
        pinged: told.pinged,
        extended: told.extended,
    };
    let new_phase = told.state.as_ref().map(|told| told.phase) != Some(state.phase);
    if new_phase {
        match state.phase {
            Phase::Starting => {}
            Phase::Ready => lines.push("READY=1".to_owned()),
            Phase::Reloading if told.been_ready => {
                lines.push(format!("RELOADING=1\nMONOTONIC_USEC={}", now.0.as_micros()));
            }
            // Ready and reloading at once: ready is sent first.
            Phase::Reloading => lines.push("READY=1".to_owned()),
            Phase::Stopping => lines.push("STOPPING=1".to_owned()),
        }
        next.been_ready |= matches!(state.phase, Phase::Ready | Phase::Reloading);
    }
    if told.state.as_ref().map(|told| &told.status) != Some(&state.status) {
        lines.push(format!("STATUS={}", state.status));
    }
    // Each phase has a timer of its own; time asked for in an earlier one does not count.
    if state.slow && (new_phase || due(told.extended, EXTEND_EVERY)) {
        lines.push(format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
        next.extended = Some(at);
    }
    // A little early rather than late.
    if ping.is_some_and(|every| due(told.pinged, every.saturating_sub(LOOK))) {
        lines.push("WATCHDOG=1".to_owned());
        next.pinged = Some(at);
    }
    next.state = Some(state);
    (lines.join("\n"), next)
}

/// Waits until no other daemon runs here: one that a shell has started runs until a user ends it,
/// and then this one takes over.
pub fn wait_for_lock<T>(
    paths: &Paths,
    notifier: &Notifier,
    lock: impl Fn(&Paths) -> Result<T, Error>,
) -> Result<T, Error> {
    let (mut told, mut extended) = (false, None::<Instant>);
    loop {
        match lock(paths) {
            Err(Error::Running(holds)) => {
                if !told {
                    told = true;
                    warn!(
                        "another rsup daemon runs already (it holds {}): waiting until it ends; `rsup kill` ends it",
                        holds.display()
                    );
                }
                if let Some(link) = &notifier.link
                    && extended.is_none_or(|last| last.elapsed() >= EXTEND_EVERY)
                {
                    extended = Some(Instant::now());
                    let usec = EXTENSION.as_micros();
                    let _ = link.send(&format!(
                        "STATUS=waiting for the rsup daemon that runs already to end (`rsup kill`)\nEXTEND_TIMEOUT_USEC={usec}"
                    ));
                }
                std::thread::sleep(LOOK);
            }
            result => return result,
        }
    }
}

impl Daemon {
    /// Called in every turn of the loop: the watchdog must notice when there are none.
    pub(super) fn tell_systemd(&mut self) {
        let at = Instant::now();
        if !self.systemd.due(at, self.ending) {
            return;
        }
        let time = now();
        let apps: Vec<AppView> = self
            .supervisor
            .names()
            .filter_map(|app| self.supervisor.view(app, time))
            .collect();
        // Doubled for an app that fails in its first attempt.
        let longest = self
            .supervisor
            .names()
            .filter_map(|app| self.supervisor.revision(app))
            .map(|r| r.spec.listen_timeout)
            .max();
        let facts = Facts {
            apps: &apps,
            up: time.since(self.started),
            patience: 2 * longest.unwrap_or_default() + START_MARGIN,
            ending: self.ending,
            been_ready: self.systemd.told.been_ready,
        };
        let state = state::derive(&facts);
        self.systemd.tell(state, at, time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: Phase, status: &str) -> State {
        State {
            phase,
            status: status.into(),
            slow: phase != Phase::Ready,
        }
    }

    /// A conversation, with times in seconds since its begin.
    struct Talk {
        begin: Instant,
        told: Told,
        ping: Option<Duration>,
    }

    impl Talk {
        fn new(ping: Option<u64>) -> Self {
            Self {
                begin: Instant::now(),
                told: Told::default(),
                ping: ping.map(Duration::from_secs),
            }
        }

        fn say(&mut self, seconds: u64, phase: Phase, status: &str) -> Vec<String> {
            let at = self.begin + Duration::from_secs(seconds);
            let (text, told) = message(
                &self.told,
                state(phase, status),
                self.ping,
                at,
                Time(Duration::from_secs(7)),
            );
            self.told = told;
            text.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn what_has_been_said_is_not_said_again() {
        let mut talk = Talk::new(None);
        assert_eq!(talk.say(0, Phase::Ready, "a"), ["READY=1", "STATUS=a"]);
        assert_eq!(talk.say(1, Phase::Ready, "a"), [""; 0]);
        assert_eq!(talk.say(2, Phase::Ready, "b"), ["STATUS=b"]);
    }

    #[test]
    fn a_reload_has_its_time_and_ends_with_ready() {
        let mut talk = Talk::new(None);
        talk.say(0, Phase::Ready, "a");
        assert_eq!(
            talk.say(1, Phase::Reloading, "a"),
            [
                "RELOADING=1",
                "MONOTONIC_USEC=7000000",
                "EXTEND_TIMEOUT_USEC=30000000"
            ]
        );
        assert_eq!(talk.say(2, Phase::Reloading, "a"), [""; 0]);
        assert_eq!(talk.say(3, Phase::Ready, "a"), ["READY=1"]);
    }

    #[test]
    fn what_is_slow_asks_for_time_now_and_then() {
        let mut talk = Talk::new(None);
        assert_eq!(
            talk.say(0, Phase::Starting, "a"),
            ["STATUS=a", "EXTEND_TIMEOUT_USEC=30000000"]
        );
        assert_eq!(talk.say(4, Phase::Starting, "a"), [""; 0]);
        assert_eq!(
            talk.say(5, Phase::Starting, "a"),
            ["EXTEND_TIMEOUT_USEC=30000000"]
        );
        assert_eq!(
            talk.say(6, Phase::Stopping, "b"),
            ["STOPPING=1", "STATUS=b", "EXTEND_TIMEOUT_USEC=30000000"]
        );
    }

    #[test]
    fn a_start_that_ends_in_a_reload_is_ready_first() {
        let mut talk = Talk::new(None);
        assert!(
            talk.say(0, Phase::Reloading, "a")
                .contains(&"READY=1".to_owned())
        );
        assert!(talk.told.been_ready);
    }

    #[test]
    fn the_watchdog_hears_of_us_in_time_whatever_else_is_said() {
        let mut talk = Talk::new(Some(15));
        assert_eq!(
            talk.say(0, Phase::Ready, "a"),
            ["READY=1", "STATUS=a", "WATCHDOG=1"]
        );
        assert_eq!(talk.say(14, Phase::Ready, "b"), ["STATUS=b"]);
        assert_eq!(talk.say(15, Phase::Ready, "b"), ["WATCHDOG=1"]);
        assert_eq!(talk.say(16, Phase::Ready, "b"), [""; 0]);
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let of = |variables: &[(&'static str, &str)]| {
            watchdog(
                &variables
                    .iter()
                    .map(|(name, value)| (*name, (*value).to_owned()))
                    .collect(),
                7,
            )
        };
        assert_eq!(
            of(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "7")]),
            Some(Duration::from_secs(15))
        );
        assert_eq!(
            of(&[("WATCHDOG_USEC", "30000000")]),
            Some(Duration::from_secs(15))
        );
        assert_eq!(
            of(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "8")]),
            None
        );
        assert_eq!(of(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(of(&[]), None);
    }
}
