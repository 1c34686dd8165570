//! The keeper: a tiny process above the daemon, so that nothing that a worker needs dies with the
//! daemon.
//!
//! * It holds duplicates of listening sockets, log pipes and seccomp listeners by name, and gives
//!   them to the next daemon, as systemd's `FDSTORE=1` does. It never looks into them.
//! * It starts a daemon that died again, at once the first time, then with backoff.
//! * It reaps the dead daemon's workers, and reports to the next daemon how they ended.
//!
//! One thread, one loop, no policy; a second thread writes to stderr once there is something to
//! write. It ends when the daemon reports that it ends on purpose.

// A new state must be handled everywhere.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

pub mod binds;
pub mod binds_link;
pub mod link;
mod scope;
pub mod wire;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::exit::Exit;
use crate::lock;
use crate::logs::stderr;
use crate::paths::Paths;
use crate::sys::{detach, fdpass, inherit, process, procfs};
use wire::{FromKeeper, ToKeeper};

/// The name of the kept descriptor of the program that daemons are started from. Without it, the
/// keeper's own.
pub const PROGRAM: &str = "program";

/// The name of the kept journal of the logs.
pub const JOURNAL: &str = "journal";

/// The variable that gives a daemon, or a keeper that a daemon started, the number of its end of
/// the pair.
pub const SOCKET: &str = "RSUP_KEEPER_FD";

/// The variable of a daemon whose predecessor died, and that only the keeper starts again.
pub const AGAIN: &str = "RSUP_AGAIN";

/// The variable of a daemon that was started by a command about existing apps, not by a start.
pub const GO_ON: &str = "RSUP_GO_ON";

/// The variable that gives a keeper, and through it the first daemon, the number of a descriptor:
/// they write there what their log did not take, for the process that started them.
pub const WORDS: &str = "RSUP_WORDS_FD";

/// The variable of a keeper that was started in a service meant for rsup.
pub const STAY: &str = "RSUP_STAY";

/// The variable that gives a daemon the number of lines that its keeper has lost.
pub const LOST: &str = "RSUP_KEEPER_LOST";

/// The name of the kept live state of a daemon that cannot write it to a file.
pub const STATE: &str = "state";

/// After this many deaths that are not [forgiven](FORGIVEN), no further daemon is started while
/// there is no worker.
const MOST_VAIN_DEATHS: u32 = 8;

/// The most descriptors that are kept: three for each worker and some for each app.
const MOST_KEPT: usize = 16_384;

/// Of so many latest exits those that no daemon has asked for are remembered.
const MOST_ENDS: usize = 8192;

/// How often the daemon is looked at: a pidfd does not report the death of a process that cannot end, because one of
/// its threads waits in the kernel for ever.
const LOOK: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// One earlier death is forgotten for each such period that a daemon lived. A daemon whose lives
/// are little longer than its start is started more and more slowly too; longer lives count as
/// pauses.
const FORGIVEN: Duration = LONGEST_PAUSE;

/// Exits that no daemon has asked for yet: those of workers that became the keeper's children.
#[derive(Default)]
struct Ends {
    by_pid: HashMap<u32, (u64, Exit)>,
    /// In the order of their numbers; one that was taken, or has a later number, does not count.
    order: VecDeque<(u64, u32)>,
    noted: u64,
}

impl Ends {
    fn note(&mut self, pid: u32, exit: Exit) {
        self.noted += 1;
        // Pids are reused.
        self.by_pid.insert(pid, (self.noted, exit));
        self.order.push_back((self.noted, pid));
        while self.order.len() > MOST_ENDS {
            let Some((number, oldest)) = self.order.pop_front() else {
                return;
            };
            if self
                .by_pid
                .get(&oldest)
                .is_some_and(|(of, _)| *of == number)
            {
                self.by_pid.remove(&oldest);
            }
        }
    }

    fn take(&mut self, pid: u32) -> Exit {
        self.by_pid
            .remove(&pid)
            .map_or(Exit::Unknown, |(_, exit)| exit)
    }
}

