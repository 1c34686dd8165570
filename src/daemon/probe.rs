//! One try of a readiness or liveness check, through the worker's own slot.

use std::collections::{BTreeMap, HashSet};
use std::io;
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
use crate::core::{Exit, Purpose, Revision, WorkerId};
use crate::sys::listen::{Backlog, backlog};
use crate::sys::spawn::SpawnError;
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
    let mut guard = COMMANDS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    act(guard.get_or_insert_default())
}

/// Whether the process is such a command, whose end somebody waits for.
pub fn is_ours(pid: u32) -> bool {
    commands(|all| all.contains(&pid))
}

impl Daemon {
    pub(super) fn probe_target(
        &mut self,
        id: &WorkerId,
        purpose: Purpose,
        (instance, pid): (u16, Option<u32>),
        revision: &Revision,
    ) -> Option<Try> {
        let spec = &revision.spec;
        let probe = match purpose {
            Purpose::Readiness => spec.readiness.clone(),
            Purpose::Liveness => spec.liveness.clone()?,
        };
        let inherits = self.way_to_sockets(spec).inherits();
        let sockets = &self.app(&id.app).sockets;
        let kind = match &probe.check {
            Check::Http { .. } => Kind::Http(sockets.probe_target(id.slot, &spec.listen)?),
            Check::Tcp => Kind::Tcp {
                target: sockets.probe_target(id.slot, &spec.listen)?,
                queue: sockets.probe_queue(id.slot, &spec.listen)?,
            },
            Check::Exec { .. } => {
                let mut env = environment(id, instance, revision, inherits);
                env.insert("RSUP_PID".into(), pid.unwrap_or(0).to_string());
                let confinement = self.running.get(&id.generation)?.confinement.clone();
                Kind::Exec {
                    env,
                    cwd: spec.cwd_resolved.clone(),
                    confinement,
                }
            }
            Check::Notify | Check::Alive => Kind::Nothing,
        };
        Some(Try { probe, kind })
    }
}

/// Why a try brought no success.
#[derive(Debug)]
pub enum Failed {
    /// The worker's answer, or its silence: what was expected and what came.
    Worker(String),
    /// rsup could not even try.
    Rsup(String),
}

impl Failed {
    /// A call that the worker has no part in.
    fn own(what: &str, why: &io::Error) -> Self {
        Self::Rsup(format!("{what}: {why}"))
    }

    /// A call that tells of the worker, unless it tells that something has run out here.
    fn of(what: &str, why: &io::Error) -> Self {
        use nix::libc::{EADDRNOTAVAIL, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM};
        match why.raw_os_error() {
            Some(EADDRNOTAVAIL | EAGAIN | EMFILE | ENFILE | ENOBUFS | ENOMEM) => {
                Self::own(what, why)
            }
            Some(_) | None => Self::Worker(format!("{what}: {why}")),
        }
    }
}

/// Gives the worker `limit` for something. Time in which rsup itself came late does not count: it was
/// stopped, or had its hands full, and an answer may have been there all along.
async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Result<T, Failed> {
    let slice = limit / 8;
    let begin = tokio::time::Instant::now();
    let mut what = std::pin::pin!(what);
    let mut counted = 0;
    while counted < 8 {
        let now = tokio::time::Instant::now();
        if now - begin > 4 * limit {
            return Err(Failed::Rsup("it is too busy itself".into()));
        }
        match tokio::time::timeout(slice, &mut what).await {
            Ok(result) => return Ok(result),
            Err(_) if now.elapsed() > 2 * slice => {}
            Err(_) => counted += 1,
        }
    }
    Err(Failed::Worker(format!(
        "no answer within {}",
        crate::core::format_duration(limit)
    )))
}

/// Ends within the probe's timeout.
pub async fn run(attempt: Try) -> Result<(), Failed> {
    let Try { probe, kind } = attempt;
    let limit = probe.timeout;
    match (kind, &probe.check) {
        (Kind::Http(target), Check::Http { .. }) => {
            within(limit, http(target, &probe.check)).await?
        }
        (Kind::Tcp { target, queue }, _) => tcp(target, &queue, limit).await,
        (
            Kind::Exec {
                env,
                cwd,
                confinement,
            },
            Check::Exec { command },
        ) => exec(command, &env, cwd, &confinement, limit).await,
        (Kind::Http(_) | Kind::Exec { .. } | Kind::Nothing, _) => Ok(()),
    }
}

