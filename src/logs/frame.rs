//! Cuts a stream of bytes into lines, across reads.

use memchr::memchr_iter;

/// A line longer than this many bytes is written in parts.
pub const MAX_LINE: usize = 64 << 10;

/// Bytes: an emptied buffer with more capacity is given back, so that thousands of quiet streams
/// cost nothing.
const KEEP_CAPACITY: usize = 4 << 10;

/// The unfinished line at the end of a stream: all that is kept of it between reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Bytes that were read but not written; at most [`MAX_LINE`], without a newline.
    pub bytes: Vec<u8>,
    /// Whether earlier parts of this line are in the file already.
    pub continued: bool,
}

/// A line, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Without the newline.
    pub bytes: &'a [u8],
    /// It continues what an earlier record began.
    pub continued: bool,
    /// Another record will continue it.
    pub partial: bool,
    /// The position in the chunk where it ended.
    pub end: usize,
}

impl Unfinished {
    /// Whether no part of a line waits to be written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a chunk and emits each line that it completes.
    pub(super) fn feed(&mut self, chunk: &[u8], mut emit: impl FnMut(Record<'_>)) {
        let mut start = 0;
        for end in memchr_iter(b'\n', chunk) {
            let line = &chunk[start..end];
            if self.bytes.is_empty() && !self.continued && line.len() <= MAX_LINE {
                emit(Record {
                    bytes: line,
                    continued: false,
                    partial: false,
                    end,
                });
            } else {
                self.extend(chunk, start, end, &mut emit);
                self.end_line(end, &mut emit);
            }
            start = end + 1;
        }
        self.extend(chunk, start, chunk.len(), &mut emit);
    }

    /// Emits the line, which has been quiet for long, as a part. An incomplete character is left
    /// for the next part, unless there is nothing else.
    pub(super) fn cut(&mut self, mut emit: impl FnMut(Record<'_>)) {
        if !self.bytes.is_empty() {
            let at = match char_end(&self.bytes) {
                0 => self.bytes.len(),
                at => at,
            };
            self.emit_part(at, 0, &mut emit);
            self.trim();
        }
    }

    /// Emits the rest as a line: the stream has ended.
    pub(super) fn finish(&mut self, mut emit: impl FnMut(Record<'_>)) {
        if !self.bytes.is_empty() {
            self.end_line(0, &mut emit);
        }
    }

    /// Adds `chunk[start..end]`, which holds no newline, to the line.
    fn extend(
        &mut self,
        chunk: &[u8],
        start: usize,
        end: usize,
        emit: &mut impl FnMut(Record<'_>),
    ) {
        let mut at = start;
        while self.bytes.len() + (end - at) > MAX_LINE {
            let room = MAX_LINE - self.bytes.len();
            self.bytes.extend_from_slice(&chunk[at..at + room]);
            at += room;
            // Never 0: a character that is cut off is at most three of these bytes.
            let whole = char_end(&self.bytes);
            self.emit_part(whole, at, emit);
        }
        self.bytes.extend_from_slice(&chunk[at..end]);
    }

    fn emit_part(&mut self, len: usize, end: usize, emit: &mut impl FnMut(Record<'_>)) {
        emit(Record {
            bytes: &self.bytes[..len],
            continued: self.continued,
            partial: true,
            end,
        });
        self.bytes.drain(..len);
        self.continued = true;
    }

    fn end_line(&mut self, end: usize, emit: &mut impl FnMut(Record<'_>)) {
        emit(Record {
            bytes: &self.bytes,
            continued: self.continued,
            partial: false,
            end,
        });
        self.bytes.clear();
        self.continued = false;
        self.trim();
    }

    fn trim(&mut self) {
        if self.bytes.capacity() > KEEP_CAPACITY {
            self.bytes.shrink_to(KEEP_CAPACITY);
        }
    }
}

/// Length of `bytes` without a UTF-8 character at its end that more bytes could complete. Other
/// bytes that are not UTF-8 count.
fn char_end(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    for start in (from..bytes.len()).rev() {
        let byte = bytes[start];
        if byte & 0b1100_0000 == 0b1000_0000 {
            continue; // in the middle of a character
        }
        return match std::str::from_utf8(&bytes[start..]) {
            Err(error) if error.error_len().is_none() => start,
            _ => bytes.len(),
        };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What was emitted, as (bytes, continued, partial).
    fn run(chunks: &[&[u8]]) -> (Vec<(Vec<u8>, bool, bool)>, Unfinished) {
        let mut state = Unfinished::default();
        let mut records = Vec::new();
        for chunk in chunks {
            state.feed(chunk, |r| {
                records.push((r.bytes.to_vec(), r.continued, r.partial))
            });
        }
        (records, state)
    }

    fn line(text: &[u8]) -> (Vec<u8>, bool, bool) {
        (text.to_vec(), false, false)
    }

    #[test]
    fn lines_are_joined_across_reads() {
        let (records, rest) = run(&[b"one\ntw", b"", b"o\n\nthr"]);
        assert_eq!(records, [line(b"one"), line(b"two"), line(b"")]);
        assert_eq!(rest.bytes, b"thr");
    }

    #[test]
    fn an_endless_line_comes_in_parts_of_whole_characters() {
        let text = "é".repeat(MAX_LINE); // two bytes each: twice the limit
        let odd = [b"x", text.as_bytes(), b"\n"].concat();
        let (records, rest) = run(&[&odd]);
        assert!(rest.is_empty());
        assert_eq!(records.len(), 3);
        assert!(
            records
                .iter()
                .all(|(bytes, ..)| std::str::from_utf8(bytes).is_ok())
        );
        assert_eq!(
            records.iter().map(|(_, c, p)| (*c, *p)).collect::<Vec<_>>(),
            [(false, true), (true, true), (true, false)]
        );
        assert_eq!(
            records.into_iter().flat_map(|r| r.0).collect::<Vec<_>>(),
            odd[..odd.len() - 1]
        );
    }

    #[test]
    fn a_quiet_line_is_cut_and_goes_on() {
        let mut state = Unfinished::default();
        let mut seen = Vec::new();
        let mut emit = |r: Record<'_>| seen.push((r.bytes.to_vec(), r.continued, r.partial));
        state.feed(
            "pass\u{e9}".as_bytes().split_last().expect("not empty").1,
            &mut emit,
        );
        state.cut(&mut emit);
        state.cut(&mut emit); // half a character, and nothing else: shown as it is
        state.feed(b"\nnext\n", &mut emit);
        assert_eq!(
            seen,
            [
                (b"pass".to_vec(), false, true),
                (b"\xc3".to_vec(), true, true),
                (b"".to_vec(), true, false),
                line(b"next")
            ]
        );
    }

    proptest! {
        /// However a stream is cut into reads, the records are the same, and hold every byte.
        #[test]
        fn reads_do_not_matter(data in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400), cuts in proptest::collection::vec(0usize..400, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(data.len())).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &data[w[0]..w[1]]).collect();
            let (mut records, rest) = run(&chunks);
            prop_assert_eq!(&records, &run(&[&data]).0);
            let mut joined: Vec<u8> = records.drain(..).flat_map(|(mut b, ..)| { b.push(b'\n'); b }).collect();
            joined.extend(rest.bytes);
            prop_assert_eq!(joined, data);
        }
    }
}
