//! The report of a load for a terminal: verdict, table, chart, failures.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::chart::{Chart, GUTTER, plot, round_up};
use super::stats::{Failure, FailureKind, Phase, PhaseStats, Report};

pub use super::stats::Marker;

/// Lines of each of the two plots.
const HEIGHT: usize = 4;
/// Groups of failures that are listed.
const LISTED: usize = 10;

/// The report as text of at most `width` columns (at least 60), in ANSI colours if `color`. Nothing
/// is said by colour alone.
pub fn render(report: &Report, width: usize, color: bool) -> String {
    let width = width.clamp(60, 160);
    let paint = Paint(color);
    let mut out = String::new();
    table(&mut out, report, width, paint);
    chart(&mut out, report, width, paint);
    failures(&mut out, report, width, paint);
    out.push('\n');
    out.push_str(&verdict(report, color));
    out.push('\n');
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
        let _ = write!(line, "; {races} lost the keep-alive race");
    }
    line
}

fn table(out: &mut String, report: &Report, width: usize, paint: Paint) {
    let races = report.keep_alive_races > 0;
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["", "requests", "failed"];
    if races {
        header.push("races");
    }
    header.extend(["req/s", "p50", "p95", "p99", "max"]);
    table.set_header(
        header
            .iter()
            .map(|h| paint.cell(h, |c| c.add_attribute(Attribute::Dim))),
    );
    let phases = Phase::ALL.map(|phase| (phase, report.phase(phase)));
    for (phase, stats) in phases
        .into_iter()
        .filter(|(_, s)| s.requests > 0 || s.duration_ms > 0)
    {
        let mut row = vec![Cell::new(name(phase)), Cell::new(thousands(stats.requests))];
        row.push(match stats.failed {
            0 => paint.cell("0", |c| c.fg(Color::DarkGreen)),
            n => paint.cell(&thousands(n), |c| {
                c.fg(Color::DarkRed).add_attribute(Attribute::Bold)
            }),
        });
        if races {
            row.push(match stats.keep_alive_races {
                0 => Cell::new("0"),
                n => paint.cell(&thousands(n), |c| c.fg(Color::DarkYellow)),
            });
        }
        row.push(Cell::new(thousands(stats.requests_per_s.round() as u64)));
        let times = [stats.p50_us, stats.p95_us, stats.p99_us, stats.max_us];
        row.extend(times.map(|t| Cell::new(t.map_or("–".into(), time))));
        table.add_row(row);
    }
    if paint.0 {
        table.enforce_styling(); // the caller has decided, not whether stdout is a terminal
    } else {
        table.force_no_tty();
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    let served: Vec<String> = Phase::ALL
        .iter()
        .filter_map(|p| answered_by(*p, report.phase(*p)))
        .collect();
    let one = format!(" {}", served.join(" · "));
    let lines = if one.chars().count() <= width {
        vec![one]
    } else {
        served.iter().map(|s| format!(" {s}")).collect()
    };
    for line in lines.iter().filter(|_| !served.is_empty()) {
        let _ = writeln!(out, "{}", paint.dim(&cut(line, width)));
    }
}

/// `during: answered by 4 processes, v1 62 %, v2 38 %`
fn answered_by(phase: Phase, stats: &PhaseStats) -> Option<String> {
    if stats.pids.is_empty() {
        return None;
    }
    let processes = if stats.pids.len() == 1 {
        "process"
    } else {
        "processes"
    };
    let mut line = format!(
        "{}: answered by {} {processes}",
        name(phase),
        stats.pids.len()
    );
    let total: u64 = stats.versions.values().sum();
    let mut versions: Vec<_> = stats.versions.iter().collect();
    versions.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    match versions.as_slice() {
        [] => {}
        [(only, _)] => {
            let _ = write!(line, ", {only}");
        }
        several => {
            for (version, n) in several.iter().take(3) {
                let _ = write!(
                    line,
                    ", {version} {}",
                    percent(**n as f64 / total as f64 * 100.0)
                );
            }
        }
    }
    Some(line)
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
        &plot(&rates, top, HEIGHT),
        &short(top),
        |s| paint.blue(s),
        paint,
    );
    let p99s = chart.p99s();
    let top = round_up(p99s.iter().copied().fold(0.0, f64::max));
    axis(
        out,
        "p99",
        &plot(&p99s, top, HEIGHT),
        &time(top as u64).replace(".00 ", " ").replace(".0 ", " "),
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
        for line in labels.iter().filter(|line| !line.is_empty()) {
            let _ = writeln!(out, "{:>GUTTER$} {}", "", paint.warn(line));
        }
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

/// Failures of one kind with one cause, in the order of their first.
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
        // The number says nothing that the words don't; JSON keeps it.
        let detail = first.detail.split(" (os error").next().unwrap_or_default();
        let line = format!("{count:>7} × {when}: {}: {detail}", in_words(first.kind));
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

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Before => "before",
        Phase::During => "during",
        Phase::After => "after",
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
    /// A cell of the table, which must know the width of what is seen.
    fn cell(self, text: &str, style: impl Fn(Cell) -> Cell) -> Cell {
        let cell = Cell::new(text);
        if self.0 { style(cell) } else { cell }
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

/// A share that is not nothing is never shown as nothing, nor one that is not all as all.
fn percent(share: f64) -> String {
    match share {
        s if s > 0.0 && s < 0.01 => "under 0.01 %".into(),
        s if s < 1.0 => format!("{s:.2} %"),
        s if s > 99.0 && s < 100.0 => format!("{:.2} %", (s * 100.0).floor() / 100.0),
        s if s < 10.0 => format!("{s:.1} %"),
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
    use std::time::Duration;

    use super::super::stats::{Bucket, Series};
    use super::*;

    fn report(failed: u64, races: u64, buckets: usize) -> Report {
        let bucket = |n| Bucket {
            requests: 600 + n as u64 % 7,
            failed: u64::from(failed > 0 && n == 40),
            p50_us: Some(900),
            p99_us: (n != 30).then_some(4_000 + n as u64),
        };
        let failure = Failure {
            at_ms: 4_012,
            phase: Phase::During,
            kind: FailureKind::Closed,
            detail: "closed without an answer, ".repeat(8),
            reused: false,
        };
        Report {
            target: "127.0.0.1:3001/".into(),
            connections: 20,
            keep_alive: races > 0,
            rate: None,
            duration_ms: buckets as u64 * 100,
            requests: 12_345,
            failed,
            keep_alive_races: races,
            connections_opened: 12_345,
            before: PhaseStats {
                requests: 12_345,
                failed,
                keep_alive_races: races,
                pids: [(1, 5), (2, 6)].into(),
                versions: [("v1".into(), 5), ("v2".into(), 6)].into(),
                ..PhaseStats::default()
            },
            during: PhaseStats::default(),
            after: PhaseStats::default(),
            failures: vec![failure; failed as usize],
            failures_unlisted: 0,
            series: Series {
                bucket_ms: 100,
                buckets: (0..buckets).map(bucket).collect(),
            },
            markers: (0..9)
                .map(|n| Marker {
                    at: Duration::from_millis(n * 1_000),
                    label: format!("reload {n}"),
                })
                .collect(),
        }
    }

    #[test]
    fn fits_the_width_with_and_without_much_to_say() {
        for buckets in [0, 1, 3, 50, 67, 68, 69, 140, 1200] {
            for width in [60, 80, 120] {
                for (failed, races) in [(0, 0), (3, 0), (3, 5)] {
                    let text = render(&report(failed, races, buckets), width, false);
                    for line in text.lines() {
                        let columns = line.chars().count();
                        // The table has a width of its own, which 80 columns hold.
                        assert!(columns <= width.max(80), "{columns} columns: {line}");
                    }
                    assert!(!text.contains('\x1b'));
                }
            }
        }
    }

    #[test]
    fn colour_adds_nothing_but_colour() {
        let report = report(3, 5, 100);
        let coloured = render(&report, 80, true);
        let mut plain = String::new();
        for (n, part) in coloured.split("\x1b[").enumerate() {
            let text = part.split_once('m').map(|(_, text)| text);
            plain += if n == 0 { part } else { text.unwrap_or(part) };
        }
        assert_ne!(plain, coloured);
        let squeeze = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&plain), squeeze(&render(&report, 80, false)));
    }

    #[test]
    fn verdict_hides_nothing() {
        let say = |failed, races| verdict(&report(failed, races, 10), false);
        assert_eq!(say(0, 0), "✓ 0 of 12,345 requests failed");
        assert_eq!(say(1, 0), "✗ 1 of 12,345 requests failed (under 0.01 %)");
        let race = "! 0 of 12,345 requests failed; 2 lost the keep-alive race";
        assert_eq!(say(0, 2), race);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(
            (thousands(999), thousands(1_000)),
            ("999".into(), "1,000".into())
        );
        assert_eq!(
            (time(640), time(4_254), time(1_500_000)),
            ("640 µs".into(), "4.25 ms".into(), "1.50 s".into())
        );
        assert_eq!(
            (percent(99.96).as_str(), percent(100.0).as_str()),
            ("99.96 %", "100 %")
        );
    }
}
