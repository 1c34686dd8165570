//! The account of a load test, line by line, and its verdict.

use std::time::Duration;

use super::style::{Look, Paint};
use super::units::{count, duration, harmless};
use crate::cli::load_test::{Change, Expected, Verdict};
use crate::load::{self, Snapshot};

/// Columns where there is no terminal to ask.
const WIDTH: u16 = 80;
/// Indent of further lines of an account, below the text that follows the time.
const INDENT: &str = "          ";

/// What the account has to report.
#[derive(Debug)]
pub enum Moment<'a> {
    Begin,
    Reload(&'a str),
    Reloaded(&'a Change),
    End,
}

/// An entry of the account: the time, and one line or a few.
pub fn moment(at: Duration, moment: &Moment<'_>, look: Look) -> String {
    let what = match moment {
        Moment::Begin => "the load begins\n".to_owned(),
        Moment::Reload(words) => format!("{words} …\n"),
        Moment::Reloaded(change) => reloaded(change, look),
        Moment::End => "the load ends\n".to_owned(),
    };
    format!(
        "{}  {what}",
        look.paint(Paint::Dim, &format!("{:>6.1} s", at.as_secs_f64()))
    )
}

fn reloaded(change: &Change, look: Look) -> String {
    let took = duration(change.took_ms);
    let mut text = match (&change.failure, change.expected) {
        (None, Expected::Done) => {
            let done = look.paint(Paint::Good, "✓ done");
            return format!(
                "{done} in {took}: {} ready\n",
                count(change.ready, "new worker")
            );
        }
        (None, Expected::Refused) => {
            return format!(
                "{} in {took}, and should have been refused\n",
                look.paint(Paint::Bad, "✗ done")
            );
        }
        (Some(_), Expected::Refused) => format!(
            "{} after {took}, as it should be",
            look.paint(Paint::Good, "✓ refused")
        ),
        (Some(_), Expected::Done) => format!("{} after {took}", look.paint(Paint::Bad, "✗ failed")),
    };
    text.push_str(match change.old_workers_serve {
        true => "; the old workers go on\n",
        false => ", but not all of the old workers go on\n",
    });
    let Some(failure) = &change.failure else {
        return text;
    };
    let room = look.width.map_or(usize::MAX, |width| {
        usize::from(width).saturating_sub(INDENT.len()).max(30)
    });
    let mut line = |line: &str| {
        for part in wrapped(&harmless(line), room) {
            text.push_str(&format!("{INDENT}{}\n", look.paint(Paint::Dim, &part)));
        }
    };
    failure.message.lines().for_each(&mut line);
    if change.expected == Expected::Done {
        failure
            .log
            .iter()
            .for_each(|entry| line(&format!("  {entry}")));
        failure
            .hint
            .iter()
            .flat_map(|hint| hint.lines())
            .for_each(|hint| line(&format!("hint: {hint}")));
    }
    text
}

/// Wraps a text into lines of at most `room` characters; a longer word stays whole.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let full = |line: &String| {
            !line.is_empty() && line.chars().count() + word.trim_end().chars().count() > room
        };
        match lines.last_mut() {
            Some(line) if !full(line) => line.push_str(word),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// `1.2 s`.
pub fn took(time: Duration) -> String {
    duration(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The progress in one line of changing figures.
pub fn activity_line(now: &Snapshot, activity: &str) -> String {
    let thousands = load::report::thousands;
    let figures = format!(
        "{:>4.1} s  {} requests, {} failed",
        now.elapsed.as_secs_f64(),
        thousands(now.requests),
        thousands(now.failed + now.keep_alive_races)
    );
    if activity.is_empty() {
        figures
    } else {
        format!("{figures} · {}", harmless(activity))
    }
}

/// The figures, the chart, and the verdict with its reasons.
pub fn verdict(verdict: &Verdict, look: Look) -> String {
    let mut text = String::from("\n");
    text.push_str(&load::report::table_and_chart(
        &verdict.load,
        look.width.unwrap_or(WIDTH).into(),
        look.color,
    ));
    text.push_str(&format!(
        "\n{}\n",
        load::report::verdict(&verdict.load, look.color)
    ));
    let first = usize::from(!verdict.load.is_lossless() || verdict.load.requests == 0);
    for reason in verdict.reasons.iter().skip(first) {
        text.push_str(&format!(
            "{}\n",
            look.paint(Paint::Bad, &format!("✗ {}", harmless(reason)))
        ));
    }
    for remark in &verdict.remarks {
        text.push('\n');
        for line in remark.lines() {
            text.push_str(&format!("{}\n", harmless(line)));
        }
    }
    text
}
