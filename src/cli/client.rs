//! The command line's end of the control socket: plain blocking calls, one connection each.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::daemonize::{self, Wish};
use super::error::{CliError, FAILED, Report};
use super::systemctl;
use crate::control::{self, Answer, Ask, Call, Failure, FailureCode, Ping, Pong, Reply, Request};
use crate::core::Progress;
use crate::daemon::is_of_foreground;
use crate::lock;
use crate::paths::Paths;

/// How long the daemon may take for an answer that it gives at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a daemon that died may take to be back, and how often the client tries to connect.
const RETURN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// How long a daemon that ends may keep its socket after it has dropped a conversation.
const ENDING: Duration = Duration::from_millis(100);

/// How many deaths of the daemon one call survives.
const LIVES: u32 = 100;

/// The message when no process listens on the socket.
pub const NO_DAEMON: &str = "no daemon runs";
/// The hint for it.
pub const START_HINT: &str = "`rsup start` starts one";

/// Why a call returned no reply.
#[derive(Debug)]
pub enum CallError {
    /// No process listens.
    NoDaemon,
    /// No process listens, though a keeper, which starts daemons, is at work.
    Dead,
    /// No process listens, though a daemon holds the lock.
    Unreachable(PathBuf),
    /// The daemon refused or failed.
    Failed(Failure),
    /// Ctrl-C while waiting; the daemon continues.
    Interrupted,
    /// The daemon does not answer.
    Silent,
    /// The connection broke; holds how.
    Broken(String),
    /// The daemon speaks another version of the protocol.
    Version { daemon: String, protocol: u32 },
    /// A failure on the client's side.
    Local(String),
}

/// Messages before the end of a long action.
#[derive(Debug)]
pub enum Meanwhile {
    Progress(Progress),
    /// Notes for the user beside the outcome.
    Notes(Vec<String>),
}

/// A reply of another request's type comes from another version.
fn understood<Q: Ask>(reply: Reply) -> Result<Q::Reply, CallError> {
    let what = "it answered something else than was asked";
    Q::understand(reply).ok_or_else(|| CallError::Broken(what.into()))
}

/// Calls the daemon of these folders.
#[derive(Clone, Debug)]
pub struct Client {
    paths: Paths,
    patience: Duration,
    /// Starts a daemon again that was killed, and what for, instead of reporting that none runs.
    revives: Option<Wish>,
}

impl Client {
    /// Refuses a socket in a folder that other users can write to.
    pub fn new(paths: &Paths) -> Result<Self, CliError> {
        let paths = paths.at_work();
        paths.check().map_err(CliError::usage)?;
        Ok(Self {
            paths,
            patience: PATIENCE,
            revives: Some(Wish::GoOn),
        })
    }

    /// For a caller that is about to become the next daemon itself.
    pub fn of_next_daemon(mut self) -> Self {
        self.revives = None;
        self
    }

    /// For a caller that wants apps to run.
    pub fn for_a_start(mut self) -> Self {
        self.revives = Some(Wish::Start);
        self
    }

    /// Sets how long an answer may take.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends a request that is answered at once.
    pub fn try_ask<Q: Ask>(&self, what: &Q) -> Result<Q::Reply, CallError> {
        let call = Call::new(what.request(), true);
        let reply = self.converse(&call, Some(self.patience), None, &|_| {})?;
        understood::<Q>(reply)
    }

    /// As [`Self::try_ask`], with the error as a report.
    pub fn ask<Q: Ask>(&self, what: &Q) -> Result<Q::Reply, CliError> {
        self.try_ask(what).map_err(|error| self.explain(error))
    }

    /// Sends a request that may take long; `wait: false` returns once the daemon has accepted it.
    pub fn act<Q: Ask>(
        &self,
        what: &Q,
        wait: bool,
        interrupt: &Interrupt,
        hear: &dyn Fn(Meanwhile),
    ) -> Result<Q::Reply, CallError> {
        let patience = if wait { None } else { Some(self.patience) };
        let call = Call::new(what.request(), wait);
        let reply = self.converse(&call, patience, interrupt.fd(), hear)?;
        understood::<Q>(reply)
    }