async fn connect(target: ProbeTarget) -> Result<TcpStream, Failed> {
    let socket = steer::probe_socket(target.address, target.index)
        .map_err(|why| Failed::own("no socket for the probe", &why))?;
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    socket
        .connect(target.address)
        .await
        .map_err(|why| Failed::of("cannot connect", &why))
}

async fn http(target: ProbeTarget, check: &Check) -> Result<(), Failed> {
    let Check::Http {
        path,
        host,
        headers,
        expect_status,
    } = check
    else {
        return Ok(());
    };
    let stream = connect(target).await?;
    let failed = |why: hyper::Error| Failed::Worker(format!("GET {path}: {why}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let connection = tokio::spawn(connection);
    let host = host.clone().unwrap_or_else(|| target.address.to_string());
    let mut request = Request::get(path)
        .header("Host", host)
        .header("User-Agent", concat!("rsup/", env!("CARGO_PKG_VERSION")))
        .header("Connection", "close");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|why| Failed::Worker(format!("GET {path}: {why}")))?;
    let answer = sender.send_request(request).await;
    connection.abort();
    let status = answer.map_err(failed)?.status().as_u16();
    if expect_status.iter().any(|range| range.contains(&status)) {
        Ok(())
    } else {
        Err(Failed::Worker(format!("GET {path} answered {status}")))
    }
}

/// The kernel completes connections for a listening socket by itself; what tells that the worker is
/// there is that it takes them off the queue.
async fn tcp(target: ProbeTarget, queue: &OwnedFd, limit: Duration) -> Result<(), Failed> {
    let accepted = async {
        let _stream = connect(target).await?;
        let mut pause = Duration::from_millis(1);
        loop {
            match backlog(queue) {
                Ok(Backlog::Listening { queued: 0, .. }) => return Ok(()),
                Ok(Backlog::NotListening) => {
                    return Err(Failed::Worker("its socket was shut down".into()));
                }
                Ok(Backlog::Listening { .. }) => {}
                Err(why) => return Err(Failed::own("its queue cannot be looked at", &why)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 17 / 16 + Duration::from_micros(100)).min(Duration::from_millis(25));
        }
    };
    match within(limit, accepted).await {
        Ok(result) => result,
        Err(Failed::Worker(_)) => Err(Failed::Worker("it does not accept connections yet".into())),
        Err(failed @ Failed::Rsup(_)) => Err(failed),
    }
}

/// As the worker's user, with its limits, in its cgroup.
async fn exec(
    command: &[String],
    env: &BTreeMap<String, String>,
    cwd: PathBuf,
    confinement: &Confinement,
    limit: Duration,
) -> Result<(), Failed> {
    let null = || {
        let file = std::fs::File::options().write(true).open("/dev/null");
        file.map(OwnedFd::from)
            .map_err(|why| Failed::own("/dev/null", &why))
    };
    let words = c_strings(command.iter().map(String::as_str)).map_err(Failed::Worker)?;
    let mut plan = spawn::Plan::new(words, cwd, null()?, null()?);
    plan.env = c_environment(env).map_err(Failed::Worker)?;
    confinement.apply(&mut plan).map_err(Failed::Worker)?;
    let child = spawn::spawn(plan).map_err(|why| match why {
        SpawnError::ProcessLimit { .. } | SpawnError::FileLimit => Failed::Rsup(why.to_string()),
        other => Failed::Worker(other.to_string()),
    })?;
    let name = command.first().map_or("", String::as_str);
    match end_of_command(child.pid, child.pidfd, limit).await {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(exit) => Err(Failed::Worker(format!("`{name}` {exit}"))),
        Err(Failed::Worker(_)) => Err(Failed::Worker(format!(
            "`{name}` took longer than {}",
            crate::core::format_duration(limit)
        ))),
        Err(failed @ Failed::Rsup(_)) => Err(failed),
    }
}

/// Waits for a child of ours that is no worker; one that takes too long is killed.
pub async fn end_of_command(pid: u32, pidfd: OwnedFd, limit: Duration) -> Result<Exit, Failed> {
    commands(|all| all.insert(pid));
    let pidfd = Arc::new(pidfd);
    let exit = within(limit, ended(&pidfd)).await;
    if exit.is_err() {
        let _ = process::signal_group(pid, nix::libc::SIGKILL);
        ended(&pidfd).await;
    }
    commands(|all| all.remove(&pid));
    exit
}
