//! What the load client counts, by phase and over time.
//!
//! [`Report`] serializes to JSON. Its field names are stable: fields may be added, none changes its
//! meaning or its unit. Times end in `_ms` or `_us`; a percentile is null where nothing succeeded.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

/// The part of a run a request belongs to: the one it *started* in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// Before the reload: what is normal.
    Before,
    /// While the reload runs.
    During,
    /// After it.
    After,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Phase; 3] = [Phase::Before, Phase::During, Phase::After];

    pub(super) fn from_index(index: u8) -> Phase {
        match index {
            0 => Phase::Before,
            1 => Phase::During,
            _ => Phase::After,
        }
    }
}

/// What went wrong with a request. In JSON: its [`fmt::Display`] name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// No connection: refused, reset, unreachable. `connect`
    Connect,
    /// The request could not be written. `write`
    Write,
    /// Reading the answer failed: reset, most of the time. `read`
    Read,
    /// The connection ended before the answer did. `closed`
    Closed,
    /// A complete answer with an unexpected status. `status_503`
    Status(u16),
    /// No complete answer in time. `timeout`
    Timeout,
    /// What came is not HTTP/1. `bad_response`
    BadResponse,
    /// A *reused* connection was closed before any byte of the answer: the server was closing an
    /// idle connection while the request was on its way. Every client of every keep-alive server
    /// has this race; counted apart from the other kinds, never left out. `keep_alive_race`
    KeepAliveRace,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureKind::Connect => f.write_str("connect"),
            FailureKind::Write => f.write_str("write"),
            FailureKind::Read => f.write_str("read"),
            FailureKind::Closed => f.write_str("closed"),
            FailureKind::Status(code) => write!(f, "status_{code}"),
            FailureKind::Timeout => f.write_str("timeout"),
            FailureKind::BadResponse => f.write_str("bad_response"),
            FailureKind::KeepAliveRace => f.write_str("keep_alive_race"),
        }
    }
}

impl Serialize for FailureKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One failed request.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// When the failure was seen, in milliseconds since the load began.
    pub at_ms: u64,
    /// The phase the request started in.
    pub phase: Phase,
    /// What went wrong.
    pub kind: FailureKind,
    /// The same in words, with the system's error.
    pub detail: String,
    /// The request was not the first one on its connection.
    pub reused: bool,
}

/// Makes the label of a beginning that of its end.
pub const MARKER_END: &str = " end";

/// A moment to show on the chart: a reload's start or end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Marker {
    /// Since the load began; in JSON `at_ms`, milliseconds.
    #[serde(rename = "at_ms", serialize_with = "as_millis")]
    pub at: Duration,
    /// A word or two: `v2`; and `v2 end` ([`MARKER_END`]) for the end of what began at `v2`.
    pub label: String,
}

fn as_millis<S: Serializer>(at: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(at.as_millis() as u64)
}

/// The figures of one phase.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PhaseStats {
    /// How long the phase lasted, in milliseconds; 0: it never was.
    pub duration_ms: u64,
    /// Requests that started in this phase, failed ones and lost races among them.
    pub requests: u64,
    /// Failed requests, keep-alive races apart.
    pub failed: u64,
    /// Requests lost to [`FailureKind::KeepAliveRace`].
    pub keep_alive_races: u64,
    /// Failures and races by [`FailureKind`].
    pub failures: BTreeMap<FailureKind, u64>,
    /// Requests answered as expected, per second of the phase.
    pub requests_per_s: f64,
    /// Latency of the requests answered as expected, in microseconds: the mean.
    pub mean_us: Option<u64>,
    /// The median.
    pub p50_us: Option<u64>,
    /// The 95th percentile.
    pub p95_us: Option<u64>,
    /// The 99th percentile.
    pub p99_us: Option<u64>,
    /// The largest.
    pub max_us: Option<u64>,
    /// Answers by the `"pid"` in their JSON body, where they have one.
    pub pids: BTreeMap<u32, u64>,
    /// Answers by the `"version"` in their JSON body, where they have one.
    pub versions: BTreeMap<String, u64>,
}

/// The run over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Series {
    /// The width of a bucket, in milliseconds: 100, doubled as often as a long run needs.
    pub bucket_ms: u64,
    /// One after the other from the start. A request is in the bucket in which it *ended*.
    pub buckets: Vec<Bucket>,
}

