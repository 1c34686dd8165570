//! One try of a readiness or liveness check, through the worker's own slot.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Daemon;
use super::isolation::Confinement;
use super::sockets::ProbeTarget;
use super::spawn::{c_environment, c_strings, ended, environment};
use crate::config::{Check, Probe};
use crate::supervisor::{Exit, Purpose, WorkerId};
use crate::sys::listen::{Backlog, backlog};
use crate::sys::{process, spawn, steer};

/// Everything that a try needs, so that it can run beside the loop.
pub struct Try {
    probe: Probe,
    kind: Kind,
}

enum Kind {
    Http(ProbeTarget),
    Tcp {
        target: ProbeTarget,
        queue: OwnedFd,
    },
    Exec {
        env: BTreeMap<String, String>,
        cwd: PathBuf,
        confinement: Confinement,
    },
    /// Not something to try.
    Nothing,
}

/// Commands of exec probes and the like: children of ours that are not workers.
static COMMANDS: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

fn commands<T>(act: impl FnOnce(&mut HashSet<u32>) -> T) -> T {
    let mut guard = COMMANDS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    act(guard.get_or_insert_default())
}

/// Whether the process is such a command, whose end somebody waits for.
pub fn is_ours(pid: u32) -> bool {
    commands(|all| all.contains(&pid))
}

impl Daemon {
    pub(super) fn probe_target(&mut self, id: &WorkerId, purpose: Purpose) -> Option<Try> {
        let worker = self.supervisor.worker(id)?;
        let (revision, instance, pid) = (worker.revision.clone(), worker.instance, worker.pid);
        let spec = &revision.spec;
        let probe = match purpose {
            Purpose::Readiness => spec.readiness.clone(),
            Purpose::Liveness => spec.liveness.clone()?,
        };
        let sockets = &self.app(&id.app).sockets;
        let kind = match &probe.check {
            Check::Http { .. } => Kind::Http(sockets.probe_target(id.slot, &spec.listen)?),
            Check::Tcp => Kind::Tcp {
                target: sockets.probe_target(id.slot, &spec.listen)?,
                queue: sockets.probe_queue(id.slot, &spec.listen)?,
            },
            Check::Exec { .. } => {
                let mut env = environment(id, instance, &revision);
                env.insert("RSUP_PID".into(), pid.unwrap_or(0).to_string());
                let confinement = self.running.get(&id.generation)?.confinement.clone();
                Kind::Exec { env, cwd: spec.cwd_resolved.clone(), confinement }
            }
            Check::Notify | Check::Alive => Kind::Nothing,
        };
        Some(Try { probe, kind })
    }
}

/// Ends within the probe's timeout. The error says what was expected and what came.
pub async fn run(attempt: Try) -> Result<(), String> {
    let Try { probe, kind } = attempt;
    let limit = probe.timeout;
    let result = match (kind, &probe.check) {
        (Kind::Http(target), Check::Http { .. }) => tokio::time::timeout(limit, http(target, &probe.check)).await,
        (Kind::Tcp { target, queue }, _) => return tcp(target, &queue, limit).await,
        (Kind::Exec { env, cwd, confinement }, Check::Exec { command }) => {
            return exec(command, &env, cwd, &confinement, limit).await;
        }
        (Kind::Http(_) | Kind::Exec { .. } | Kind::Nothing, _) => return Ok(()),
    };
    result.unwrap_or_else(|_| Err(format!("no answer within {}", crate::supervisor::humane(limit))))
}

async fn connect(target: ProbeTarget) -> Result<TcpStream, String> {
    let refused = |why: std::io::Error| format!("cannot connect: {why}");
    let socket = steer::probe_socket(target.address, target.index).map_err(refused)?;
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    socket.connect(target.address).await.map_err(refused)
}

async fn http(target: ProbeTarget, check: &Check) -> Result<(), String> {
    let Check::Http { path, host, headers, expect_status } = check else { return Ok(()) };
    let stream = connect(target).await?;
    let failed = |why: hyper::Error| format!("GET {path}: {why}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let host = host.clone().unwrap_or_else(|| target.address.to_string());
    let mut request = Request::get(path)
        .header("Host", host)
        .header("User-Agent", concat!("rsup/", env!("CARGO_PKG_VERSION")))
        .header("Connection", "close");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|why| format!("GET {path}: {why}"))?;
    let answer = sender.send_request(request).await;
    connection.abort();
    let status = answer.map_err(failed)?.status().as_u16();
    if expect_status.iter().any(|range| range.contains(&status)) { Ok(()) } else { Err(format!("GET {path} answered {status}")) }
}

/// The kernel completes connections for a listening socket by itself; what tells that the worker is
/// there is that it takes them off the queue.
async fn tcp(target: ProbeTarget, queue: &OwnedFd, limit: Duration) -> Result<(), String> {
    let _stream = tokio::time::timeout(limit, connect(target)).await.map_err(|_| "cannot connect in time".to_owned())??;
    let begin = tokio::time::Instant::now();
    loop {
        match backlog(queue) {
            Ok(Backlog::Listening { queued: 0, .. }) => return Ok(()),
            Ok(Backlog::NotListening) => return Err("its socket was shut down".into()),
            Ok(Backlog::Listening { .. }) => {}
            Err(why) => return Err(format!("its queue cannot be looked at: {why}")),
        }
        if begin.elapsed() >= limit {
            return Err("it does not accept connections yet".into());
        }
        tokio::time::sleep((begin.elapsed() / 16).clamp(Duration::from_millis(1), Duration::from_millis(25))).await;
    }
}

/// As the worker's user, with its limits, in its cgroup.
async fn exec(
    command: &[String],
    env: &BTreeMap<String, String>,
    cwd: PathBuf,
    confinement: &Confinement,
    limit: Duration,
) -> Result<(), String> {
    let null =
        || std::fs::File::options().write(true).open("/dev/null").map(OwnedFd::from).map_err(|why| format!("/dev/null: {why}"));
    let mut plan = spawn::Plan::new(c_strings(command.iter().map(String::as_str))?, cwd, null()?, null()?);
    plan.env = c_environment(env)?;
    confinement.apply(&mut plan)?;
    let child = spawn::spawn(plan).map_err(|why| why.to_string())?;
    let name = command.first().map_or("", String::as_str);
    match end_of_command(child.pid, child.pidfd, limit).await {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => Err(format!("`{name}` {exit}")),
        None => Err(format!("`{name}` took longer than {}", crate::supervisor::humane(limit))),
    }
}

/// Waits for a child of ours that is no worker; `None` for one that took too long and was killed.
pub async fn end_of_command(pid: u32, pidfd: OwnedFd, limit: Duration) -> Option<Exit> {
    commands(|all| all.insert(pid));
    let pidfd = Arc::new(pidfd);
    let exit = tokio::time::timeout(limit, ended(&pidfd)).await.ok();
    if exit.is_none() {
        let _ = process::signal_group(pid, nix::libc::SIGKILL);
        ended(&pidfd).await;
    }
    commands(|all| all.remove(&pid));
    exit
}
