//! Finds the daemon, or starts one in the background, under a keeper, and waits until it answers.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::client::{CallError, Client, Interrupt, NO_DAEMON, START_HINT};
use super::environment;
use super::error::{CliError, FAILED, INTERRUPTED, Report};
use super::systemctl;
use crate::control::{self, Ping, Pong};
use crate::keeper;
use crate::paths::{self, Paths};
use crate::sys::{inherit, needs};

/// A new daemon must answer within this time.
const WITHIN: Duration = Duration::from_secs(5);
/// A daemon that ended at once may have lost the lock to another one, which must answer within this
/// time.
const GRACE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);
/// How often a daemon that is about to end is asked whether it still is.
const AGAIN: Duration = Duration::from_millis(250);
/// Lines of the daemon's log that are shown with an error.
const LOG_LINES: usize = 10;

/// A client of a daemon that answers; starts a daemon if there is none.
///
/// Of two that are started at once, one gets the lock and the other ends; both callers then talk to
/// the first.
pub fn ensure(paths: &Paths) -> Result<Client, CliError> {
    let client = Client::new(paths)?;
    // A daemon that was killed during a stop begins anew with this start; it does not continue the
    // stop.
    match client.clone().of_next_daemon().try_ask(&Ping) {
        Ok(reply) => return accept(client, reply),
        Err(CallError::NoDaemon) => {}
        Err(error) => return Err(client.explain(error)),
    }
    start(paths, client, Wish::Start)
}

/// Waits while a daemon is about to end; while it still stops its apps (its socket exists),
/// [`AGAIN`] at most: the caller then asks it again.
pub fn until_it_ends(paths: &Paths) -> Result<(), CliError> {
    let interrupt = Interrupt::hold();
    let look_again = Instant::now() + AGAIN;
    // A daemon without a socket has stopped everything and is about to exit.
    while !others_are_gone(paths) && (Instant::now() < look_again || !paths.socket().exists()) {
        if interrupt.wait(POLL) {
            return Err(CliError::AlreadyReported(INTERRUPTED));
        }
    }
    Ok(())
}

/// What a new daemon is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The caller wants apps to run.
    Start,
    /// The caller reads or changes what exists. A daemon that was stopping everything continues
    /// with that.
    GoOn,
}

/// Starts a keeper, which starts the daemon, and waits until the daemon answers; where a systemd
/// unit is responsible for the daemon, starts the unit.
pub fn start(paths: &Paths, client: Client, wish: Wish) -> Result<Client, CliError> {
    if let Some((manager, unit)) = systemctl::installed() {
        manager.start(&unit, false)?;
        return until_service_answers(paths, client, &unit);
    }
    needs::check_all().map_err(|why| CliError::failed("machine", why))?;
    paths.create().map_err(CliError::usage)?;
    // A daemon that recovers after another one's death is needed on a full disk too.
    if !paths.live_state().exists() {
        paths
            .has_room()
            .map_err(|why| CliError::failed("disk", why))?;
    }
    let log = Log::open(paths)?;
    let mut command = command("keeper", &log)?;
    if wish == Wish::GoOn {
        command.env(keeper::GO_ON, "1");
    }
    let mut child = spawn(command)?;
    until_it_answers(paths, client, &mut child, &log)
}

/// Starts a daemon of the caller's own, in a folder of its own. Once the caller is gone, by any
/// cause, the daemon stops its apps and ends.
pub fn own(home: &Path) -> Result<(Client, Child), CliError> {
    let paths = Paths::in_home(home).map_err(CliError::usage)?;
    let client = Client::new(&paths)?;
    paths.create().map_err(CliError::usage)?;
    let log = Log::open(&paths)?;
    let mut command = command("daemon", &log)?;
    // The child's `stdin` is a pipe whose other end this process holds.
    command
        .arg("--until-eof")
        .stdin(Stdio::piped())
        .env("RSUP_HOME", home);
    let mut child = spawn(command)?;
    match until_it_answers(&paths, client, &mut child, &log) {
        Ok(client) => Ok((client, child)),
        Err(problem) => {
            // The child has no apps yet.
            drop(child.kill());
            drop(child.wait());
            Err(problem)
        }
    }
}