/// One step of [`Series`].
#[derive(Debug, Clone, Default, Serialize)]
pub struct Bucket {
    /// Requests that ended here, failed ones among them.
    pub requests: u64,
    /// Failures and keep-alive races.
    pub failed: u64,
    /// Median latency of the answered, in microseconds.
    pub p50_us: Option<u64>,
    /// Their 99th percentile.
    pub p99_us: Option<u64>,
}

/// The result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The address and path the load went to.
    pub target: String,
    /// Concurrent clients.
    pub connections: usize,
    /// Whether connections were used again.
    pub keep_alive: bool,
    /// The pace that was asked for, in requests per second; null: as fast as answers came.
    pub rate: Option<f64>,
    /// From the first request to the end of the last, in milliseconds.
    pub duration_ms: u64,
    /// All requests that were begun.
    pub requests: u64,
    /// Failed requests, keep-alive races apart.
    pub failed: u64,
    /// Requests lost to [`FailureKind::KeepAliveRace`].
    pub keep_alive_races: u64,
    /// Connections that were opened.
    pub connections_opened: u64,
    /// Before the reload.
    pub before: PhaseStats,
    /// While it ran.
    pub during: PhaseStats,
    /// After it.
    pub after: PhaseStats,
    /// The first 1,000 failures, races among them.
    pub failures: Vec<Failure>,
    /// Failures beyond those.
    pub failures_unlisted: u64,
    /// The run over time.
    pub series: Series,
    /// What to mark on the chart.
    pub markers: Vec<Marker>,
}

impl Report {
    /// The figures of one phase.
    pub fn phase(&self, phase: Phase) -> &PhaseStats {
        match phase {
            Phase::Before => &self.before,
            Phase::During => &self.during,
            Phase::After => &self.after,
        }
    }

    /// No request failed, lost races among them.
    pub fn is_lossless(&self) -> bool {
        self.failed == 0 && self.keep_alive_races == 0
    }
}

/// Totals of a run that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Since the load began.
    pub elapsed: Duration,
    /// The phase that new requests are booked to.
    pub phase: Phase,
    /// Requests that have ended.
    pub requests: u64,
    /// Failed ones, keep-alive races apart.
    pub failed: u64,
    /// Requests lost to [`FailureKind::KeepAliveRace`].
    pub keep_alive_races: u64,
    /// Requests that are under way.
    pub in_flight: u64,
    /// Connections that were opened.
    pub connections_opened: u64,
}

const BUCKET_MS: u64 = 100;
const MAX_BUCKETS: usize = 1200;
const MAX_FAILURES: usize = 1000;
/// Distinct versions (and pids) that are told apart; a server that makes up a new one for every
/// answer must not fill the memory.
const MAX_SERVERS: usize = 4096;

/// How a request ended.
pub(super) enum Outcome<'a> {
    /// As expected, after this long; with the beginning of the body.
    Answered(Duration, &'a [u8]),
    Failed {
        kind: FailureKind,
        detail: String,
        reused: bool,
    },
}

/// Counts while the load runs.
#[derive(Debug)]
pub(super) struct Recorder {
    started: Instant,
    phase: Phase,
    phase_since: Instant,
    phases: [PhaseRecord; 3],
    totals: (u64, u64, u64),
    failures: Vec<Failure>,
    failures_unlisted: u64,
    bucket_ms: u64,
    buckets: Vec<BucketRecord>,
    markers: Vec<Marker>,
    ended: Option<Instant>,
}

#[derive(Debug)]
struct PhaseRecord {
    time: Duration,
    requests: u64,
    failures: BTreeMap<FailureKind, u64>,
    latency: Histogram<u64>,
    pids: BTreeMap<u32, u64>,
    versions: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct BucketRecord {
    requests: u64,
    failed: u64,
    latency: Histogram<u32>,
}

/// A histogram of microseconds that grows as needed. Two significant figures in the many buckets,
/// three in the phases.
fn histogram<C: hdrhistogram::Counter>(figures: u8) -> Histogram<C> {
    Histogram::new(figures).expect("2 and 3 are valid numbers of significant figures")
}

fn add<C: hdrhistogram::Counter>(histogram: &mut Histogram<C>, latency: Duration) {
    // Not `saturating_record`: that one does not grow the histogram. Growing cannot fail below the
    // hour, which no request outlives.
    let _ = histogram.record((latency.as_micros() as u64).min(3_600_000_000));
}

impl Recorder {
    pub(super) fn new(started: Instant) -> Self {
        let phase = || PhaseRecord {
            time: Duration::ZERO,
            requests: 0,
            failures: BTreeMap::new(),
            latency: histogram(3),
            pids: BTreeMap::new(),
            versions: BTreeMap::new(),
        };
        Recorder {
            started,
            phase: Phase::Before,
            phase_since: started,
            phases: [phase(), phase(), phase()],
            totals: (0, 0, 0),
            failures: Vec::new(),
            failures_unlisted: 0,
            bucket_ms: BUCKET_MS,
            buckets: Vec::new(),
            markers: Vec::new(),
            ended: None,
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, now: Instant) {
        if self.ended.is_none() {
            self.phases[self.phase as usize].time +=
                now.saturating_duration_since(self.phase_since);
        }
        self.phase = phase;
        self.phase_since = now;
    }

    pub(super) fn marker(&mut self, label: String, now: Instant) {
        self.markers.push(Marker {
            at: now.saturating_duration_since(self.started),
            label,
        });
    }

    /// The last client has ended: the clock stops.
    pub(super) fn end(&mut self, now: Instant) {
        if self.ended.is_none() {
            self.enter(self.phase, now);
            self.ended = Some(now);
        }
    }

    /// Requests, failures, races.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        self.totals
    }

