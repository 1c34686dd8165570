//! Errors as text: what happened, why, the last log lines, and what to type next.

use super::style::{Look, Paint};
use super::units::harmless;
use crate::cli::error::Report;

/// An error as it goes to stderr.
pub fn report(report: &Report, look: Look) -> String {
    let mut lines = report.message.lines();
    let mut text = format!(
        "{} {}\n",
        look.paint(Paint::Bad, "error:"),
        harmless(lines.next().unwrap_or_default())
    );
    for line in lines {
        text.push_str(&format!("  {}\n", harmless(line)));
    }
    for line in &report.log {
        let line = harmless(line);
        match line.trim_end() {
            "" => text.push('\n'),
            line => text.push_str(&format!("    {}\n", look.paint(Paint::Dim, line))),
        }
    }
    if let Some(hint) = &report.hint {
        for (index, line) in hint.lines().enumerate() {
            let head = if index == 0 {
                look.paint(Paint::Good, "hint:")
            } else {
                "     ".into()
            };
            text.push_str(&format!("  {head} {}\n", harmless(line)));
        }
    }
    text
}
