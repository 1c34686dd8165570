//! The last lines of one worker, kept in memory for the report of its death.

use std::collections::VecDeque;

use super::{Stream, TailLine};

/// Lines kept for each worker.
pub(super) const LINES: usize = 20;
/// Bytes kept for each worker.
const BYTES: usize = 8 << 10;
/// Bytes kept of one line.
const LINE: usize = 500;

/// A ring of the last lines of a worker, both streams in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<(Stream, Vec<u8>)>,
    bytes: usize,
}

impl Tail {
    /// Adds a line, and drops the oldest ones that there is no room for.
    pub fn push(&mut self, stream: Stream, line: &[u8]) {
        let line = &line[..line.len().min(LINE)];
        self.bytes += line.len();
        let mut spare = Vec::new();
        while self.lines.len() >= LINES || (self.bytes > BYTES && !self.lines.is_empty()) {
            let Some((_, old)) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= old.len();
            spare = old;
        }
        spare.clear();
        spare.extend_from_slice(line);
        self.lines.push_back((stream, spare));
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<TailLine> {
        self.lines
            .iter()
            .map(|(stream, line)| TailLine {
                stream: *stream,
                text: text(line),
            })
            .collect()
    }
}

/// `line` as text, as much of it as a tail keeps.
pub(super) fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(&line[..line.len().min(LINE)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_lines_within_its_bounds() {
        let mut tail = Tail::default();
        for i in 0..100 {
            tail.push(
                if i % 2 == 0 { Stream::Out } else { Stream::Err },
                format!("{i}").as_bytes(),
            );
        }
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(
            lines[0],
            TailLine {
                stream: Stream::Out,
                text: "80".into()
            }
        );
        assert_eq!(lines[19].text, "99");
        for _ in 0..100 {
            tail.push(Stream::Out, &[0xff; 10_000]);
        }
        let total: usize = tail.lines.iter().map(|(_, l)| l.len()).sum();
        assert!(total <= BYTES && total == tail.bytes && total > BYTES - LINE);
    }
}
