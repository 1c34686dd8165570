//! `rsup demo`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cli::client::{CallError, Client, Interrupt};
use crate::cli::error::{CliError, INTERRUPTED};
use crate::cli::load_test::{self, Expected, Halt, LoadTest, Step};
use crate::cli::values::duration;
use crate::cli::{Context, action, daemonize, render};
use crate::config::AppSpec;
use crate::config::{self, Script};
use crate::control::{Act, Action, ActionId, Describe, Failure, FailureCode, Outcome, Target};
use crate::load::{self, Plan};
use crate::model::Cause;
use crate::paths::Paths;

/// Show what rsup does: an app under load is reloaded, and no request fails
///
/// Runs a small web app of its own, under a daemon of its own in a temporary folder, and puts a
/// steady load on it. Meanwhile it reloads the app to version 2, then to a broken release that
/// never gets ready (which must be refused), then to version 3, and counts every request. Nothing
/// is left behind.
///
/// Exit code 0 if no request failed, the good reloads were done, and the broken one was refused
/// with the old workers still serving; 1 otherwise.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  rsup demo --duration 20s --rps 1000")]
pub struct Args {
    /// How long the load lasts, at least; the reloads take as long as they do
    #[arg(long, value_name = "TIME", default_value = "12s", value_parser = duration)]
    pub duration: Duration,
    /// Requests a second
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rps: u32,
}

const APP: &str = "demo";
const CLIENTS: usize = 20;
/// Timeout of a request.
const REQUEST: Duration = Duration::from_secs(10);
/// The sample app's kill timeout.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the daemon may take to stop the app and end; then it is killed.
const END: Duration = Duration::from_secs(5);
/// Attempts to find a port that no other process takes meanwhile.
const PORTS: usize = 5;

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    // Before anything exists that must be cleaned up.
    let interrupt = Interrupt::hold_all();
    let sandbox = Sandbox::new()?;
    let (spec, addr) = start(&sandbox, &interrupt, cx)?;
    let Args { duration, rps } = args;
    let plan = Plan {
        connections: CLIENTS,
        rate: Some(rps.into()),
        max_time: duration + Duration::from_secs(120),
        timeout: REQUEST,
        ..Plan::new(load::Target::Tcp(addr), "/")
    };
    if !cx.out.json {
        let rps = load::report::thousands(rps.into());
        cx.out.text(&format!(
            "{rps} requests a second, each on a connection of its own\n\n"
        ))?;
    }
    let script = |test: &mut LoadTest<'_>| releases(test, &spec, duration);
    let mut verdict = load_test::run(
        &cx.out,
        &sandbox.client,
        &interrupt,
        &spec.name,
        plan,
        script,
    )?;
    if verdict.passed {
        verdict
            .remarks
            .push("The same for an app of yours: `rsup start`, then `rsup verify APP`.".into());
    }
    verdict.conclude(&cx.out)
}

/// The reloads under load.
fn releases(test: &mut LoadTest<'_>, spec: &AppSpec, duration: Duration) -> Result<(), Halt> {
    let with = |name: &str, value: &str| {
        let mut spec = spec.clone();
        spec.env.insert(name.into(), value.into());
        spec
    };
    let mut broken = with("NEVER_READY", "1");
    broken.listen_timeout =
        (duration / 6).clamp(Duration::from_millis(500), Duration::from_secs(2));
    let step = |label, words, spec, expected, last| Step {
        label,
        words,
        spec,
        settings: Vec::new(),
        expected,
        last,
    };

    test.until(duration / 5)?;
    test.reload(step(
        "v2",
        "reload to version 2",
        with("APP_VERSION", "v2"),
        Expected::Done,
        false,
    ))?;
    test.hold(duration / 16)?;
    test.reload(step(
        "broken",
        "reload to a broken release, which never gets ready",
        broken,
        Expected::Refused,
        false,
    ))?;
    test.hold(duration / 16)?;
    test.reload(step(
        "v3",
        "reload to version 3",
        with("APP_VERSION", "v3"),
        Expected::Done,
        true,
    ))?;
    test.hold(duration / 5)?;
    test.until(duration)
}

/// Starts the sample app, and says so.
fn start(
    sandbox: &Sandbox,
    interrupt: &Interrupt,
    cx: &Context,
) -> Result<(AppSpec, SocketAddr), CliError> {
    let begin = Instant::now();
    let mut tries = PORTS;
    loop {
        tries -= 1;
        let addr = free_port()?;
        let spec = sample_app(sandbox, addr)?;
        if !cx.out.json {
            cx.out.text(&format!(
                "a small web app that knows nothing of rsup, on {addr}\n"
            ))?;
        }
        let start = act(Action::Start {
            apps: vec![spec.clone()],
            base_env: BTreeMap::new(),
        });
        let outcome = match sandbox.client.act(&start, true, interrupt, &|_| {}) {
            Ok(outcomes) => action::only(outcomes)?,
            Err(CallError::Interrupted) => return Err(CliError::AlreadyReported(INTERRUPTED)),
            Err(error) => return Err(sandbox.client.explain(error)),
        };
        match outcome.failure {
            None => {
                if !cx.out.json {
                    let took = render::took(begin.elapsed());
                    cx.out.text(&format!("2 workers ready after {took}\n"))?;
                }
                return Ok((spec, addr));
            }
            // Another process took the port first.
            Some(failure) if failure.code == FailureCode::Listen && tries > 0 => {
                let targets = vec![Target::App(outcome.app)];
                drop(sandbox.client.ask(&act(Action::Delete { targets })));
            }
            Some(_) => return Err(sandbox.not_started(outcome)),
        }
    }
}