    /// Books a request that started in `phase` and ended `now`.
    pub(super) fn record(&mut self, phase: Phase, now: Instant, outcome: Outcome<'_>) {
        let at_ms = now.saturating_duration_since(self.started).as_millis() as u64;
        let bucket = self.bucket(at_ms);
        bucket.requests += 1;
        let record = match &outcome {
            Outcome::Answered(latency, _) => {
                add(&mut bucket.latency, *latency);
                &mut self.phases[phase as usize]
            }
            Outcome::Failed { .. } => {
                bucket.failed += 1;
                &mut self.phases[phase as usize]
            }
        };
        record.requests += 1;
        self.totals.0 += 1;
        match outcome {
            Outcome::Answered(latency, body) => {
                add(&mut record.latency, latency);
                record.served_by(body);
            }
            Outcome::Failed {
                kind,
                detail,
                reused,
            } => {
                *record.failures.entry(kind).or_default() += 1;
                match kind {
                    FailureKind::KeepAliveRace => self.totals.2 += 1,
                    _ => self.totals.1 += 1,
                }
                if self.failures.len() < MAX_FAILURES {
                    self.failures.push(Failure {
                        at_ms,
                        phase,
                        kind,
                        detail,
                        reused,
                    });
                } else {
                    self.failures_unlisted += 1;
                }
            }
        }
    }

    fn bucket(&mut self, at_ms: u64) -> &mut BucketRecord {
        while at_ms / self.bucket_ms >= MAX_BUCKETS as u64 {
            self.bucket_ms *= 2;
            let mut wide = Vec::with_capacity(MAX_BUCKETS);
            let mut old = std::mem::take(&mut self.buckets).into_iter();
            while let Some(mut bucket) = old.next() {
                if let Some(next) = old.next() {
                    bucket.merge(&next);
                }
                wide.push(bucket);
            }
            self.buckets = wide;
        }
        let index = (at_ms / self.bucket_ms) as usize;
        while self.buckets.len() <= index {
            self.buckets.push(BucketRecord {
                requests: 0,
                failed: 0,
                latency: histogram(2),
            });
        }
        &mut self.buckets[index]
    }

    /// The result. `head` carries what is known from the plan.
    pub(super) fn report(&self, head: Report) -> Report {
        let end = self.ended.unwrap_or_else(Instant::now);
        let [before, during, after] = &self.phases;
        let buckets = self.buckets.iter().map(|b| Bucket {
            requests: b.requests,
            failed: b.failed,
            p50_us: percentile(&b.latency, 50.0),
            p99_us: percentile(&b.latency, 99.0),
        });
        Report {
            duration_ms: end.saturating_duration_since(self.started).as_millis() as u64,
            requests: self.totals.0,
            failed: self.totals.1,
            keep_alive_races: self.totals.2,
            before: before.stats(),
            during: during.stats(),
            after: after.stats(),
            failures: self.failures.clone(),
            failures_unlisted: self.failures_unlisted,
            series: Series {
                bucket_ms: self.bucket_ms,
                buckets: buckets.collect(),
            },
            markers: self.markers.clone(),
            ..head
        }
    }
}

impl BucketRecord {
    fn merge(&mut self, other: &BucketRecord) {
        self.requests += other.requests;
        self.failed += other.failed;
        // Cannot fail: both grow as needed.
        let _ = self.latency.add(&other.latency);
    }
}

impl PhaseRecord {
    fn served_by(&mut self, body: &[u8]) {
        if let Some(pid) = field(body, b"\"pid\"").and_then(number)
            && (self.pids.len() < MAX_SERVERS || self.pids.contains_key(&pid))
        {
            *self.pids.entry(pid).or_default() += 1;
        }
        if let Some(version) = field(body, b"\"version\"").and_then(string) {
            if let Some(count) = self.versions.get_mut(version) {
                *count += 1;
            } else if self.versions.len() < MAX_SERVERS {
                self.versions.insert(version.to_owned(), 1);
            }
        }
    }

