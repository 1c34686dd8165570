//! One readiness or liveness check, through the worker's own slot.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::fleet::command::{self, Command, Commands, c_environment, c_strings};
use super::fleet::isolation::Confinement;
use super::fleet::limit::{Overrun, within};
use super::fleet::{Fleet, environment};
use super::network::{Network, ProbeTarget};
use crate::config::{Check, Probe};
use crate::core::{Exit, Purpose, Revision, WorkerId};
use crate::sys::listen::{Backlog, backlog};
use crate::sys::steer;

/// Characters of a command's last line that go into a reason.
const EXCERPT: usize = 160;

/// Everything that a check needs, so that it can run beside the loop.
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
        commands: Commands,
        env: BTreeMap<String, String>,
        cwd: PathBuf,
        confinement: Confinement,
    },
    /// Nothing to check.
    Nothing,
}

impl Try {
    /// A check of the worker (with its purpose, instance and pid). `None`: there is no way to its slot.
    pub fn of(
        (id, purpose, instance, pid): (&WorkerId, Purpose, u16, Option<u32>),
        revision: &Revision,
        fleet: &Fleet,
        network: &Network,
    ) -> Option<Self> {
        let spec = &revision.spec;
        let probe = match purpose {
            Purpose::Readiness => spec.readiness.clone(),
            Purpose::Liveness => spec.liveness.clone()?,
        };
        let inherits = fleet.way_to_sockets(spec).inherits();
        let kind = match &probe.check {
            Check::Http { .. } => Kind::Http(network.probe_target(id, &spec.listen)?),
            Check::Tcp => Kind::Tcp {
                target: network.probe_target(id, &spec.listen)?,
                queue: network.probe_queue(id, &spec.listen)?,
            },
            Check::Exec { .. } => {
                let mut env = environment(id, instance, revision, inherits);
                env.insert("RSUP_PID".into(), pid.unwrap_or(0).to_string());
                let confinement = fleet.confinement_of(id)?.clone();
                Kind::Exec {
                    commands: fleet.commands.clone(),
                    env,
                    cwd: spec.cwd_resolved.clone(),
                    confinement,
                }
            }
            Check::Notify | Check::Alive => Kind::Nothing,
        };
        Some(Self { probe, kind })
    }
}

/// Why a check failed.
#[derive(Debug)]
pub enum Failed {
    /// The worker's answer, or its silence: what was expected and what came.
    Worker(String),
    /// rsup could not make the check.
    Rsup(String),
}

impl Failed {
    /// A failed call that the worker has no part in.
    fn own(what: &str, why: &io::Error) -> Self {
        Self::Rsup(format!("{what}: {why}"))
    }

    /// A failed call that is due to the worker, unless it means that rsup ran out of something.
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

/// The result of a conversation with the worker within the limit.
async fn answered(
    limit: Duration,
    what: impl Future<Output = Result<(), Failed>>,
) -> Result<(), Failed> {
    within(limit, what).await.unwrap_or_else(|overrun| {
        Err(match overrun {
            Overrun::Late => Failed::Worker(format!(
                "no answer within {}",
                crate::core::format_duration(limit)
            )),
            Overrun::Unknown => Failed::Rsup("it is too busy itself".into()),
        })
    })
}

/// Makes the check; ends within the probe's timeout.
pub async fn run(attempt: Try) -> Result<(), Failed> {
    let Try { probe, kind } = attempt;
    let limit = probe.timeout;
    match (kind, &probe.check) {
        (Kind::Http(target), Check::Http { .. }) => {
            answered(limit, http(target, &probe.check)).await
        }
        (Kind::Tcp { target, queue }, _) => tcp(target, &queue, limit).await,
        (
            Kind::Exec {
                commands,
                env,
                cwd,
                confinement,
            },
            Check::Exec { command },
        ) => exec(&commands, command, &env, cwd, confinement, limit).await,
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

/// The kernel completes connections of a listening socket by itself; only a worker that takes them
/// off the queue is alive.
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
    within(limit, accepted).await.unwrap_or_else(|overrun| {
        Err(match overrun {
            Overrun::Late => Failed::Worker("it does not accept connections yet".into()),
            Overrun::Unknown => Failed::Rsup("it is too busy itself".into()),
        })
    })
}

/// Runs the command as the worker's user, with its limits, in its cgroup. The last line of its
/// output is part of the reason.
async fn exec(
    commands: &Commands,
    command: &[String],
    env: &BTreeMap<String, String>,
    cwd: PathBuf,
    confinement: Confinement,
    limit: Duration,
) -> Result<(), Failed> {
    let argv = c_strings(command.iter().map(String::as_str)).map_err(Failed::Worker)?;
    let env = c_environment(env).map_err(Failed::Worker)?;
    let name = command.first().map_or("", String::as_str);
    let command = Command {
        argv,
        env,
        cwd,
        confinement,
        extra: Vec::new(),
        limit,
    };
    let mut last = String::new();
    let end = commands.run(command, |line| {
        if !line.trim().is_empty() {
            last = excerpt(line);
        }
    });
    let end = end.await;
    let failed = |how: String| match last.as_str() {
        "" => Failed::Worker(format!("`{name}` {how}")),
        last => Failed::Worker(format!("`{name}` {how}: {last}")),
    };
    match end {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(exit) => Err(failed(exit.to_string())),
        Err(command::Failed::TookTooLong) => Err(failed(format!(
            "took longer than {}",
            crate::core::format_duration(limit)
        ))),
        Err(command::Failed::NotRun(why)) => Err(Failed::Worker(why)),
        Err(command::Failed::Own(why)) => Err(Failed::Rsup(why)),
    }
}

/// A line as a part of a sentence: printable, and not too long.
fn excerpt(line: &str) -> String {
    let printable: String = line
        .trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(EXCERPT + 1)
        .collect();
    match printable.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &printable[..end]),
        None => printable,
    }
}