fn act(action: Action) -> Act {
    Act {
        id: ActionId::new(),
        action,
        settings: Vec::new(),
        cause: Cause::Command,
    }
}

fn free_port() -> Result<SocketAddr, CliError> {
    let port = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
    port().map_err(|error| {
        CliError::failed(
            "listen",
            format!("there is no free port on 127.0.0.1: {error}"),
        )
    })
}

fn sample_app(sandbox: &Sandbox, addr: SocketAddr) -> Result<AppSpec, CliError> {
    let program = crate::paths::program()
        .into_os_string()
        .into_string()
        .unwrap_or_else(|_| "/proc/self/exe".into());
    let mut spec = config::from_script(&Script {
        name: Some(APP.into()),
        command: vec![program, "sample-app".into()],
        instances: Some("2".into()),
        listen: vec![addr.to_string()],
        env: vec!["APP_VERSION=v1".into()],
        cwd: sandbox.home.path().into(),
        readiness: Some("/readiness".into()),
        ..Script::default()
    })?;
    spec.readiness.interval = Duration::from_millis(100);
    spec.kill_timeout = KILL_TIMEOUT;
    Ok(spec)
}

/// A daemon with its folder. Dropping it stops the apps, ends the daemon and removes the folder.
struct Sandbox {
    client: Client,
    daemon: Child,
    home: TempDir,
}

impl Sandbox {
    fn new() -> Result<Self, CliError> {
        let home = home()?;
        let (client, daemon) = daemonize::own(home.path())?;
        Ok(Self {
            client: client.patience(END),
            daemon,
            home,
        })
    }

    /// Why the sample app could not be started; most likely because takeover is not possible here.
    fn not_started(&self, outcome: Outcome) -> CliError {
        let targets = vec![Target::App(outcome.app.clone())];
        let notes: Vec<String> = match self.client.ask(&Describe(targets)) {
            Ok(all) => all.into_iter().flat_map(|one| one.notes).collect(),
            Err(_) => Vec::new(),
        };
        let unknown = || Failure::new(FailureCode::Internal, "the sample app was not started");
        let mut failure = outcome.failure.unwrap_or_else(unknown);
        // The hint names a log that is about to be removed.
        failure.hint = None;
        for note in &notes {
            failure.message.push_str(&format!("\n{note}"));
        }
        failure
            .message
            .insert_str(0, "the sample app could not be started\n");
        let problem = CliError::from(failure);
        if notes.is_empty() {
            return problem;
        }
        problem.hint("the sample app binds its port itself, as most apps do: try the demo outside this container or sandbox")
    }

    fn has_ended(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            match self.daemon.try_wait() {
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Ok(None) => return false,
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The end of its standard input makes the daemon stop the app and end.
        drop(self.daemon.stdin.take());
        if self.has_ended(END) {
            return;
        }
        // A second SIGTERM makes it kill what is left of the app.
        let Ok(pid) = i32::try_from(self.daemon.id()) else {
            return;
        };
        let send = |pid, signal| {
            let _ = kill(Pid::from_raw(pid), signal);
        };
        send(pid, Signal::SIGTERM);
        if self.has_ended(KILL_TIMEOUT) {
            return;
        }
        // While the daemon is stopped its children cannot be reaped, so their pids stay theirs.
        send(pid, Signal::SIGSTOP);
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children
            .split_whitespace()
            .filter_map(|child| child.parse().ok())
            .for_each(|child| send(child, Signal::SIGKILL));
        send(pid, Signal::SIGKILL);
        drop(self.daemon.wait());
    }
}

/// A new writable folder with a path short enough for a socket.
fn home() -> Result<TempDir, CliError> {
    let places = [
        Some(std::env::temp_dir()),
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        Some("/tmp".into()),
        Some("/dev/shm".into()),
    ];
    let mut why = Vec::new();
    for place in places
        .into_iter()
        .flatten()
        .filter(|place| place.is_absolute())
    {
        let made = tempfile::Builder::new()
            .prefix("rsup-demo-")
            .tempdir_in(&place)
            .map_err(|error| format!("{}: {error}", place.display()));
        match made.and_then(|home| Paths::in_home(home.path()).map(|_| home)) {
            Ok(home) => return Ok(home),
            Err(error) => why.extend(error.lines().next().map(str::to_owned)),
        }
    }
    why.dedup();
    Err(CliError::failed(
        "local",
        format!(
            "there is no place for a temporary folder\n{}",
            why.join("\n")
        ),
    )
    .hint("set TMPDIR to a folder that you can write to"))
}
