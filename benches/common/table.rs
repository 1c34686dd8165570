//! The result of a bench.

use std::fmt::Write;

/// What is promised of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Shown for comparison only.
    None,
}

#[derive(Default)]
pub struct Table(Vec<[String; 4]>);

impl Table {
    /// One line: `value` is judged by the bar, `detail` says what it comes from.
    pub fn row(&mut self, what: &str, value: f64, unit: &str, bar: Bar, detail: impl Into<String>) {
        let (bound, met) = match bar {
            Bar::AtMost(most) => (format!("≤ {most}{unit}"), value <= most),
            Bar::AtLeast(least) => (format!("≥ {least}{unit}"), value >= least),
            Bar::None => (String::new(), true),
        };
        let verdict = match (bar, met) {
            (Bar::None, _) => String::new(),
            (_, true) => format!("{bound}  met"),
            (_, false) => format!("{bound}  MISSED"),
        };
        self.0.push([
            what.to_owned(),
            format!("{value:.2}{unit}"),
            verdict,
            detail.into(),
        ]);
    }

    pub fn print(&self) {
        let head = ["", "median", "bar", "from"].map(str::to_owned);
        let lines: Vec<&[String; 4]> = std::iter::once(&head).chain(&self.0).collect();
        let width = |column: usize| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2)];
        let mut text = String::from("\n");
        for line in lines {
            let [what, value, verdict, detail] = line;
            let [a, b, c] = widths;
            let _ = writeln!(text, "{what:a$}  {value:>b$}  {verdict:c$}  {detail}");
        }
        println!("{text}");
    }
}
