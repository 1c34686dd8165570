//! What must survive when the pump's process is killed, in memory that outlives it.
//!
//! The pump takes bytes out of a pipe into the *spool*, formats them and appends them to a file, a
//! *batch* at a time. At any moment another process can see how far that got:
//!
//! * how much was taken: by the position of the memfd, see [`Durable`];
//! * the stream of the bytes, and what of them is in the file, by the record ([`Phase`]); and what
//!   of a write that may have been under way, by the size of the file against the size in the
//!   record;
//! * how the batch ended: its last record has that, in one store.
//!
//! A successor repeats the batch ([`Pending`]), with the same bytes, the same unfinished line and
//! the same prefix, so that it produces the same text, and skips what is in the file already.
//!
//! Each stream has a *slot* with its unfinished line, in one of two halves: the other half is
//! filled while this one may still be needed.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use serde::{Deserialize, Serialize};

use super::{MAX_LINE, Settings, Source, Stream, Unfinished};
use crate::sys::durable::Durable;

/// Bytes that one pipe may deliver before the others have their turn. Fits the processor's cache
/// together with the formatted lines.
pub(super) const TURN: usize = 256 << 10;

/// Streams beyond these are read like all others, but do not survive a kill.
const SLOTS: usize = 4096;
const SPOOL: usize = 2 * TURN;
/// Bytes of the longest prefix of a line. Names of apps are far shorter.
const PREFIX: usize = 4096;
/// Bytes for the description of a stream and its files.
const ABOUT: usize = 8192;
const STRIDE: usize = ABOUT + 2 * MAX_LINE;
const BYTES: usize = SPOOL + PREFIX + SLOTS * STRIDE;
/// Bytes: an emptied half that took more is given back.
const KEEP: usize = 4096;

/// Identifies a journal and its layout.
const MAGIC: u64 = u64::from_le_bytes(*b"rsuplog1");

// Indexes of words.
const IS: usize = 0;
/// Which of the two records is valid.
const ACTIVE: usize = 1;
/// The position up to which the spool is processed.
const DONE: usize = 2;
const PREFIX_LEN: usize = 3;
const RECORDS: usize = 8;
const RECORD: usize = 8;
const HEADS: usize = 64;
/// Words of each slot: whether (and by which stream) it is used, the key, the state of its
/// unfinished line.
const HEAD: usize = 4;
const USED: usize = 0;
const KEY: usize = 1;
const STATE: usize = 2;
/// Whole pages.
const WORDS: usize = (HEADS + SLOTS * HEAD).next_multiple_of(512);

/// The content of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is under way; the last batch, if any, is complete.
    Idle = 0,
    /// What is in the spool.
    Feed = 1,
    /// The unfinished line, as a part.
    Cut = 2,
    /// The unfinished line, as the last one.
    Finish = 3,
}

/// A stream: what is needed to write its lines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct About {
    pub source: Source,
    pub stream: Stream,
    pub settings: Settings,
}

/// A batch that the former pump left half done.
#[derive(Debug)]
pub(super) struct Pending {
    pub slot: usize,
    pub phase: Phase,
    /// Formatted bytes that were certainly written.
    written: u64,
    /// The write that may have been under way.
    intent: Intent,
}

/// An intent to append `len` bytes to a file of `size` bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Intent {
    identity: (u64, u64),
    size: u64,
    len: u64,
}

impl Pending {
    /// The number of formatted bytes of the batch that are in the log. `size_of` finds the size of the file of
    /// an identity among those of the log, wherever it was rotated to meanwhile.
    pub fn skip(&self, size_of: impl FnOnce((u64, u64)) -> Option<u64>) -> u64 {
        let Intent {
            identity,
            size,
            len,
        } = self.intent;
        if len == 0 || identity == (0, 0) {
            return self.written;
        }
        // The size of a file that is gone, or has shrunk, shows nothing: lines twice are better
        // than lines lost.
        let found = size_of(identity);
        self.written + found.map_or(0, |now| now.saturating_sub(size).min(len))
    }
}