    fn converse(
        &self,
        call: &Call,
        patience: Option<Duration>,
        interrupt: Option<&SignalFd>,
        hear: &dyn Fn(Meanwhile),
    ) -> Result<Reply, CallError> {
        let talk = |call: &Call| {
            let result = self.talk(call, patience, interrupt, hear);
            match result {
                Err(CallError::NoDaemon) if self.revive() => {
                    self.talk(call, patience, interrupt, hear)
                }
                result => result,
            }
        };
        let mut result = talk(call);
        let broke = matches!(result, Err(CallError::Broken(_)));
        // The daemon died. The next one knows by the action's id what became of it.
        let mut lives = LIVES;
        while let Err(CallError::Broken(_)) = result
            && lives > 0
            && self.another_comes()
            && call.request.may_be_repeated()
        {
            lives -= 1;
            result = match call.request.action_id() {
                None => talk(call),
                Some(id) => {
                    let outcome = Call::new(Request::Outcome { id }, call.wait);
                    match talk(&outcome) {
                        Err(CallError::Failed(failure))
                            if failure.code == FailureCode::UnknownAction =>
                        {
                            talk(call)
                        }
                        known => known,
                    }
                }
            };
        }
        // The daemon ended and left no state to continue from: everything is stopped.
        if broke
            && matches!(call.request, Request::Kill { .. })
            && matches!(result, Err(CallError::Broken(_) | CallError::NoDaemon))
            && !self.another_comes()
        {
            return Ok(Reply::Killed);
        }
        // The daemon ended on purpose before it heard of this.
        if matches!(result, Err(CallError::Broken(_))) && self.has_ended() {
            return Err(CallError::NoDaemon);
        }
        // A message that either side cannot parse may come from another version.
        let senseless = match &result {
            Err(CallError::Broken(_)) => true,
            Err(CallError::Failed(failure)) => failure.code == FailureCode::BadRequest,
            Ok(_) | Err(_) => false,
        };
        if senseless
            && call.request != Request::Ping
            && let Some(error) = self.other_version()
        {
            return Err(error);
        }
        result
    }

    /// The error, if the daemon speaks another version of the protocol.
    fn other_version(&self) -> Option<CallError> {
        let Pong {
            version, protocol, ..
        } = self.try_ask(&Ping).ok()?;
        (protocol != control::VERSION).then_some(CallError::Version {
            daemon: version,
            protocol,
        })
    }

    /// Whether a daemon that died is started again, by its keeper or by this client.
    fn another_comes(&self) -> bool {
        self.paths.keeper_is_at_work() || self.paths.live_state().exists()
    }

