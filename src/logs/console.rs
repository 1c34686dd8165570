//! Lines for rsup's own output, beside the files: for collectors of a container's output.
//!
//! Any number of writers, one [`Reader`]. The buffer between them is bounded: a stuck reader, or a
//! closed output, costs lines, which are counted and reported where they are missing. It never
//! holds up the daemon, and the pump only for a moment.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memchr::memchr_iter;

use super::{Format, Source, Stream, format};

/// Bytes that may wait to be written: more than a burst of lines, too few to matter.
const CAPACITY: usize = 1 << 20;
/// Additional bytes for the daemon's own messages, which are few.
const RESERVE: usize = 64 << 10;
/// How long the pump may wait, in each of its rounds, for a reader that is slower than the workers.
/// A reader that takes nothing within this time is not waited for again until it reads.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// How often a failing output is tried again, to report what it lacks.
const RETRY: Duration = Duration::from_secs(1);
/// The reason for lost lines where no write has failed.
const TOO_SLOW: &str = "the reader is too slow";

/// Makes the line that reports lost lines at their place.
pub type Teller = fn(&str) -> Vec<u8>;

/// The writers' end.
#[derive(Clone, Debug)]
pub struct Console {
    shared: Arc<Shared>,
    format: Format,
    teller: Teller,
}

/// The end for the thread that writes to the output.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    teller: Teller,
}

/// Whole lines.
#[derive(Debug)]
pub struct Chunk {
    pub bytes: Vec<u8>,
    told: Told,
}

/// Lines that report lost ones.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// The loss that they report.
    loss: Loss,
    /// The size of these lines themselves.
    words: Loss,
}

/// Lines that were not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub bytes: u64,
    pub lines: u64,
}

impl Loss {
    fn of(lines: &[u8]) -> Loss {
        Loss {
            bytes: lines.len() as u64,
            lines: memchr_iter(b'\n', lines).count() as u64,
        }
    }

    fn without(self, other: Loss) -> Loss {
        Loss {
            bytes: self.bytes.saturating_sub(other.bytes),
            lines: self.lines.saturating_sub(other.lines),
        }
    }

    fn add(&mut self, other: Loss) {
        self.bytes += other.bytes;
        self.lines += other.lines;
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Lines were added, or the console was closed.
    filled: Condvar,
    /// Lines were written.
    drained: Condvar,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    /// Bytes that are not written yet: in the buffer and in the reader's hands.
    waiting: usize,
    /// Lost and not yet reported.
    loss: Loss,
    /// The reports in the buffer.
    told: Told,
    /// Lost since the beginning.
    lost: Loss,
    /// The reader took nothing within the last wait.
    stuck: bool,
    /// The last attempt to write failed.
    failing: Option<String>,
    closed: bool,
    /// The reader is gone.
    abandoned: bool,
}

impl Console {
    /// An empty console, with lines in this format.
    pub fn new(format: Format) -> (Console, Reader) {
        let teller: Teller = match format {
            Format::Text => |text| format::message(Format::Text, "warn", None, text),
            Format::Json => |text| format::message(Format::Json, "warn", None, text),
        };
        Self::with_teller(format, teller)
    }

    /// As [`Self::new`], with another report of lost lines.
    pub(super) fn with_teller(format: Format, teller: Teller) -> (Console, Reader) {
        let shared = Arc::<Shared>::default();
        (
            Console {
                shared: shared.clone(),
                format,
                teller,
            },
            Reader { shared, teller },
        )
    }

    /// The format of its lines.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The prefix of a worker's lines.
    pub(super) fn prefix(&self, source: &Source, stream: Stream, out: &mut Vec<u8>) {
        format::console_prefix(self.format, source, stream, out);
    }

    /// Adds whole lines of workers. Waits for room, at most for `patience`, which it reduces by the
    /// wait.
    pub(super) fn lines(&self, lines: &[u8], patience: &mut Duration) {
        let mut state = self.shared.lock();
        let full = |state: &mut State| state.waiting + lines.len() > CAPACITY;
        if full(&mut state) && !state.stuck && !patience.is_zero() {
            let (begin, before) = (Instant::now(), state.waiting);
            let waited = self
                .shared
                .drained
                .wait_timeout_while(state, *patience, |state| full(state));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            *patience = patience.saturating_sub(begin.elapsed());
            // No other writer adds much meanwhile.
            state.stuck = state.waiting >= before;
        }
        if full(&mut state) {
            return state.lose(Loss::of(lines));
        }
        self.put(state, lines);
    }

    /// Adds a message of the daemon; never waits. `level` as in `"warn"`.
    pub fn message(&self, level: &str, app: Option<&str>, text: &str) {
        self.whole(&format::message(self.format, level, app, text));
    }

    /// Adds whole lines that are formatted already; never waits.
    pub fn whole(&self, lines: &[u8]) {
        let mut state = self.shared.lock();
        if state.waiting + lines.len() > CAPACITY + RESERVE {
            return state.lose(Loss::of(lines));
        }
        self.put(state, lines);
    }