/// The state of a slot, as packed into its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    len: usize,
    half: bool,
    continued: bool,
}

impl State {
    fn pack(self) -> u64 {
        self.len as u64 | u64::from(self.half) << 32 | u64::from(self.continued) << 33
    }

    fn unpack(word: u64) -> State {
        let len = usize::try_from(word & 0xffff_ffff)
            .unwrap_or(usize::MAX)
            .min(MAX_LINE);
        State {
            len,
            half: word >> 32 & 1 == 1,
            continued: word >> 33 & 1 == 1,
        }
    }

    fn range(self, slot: usize) -> Range<usize> {
        let start = base(slot) + ABOUT + usize::from(self.half) * MAX_LINE;
        start..start + self.len
    }
}

fn base(slot: usize) -> usize {
    SPOOL + PREFIX + slot * STRIDE
}

/// The memory of a pump: what it has read and not yet written. A descriptor that another process
/// holds too outlives the pump's process, and the next pump continues with it.
#[derive(Debug)]
pub struct Journal {
    memory: Durable,
    /// As in the words.
    done: usize,
    /// The end of the batch in the spool.
    end: usize,
    /// Slot of the batch.
    slot: Option<usize>,
    phase: Phase,
    /// Formatted bytes of the batch that are written or lost.
    out: Cell<u64>,
    /// Slots whose stream is attached here.
    taken: Vec<bool>,
}

impl Journal {
    /// An empty journal, for [`Pump::start_with_journal`](super::Pump::start_with_journal). A
    /// successor needs this descriptor or a duplicate of it (inherited, or passed over a socket),
    /// not one that was opened anew through `/proc`. Uses only as much memory as needed. `folder`
    /// is used where a sandbox refuses memfds.
    ///
    /// # Errors
    /// When there are no file descriptors left, or files may not be larger than some hundred MiB.
    pub fn create(folder: &Path) -> io::Result<OwnedFd> {
        Durable::create(c"rsup-logs", folder, WORDS, BYTES)
    }

    /// Continues with a journal. The process that used it before is dead.
    pub(super) fn open(fd: OwnedFd) -> io::Result<Journal> {
        let mut memory = Durable::map(fd, WORDS, BYTES)?;
        if memory.words()[IS].load(Ordering::Relaxed) == 0 {
            memory.seek(0)?;
            // Allocates the memory now: later a lack of it could not be handled.
            memory.bytes_mut()[..SPOOL + PREFIX].fill(0);
            memory.words()[IS].store(MAGIC, Ordering::Relaxed);
        }
        let mut journal = Journal {
            memory,
            done: 0,
            end: 0,
            slot: None,
            phase: Phase::Idle,
            out: Cell::new(0),
            taken: vec![false; SLOTS],
        };
        if journal.get(IS) != MAGIC {
            return Err(ErrorKind::InvalidInput.into());
        }
        let [phase, slot, state, done, ..] = journal.record();
        if phase == Phase::Idle as u64 {
            journal.apply(
                usize::try_from(slot).ok().filter(|s| *s < SLOTS),
                state,
                done,
            );
        }
        journal.done = usize::try_from(journal.get(DONE)).unwrap_or(0).min(SPOOL);
        journal.end = journal.memory.position()?.min(SPOOL);
        if journal.end < journal.done {
            // The pump was about to begin at the front again.
            journal.done = journal.end;
            journal.set(DONE, journal.done as u64);
        }
        Ok(journal)
    }

    /// The batch that the former pump left unfinished; it must be completed first.
    pub(super) fn pending(&mut self) -> Option<Pending> {
        let [phase, slot, written, dev, ino, size, len] = self.record();
        let phase = match phase {
            1 if self.end > self.done => Phase::Feed,
            2 => Phase::Cut,
            3 => Phase::Finish,
            _ => Phase::Idle,
        };
        let slot = usize::try_from(slot)
            .ok()
            .filter(|s| *s < SLOTS && phase != Phase::Idle);
        let Some(slot) = slot else {
            self.give_up();
            return None;
        };
        (self.slot, self.phase) = (Some(slot), phase);
        let intent = Intent {
            identity: (dev, ino),
            size,
            len,
        };
        Some(Pending {
            slot,
            phase,
            written,
            intent,
        })
    }