    fn stats(&self) -> PhaseStats {
        let races = self
            .failures
            .get(&FailureKind::KeepAliveRace)
            .copied()
            .unwrap_or(0);
        let seconds = self.time.as_secs_f64();
        let answered = self.latency.len();
        PhaseStats {
            duration_ms: self.time.as_millis() as u64,
            requests: self.requests,
            failed: self.failures.values().sum::<u64>() - races,
            keep_alive_races: races,
            failures: self.failures.clone(),
            requests_per_s: if seconds > 0.0 {
                answered as f64 / seconds
            } else {
                0.0
            },
            mean_us: (answered > 0).then(|| self.latency.mean() as u64),
            p50_us: percentile(&self.latency, 50.0),
            p95_us: percentile(&self.latency, 95.0),
            p99_us: percentile(&self.latency, 99.0),
            max_us: percentile(&self.latency, 100.0),
            pids: self.pids.clone(),
            versions: self.versions.clone(),
        }
    }
}

fn percentile<C: hdrhistogram::Counter>(latency: &Histogram<C>, p: f64) -> Option<u64> {
    // A histogram gives the upper end of its bin, which can lie above the largest value.
    (!latency.is_empty()).then(|| latency.value_at_percentile(p).min(latency.max()))
}

/// The bytes after `name:` in a JSON object. No parser: one search over a short body.
fn field<'a>(body: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if body.first() != Some(&b'{') {
        return None;
    }
    let at = memchr::memmem::find(body, name)? + name.len();
    body[at..]
        .trim_ascii_start()
        .strip_prefix(b":")
        .map(<[u8]>::trim_ascii_start)
}

fn number(bytes: &[u8]) -> Option<u32> {
    let end = bytes
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()
}

fn string(bytes: &[u8]) -> Option<&str> {
    let rest = bytes.strip_prefix(b"\"")?;
    std::str::from_utf8(&rest[..memchr::memchr(b'"', rest)?]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_tells_who_answered() {
        let body = br#"{"status":"healthy","pid" : 4711,"version":"v2"}"#;
        assert_eq!(field(body, b"\"pid\"").and_then(number), Some(4711));
        assert_eq!(field(body, b"\"version\"").and_then(string), Some("v2"));
        assert_eq!(field(b"<p>\"pid\":1", b"\"pid\""), None);
        assert_eq!(field(br#"{"pid":null}"#, b"\"pid\"").and_then(number), None);
        assert_eq!(
            field(br#"{"version":"cut"#, b"\"version\"").and_then(string),
            None
        );
    }

    #[test]
    fn long_runs_widen_their_buckets_and_lose_nothing() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start);
        for second in 0..1000 {
            let latency = Duration::from_micros(100 + second);
            let now = start + Duration::from_secs(second);
            recorder.record(Phase::Before, now, Outcome::Answered(latency, b""));
        }
        assert!(recorder.buckets.len() <= MAX_BUCKETS);
        assert_eq!(recorder.bucket_ms, 1600);
        assert_eq!(
            recorder.buckets.iter().map(|b| b.requests).sum::<u64>(),
            1000
        );
        assert_eq!(
            recorder
                .buckets
                .iter()
                .map(|b| b.latency.len())
                .sum::<u64>(),
            1000
        );
    }

    #[test]
    fn json_names_are_stable() {
        let failure = Failure {
            at_ms: 5,
            phase: Phase::During,
            kind: FailureKind::Status(503),
            detail: "x".into(),
            reused: false,
        };
        let json = serde_json::to_string(&failure).unwrap_or_default();
        assert_eq!(
            json,
            r#"{"at_ms":5,"phase":"during","kind":"status_503","detail":"x","reused":false}"#
        );
        let stats = PhaseStats {
            failures: [(FailureKind::KeepAliveRace, 2)].into(),
            ..Default::default()
        };
        let json = serde_json::to_value(&stats).unwrap_or_default();
        assert_eq!(json["failures"]["keep_alive_race"], 2);
        assert!(json["p99_us"].is_null());
    }
}