/// The daemon as its keeper sees it.
struct Daemon {
    pid: u32,
    /// `None` if it was gone before the keeper got to it.
    pidfd: Option<OwnedFd>,
    socket: OwnedFd,
    since: Instant,
}

struct Keeper {
    paths: Paths,
    /// Its lock shows commands that a daemon will be back.
    lock: File,
    kept: BTreeMap<String, OwnedFd>,
    ends: Ends,
    daemon: Option<Daemon>,
    /// Deaths that are not forgotten yet.
    deaths: u32,
    /// A daemon has been started before.
    again: bool,
    /// See [`WORDS`]; for the first daemon.
    words: Option<OwnedFd>,
    start_at: Instant,
    /// The daemon ends on purpose.
    bye: bool,
}

/// Runs until the daemon has ended on purpose; returns the exit code.
///
/// Started by `rsup start`, it starts the daemon; started by a daemon whose keeper died, it gets
/// that daemon's socket in [`SOCKET`].
pub fn run() -> u8 {
    let code = match try_run() {
        Ok(code) => code,
        Err(why) => {
            say(&format!("cannot keep: {why}"));
            1
        }
    };
    stderr::flush();
    code
}

/// Writes to the daemon's log without waiting for it; lines that the log does not take are counted.
fn say(text: &str) {
    // Without another thread the line is lost.
    if let Ok(console) = stderr::begin(line) {
        console.whole(&line(text));
    }
}

fn line(text: &str) -> Vec<u8> {
    format!("keeper: {text}\n").into_bytes()
}

/// Drops what this process inherited from the command that started it; returns what it could not
/// drop, as messages.
pub fn detach() -> Vec<String> {
    let left = [WORDS, SOCKET].into_iter().filter_map(inherit::named);
    detach::from_caller(&left.collect::<Vec<_>>())
}

fn try_run() -> io::Result<u8> {
    let undone = detach();
    let words = inherit::take_named(WORDS).and_then(Result::ok);
    if let Some(words) = words.as_ref().and_then(|words| words.try_clone().ok()) {
        stderr::set_witness(words);
    }
    // std would write a panic to stderr itself, and wait for that.
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("this is a bug in rsup: {panic}"));
        stderr::flush();
    }));
    let paths = Paths::from_env()
        .and_then(|paths| paths.create().map(|()| paths))
        .inspect(|paths| stderr::rotates(paths.daemon_log()))
        .map_err(io::Error::other)?;
    undone.iter().for_each(|what| say(what));
    // Leaves the terminal and the process group of the caller.
    let _ = nix::unistd::setsid();
    let lock = lock(&paths)?;
    // Where it is refused, the daemon reports it; the daemon tries the same.
    let _ = process::set_child_subreaper();
    let _ = process::raise_nofile();
    let caught: SigSet = [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ]
    .into_iter()
    .collect();
    caught.thread_set_mask()?;
    let signals = SignalFd::with_flags(&caught, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // A keeper that a daemon started is already where it should be.
    if inherit::named(SOCKET).is_none()
        && std::env::var_os(STAY).is_none()
        && let Some(what) = scope::leave_service()
    {
        say(&what);
    }
    let mut keeper = Keeper {
        paths,
        lock,
        kept: BTreeMap::new(),
        ends: Ends::default(),
        daemon: None,
        deaths: 0,
        again: false,
        words,
        start_at: Instant::now(),
        bye: false,
    };
    if let Some(socket) = inherit::take_named(SOCKET) {
        let socket = socket?;
        // The process that made the pair; it may be dead by now, and then its last messages are in
        // the queue.
        let pid = process::peer_credentials(&socket)?.pid;
        keeper.daemon = Some(Daemon {
            pid,
            pidfd: process::pidfd_open(pid).ok(),
            socket,
            since: Instant::now(),
        });
        keeper.again = true;
    }
    loop {
        if keeper.daemon.is_none() {
            if keeper.bye {
                return Ok(0);
            }
            if keeper.again && keeper.is_in_vain() {
                return Ok(1);
            }
            if keeper.start_at <= Instant::now() {
                keeper.start();
            }
        }
        keeper.wait(&signals)?;
        while let Some(signal) = signals.read_signal()? {
            keeper.on_signal(signal.ssi_signo as i32);
        }
        keeper.listen();
    }
}