    /// Repeats a pending batch; its first `skip` formatted bytes are written.
    pub(super) fn again(&mut self, skip: u64) {
        self.out.set(skip);
    }

    /// Drops the batch under way.
    pub(super) fn give_up(&mut self) {
        self.slot = None;
        self.commit(&Unfinished::default(), false);
    }

    /// Slots of streams that were not attached.
    pub(super) fn unclaimed(&self) -> Vec<usize> {
        (0..SLOTS)
            .filter(|slot| !self.taken[*slot] && self.head(*slot, USED) != 0)
            .collect()
    }

    /// A slot for a stream, and its unfinished line. No slot if all are taken, or if the stream
    /// can't be described.
    pub(super) fn claim(&mut self, about: &About) -> (Option<usize>, Unfinished) {
        let used = used(about.stream);
        let mut free = None;
        let mut own = None;
        for slot in 0..SLOTS {
            if self.taken[slot] {
                continue;
            }
            if self.head(slot, USED) == 0 {
                free = free.or(Some(slot));
            } else if self.head(slot, USED) == used && self.head(slot, KEY) == about.source.key {
                own = Some(slot);
                break;
            }
        }
        let Some(slot) = own.or(free) else {
            return (None, Unfinished::default());
        };
        let unfinished = if own.is_some() {
            self.unfinished(slot)
        } else {
            Unfinished::default()
        };
        if !self.describe(slot, about) {
            self.release(Some(slot));
            return (None, unfinished);
        }
        if own.is_none() {
            self.set_head(slot, KEY, about.source.key);
            self.keep(Some(slot), &unfinished);
            self.set_head(slot, USED, used);
        }
        self.taken[slot] = true;
        (Some(slot), unfinished)
    }

    /// Records what a stream is and where its lines go. False if that is impossible.
    pub(super) fn describe(&mut self, slot: usize, about: &About) -> bool {
        // A path that is not UTF-8 cannot be recorded.
        let Ok(text) = serde_json::to_vec(about) else {
            return false;
        };
        let room = &mut self.memory.bytes_mut()[base(slot)..base(slot) + ABOUT];
        let Some(rest) = room.len().checked_sub(text.len()) else {
            return false;
        };
        room[..text.len()].copy_from_slice(&text);
        if rest > 0 {
            room[text.len()] = 0;
        }
        true
    }

    /// The recorded description of a stream.
    pub(super) fn about(&self, slot: usize) -> Option<About> {
        let room = &self.memory.bytes()[base(slot)..base(slot) + ABOUT];
        let text = room.split(|byte| *byte == 0).next()?;
        serde_json::from_slice(text).ok()
    }

    /// The unfinished line of a stream.
    pub(super) fn unfinished(&self, slot: usize) -> Unfinished {
        let state = State::unpack(self.head(slot, STATE));
        Unfinished {
            bytes: self.memory.bytes()[state.range(slot)].to_vec(),
            continued: state.continued,
        }
    }

    /// Frees the slot of a stream that the pump has given up.
    pub(super) fn release(&mut self, slot: Option<usize>) {
        let Some(slot) = slot else { return };
        self.set_head(slot, USED, 0);
        self.taken[slot] = false;
        self.memory.discard(base(slot)..base(slot) + STRIDE);
    }

    /// Begins a batch of a stream.
    pub(super) fn begin(&mut self, slot: Option<usize>, phase: Phase) {
        (self.slot, self.phase) = (slot, phase);
        self.out.set(0);
        self.publish(phase, [0; 5]);
    }

    /// Begins a batch with what is in a pipe; returns its size.
    pub(super) fn read(&mut self, slot: Option<usize>, pipe: impl AsFd) -> io::Result<usize> {
        if SPOOL - self.done < TURN {
            return Err(ErrorKind::StorageFull.into());
        }
        self.begin(slot, Phase::Feed);
        let taken = self.memory.take(pipe, TURN)?;
        self.end = self.done + taken;
        Ok(taken)
    }