fn until_it_answers(
    paths: &Paths,
    client: Client,
    child: &mut Child,
    log: &Log,
) -> Result<Client, CliError> {
    let deadline = Instant::now() + WITHIN;
    let failed = |what: String| {
        let log = log.tail(&paths.daemon_log());
        let (first, log) = cause(log);
        let first = first.map(|first| format!("{first}\n")).unwrap_or_default();
        let mut report = Report::new("spawn", first + &what);
        report.log = log;
        report.hint = Some(format!(
            "the daemon's log: {}",
            paths.daemon_log().display()
        ));
        CliError::Report {
            exit: FAILED,
            report,
        }
    };
    // Until the new keeper has its lock there seems to be none: a second one, with another wish,
    // could win the race.
    let client = client.of_next_daemon().patience(WITHIN);
    loop {
        // Checked before the call: a daemon that ends in between may have answered others.
        let ended = child.try_wait();
        match client.try_ask(&Ping) {
            Ok(reply) => return accept(Client::new(paths)?, reply),
            // The daemon is still starting, or the one that had the lock was just about to end.
            Err(
                CallError::NoDaemon
                | CallError::Dead
                | CallError::Unreachable(_)
                | CallError::Broken(_),
            ) => {}
            Err(error) => return Err(client.explain(error)),
        }
        match ended {
            // The daemon only had to finish a stop that was cut short.
            Ok(Some(status)) if status.success() && !paths.is_locked() => {
                return Err(CliError::failed("no_daemon", NO_DAEMON).hint(START_HINT));
            }
            // Another daemon, started at the same time, may hold the lock and be about to listen;
            // if not, this is an error.
            Ok(Some(status))
                if !status.success() && (others_are_gone(paths) || waited(deadline) > GRACE) =>
            {
                return Err(failed(format!(
                    "the daemon ended as soon as it was started\n{status}"
                )));
            }
            Ok(_) => {}
            Err(error) => return Err(failed(format!("cannot watch the new daemon: {error}"))),
        }
        if Instant::now() >= deadline {
            return Err(failed(format!(
                "the new daemon (pid {}) does not answer\nwaited {} s",
                child.id(),
                WITHIN.as_secs()
            )));
        }
        std::thread::sleep(POLL);
    }
}

/// Waits for a daemon that systemd starts: it answers before all its apps are ready.
fn until_service_answers(paths: &Paths, client: Client, unit: &str) -> Result<Client, CliError> {
    let deadline = Instant::now() + WITHIN;
    let asker = client.clone().of_next_daemon();
    loop {
        match asker.try_ask(&Ping) {
            Ok(reply) => return accept(client, reply),
            Err(
                CallError::NoDaemon
                | CallError::Dead
                | CallError::Unreachable(_)
                | CallError::Broken(_),
            ) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(
                CallError::NoDaemon
                | CallError::Dead
                | CallError::Unreachable(_)
                | CallError::Broken(_),
            ) => {
                let what = format!(
                    "{unit} was started, but does not answer\nwaited {} s",
                    WITHIN.as_secs()
                );
                let hint = format!("systemctl status {unit}; journalctl -t rsup");
                return Err(systemctl::trouble(paths)
                    .unwrap_or_else(|| CliError::failed("spawn", what).hint(hint)));
            }
            Err(error) => return Err(client.explain(error)),
        }
    }
}

fn accept(client: Client, pong: Pong) -> Result<Client, CliError> {
    let Pong {
        version, protocol, ..
    } = pong;
    if protocol == control::VERSION {
        return Ok(client);
    }
    Err(client.explain(CallError::Version {
        daemon: version,
        protocol,
    }))
}

/// The log of a new daemon and its keeper.
struct Log {
    file: File,
    /// The offset at which their output begins.
    begin: u64,
    /// A memfd with what they could not write to the log. `None` if there is no memory either.
    words: Option<File>,
}