    /// Whether the daemon that broke a conversation off has ended for good, or does so now.
    fn has_ended(&self) -> bool {
        let deadline = Instant::now() + ENDING;
        loop {
            if self.another_comes() {
                return false;
            }
            let gone = |why: &std::io::Error| {
                matches!(
                    why.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                )
            };
            if UnixStream::connect(self.paths.socket()).is_err_and(|why| gone(&why)) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Connects. A daemon that died is back in a moment if its keeper lives; one whose socket was
    /// removed makes another.
    fn connect(&self) -> Result<UnixStream, CallError> {
        let socket = self.paths.socket();
        let deadline = Instant::now() + RETURN;
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => return Ok(stream),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    if !self.paths.keeper_is_at_work() && !self.paths.has_daemon() {
                        return Err(CallError::NoDaemon);
                    }
                    if Instant::now() >= deadline {
                        let locked = self.paths.locked();
                        return Err(locked.map_or(CallError::Dead, CallError::Unreachable));
                    }
                    std::thread::sleep(POLL);
                }
                Err(error) => {
                    return Err(CallError::Local(format!(
                        "cannot connect to {}: {error}",
                        socket.display()
                    )));
                }
            }
        }
    }

    /// Starts the daemon again if it was killed together with its keeper: it has left its state and
    /// its workers. A daemon in the foreground is for its owner to start.
    fn revive(&self) -> bool {
        let state = self.paths.live_state();
        let Some(wish) = self.revives else {
            return false;
        };
        if !state.exists() || self.paths.keeper_is_at_work() || is_of_foreground(&state) {
            return false;
        }
        // The new daemon is called as well, by a client that must not start another.
        static ONCE: AtomicBool = AtomicBool::new(false);
        !ONCE.swap(true, Ordering::Relaxed)
            && daemonize::start(&self.paths, self.clone(), wish).is_ok()
    }

    fn talk(
        &self,
        call: &Call,
        patience: Option<Duration>,
        interrupt: Option<&SignalFd>,
        hear: &dyn Fn(Meanwhile),
    ) -> Result<Reply, CallError> {
        let frame = control::encode(call).map_err(|error| CallError::Local(error.to_string()))?;
        let stream = self.connect()?;
        stream
            .set_write_timeout(Some(PATIENCE))
            .map_err(|error| CallError::Local(error.to_string()))?;
        if let Err(error) = io::Write::write_all(&mut &stream, &frame) {
            match error.kind() {
                // The daemon may have answered and closed without reading all of the request: its
                // answer says more.
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {}
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(CallError::Silent),
                _ => return Err(CallError::Broken(error.to_string())),
            }
        }
        let mut answers = Answers {
            stream: &stream,
            bytes: Vec::new(),
        };
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            match answers.next(deadline, interrupt)? {
                Answer::Notes(notes) => hear(Meanwhile::Notes(notes)),
                Answer::Progress(step) => hear(Meanwhile::Progress(step)),
                Answer::Done(reply) => return Ok(reply),
                Answer::Failed(failure) => return Err(CallError::Failed(failure)),
            }
        }
    }

    /// Turns an error of a call into a report.
    pub fn explain(&self, error: CallError) -> CliError {
        let log = || {
            format!(
                "the daemon's log may tell more: {}",
                self.paths.daemon_log().display()
            )
        };
        match error {
            CallError::NoDaemon => systemctl::trouble(&self.paths)
                .unwrap_or_else(|| CliError::failed("no_daemon", NO_DAEMON).hint(START_HINT)),
            CallError::Dead => {
                let what = format!(
                    "the daemon is dead, and its keeper has started none that lives\nwaited {} s; it goes on trying",
                    RETURN.as_secs()
                );
                CliError::failed("no_daemon", what).hint(log())
            }
            CallError::Unreachable(lock) => {
                let pid = lock::holder(&lock);
                let who = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                let what = format!(
                    "a daemon{who} is at work, and does not listen on {}\nit holds {}; waited {} s for its socket",
                    self.paths.socket().display(),
                    lock.display(),
                    RETURN.as_secs()
                );
                CliError::failed("unreachable", what).hint(log())
            }
            CallError::Failed(failure) => failure.into(),
            CallError::Interrupted => CliError::Interrupted,
            CallError::Silent => {
                CliError::failed("timeout", format!("the daemon does not answer\nwaited {} s", self.patience.as_secs())).hint(log())
            }
            CallError::Broken(what) => CliError::failed("broken", format!("the daemon's answer is incomplete\n{what}")).hint(log()),
            CallError::Version { daemon, protocol } => CliError::Report {
                exit: FAILED,
                report: Report::new(
                    "version",
                    format!(
                        "the daemon is rsup {daemon} (protocol {protocol}), this is rsup {} (protocol {})\nthey do not understand each other",
                        env!("CARGO_PKG_VERSION"),
                        control::VERSION
                    ),
                )
                .hint(if protocol < control::VERSION {
                    "`rsup upgrade` makes the daemon this version, with its apps untouched"
                } else {
                    "use the newer rsup"
                }),
            },
            CallError::Local(what) => CliError::failed("local", what),
        }
    }
}