    fn put(&self, mut state: MutexGuard<'_, State>, lines: &[u8]) {
        let before = state.buffer.len();
        state.tell(self.teller);
        state.buffer.extend_from_slice(lines);
        state.waiting += state.buffer.len() - before;
        drop(state);
        self.shared.filled.notify_one();
    }

    /// What was lost since the beginning.
    pub fn lost(&self) -> Loss {
        self.shared.lock().lost
    }

    /// Why lines are being lost now; `None` once every loss is reported at its place.
    pub fn trouble(&self) -> Option<String> {
        let state = self.shared.lock();
        match &state.failing {
            Some(why) => Some(why.clone()),
            None => (state.loss != Loss::default()).then(|| TOO_SLOW.to_owned()),
        }
    }

    /// Closes the console: the reader ends when it has read the rest. Waits for that, for
    /// `patience` at most.
    pub fn finish(&self, patience: Duration) {
        self.close();
        let state = self.shared.lock();
        drop(
            self.shared
                .drained
                .wait_timeout_while(state, patience, |state| !state.abandoned),
        );
    }

    /// Waits until everything is written, for `patience` at most.
    pub fn flush(&self, patience: Duration) {
        let state = self.shared.lock();
        drop(
            self.shared
                .drained
                .wait_timeout_while(state, patience, |state| {
                    state.waiting > 0 && !state.abandoned
                }),
        );
    }

    pub(super) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lose(&mut self, loss: Loss) {
        self.loss.add(loss);
        self.lost.add(loss);
    }

