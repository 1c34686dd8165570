//! Counts what becomes of the requests while the load runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::stats::{Bucket, Failure, FailureKind, Marker, Phase, PhaseStats, Report, Series};

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
#[expect(
    clippy::expect_used,
    reason = "both numbers are among those that are allowed"
)]
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
}