/// Held as long as the keeper lives: it shows commands that a daemon will be back.
fn lock(paths: &Paths) -> io::Result<File> {
    lock::take(&paths.keeper_lock())?
        .ok_or_else(|| io::Error::other("another keeper is at work already"))
}

impl Keeper {
    /// Whether nothing depends on a next daemon, and none can be expected to live. Either none got
    /// as far as to keep its program: the caller then sees the keeper end, and the log has the
    /// cause. Or many have died one after another.
    fn is_in_vain(&self) -> bool {
        let only = |names: &[&str]| self.kept.keys().all(|name| names.contains(&name.as_str()));
        only(&[PROGRAM])
            || only(&[JOURNAL])
            || (self.deaths >= MOST_VAIN_DEATHS && only(&[PROGRAM, JOURNAL, STATE]))
    }

    /// Waits until something happens.
    fn wait(&self, signals: &SignalFd) -> io::Result<()> {
        let mut wanted = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(daemon) = &self.daemon {
            wanted.push(PollFd::new(daemon.socket.as_fd(), PollFlags::POLLIN));
            wanted.extend(
                daemon
                    .pidfd
                    .as_ref()
                    .map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)),
            );
        }
        let timeout = match self.daemon {
            Some(_) => PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX),
            None => {
                let left = self.start_at.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO)
            }
        };
        match poll(&mut wanted, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(why) => Err(why.into()),
        }
    }

    fn on_signal(&mut self, signal: i32) {
        match signal {
            libc::SIGCHLD => self.reap(),
            // The keeper has no terminal.
            libc::SIGHUP => {}
            // Stopping is up to the daemon.
            _ => match &self.daemon {
                Some(Daemon {
                    pidfd: Some(pidfd), ..
                }) => drop(process::signal(pidfd, signal)),
                Some(Daemon { pidfd: None, .. }) | None => self.bye = true,
            },
        }
    }

    /// Reaps children, and remembers how they ended.
    fn reap(&mut self) {
        match process::reap_orphans(|_| false) {
            Ok(dead) => dead
                .into_iter()
                .for_each(|(pid, exit)| self.ends.note(pid, exit)),
            Err(why) => say(&format!("cannot wait for processes: {why}")),
        }
    }

    /// Handles the daemon's messages, up to the last one if it is dead.
    fn listen(&mut self) {
        let Some(daemon) = &self.daemon else { return };
        // Checked first: what the daemon sent before its death is then in the queue.
        let mut dead = daemon
            .pidfd
            .as_ref()
            .is_none_or(|pidfd| process::has_ended(pidfd).unwrap_or(true))
            || procfs::cannot_end(daemon.pid);
        let mut packet = [0; wire::LONGEST + 1];
        loop {
            let Some(daemon) = &self.daemon else { return };
            match fdpass::receive(&daemon.socket, &mut packet) {
                // The other end is closed everywhere. A daemon that lives all the same does without
                // a keeper.
                Ok((0, _)) => {
                    self.bye |= daemon.pidfd.as_ref().is_some_and(|pidfd| !ends_soon(pidfd));
                    dead = true;
                    break;
                }
                // Reported once if the daemon left answers unread; its own messages follow.
                Err(why) if why.kind() == io::ErrorKind::ConnectionReset => {}
                // No more messages can come.
                Err(_) => break,
                Ok((length, fd)) => match ToKeeper::parse(&packet[..length]) {
                    Some(message) => self.on_message(message, fd),
                    None => say("the daemon said something that makes no sense"),
                },
            }
        }
        if dead {
            self.on_death();
        }
    }

    fn on_message(&mut self, message: ToKeeper, fd: Option<OwnedFd>) {
        match message {
            ToKeeper::Hello(_) => {
                // The daemon may have said goodbye for a new program that then could not start.
                self.bye = false;
                // From here on clients can ask what happened.
                stderr::dismiss_witness();
                self.tell(&FromKeeper::Hello(wire::VERSION), None);
            }
            ToKeeper::Keep(name) => match fd {
                Some(_) if self.kept.len() >= MOST_KEPT && !self.kept.contains_key(&name) => {
                    say(&format!("{name} is not kept: {MOST_KEPT} others are"));
                }
                Some(fd) => drop(self.kept.insert(name, fd)),
                None => say(&format!("{name} came without its descriptor")),
            },
            ToKeeper::Drop(name) => drop(self.kept.remove(&name)),
            ToKeeper::GiveBack => {
                for (name, fd) in &self.kept {
                    self.tell(&FromKeeper::Kept(name.clone()), Some(fd));
                }
                self.tell(&FromKeeper::AllKept, None);
                // From here on it mostly sleeps.
                process::forget_program_pages();
            }
            ToKeeper::HowEnded(pid) => {
                self.reap();
                let exit = self.ends.take(pid);
                self.tell(&FromKeeper::Ended(pid, exit), None);
            }
            ToKeeper::Bye => self.bye = true,
        }
    }

    /// Waits while the daemon's queue is full: it asked, so it reads. Fails if the daemon dies.
    fn tell(&self, message: &FromKeeper, fd: Option<&OwnedFd>) {
        let Some(daemon) = &self.daemon else { return };
        while let Err(why) =
            fdpass::send_message(&daemon.socket, &message.encode(), fd.map(AsFd::as_fd))
        {
            let mut room = [PollFd::new(daemon.socket.as_fd(), PollFlags::POLLOUT)];
            if why.kind() != io::ErrorKind::WouldBlock
                || poll(&mut room, PollTimeout::NONE).is_err()
            {
                return;
            }
        }
    }

    fn on_death(&mut self) {
        let Some(daemon) = self.daemon.take() else {
            return;
        };
        self.reap();
        if self.bye {
            return;
        }
        let pause;
        (self.deaths, pause) = after_death(self.deaths, daemon.since.elapsed());
        self.start_at = Instant::now() + pause;
        let how = self.ends.take(daemon.pid);
        say(&format!(
            "the daemon (pid {}) {how}; {} descriptors are kept",
            daemon.pid,
            self.kept.len()
        ));
    }

    fn start(&mut self) {
        match self.try_start() {
            Ok(daemon) => {
                if std::mem::replace(&mut self.again, true) {
                    say(&format!("started the daemon again (pid {})", daemon.pid));
                }
                self.daemon = Some(daemon);
            }
            Err(why) => {
                self.again = true;
                self.start_at = Instant::now() + LONGEST_PAUSE;
                say(&format!("cannot start the daemon: {why}"));
            }
        }
    }

    /// Makes the lock again, whose file may have been removed with its folder.
    fn lock_again(&mut self) {
        if lock::is_at(&self.lock, &self.paths.keeper_lock()) {
            return;
        }
        if let Ok(Some(lock)) = self
            .paths
            .create()
            .map_err(io::Error::other)
            .and_then(|()| lock::take(&self.paths.keeper_lock()))
        {
            self.lock = lock;
        }
        let _ = stderr::begin_again(&self.paths.daemon_log());
        // The next daemon's is the same file.
        let _ = stderr::keep_to_log(0);
    }

    fn try_start(&mut self) -> io::Result<Daemon> {
        self.lock_again();
        let (ours, theirs) = pair()?;
        let number = inherit::leave_open(&theirs)?;
        let program = match self.kept.get(PROGRAM) {
            // The kernel resolves this path in the child, before exec closes the descriptor.
            Some(fd) => format!("/proc/self/fd/{}", fd.as_raw_fd()),
            None => "/proc/self/exe".to_owned(),
        };
        let mut command = Command::new(program);
        command
            .arg0("rsup")
            .arg("daemon")
            .env(SOCKET, number.to_string());
        if self.again {
            command.env(AGAIN, "1").env_remove(GO_ON);
        }
        command.env(LOST, stderr::lost().lines.to_string());
        let words = self.words.take();
        if let Some(words) = &words {
            command.env(WORDS, inherit::leave_open(words)?.to_string());
        }
        command.envs(process::nofile_found().map(|soft| (process::NOFILE, soft)));
        let child = command.stdin(Stdio::null()).spawn()?;
        let pid = child.id();
        Ok(Daemon {
            pid,
            pidfd: Some(process::pidfd_open(pid)?),
            socket: ours,
            since: Instant::now(),
        })
    }
}