/// Splits the stream of bytes into answers.
struct Answers<'a> {
    stream: &'a UnixStream,
    bytes: Vec<u8>,
}

impl Answers<'_> {
    fn next(
        &mut self,
        deadline: Option<Instant>,
        interrupt: Option<&SignalFd>,
    ) -> Result<Answer, CallError> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(answer) = control::take(&mut self.bytes)
                .map_err(|error| CallError::Broken(error.to_string()))?
            {
                return Ok(answer);
            }
            self.wait(deadline, interrupt)?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.ended()),
                Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(self.ended());
                }
                Err(error) => return Err(CallError::Broken(error.to_string())),
            }
        }
    }

    fn ended(&self) -> CallError {
        CallError::Broken(match self.bytes.len() {
            0 => "it closed the connection without one".into(),
            count => format!("it closed the connection after {count} bytes of it"),
        })
    }

    /// Waits until there is something to read.
    fn wait(
        &self,
        deadline: Option<Instant>,
        interrupt: Option<&SignalFd>,
    ) -> Result<(), CallError> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = match left {
                None => PollTimeout::NONE,
                // Rounded up, or the last millisecond would be spent spinning.
                Some(left) => PollTimeout::try_from(left + Duration::from_millis(1))
                    .unwrap_or(PollTimeout::MAX),
            };
            let mut wanted = vec![PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            wanted.extend(interrupt.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            match poll(&mut wanted, timeout) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Err(CallError::Silent),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) if wanted.get(1).is_some_and(|fd| fd.any().unwrap_or(false)) => {
                    return Err(CallError::Interrupted);
                }
                Ok(_) => return Ok(()),
                Err(error) => {
                    return Err(CallError::Local(format!(
                        "cannot wait for the daemon: {error}"
                    )));
                }
            }
        }
    }
}

/// While it lives, Ctrl-C ends a wait ([`CallError::Interrupted`]) instead of the process, so that
/// the command can say that the daemon continues the work.
#[derive(Debug)]
pub struct Interrupt(Option<(SignalFd, SigSet)>);

impl Interrupt {
    /// Blocks SIGINT in this thread and in those that it starts from now on.
    pub fn hold() -> Self {
        Self::hold_back(&[Signal::SIGINT])
    }

    /// Blocks every signal that asks a process to end: for verbs that have to clean up.
    pub fn hold_all() -> Self {
        Self::hold_back(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
    }

    fn hold_back(signals: &[Signal]) -> Self {
        let set: SigSet = signals.iter().copied().collect();
        // If any of this fails, Ctrl-C ends the process as usual.
        if set.thread_block().is_err() {
            return Self(None);
        }
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Self(
            fd.inspect_err(|_| {
                let _ = set.thread_unblock();
            })
            .ok()
            .map(|fd| (fd, set)),
        )
    }

    /// Blocks nothing; for calls that do not wait.
    pub fn none() -> Self {
        Self(None)
    }

    fn fd(&self) -> Option<&SignalFd> {
        self.0.as_ref().map(|(fd, _)| fd)
    }

    /// Waits for `time`; true as soon as there is a signal that was not [taken](Self::take) yet.
    pub fn wait(&self, time: Duration) -> bool {
        let Some(fd) = self.fd() else {
            std::thread::sleep(time);
            return false;
        };
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let mut wanted = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut wanted, timeout), Ok(1..))
    }

    /// Discards the signals that have come, so that a later one is noticed.
    pub fn take(&self) {
        while let Some(Ok(Some(_))) = self.fd().map(SignalFd::read_signal) {}
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // A Ctrl-C that came while the wait ended is answered by the wait's result.
        self.take();
        if let Some((_, set)) = self.0.take() {
            let _ = set.thread_unblock();
        }
    }
}
