//! The figures of the load client, by phase and over time.
//!
//! [`Report`] serializes to JSON. Its field names are stable: fields may be added, none changes its
//! meaning or its unit. Times end in `_ms` or `_us`; a percentile is null where nothing succeeded.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// The part of a run that a request belongs to: the one it *started* in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// Before the reload: the baseline.
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
    /// The answer is not HTTP/1.
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
    /// The same as a sentence, with the system's error.
    pub detail: String,
    /// The request was not the first one on its connection.
    pub reused: bool,
}

/// Appended to the label of a beginning, makes the label of its end.
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
    /// How long the phase lasted, in milliseconds; 0: it did not occur.
    pub duration_ms: u64,
    /// Requests that started in this phase, including failed ones and lost races.
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
    /// The buckets from the start on. A request is in the bucket in which it *ended*.
    pub buckets: Vec<Bucket>,
}

/// One step of [`Series`].
#[derive(Debug, Clone, Default, Serialize)]
pub struct Bucket {
    /// Requests that ended here, including failed ones.
    pub requests: u64,
    /// Failures and keep-alive races.
    pub failed: u64,
    /// Median latency of the answered requests, in microseconds.
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
    /// The requested rate, in requests per second; null: as fast as answers came.
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
    /// The marks for the chart.
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

    /// Whether no request failed; lost races count as failures.
    pub fn is_lossless(&self) -> bool {
        self.failed == 0 && self.keep_alive_races == 0
    }
}

/// Totals of a running load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Since the load began.
    pub elapsed: Duration,
    /// The phase that new requests count for.
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

#[cfg(test)]
mod tests {
    use super::*;

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