    /// Adds a report of the lines that are missing here.
    fn tell(&mut self, teller: Teller) {
        if self.loss == Loss::default() {
            return;
        }
        let loss = mem::take(&mut self.loss);
        self.told.loss.add(loss);
        let why = self.failing.as_deref().unwrap_or(TOO_SLOW);
        let text = format!(
            "{} bytes in {} lines were lost here: {why}",
            loss.bytes, loss.lines
        );
        let line = teller(&text);
        self.told.words.add(Loss::of(&line));
        self.buffer.extend_from_slice(&line);
    }
}

impl Reader {
    /// Waits for lines; `None` after the last.
    pub fn take(&mut self) -> Option<Chunk> {
        let mut state = self.shared.lock();
        loop {
            if !state.buffer.is_empty() {
                let bytes = mem::take(&mut state.buffer);
                return Some(Chunk {
                    bytes,
                    told: mem::take(&mut state.told),
                });
            }
            if state.closed && (state.failing.is_some() || state.loss == Loss::default()) {
                return None;
            }
            if state.loss == Loss::default() {
                state = self
                    .shared
                    .filled
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // There is room again, and no line has been added since.
            if state.failing.is_some() {
                let idle = |state: &mut State| state.buffer.is_empty() && !state.closed;
                let waited = self.shared.filled.wait_timeout_while(state, RETRY, idle);
                let (again, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                state = again;
                if !waited.timed_out() {
                    continue;
                }
            }
            state.tell(self.teller);
            state.waiting += state.buffer.len();
        }
    }

    /// Records that this many bytes of the chunk have been written.
    pub fn wrote(&mut self, bytes: usize) {
        let mut state = self.shared.lock();
        state.waiting = state.waiting.saturating_sub(bytes);
        state.stuck = false;
        state.failing = None;
        drop(state);
        self.shared.drained.notify_all();
    }

    /// Whether the last attempt to write failed.
    pub fn is_failing(&self) -> bool {
        self.shared.lock().failing.is_some()
    }

    /// Records that the chunk could not be written from this byte on.
    pub fn failed(&mut self, chunk: &Chunk, from: usize, why: &str) {
        let rest = chunk.bytes.get(from..).unwrap_or_default();
        let mut state = self.shared.lock();
        state.waiting = state.waiting.saturating_sub(rest.len());
        state.lose(Loss::of(rest).without(chunk.told.words));
        // Reports that were lost themselves have to be made again.
        state.loss.add(chunk.told.loss);
        state.failing = Some(why.to_owned());
        drop(state);
        self.shared.drained.notify_all();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.lock().abandoned = true;
        self.shared.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(console: &Console, lines: &[u8]) {
        console.lines(lines, &mut PATIENCE.clone());
    }

    fn text(chunk: &Chunk) -> String {
        String::from_utf8(chunk.bytes.clone()).expect("UTF-8")
    }

    fn next(reader: &mut Reader) -> String {
        let chunk = reader.take().expect("lines");
        reader.wrote(chunk.bytes.len());
        text(&chunk)
    }

    #[test]
    fn a_reader_that_is_stuck_costs_lines_and_no_memory_and_is_waited_for_once() {
        let (console, mut reader) = Console::new(Format::Text);
        let block = b"0123456789abcde\n".repeat(1000);
        let begin = Instant::now();
        for _ in 0..10_000 {
            put(&console, &block); // 160 MB
        }
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        let waiting = console.shared.lock().buffer.capacity();
        assert!(waiting <= 2 * CAPACITY, "{waiting}");
        console.message(
            "info",
            Some("web"),
            "there is room for a word of the daemon's own",
        );
        let first = reader.take().expect("lines");
        let kept = first.bytes.iter().filter(|b| **b == b'\n').count() as u64;
        let lost = console.lost();
        assert_eq!(
            lost.lines,
            10_000_000 - (kept - 2),
            "what is not there is counted"
        );
        assert_eq!(lost.bytes, lost.lines * 16);
        reader.wrote(first.bytes.len());
        put(&console, b"after\n");
        let said = format!(
            "rsup | warn: {} bytes in {} lines were lost here: the reader is too slow\n",
            lost.bytes, lost.lines
        );
        assert!(text(&first).contains(&said));
        assert_eq!(next(&mut reader), "after\n");
        console.close();
        assert!(reader.take().is_none());
    }

    #[test]
    fn a_loss_is_told_even_if_nothing_follows() {
        let (console, mut reader) = Console::new(Format::Json);
        let block = b"0123456789abcde\n".repeat(CAPACITY / 16);
        put(&console, &block);
        put(&console, &block);
        assert_eq!(next(&mut reader).len(), block.len());
        let told: serde_json::Value = serde_json::from_str(&next(&mut reader)).expect("JSON");
        assert_eq!(
            (&told["stream"], &told["level"]),
            (&"rsup".into(), &"warn".into())
        );
        assert!(told["line"].as_str().is_some_and(|line| line.starts_with("1048576 bytes in 65536 lines were lost here")));
    }

    #[test]
    fn an_output_that_works_again_says_what_it_lacks() {
        let (console, mut reader) = Console::new(Format::Text);
        put(&console, b"one\ntwo\n");
        let chunk = reader.take().expect("lines");
        reader.wrote(4);
        assert!(!reader.is_failing());
        reader.failed(&chunk, 4, "No space left on device");
        for _ in 0..2 {
            let told = reader.take().expect("what is lost");
            assert!(
                text(&told).contains("4 bytes in 1 lines were lost here: No space left on device"),
                "{}",
                text(&told)
            );
            assert!(reader.is_failing(), "only the first is worth a word");
            reader.failed(&told, 0, "No space left on device");
        }
        put(&console, b"three\n");
        let last = next(&mut reader);
        assert!(
            last.contains(" 4 bytes in 1 lines") && last.ends_with("\nthree\n"),
            "{last}"
        );
        assert_eq!(console.lost(), Loss { bytes: 4, lines: 1 });
        console.close();
        assert!(reader.take().is_none());
    }

    #[test]
    fn a_slow_reader_is_waited_for() {
        let (console, mut reader) = Console::new(Format::Text);
        let thread = std::thread::spawn(move || {
            let mut lines = 0;
            while let Some(chunk) = reader.take() {
                for piece in chunk.bytes.chunks(16 << 10) {
                    std::thread::sleep(Duration::from_micros(50));
                    reader.wrote(piece.len());
                }
                lines += chunk.bytes.iter().filter(|b| **b == b'\n').count();
            }
            lines
        });
        let block = b"0123456789abcde\n".repeat(4000);
        for _ in 0..300 {
            console.lines(&block, &mut Duration::from_secs(60));
        }
        console.close();
        assert_eq!(
            (thread.join().expect("the reader"), console.lost()),
            (1_200_000, Loss::default())
        );
    }

    #[test]
    fn a_round_of_the_pump_is_held_up_no_longer_than_patience_lasts() {
        let (console, mut reader) = Console::new(Format::Text);
        // It takes bytes, but far too slowly.
        let slow = std::thread::spawn(move || {
            while let Some(chunk) = reader.take() {
                for piece in chunk.bytes.chunks(1 << 10) {
                    std::thread::sleep(Duration::from_millis(1));
                    reader.wrote(piece.len());
                }
            }
        });
        let block = b"0123456789abcde\n".repeat(4000);
        let (begin, mut patience) = (Instant::now(), PATIENCE);
        for _ in 0..200 {
            console.lines(&block, &mut patience); // 12.8 MB at 1 MB/s or less
        }
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "{:?}",
            begin.elapsed()
        );
        assert!(patience.is_zero() && console.lost().lines > 0);
        console.close();
        slow.join().expect("the reader");
    }

    #[test]
    fn lines_say_whose_they_are() {
        let source = Source {
            app: "api".into(),
            instance: 3,
            key: 1,
        };
        let (mut prefix, (text, _), (json, _)) = (
            Vec::new(),
            Console::new(Format::Text),
            Console::new(Format::Json),
        );
        let mut of = |console: &Console, stream| {
            console.prefix(&source, stream, &mut prefix);
            String::from_utf8(prefix.clone()).expect("UTF-8")
        };
        assert!(of(&text, Stream::Out).ends_with("Z api:3 | "));
        assert!(of(&text, Stream::Err).ends_with("Z api:3 err | "));
        assert!(
            of(&json, Stream::Err).ends_with(r#","app":"api","instance":3,"stream":"err","line":"#)
        );
    }
}