/// The number of deaths to remember after another one, of a daemon that lived for `lived`, and the
/// pause before the next daemon.
fn after_death(before: u32, lived: Duration) -> (u32, Duration) {
    let forgiven = u32::try_from(lived.as_secs() / FORGIVEN.as_secs()).unwrap_or(u32::MAX);
    let before = before.saturating_sub(forgiven);
    let pause = match before {
        0 => Duration::ZERO,
        more => (FIRST_PAUSE * 2u32.saturating_pow(more - 1)).min(LONGEST_PAUSE),
    };
    (before.saturating_add(1).min(16), pause)
}

/// Waits a moment: a dying process loses its descriptors before it is a zombie.
fn ends_soon(pidfd: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    !matches!(poll(&mut wanted, PollTimeout::from(1000u16)), Ok(0))
}

/// A socket pair whose first end is non-blocking.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(seconds: f64, times: usize) -> Vec<Duration> {
        let mut deaths = 0;
        let mut one = || {
            let (after, pause) = after_death(deaths, Duration::from_secs_f64(seconds));
            deaths = after;
            pause
        };
        (0..times).map(|_| one()).collect()
    }

    #[test]
    fn the_latest_exits_are_remembered_until_they_are_asked_for() {
        let mut ends = Ends::default();
        let last = MOST_ENDS as u32 + 10;
        (1..=last).for_each(|pid| ends.note(pid, Exit::Code(1)));
        ends.note(20, Exit::Code(2));
        assert_eq!(ends.take(10), Exit::Unknown, "it is too long ago");
        assert_eq!(ends.take(last), Exit::Code(1));
        assert_eq!(ends.take(last), Exit::Unknown, "it was asked for");
        (1..=11).for_each(|_| ends.note(7, Exit::Code(3)));
        assert_eq!(ends.take(20), Exit::Code(2), "its later exit counts");
        assert!(ends.by_pid.len() <= MOST_ENDS && ends.order.len() <= MOST_ENDS);
    }

    #[test]
    fn a_daemon_that_dies_again_and_again_is_started_more_and_more_slowly() {
        for short in [0.0, 0.9, 1.1, 1.9] {
            let ms: Vec<_> = lives(short, 20).iter().map(Duration::as_millis).collect();
            assert_eq!(
                ms[..8],
                [0, 50, 100, 200, 400, 800, 1600, 2000],
                "lives of {short} s"
            );
            assert!(ms[8..].iter().all(|pause| *pause == 2000));
        }
        assert!(
            lives(2.0, 20).iter().all(Duration::is_zero),
            "the one before is forgotten"
        );
    }

    #[test]
    fn a_long_life_makes_up_for_many_short_ones() {
        assert_eq!(
            after_death(16, Duration::from_secs(32)),
            (1, Duration::ZERO)
        );
        assert_eq!(after_death(16, Duration::from_secs(20)).0, 7);
        assert_eq!(after_death(0, Duration::MAX), (1, Duration::ZERO));
    }
}
