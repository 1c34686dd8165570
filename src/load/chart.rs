//! Columns over time in a terminal: eight heights per character, marks and failures below.

use super::stats::{Bucket, MARKER_END, Report};

const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns left of the plot: the labels of its axis.
pub(super) const GUTTER: usize = 11;

/// One column of the chart, made of the buckets that fall into it.
#[derive(Debug, Clone, Default)]
struct Column {
    requests: u64,
    failed: u64,
    p99_us: Option<u64>,
    buckets: usize,
}

/// A chart `width` characters wide. Empty where there is nothing to show.
pub(super) struct Chart {
    columns: Vec<Column>,
    /// Milliseconds per column.
    step: f64,
    /// The column of each mark, and its label.
    marks: Vec<(usize, String)>,
}

impl Chart {
    pub(super) fn new(report: &Report, width: usize) -> Chart {
        let room = width.saturating_sub(GUTTER + 1).max(10);
        let mut buckets = report.series.buckets.as_slice();
        // The last bucket is mostly incomplete, and would look like a drop.
        let whole = (report.duration_ms / report.series.bucket_ms.max(1)) as usize;
        if buckets.len() > 4
            && whole > 0
            && whole < buckets.len()
            && buckets[whole..].iter().all(|b| b.failed == 0)
        {
            buckets = &buckets[..whole];
        }
        let span = buckets.len() as f64 * report.series.bucket_ms as f64;
        // Few buckets are drawn wide, many are merged.
        let count = if buckets.len() >= room {
            room
        } else {
            buckets.len() * (room / buckets.len().max(1)).clamp(1, 4)
        };
        let mut columns = vec![Column::default(); count];
        for (index, column) in columns.iter_mut().enumerate() {
            let from = index * buckets.len() / count;
            let to = ((index + 1) * buckets.len() / count).max(from + 1);
            buckets[from..to].iter().for_each(|b| column.add(b));
        }
        let step = if count == 0 { 1.0 } else { span / count as f64 };
        let marks = report.markers.iter().map(|marker| {
            let column = (marker.at.as_secs_f64() * 1e3 / step) as usize;
            (column.min(count.saturating_sub(1)), marker.label.clone())
        });
        Chart {
            marks: marks.collect(),
            columns,
            step,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.iter().all(|c| c.requests == 0)
    }

    /// Milliseconds from the left end of the chart to its right end.
    pub(super) fn span_ms(&self) -> f64 {
        self.step * self.columns.len() as f64
    }

    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Answered requests per second, column by column.
    pub(super) fn rates(&self, bucket_ms: u64) -> Vec<f64> {
        let rate = |c: &Column| {
            let seconds = (c.buckets as u64 * bucket_ms) as f64 / 1e3;
            if seconds > 0.0 {
                (c.requests - c.failed) as f64 / seconds
            } else {
                0.0
            }
        };
        self.columns.iter().map(rate).collect()
    }

    /// The largest p99 of each column in microseconds; 0 where nothing was answered.
    pub(super) fn p99s(&self) -> Vec<f64> {
        self.columns
            .iter()
            .map(|c| c.p99_us.unwrap_or(0) as f64)
            .collect()
    }

    /// `×` where requests failed.
    pub(super) fn failures(&self) -> Option<String> {
        let any = self.columns.iter().any(|c| c.failed > 0);
        any.then(|| {
            self.columns
                .iter()
                .map(|c| if c.failed > 0 { '×' } else { ' ' })
                .collect()
        })
    }

    /// `▲` under each moment, `├──┤` under each period, and their labels, as many as fit.
    pub(super) fn marks(&self) -> Option<(String, String)> {
        if self.marks.is_empty() {
            return None;
        }
        let mut arrows = vec![' '; self.columns.len()];
        let mut labels: Vec<char> = Vec::new();
        for (index, (at, label)) in self.marks.iter().enumerate() {
            let begin = label
                .strip_suffix(MARKER_END)
                .and_then(|label| self.marks[..index].iter().rfind(|(_, of)| of == label));
            if let Some((begin, _)) = begin {
                if begin < at {
                    arrows[*begin..*at].fill('─');
                    arrows[*begin] = '├';
                    arrows[*at] = '┤';
                }
                continue;
            }
            arrows[*at] = '▲';
            let length = label.chars().count();
            let from = (*at).min(self.columns.len().saturating_sub(length));
            // One blank between labels; a label without room is left out, but not its arrow.
            if labels.is_empty() || from > labels.len() {
                labels.resize(from, ' ');
                labels.extend(label.chars());
            }
        }
        Some((arrows.into_iter().collect(), labels.into_iter().collect()))
    }
}

impl Column {
    fn add(&mut self, bucket: &Bucket) {
        self.requests += bucket.requests;
        self.failed += bucket.failed;
        self.p99_us = self.p99_us.max(bucket.p99_us);
        self.buckets += 1;
    }
}

/// `values` as columns of at most `height` characters, topmost line first; `top` is the full height.
pub(super) fn plot(values: &[f64], top: f64, height: usize) -> Vec<String> {
    let eighths = |value: f64| {
        let share = if top > 0.0 {
            (value / top).clamp(0.0, 1.0)
        } else {
            0.0
        };
        let n = (share * (height * 8) as f64).round() as usize;
        // A small value must still differ from zero.
        if value > 0.0 { n.max(1) } else { 0 }
    };
    (0..height)
        .rev()
        .map(|row| {
            values
                .iter()
                .map(|v| EIGHTHS[eighths(*v).saturating_sub(row * 8).min(8)])
                .collect()
        })
        .collect()
}

/// The smallest of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten that is not below `value`.
pub(super) fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let step = steps
        .iter()
        .find(|step| **step * power >= value * 0.999_999)
        .unwrap_or(&10.0);
    step * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_eight_heights_to_a_line() {
        assert_eq!(
            plot(&[0.0, 1.0, 8.0, 12.0, 16.0, 0.01], 16.0, 2),
            ["   ▄█ ", " ▁███▁"]
        );
    }

    #[test]
    fn axis_ends_at_a_round_number() {
        for (value, top) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (1.01, 1.2),
            (4321.0, 5000.0),
            (0.07, 0.08),
            (9.9, 10.0),
        ] {
            assert!(
                (round_up(value) - top).abs() < 1e-9,
                "{value}: {}",
                round_up(value)
            );
        }
    }
}