impl Log {
    fn open(paths: &Paths) -> Result<Self, CliError> {
        let path = paths.daemon_log();
        let open = || {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)?;
            let begin = file.metadata()?.len();
            let words = memfd_create(c"rsup", MFdFlags::MFD_CLOEXEC)
                .ok()
                .map(File::from);
            Ok(Self { file, begin, words })
        };
        open().map_err(|error: io::Error| {
            CliError::failed(
                "local",
                format!(
                    "cannot write {}: {error}\n{}",
                    path.display(),
                    paths::ELSEWHERE
                ),
            )
        })
    }

    /// The last lines of a daemon's log, and of what it could not write.
    fn tail(&self, path: &Path) -> Vec<String> {
        let read = |file: &mut File, begin| {
            // Of a file that was rotated meanwhile, from its beginning.
            let begin = if file.metadata()?.len() < begin {
                0
            } else {
                begin
            };
            file.seek(SeekFrom::Start(begin))?;
            let mut bytes = Vec::new();
            file.take(1 << 20).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        let mut text = File::open(path)
            .and_then(|mut file| read(&mut file, self.begin))
            .unwrap_or_default();
        if let Some(words) = self
            .words
            .as_ref()
            .and_then(|words| words.try_clone().ok())
            .and_then(|mut words| read(&mut words, 0).ok())
        {
            text.extend(words);
        }
        let lines: Vec<_> = String::from_utf8_lossy(&text)
            .lines()
            .map(str::to_owned)
            .collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
    }
}

fn command(verb: &str, log: &Log) -> Result<Command, CliError> {
    let failed =
        |error: io::Error| CliError::failed("spawn", format!("cannot start the daemon: {error}"));
    let mut command = Command::new(paths::program());
    command.env_clear().envs(environment::of_daemon());
    // Not in the caller's folder, which the daemon would keep in use.
    command.arg(verb).stdin(Stdio::null()).stdout(Stdio::null());
    command
        .stderr(log.file.try_clone().map_err(failed)?)
        .current_dir("/");
    if let Some(home) = std::env::var_os("RSUP_HOME").filter(|home| !home.is_empty())
        && let Ok(home) = std::path::absolute(home)
    {
        command.env("RSUP_HOME", home);
    }
    // `ExecStart=rsup start`: this process itself is the service's main process (systemd.exec(5)).
    if std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string()) {
        command.env(keeper::STAY, "1");
    }
    if let Some(words) = &log.words {
        command.env(
            keeper::WORDS,
            inherit::leave_open(words).map_err(failed)?.to_string(),
        );
    }
    Ok(command)
}

fn spawn(mut command: Command) -> Result<Child, CliError> {
    let failed = |error: std::io::Error, command: &Command| {
        needs::words(
            &format!(
                "cannot start the daemon: {}",
                command.get_program().display()
            ),
            &error,
        )
    };
    command
        .spawn()
        .map_err(|error| CliError::failed("spawn", failed(error, &command)))
}

fn waited(deadline: Instant) -> Duration {
    WITHIN - deadline.saturating_duration_since(Instant::now())
}

/// Whether no process holds a lock that the new daemon could have lost against.
fn others_are_gone(paths: &Paths) -> bool {
    !paths.has_daemon() && !paths.keeper_is_at_work()
}

/// The last line with a cause of a daemon's or keeper's end, and the lines without it.
fn cause(mut lines: Vec<String>) -> (Option<String>, Vec<String>) {
    let word = |line: &String| {
        ["error: ", "keeper: cannot "]
            .iter()
            .find(|word| line.starts_with(**word))
            .copied()
    };
    let Some(at) = lines.iter().rposition(|line| word(line).is_some()) else {
        return (None, lines);
    };
    // Further lines of an error are indented, as are those of its hint.
    let end = lines
        .iter()
        .skip(at + 1)
        .position(|line| !line.starts_with(' '))
        .map_or(lines.len(), |length| at + 1 + length);
    let of_error: Vec<String> = lines.drain(at..end).collect();
    let words = of_error
        .iter()
        .map(|line| line.trim().trim_start_matches("error: "));
    (Some(words.collect::<Vec<_>>().join("\n")), lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_daemons_end_is_told_apart_from_its_log() {
        let told = |lines: &[&str]| cause(lines.iter().map(|line| (*line).to_owned()).collect());
        let (first, rest) = told(&[
            "WARN x",
            "error: cannot y: z",
            "  do this",
            "keeper: the daemon (pid 1) exited with code 1",
        ]);
        assert_eq!(first.as_deref(), Some("cannot y: z\ndo this"));
        assert_eq!(
            rest,
            ["WARN x", "keeper: the daemon (pid 1) exited with code 1"]
        );
        assert_eq!(
            told(&["keeper: cannot keep: z"]).0.as_deref(),
            Some("keeper: cannot keep: z")
        );
        assert_eq!(told(&["WARN x"]), (None, vec!["WARN x".to_owned()]));
    }
}
