//! Web apps and load on them, loopback only.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rsup::load::{self, Plan, Report, Target};

use super::{Result, process, until};

/// Clients at the same time.
pub const CLIENTS: usize = 20;

pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A port that nobody has at this moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(local(0))?.local_addr()?.port())
}

/// Status and body of a GET.
pub fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&local(port), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok((
        head.split(' ').nth(1).ok_or("no status")?.parse()?,
        body.to_owned(),
    ))
}

/// Whether the app says of itself that it is ready.
pub fn ready(port: u16) -> bool {
    get(port, "/readiness").is_ok_and(|(status, _)| status == 200)
}

pub fn plan(port: u16, keep_alive: bool, time: Duration) -> Plan {
    let mut plan = Plan::new(Target::Tcp(local(port)), "/health");
    plan.connections = CLIENTS;
    plan.keep_alive = keep_alive;
    plan.max_time = time;
    plan
}

pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Puts the built-in load on a port.
pub fn load(port: u16, keep_alive: bool, time: Duration) -> Result<Report> {
    let plan = plan(port, keep_alive, time);
    Ok(runtime()?.block_on(async { load::start(plan).finish().await }))
}

/// Requests per second by `wrk`, or `ab` for a connection per request; `None` without them.
pub fn second_opinion(port: u16, keep_alive: bool, time: Duration) -> Option<f64> {
    let seconds = time.as_secs().max(1).to_string();
    let url = format!("http://127.0.0.1:{port}/health");
    let clients = CLIENTS.to_string();
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "-c", &clients, "-d", &seconds]);
    if !keep_alive {
        wrk.args(["-H", "Connection: close"]);
    }
    let mut ab = Command::new("ab");
    ab.args(["-q", "-c", &clients, "-t", &seconds, "-n", "10000000"]);
    if keep_alive {
        ab.arg("-k");
    }
    let said = |command: &mut Command, label: &str| {
        let output = command
            .arg(&url)
            .stdin(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(label))?;
        value.split_ascii_whitespace().next()?.parse().ok()
    };
    said(&mut wrk, "Requests/sec:").or_else(|| said(&mut ab, "Requests per second:"))
}

/// A process without any supervisor; dropping it kills it.
pub struct Bare(pub Child);

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bare {
    /// SIGTERM, and how long it took to end.
    pub fn stop(mut self) -> Result<Duration> {
        let begin = Instant::now();
        process::terminate(self.0.id());
        self.0.wait()?;
        Ok(begin.elapsed())
    }
}

/// Two Express processes that share a port by SO_REUSEPORT. Node gets its socket as descriptor 0:
/// its own option for that came with version 23. Each is a session of its own, as under any
/// supervisor: Linux shares a busy processor between sessions (autogroups, sched(7)), and the load
/// client's session is no place to compare from.
pub fn bare_pair(app: &Path, port: u16) -> Result<[Bare; 2]> {
    use socket2::{Domain, Protocol, Socket, Type};
    let start = || -> Result<Bare> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&local(port).into())?;
        let mut node = Command::new("setsid");
        node.args(["node", "server.js"])
            .current_dir(app)
            .env("LISTEN_FD", "0")
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null());
        Ok(Bare(node.spawn()?))
    };
    let pair = [start()?, start()?];
    let mut answered = HashSet::new();
    until("two bare processes", Duration::from_secs(20), || {
        answered.extend(get(port, "/health").ok().map(|(_, body)| body));
        answered.len() == pair.len() && ready(port)
    })?;
    Ok(pair)
}
