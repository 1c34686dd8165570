//! The load client: a number of concurrent clients that send requests one after the other and
//! record each outcome.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout_at};

use super::connect::{Connector, Stream, Target};
use super::http::{Answer, Buffers, Cause, Fault, exchange};
use super::recorder::{Outcome, Recorder};
use super::stats::{FailureKind, Phase, PhaseStats, Report, Series, Snapshot};

/// The load and its target. Requests are `GET`s.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The target.
    pub target: Target,
    /// The `Host` header.
    pub host: String,
    /// Path and query, with the leading slash.
    pub path: String,
    /// Concurrent clients, each with at most one connection; at least 1, at most 10,000.
    pub connections: usize,
    /// `false`: a new connection for every request, with `Connection: close`.
    pub keep_alive: bool,
    /// Requests per second over all clients; `None` (or a rate that is not positive): each client
    /// sends its next request when it has its answer.
    ///
    /// Paced requests have an intended start, and latency counts from it: a request that waits
    /// behind a slow answer is slow too, and is counted so.
    pub rate: Option<f64>,
    /// Stop after this many requests.
    pub max_requests: Option<u64>,
    /// Begin no request after this time. Requests under way are still waited for.
    pub max_time: Duration,
    /// The longest a request may take, connecting included.
    pub timeout: Duration,
    /// Any other status is a failure.
    pub expect_status: RangeInclusive<u16>,
}

impl Plan {
    /// 20 clients, a connection per request, as fast as answers come, for 60 s at most.
    pub fn new(target: Target, path: impl Into<String>) -> Plan {
        let host = match &target {
            Target::Tcp(addr) => addr.to_string(),
            Target::Unix(_) => "localhost".into(),
        };
        Plan {
            target,
            host,
            path: path.into(),
            connections: 20,
            keep_alive: false,
            rate: None,
            max_requests: None,
            max_time: Duration::from_secs(60),
            timeout: Duration::from_secs(30),
            expect_status: 200..=299,
        }
    }

