//! The report of a load for a terminal: verdict, table, chart, failures.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::chart::{Chart, GUTTER, plot, round_up};
use super::stats::{Failure, FailureKind, Phase, PhaseStats, Report};

pub use super::stats::Marker;

/// Height of each of the two plots, in lines.
const RATE_HEIGHT: usize = 3;
const LATENCY_HEIGHT: usize = 5;
/// The most groups of failures that are listed.
const LISTED: usize = 10;

/// The report as text of at most `width` columns (at least 60), in ANSI colours if `color`. Colour
/// alone carries no information.
pub fn render(report: &Report, width: usize, color: bool) -> String {
    let mut out = table_and_chart(report, width, color);
    out.push('\n');
    out.push_str(&verdict(report, color));
    out.push('\n');
    out
}

/// The report without the verdict.
pub fn table_and_chart(report: &Report, width: usize, color: bool) -> String {
    let width = width.clamp(60, 160);
    let paint = Paint(color);
    let mut out = String::new();
    table(&mut out, report, width, paint);
    chart(&mut out, report, width, paint);
    failures(&mut out, report, width, paint);
    out
}

/// One or two sentences, without a newline at the end: `0 of 12,345 requests failed`.
pub fn verdict(report: &Report, color: bool) -> String {
    let paint = Paint(color);
    let total = thousands(report.requests);
    let requests = if report.requests == 1 {
        "request"
    } else {
        "requests"
    };
    let head = format!("{} of {total} {requests} failed", thousands(report.failed));
    let mut line = match (report.requests, report.failed) {
        (0, _) => paint.bad("✗ no request was sent"),
        (_, 0) if report.keep_alive_races == 0 => paint.good(&format!("✓ {head}")),
        (_, 0) => paint.warn(&format!("! {head}")),
        (_, failed) => {
            let share = failed as f64 / report.requests as f64 * 100.0;
            paint.bad(&format!("✗ {head} ({})", percent(share)))
        }
    };
    if report.keep_alive_races > 0 {
        let races = thousands(report.keep_alive_races);
        let _ = write!(
            line,
            "; {races} more met a keep-alive connection that was being closed"
        );
    }
    line
}