    /// The bytes of the batch.
    pub(super) fn chunk(&self) -> &[u8] {
        &self.memory.bytes()[self.done..self.end]
    }

    /// Records the prefix of the batch's lines, none of which is written yet.
    pub(super) fn keep_prefix(&mut self, prefix: &[u8]) {
        let len = prefix.len().min(PREFIX);
        self.memory.bytes_mut()[SPOOL..SPOOL + len].copy_from_slice(&prefix[..len]);
        self.set(PREFIX_LEN, len as u64);
    }

    /// The prefix of the batch's lines.
    pub(super) fn prefix(&self) -> &[u8] {
        let len = usize::try_from(self.get(PREFIX_LEN))
            .unwrap_or(0)
            .min(PREFIX);
        &self.memory.bytes()[SPOOL..SPOOL + len]
    }

    /// Records that the next `len` bytes are about to be appended to a file of this identity and
    /// size.
    pub(super) fn intend(&self, identity: (u64, u64), size: u64, len: usize) {
        self.publish(
            self.phase,
            [self.out.get(), identity.0, identity.1, size, len as u64],
        );
    }

    /// Records that this many bytes of the batch are written, or lost for good.
    pub(super) fn wrote(&self, len: u64) {
        self.out.set(self.out.get() + len);
        self.publish(self.phase, [self.out.get(), 0, 0, 0, 0]);
    }

    /// Completes the batch; `unfinished` is what remains for the next one. `longer`: it is the
    /// former unfinished line with bytes added.
    pub(super) fn commit(&mut self, unfinished: &Unfinished, longer: bool) {
        let mut spare = None;
        let mut state = 0;
        if let Some(slot) = self.slot {
            let old = State::unpack(self.head(slot, STATE));
            let mut new = State {
                len: unfinished.bytes.len().min(MAX_LINE),
                continued: unfinished.continued,
                ..old
            };
            let from = if longer && new.len >= old.len {
                old.len
            } else {
                0
            };
            if from == 0 && new.len > 0 {
                new.half = !old.half;
            }
            let room = new.range(slot);
            self.memory.bytes_mut()[room.start + from..room.end]
                .copy_from_slice(&unfinished.bytes[from..new.len]);
            state = new.pack();
            if old.len > KEEP && (new.half != old.half || new.len == 0) {
                spare = Some(old.range(slot));
            }
        }
        let (slot, done) = (self.slot, self.end as u64);
        self.phase = Phase::Idle;
        self.publish(Phase::Idle, [state, done, 0, 0, 0]);
        self.apply(slot, state, done);
        self.done = self.end;
        if SPOOL - self.done < TURN && self.memory.seek(0).is_ok() {
            compiler_fence(Ordering::SeqCst);
            self.set(DONE, 0);
            (self.done, self.end) = (0, 0);
        }
        if let Some(spare) = spare {
            self.memory
                .discard(spare.start + KEEP..spare.start + MAX_LINE);
        }
    }

    /// Records the unfinished line of a stream, outside of any batch.
    pub(super) fn keep(&mut self, slot: Option<usize>, unfinished: &Unfinished) {
        self.end = self.done;
        self.slot = slot;
        self.commit(unfinished, false);
    }

    fn apply(&self, slot: Option<usize>, state: u64, done: u64) {
        if let Some(slot) = slot {
            self.set_head(slot, STATE, state);
        }
        self.set(DONE, done);
    }

    /// Writes the invalid record, then makes it the valid one in one store.
    fn publish(&self, phase: Phase, rest: [u64; 5]) {
        let next = 1 - (self.get(ACTIVE) & 1);
        let words = self.place(next);
        let slot = self.slot.map_or(u64::MAX, |slot| slot as u64);
        for (word, value) in words
            .iter()
            .zip([phase as u64, slot].into_iter().chain(rest))
        {
            word.store(value, Ordering::Relaxed);
        }
        self.set(ACTIVE, next);
    }