    /// As [`Self::new`], for a URL: `http://127.0.0.1:3001/health`. The host is an address or
    /// `localhost`: names are not looked up.
    ///
    /// # Errors
    /// A message, where the URL is not of that form.
    pub fn for_url(url: &str) -> Result<Plan, String> {
        let uri: hyper::Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("{url}: only http:// URLs are supported"));
        }
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let ip = match bare {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => bare
                .parse()
                .map_err(|_| format!("{url}: {host} is neither an IP address nor localhost"))?,
        };
        let port = uri.port_u16().unwrap_or(80);
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut plan = Plan::new(Target::Tcp(SocketAddr::new(ip, port)), path);
        plan.host = uri.authority().map(|a| a.to_string()).unwrap_or_default();
        Ok(plan)
    }

    fn request(&self) -> Vec<u8> {
        let Plan { path, host, .. } = self;
        let connection = if self.keep_alive {
            "keep-alive"
        } else {
            "close"
        };
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: rsup\r\nAccept: */*\r\n\
             Connection: {connection}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// A timer fires up to a millisecond late, and later on a busy machine. A client that was free at
/// the intended start and woke within this time counts from its waking: the delay was its own.
const TIMER_SLACK: Duration = Duration::from_millis(2);
/// A client's pause after a failure: a port that refuses would otherwise be tried 50,000 times a
/// second.
const REST: Duration = Duration::from_millis(5);
/// How long the server has to close an answered connection.
const SERVER_CLOSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Shared {
    plan: Plan,
    rate: Option<f64>,
    request: Vec<u8>,
    connector: Connector,
    started: Instant,
    phase: AtomicU8,
    begun: AtomicU64,
    in_flight: AtomicU64,
    opened: AtomicU64,
    clients: AtomicUsize,
    recorder: Mutex<Recorder>,
}

impl Shared {
    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A load that is running. Dropping it stops the clients without waiting for them.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<()>>,
}

/// Starts the clients on the current tokio runtime, of either flavour.
///
/// # Panics
/// Outside a tokio runtime with IO and time enabled.
pub fn start(plan: Plan) -> Handle {
    let clients = plan.connections.clamp(1, 10_000);
    let started = Instant::now();
    let shared = Arc::new(Shared {
        rate: plan.rate.filter(|r| r.is_finite() && *r > 0.0),
        request: plan.request(),
        connector: Connector::new(plan.target.clone()),
        started,
        phase: AtomicU8::new(Phase::Before as u8),
        begun: AtomicU64::new(0),
        in_flight: AtomicU64::new(0),
        opened: AtomicU64::new(0),
        clients: AtomicUsize::new(clients),
        recorder: Mutex::new(Recorder::new(started)),
        plan,
    });
    let (stop, stopped) = watch::channel(false);
    let clients = (0..clients)
        .map(|_| {
            let client = Client {
                shared: shared.clone(),
                stopped: stopped.clone(),
                buffers: Buffers::new(),
                idle: None,
            };
            tokio::spawn(client.run())
        })
        .collect();
    Handle {
        shared,
        stop,
        clients,
    }
}

impl Handle {
    /// Starts a load; the same as [`start`].
    ///
    /// # Panics
    /// Outside a tokio runtime with IO and time enabled.
    pub fn start(plan: Plan) -> Handle {
        start(plan)
    }

    /// Requests that start from now on count for `phase`.
    pub fn mark(&self, phase: Phase) {
        self.shared.recorder().enter(phase, Instant::now());
        self.shared.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Marks this moment on the chart.
    pub fn marker(&self, label: impl Into<String>) {
        self.shared.recorder().marker(label.into(), Instant::now());
    }

    /// The totals so far.
    pub fn snapshot(&self) -> Snapshot {
        let recorder = self.shared.recorder();
        let (requests, failed, keep_alive_races) = recorder.totals();
        Snapshot {
            elapsed: self.shared.started.elapsed(),
            phase: Phase::from_index(self.shared.phase.load(Ordering::Relaxed)),
            requests,
            failed,
            keep_alive_races,
            in_flight: self.shared.in_flight.load(Ordering::Relaxed),
            connections_opened: self.shared.opened.load(Ordering::Relaxed),
        }
    }

    /// Whether the plan's limits were reached and the last answer has come.
    pub fn is_finished(&self) -> bool {
        self.shared.clients.load(Ordering::Acquire) == 0
    }

    /// Begins no more requests, waits for those under way (each within its timeout), and reports.
    pub async fn stop(self) -> Report {
        self.stop.send_replace(true);
        self.finish().await
    }

    /// Waits until the plan's limits are reached and the last answer has come, and reports.
    pub async fn finish(mut self) -> Report {
        for client in std::mem::take(&mut self.clients) {
            if let Err(error) = client.await
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic); // a report without its requests would be a lie
            }
        }
        let Shared {
            plan, rate, opened, ..
        } = &*self.shared;
        let mut recorder = self.shared.recorder();
        recorder.end(Instant::now());
        recorder.report(Report {
            target: format!("{}{}", plan.target, plan.path),
            connections: plan.connections.clamp(1, 10_000),
            keep_alive: plan.keep_alive,
            rate: *rate,
            connections_opened: opened.load(Ordering::Relaxed),
            duration_ms: 0,
            requests: 0,
            failed: 0,
            keep_alive_races: 0,
            before: PhaseStats::default(),
            during: PhaseStats::default(),
            after: PhaseStats::default(),
            failures: Vec::new(),
            failures_unlisted: 0,
            series: Series::default(),
            markers: Vec::new(),
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// One of the concurrent clients.
struct Client {
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
    buffers: Buffers,
    /// The connection of the last request, if it may carry another.
    idle: Option<Stream>,
}

/// What a request was doing when it timed out or failed.
#[derive(Clone, Copy)]
enum Stage {
    Connecting,
    Exchanging { reused: bool },
}

enum Error {
    Connect(io::Error),
    Exchange(Fault),
}

impl Client {
    async fn run(mut self) {
        while let Some(intended) = self.next().await {
            let began = Instant::now();
            let phase = Phase::from_index(self.shared.phase.load(Ordering::Relaxed));
            self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
            let mut stage = Stage::Connecting;
            let deadline = (began + self.shared.plan.timeout).into();
            let result = timeout_at(deadline, self.request(&mut stage)).await;
            let now = Instant::now();
            let reused = matches!(stage, Stage::Exchanging { reused: true });
            let outcome = match result {
                Ok(Ok(answer)) if self.shared.plan.expect_status.contains(&answer.status) => {
                    let since = intended.unwrap_or(began);
                    Outcome::Answered(now.saturating_duration_since(since), &self.buffers.sample)
                }
                Ok(Ok(answer)) => Outcome::Failed {
                    kind: FailureKind::Status(answer.status),
                    detail: format!("answered {}", answer.status),
                    reused,
                },
                Ok(Err(error)) => {
                    let (kind, detail) = describe(error, reused);
                    Outcome::Failed {
                        kind,
                        detail,
                        reused,
                    }
                }
                Err(_) => {
                    let what = match stage {
                        Stage::Connecting => "no connection",
                        Stage::Exchanging { .. } => "no complete answer",
                    };
                    let timeout = self.shared.plan.timeout;
                    let detail = format!("{what} within {timeout:?}");
                    Outcome::Failed {
                        kind: FailureKind::Timeout,
                        detail,
                        reused,
                    }
                }
            };
            let failed = matches!(outcome, Outcome::Failed { .. });
            self.shared.recorder().record(phase, now, outcome);
            self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
            if failed {
                sleep(REST).await;
            }
        }
        if self.shared.clients.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.recorder().end(Instant::now());
        }
    }

    /// Waits until the next request is due. With a rate, returns the time from which its latency
    /// counts. `None`: there is no next request.
    async fn next(&mut self) -> Option<Option<Instant>> {
        let Shared {
            plan,
            rate,
            started,
            begun,
            ..
        } = &*self.shared;
        let now = Instant::now();
        let last = *started + plan.max_time;
        if *self.stopped.borrow() || now >= last {
            return None;
        }
        let number = begun.fetch_add(1, Ordering::Relaxed);
        if plan.max_requests.is_some_and(|max| number >= max) {
            return None;
        }
        let Some(rate) = rate else { return Some(None) };
        let intended = Duration::try_from_secs_f64(number as f64 / rate)
            .ok()
            .and_then(|after| started.checked_add(after))
            .filter(|intended| *intended < last)?;
        if intended <= now {
            return Some(Some(intended));
        }
        tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => return None,
            () = sleep_until(intended.into()) => {}
        }
        let woke = Instant::now();
        let late = woke.saturating_duration_since(intended);
        Some(Some(if late <= TIMER_SLACK { woke } else { intended }))
    }

    /// Sends one request, over the idle connection where there is a live one.
    async fn request(&mut self, stage: &mut Stage) -> Result<Answer, Error> {
        // A connection that the server has closed already carries no request, so nothing is lost.
        let idle = self.idle.take().filter(Stream::is_idle);
        let reused = idle.is_some();
        let mut stream = match idle {
            Some(stream) => stream,
            None => {
                let stream = self
                    .shared
                    .connector
                    .connect()
                    .await
                    .map_err(Error::Connect)?;
                self.shared.opened.fetch_add(1, Ordering::Relaxed);
                stream
            }
        };
        *stage = Stage::Exchanging { reused };
        let answer = exchange(&mut stream, &self.shared.request, &mut self.buffers).await;
        let answer = answer.map_err(Error::Exchange)?;
        if self.shared.plan.keep_alive && answer.reusable {
            self.idle = Some(stream);
        } else if self.shared.connector.server_closes_first() && !answer.at_eof {
            tokio::spawn(async move {
                let _ = tokio::time::timeout(SERVER_CLOSE, stream.read(&mut [0])).await;
            });
        }
        Ok(answer)
    }
}

fn describe(error: Error, reused: bool) -> (FailureKind, String) {
    let fault = match error {
        Error::Connect(e) => return (FailureKind::Connect, e.to_string()),
        Error::Exchange(fault) => fault,
    };
    let (kind, detail) = match fault.cause {
        Cause::Write(e) => (FailureKind::Write, e.to_string()),
        Cause::Read(e) => (FailureKind::Read, e.to_string()),
        Cause::Closed(why) => (FailureKind::Closed, why),
        Cause::Bad(why) => (FailureKind::BadResponse, why),
    };
    match kind {
        FailureKind::Write | FailureKind::Read | FailureKind::Closed
            if reused && !fault.answered =>
        {
            (FailureKind::KeepAliveRace, detail)
        }
        kind => (kind, detail),
    }
}