fn table(out: &mut String, report: &Report, width: usize, paint: Paint) {
    let races = report.keep_alive_races > 0;
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    // The table measures its cells itself, so it must paint them as well.
    if paint.0 {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let colored = |text: String, color| {
        if paint.0 {
            Cell::new(text).fg(color)
        } else {
            Cell::new(text)
        }
    };
    let mut header = vec!["", "requests", "failed"];
    if races {
        header.push("races");
    }
    header.extend(["req/s", "p50", "p95", "p99", "max"]);
    let told =
        |tell: fn(&PhaseStats) -> bool| Phase::ALL.iter().any(|phase| tell(report.phase(*phase)));
    let named = told(|stats| !stats.versions.is_empty());
    let pids = width >= 90 && told(|stats| !stats.pids.is_empty());
    if pids {
        header.push("pids");
    }
    if named {
        header.push("version");
    }
    let others = 68 + if races { 7 } else { 0 } + if pids { 6 } else { 0 };
    let room = width.saturating_sub(others).max(5);
    table.set_header(header.into_iter().map(|name| {
        let cell = Cell::new(name);
        if paint.0 {
            cell.add_attribute(Attribute::Dim)
        } else {
            cell
        }
    }));
    let phases = Phase::ALL.map(|phase| (phase, report.phase(phase)));
    for (phase, stats) in phases
        .into_iter()
        .filter(|(_, s)| s.requests > 0 || s.duration_ms > 0)
    {
        let name = match phase {
            Phase::Before => "before",
            Phase::During => "during",
            Phase::After => "after",
        };
        let mut row = vec![Cell::new(name), Cell::new(thousands(stats.requests))];
        row.push(match stats.failed {
            0 => colored("0".into(), Color::DarkGreen),
            n => colored(thousands(n), Color::DarkRed),
        });
        if races {
            row.push(match stats.keep_alive_races {
                0 => Cell::new("0"),
                n => colored(thousands(n), Color::DarkYellow),
            });
        }
        row.push(Cell::new(thousands(stats.requests_per_s.round() as u64)));
        row.extend(
            [stats.p50_us, stats.p95_us, stats.p99_us, stats.max_us]
                .map(|t| Cell::new(t.map_or("–".into(), time))),
        );
        if pids {
            row.push(Cell::new(stats.pids.len()));
        }
        if named {
            row.push(Cell::new(versions(stats, room)));
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if named && let Some(column) = table.column_iter_mut().last() {
        column.set_cell_alignment(CellAlignment::Left);
    }
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// `v1 v2 v3`, as many as fit.
fn versions(stats: &PhaseStats, room: usize) -> String {
    let all: Vec<&str> = stats.versions.keys().map(String::as_str).collect();
    let text: String = all.join(" ").chars().filter(|c| !c.is_control()).collect();
    cut(&text, room)
}

fn chart(out: &mut String, report: &Report, width: usize, paint: Paint) {
    let chart = Chart::new(report, width);
    if chart.is_empty() {
        return;
    }
    let rates = chart.rates(report.series.bucket_ms);
    let top = round_up(rates.iter().copied().fold(0.0, f64::max));
    out.push('\n');
    axis(
        out,
        "req/s",
        &plot(&rates, top, RATE_HEIGHT),
        &short(top),
        |s| paint.blue(s),
        paint,
    );
    let p99s = chart.p99s();
    let top = round_up(p99s.iter().copied().fold(0.0, f64::max));
    axis(
        out,
        "p99",
        &plot(&p99s, top, LATENCY_HEIGHT),
        &time(top as u64),
        |s| paint.magenta(s),
        paint,
    );

    let columns = chart.columns();
    let end = format!("{} s", trim_zeros(chart.span_ms() / 1e3));
    let line = format!("{:>GUTTER$}└{}", "", "─".repeat(columns));
    let _ = writeln!(out, "{}", paint.dim(&line));
    if let Some(failures) = chart.failures() {
        let _ = writeln!(
            out,
            "{:>w$}  {}",
            "failed",
            paint.bad(failures.trim_end()),
            w = GUTTER - 1
        );
    }
    if let Some((arrows, labels)) = chart.marks() {
        let _ = writeln!(out, "{:>GUTTER$} {}", "", paint.warn(arrows.trim_end()));
        let _ = writeln!(out, "{:>GUTTER$} {}", "", paint.warn(&labels));
    }
    let _ = writeln!(
        out,
        "{}",
        paint.dim(&format!(
            "{:>GUTTER$} 0{end:>w$}",
            "",
            w = columns.saturating_sub(1)
        ))
    );
}

/// A plot with the labels of its axis.
fn axis(
    out: &mut String,
    title: &str,
    lines: &[String],
    top: &str,
    color: impl Fn(&str) -> String,
    paint: Paint,
) {
    for (row, line) in lines.iter().enumerate() {
        let label = match row {
            0 => top,
            1 => title,
            _ => "",
        };
        let edge = if row == 0 { "┤" } else { "│" };
        let label = paint.dim(&format!("{label:>w$} {edge}", w = GUTTER - 1));
        let _ = writeln!(out, "{label}{}", color(line.trim_end()));
    }
}

/// Failures grouped by kind and cause, in the order of their first.
fn failures(out: &mut String, report: &Report, width: usize, paint: Paint) {
    if report.failures.is_empty() {
        return;
    }
    let mut groups: BTreeMap<(FailureKind, &str), (usize, &Failure, &Failure)> = BTreeMap::new();
    for failure in &report.failures {
        groups
            .entry((failure.kind, &failure.detail))
            .and_modify(|(n, _, last)| (*n, *last) = (*n + 1, failure))
            .or_insert((1, failure, failure));
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|(_, first, _)| first.at_ms);
    let _ = writeln!(out, "\n{}", paint.dim(" what failed"));
    for (count, first, last) in groups.iter().take(LISTED) {
        let when = match (seconds(first.at_ms), seconds(last.at_ms)) {
            (from, to) if from == to => format!("at {from} s"),
            (from, to) => format!("{from} s to {to} s"),
        };
        let count = thousands(*count as u64);
        let line = format!(
            "{count:>7} × {}, {when}: {}",
            in_words(first.kind),
            first.detail
        );
        let _ = writeln!(out, "{}", cut(&line, width));
    }
    let rest = groups.len().saturating_sub(LISTED);
    if rest > 0 || report.failures_unlisted > 0 {
        let mut more = Vec::new();
        if rest > 0 {
            more.push(format!("{rest} more kinds"));
        }
        if report.failures_unlisted > 0 {
            more.push(format!(
                "{} more failures",
                thousands(report.failures_unlisted)
            ));
        }
        let _ = writeln!(out, "{:>7}   and {}", "", more.join(", "));
    }
}

fn in_words(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Connect => "could not connect",
        FailureKind::Write => "could not send the request",
        FailureKind::Read => "could not read the answer",
        FailureKind::Closed => "connection closed early",
        FailureKind::Status(_) => "wrong status",
        FailureKind::Timeout => "timed out",
        FailureKind::BadResponse => "not a valid answer",
        FailureKind::KeepAliveRace => "keep-alive connection closed as it was used again",
    }
}

/// Writes ANSI colours, or none.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
    fn good(self, text: &str) -> String {
        self.with("32", text)
    }
    fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }
    fn warn(self, text: &str) -> String {
        self.with("33", text)
    }
    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }
    fn blue(self, text: &str) -> String {
        self.with("36", text)
    }
    fn magenta(self, text: &str) -> String {
        self.with("35", text)
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// `12345` as `12,345`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds with three significant figures: `640 µs`, `4.25 ms`, `1.5 s`.
pub fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", figures(us as f64 / 1e3)),
        _ => format!("{} s", figures(us as f64 / 1e6)),
    }
}