    fn record(&self) -> [u64; 7] {
        let words = self.place(self.get(ACTIVE) & 1);
        std::array::from_fn(|n| words[n].load(Ordering::Relaxed))
    }

    fn place(&self, which: u64) -> &[AtomicU64] {
        let at = RECORDS + usize::from(which == 1) * RECORD;
        &self.memory.words()[at..at + RECORD]
    }

    fn get(&self, word: usize) -> u64 {
        self.memory.words()[word].load(Ordering::Relaxed)
    }

    /// Stores a word after all earlier stores, and before all later ones. Only the compiler is
    /// ordered: a process that dies has executed every instruction before.
    fn set(&self, word: usize, value: u64) {
        compiler_fence(Ordering::SeqCst);
        self.memory.words()[word].store(value, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    fn head(&self, slot: usize, word: usize) -> u64 {
        self.get(HEADS + slot * HEAD + word)
    }

    fn set_head(&self, slot: usize, word: usize, value: u64) {
        self.set(HEADS + slot * HEAD + word, value);
    }
}

fn used(stream: Stream) -> u64 {
    match stream {
        Stream::Out => 1,
        Stream::Err => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{Pump, pipe};
    use std::fs::File;

    use super::super::{place, rotate};
    use std::io::Write;
    use std::time::{Duration, Instant};
    use tokio::sync::mpsc::unbounded_channel;

    /// A journal and a stream, at a chosen moment; and the next pump.
    struct Scene {
        dir: tempfile::TempDir,
        memfd: OwnedFd,
        read: OwnedFd,
        write: File,
        about: About,
    }

    fn scene() -> Scene {
        let dir = tempfile::tempdir().expect("tempdir");
        let (read, write) = pipe().expect("pipe");
        let settings = Settings {
            timestamps: false,
            compress: false,
            ..Settings::new(dir.path().join("out"), dir.path().join("err"))
        };
        let source = Source {
            app: "api".into(),
            instance: 0,
            key: 5,
        };
        let about = About {
            source,
            stream: Stream::Out,
            settings,
        };
        Scene {
            dir,
            memfd: Journal::create(Path::new("/tmp")).expect("create"),
            read,
            write: write.into(),
            about,
        }
    }

    impl Scene {
        fn journal(&self) -> Journal {
            Journal::open(self.memfd.try_clone().expect("dup")).expect("open")
        }

        /// The content of the file when the next pump has had the rest of the stream.
        fn next(mut self, rest: &str) -> String {
            let (events, _troubles) = unbounded_channel();
            let pump = Pump::start_with_journal(events, self.memfd.try_clone().expect("dup"))
                .expect("start");
            pump.attach(
                self.about.source.clone(),
                Stream::Out,
                self.read,
                &self.about.settings,
            );
            self.write.write_all(rest.as_bytes()).expect("write");
            drop(self.write);
            pump.shutdown();
            drop(pump);
            let mut journal = Journal::open(self.memfd).expect("open");
            assert!(journal.pending().is_none() && journal.unclaimed().is_empty());
            String::from_utf8(crate::logs::tests::whole(&self.dir.path().join("out")))
                .expect("UTF-8")
        }
    }

    fn unfinished(bytes: &[u8]) -> Unfinished {
        Unfinished {
            bytes: bytes.to_vec(),
            continued: false,
        }
    }

    #[test]
    fn a_batch_goes_on_at_the_byte_where_it_was_left() {
        let text = b"hello\nworld\n";
        for (written, noted, rotated) in (0..=text.len()).flat_map(|n| {
            [
                (n, false, false),
                (n, true, false),
                (n, false, true),
                (n, true, true),
            ]
        }) {
            // rsup rotates between lines only.
            if rotated && text[..written].last() != Some(&b'\n') {
                continue;
            }
            let mut s = scene();
            let path = s.about.settings.out.clone();
            std::fs::write(&path, "old\n").expect("write");
            let mut journal = s.journal();
            let (slot, nothing) = journal.claim(&s.about);
            assert_eq!(nothing, Unfinished::default());
            journal.keep(slot, &unfinished(b"he"));
            s.write.write_all(b"llo\nworld\nre").expect("write");
            assert_eq!(journal.read(slot, &s.read).expect("read"), 12);
            journal.keep_prefix(b"");
            let mut file = File::options().append(true).open(&path).expect("open");
            journal.intend(
                place::identity(&nix::sys::stat::fstat(&file).expect("fstat")),
                4,
                text.len(),
            );
            file.write_all(&text[..written]).expect("write");
            if noted {
                journal.wrote(written as u64);
            }
            if rotated {
                let place = place::Place::find(&path, None, false).expect("place");
                rotate::shift(&place, 5).expect("shift");
            }
            drop(journal);
            assert_eq!(
                s.next("st\nend"),
                "old\nhello\nworld\nrest\nend\n",
                "{written} {noted} {rotated}"
            );
        }
    }

    #[test]
    fn a_batch_that_is_complete_is_not_done_again() {
        for step in 0..4 {
            let mut s = scene();
            std::fs::write(&s.about.settings.out, "one\n").expect("write");
            let mut journal = s.journal();
            let (slot, _) = journal.claim(&s.about);
            s.write.write_all(b"one\ntw").expect("write");
            journal.read(slot, &s.read).expect("read");
            // As `commit` does, up to the kill.
            let place = base(slot.expect("slot")) + ABOUT;
            journal.memory.bytes_mut()[place..place + 2].copy_from_slice(b"tw");
            let state = State {
                len: 2,
                half: false,
                continued: false,
            }
            .pack();
            journal.publish(Phase::Idle, [state, 6, 0, 0, 0]);
            if step > 0 {
                journal.apply(slot, state, 6);
            }
            if step > 1 {
                journal.memory.seek(0).expect("seek");
            }
            if step > 2 {
                journal.set(DONE, 0);
            }
            drop(journal);
            assert_eq!(s.next("o\n"), "one\ntwo\n", "{step}");
        }
    }

    #[test]
    fn what_nobody_attaches_is_written_when_all_others_are() {
        let s = scene();
        let mut journal = s.journal();
        let (slot, _) = journal.claim(&s.about);
        journal.keep(slot, &unfinished(b"last words"));
        drop(journal);
        let (events, _troubles) = unbounded_channel();
        let pump =
            Pump::start_with_journal(events, s.memfd.try_clone().expect("dup")).expect("start");
        pump.adopted();
        assert!(pump.stats().blocking_recv().is_ok());
        assert_eq!(
            std::fs::read(&s.about.settings.out).expect("read"),
            b"last words\n"
        );
        assert!(s.next("").ends_with("last words\n"));
    }

    #[test]
    fn a_quiet_line_is_still_written_after_the_change() {
        let mut s = scene();
        let mut journal = s.journal();
        let (slot, _) = journal.claim(&s.about);
        journal.keep(slot, &unfinished(b"Pass"));
        drop(journal);
        let (events, _troubles) = unbounded_channel();
        let pump =
            Pump::start_with_journal(events, s.memfd.try_clone().expect("dup")).expect("start");
        pump.attach(
            s.about.source.clone(),
            Stream::Out,
            s.read.try_clone().expect("dup"),
            &s.about.settings,
        );
        s.write.write_all(b"word: ").expect("write");
        let tail = pump.tail(5).blocking_recv().expect("tail");
        assert_eq!(
            tail.iter().map(|l| &l.text[..]).collect::<Vec<_>>(),
            ["Password: "]
        );
        let start = Instant::now();
        while std::fs::read(&s.about.settings.out)
            .is_ok_and(|text| text != "Password: …\n".as_bytes())
            || !s.about.settings.out.exists()
        {
            assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn something_else_is_no_journal() {
        let file = tempfile::tempfile().expect("tempfile");
        assert_eq!(
            Journal::open(file.into()).expect_err("a file").kind(),
            ErrorKind::InvalidInput
        );
        let other = Durable::create(c"other", Path::new("/tmp"), WORDS, 4096).expect("create");
        assert_eq!(
            Journal::open(other).expect_err("too small").kind(),
            ErrorKind::InvalidInput
        );
    }
}