fn figures(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// A percentage: only a share of exactly 0 is shown as 0 %, and only one of exactly 1 as 100 %.
fn percent(share: f64) -> String {
    match share {
        s if s > 0.0 && s < 0.01 => "under 0.01 %".into(),
        s if s < 1.0 => format!("{s:.2} %"),
        s if s < 10.0 || (s > 99.0 && s < 100.0) => format!("{s:.1} %"),
        s => format!("{s:.0} %"),
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", trim_zeros(v / 1e6)),
        v if v >= 1e3 => format!("{}k", trim_zeros(v / 1e3)),
        v => trim_zeros(v),
    }
}

fn trim_zeros(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

fn seconds(ms: u64) -> String {
    format!("{:.1}", ms as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::stats::{Bucket, Marker, Series};
    use super::*;

    fn phase(requests: u64) -> PhaseStats {
        PhaseStats {
            duration_ms: 1000,
            requests,
            requests_per_s: requests as f64,
            p50_us: Some(640),
            p95_us: Some(4_200),
            p99_us: Some(12_300),
            max_us: Some(1_500_000),
            pids: [(1, 1), (2, 1)].into(),
            versions: [("v1".to_owned(), 1), ("v2".to_owned(), 1)].into(),
            ..PhaseStats::default()
        }
    }

    fn report() -> Report {
        let mark = |ms, label: &str| Marker {
            at: std::time::Duration::from_millis(ms),
            label: label.into(),
        };
        Report {
            target: "127.0.0.1:3001/".into(),
            connections: 20,
            keep_alive: false,
            rate: Some(500.0),
            duration_ms: 3000,
            requests: 3_600,
            failed: 0,
            keep_alive_races: 0,
            connections_opened: 3_600,
            before: phase(1_200),
            during: phase(1_200),
            after: phase(1_200),
            failures: Vec::new(),
            failures_unlisted: 0,
            series: Series {
                bucket_ms: 100,
                buckets: (0..30)
                    .map(|n| Bucket {
                        requests: 120,
                        failed: 0,
                        p50_us: Some(640),
                        p99_us: Some(1_000 * (n % 7)),
                    })
                    .collect(),
            },
            markers: vec![mark(500, "v2"), mark(1_200, "v2 end"), mark(2_000, "crash")],
        }
    }

    #[test]
    fn colours_take_no_room() {
        let plain = render(&report(), 80, false);
        let colored = render(&report(), 80, true);
        assert_ne!(plain, colored);
        let mut bare = String::new();
        let mut escape = false;
        for c in colored.chars() {
            match (escape, c) {
                (_, '\x1b') => escape = true,
                (true, 'm') => escape = false,
                (true, _) => {}
                (false, c) => bare.push(c),
            }
        }
        let trimmed = |text: &str| {
            text.lines()
                .map(|line| line.trim_end().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(trimmed(&bare), trimmed(&plain));
        for width in [80, 90, 120] {
            let plain = render(&report(), width, false);
            assert!(
                plain.lines().all(|line| line.chars().count() <= width),
                "{plain}"
            );
        }
    }

    #[test]
    fn what_has_an_end_is_drawn_to_it() {
        let plain = render(&report(), 80, false);
        assert!(
            plain.contains(" ├─────────────┤               ▲"),
            "{plain}"
        );
        assert!(
            plain.contains(" v2                            crash"),
            "{plain}"
        );
    }
}
