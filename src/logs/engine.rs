//! The pump's thread: waits for pipes and commands, moves lines from the pipes to the files.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use memchr::memrchr_iter;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc::UnboundedSender;

use super::compress::Compressor;
use super::console::{Console, PATIENCE};
use super::file::{AllNames, Common, LogFile};
use super::format::{self, Style};
use super::frame::{Record, Unfinished};
use super::hand::Hands;
use super::journal::{About, Journal, Phase};
use super::pipe::set_nonblocking;
use super::pump::{Command, Detached};
use super::tail::{self, Tail};
use super::{Event, Settings, Source, Stats, Stream, TailLine};

/// An unfinished line that got nothing for this long is written as far as it is, so that a prompt
/// becomes visible. Long, because whole lines matter more.
pub const QUIET: Duration = Duration::from_secs(2);

/// Formatted lines are written at the latest when they have this many bytes.
const BATCH: usize = 512 << 10;
/// The same for the console.
const SHOWN: usize = 64 << 10;
/// Bytes. A pipe holds no more than this by default, so one read empties it.
const PIPE: usize = 1 << 20;
const WAKE: u64 = 0;
/// How long the end of the pump waits for disks that do not answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// One pipe and its place in the files.
struct Flow {
    lane: Lane,
    pipe: Arc<OwnedFd>,
    /// When bytes were last added to the unfinished line.
    touched: Instant,
}

/// A stream of lines, from a pipe or from the journal.
struct Lane {
    source: Source,
    stream: Stream,
    unfinished: Unfinished,
    style: Style,
    path: Arc<Path>,
    /// Its place in the journal.
    slot: Option<usize>,
}

#[derive(Default)]
struct Worker {
    tail: Tail,
    /// The numbers of its pipes.
    flows: Vec<u64>,
    forgotten: bool,
}

/// The result of a read.
enum Got {
    Bytes(usize),
    Nothing,
    End,
}

/// Buffers that all pipes share.
struct Buffers {
    lines: Vec<u8>,
    prefix: Vec<u8>,
    shown: Option<Shown>,
}

/// The lines of a batch, formatted for the console.
struct Shown {
    console: Console,
    /// How long it may still hold up this round.
    patience: Duration,
    lines: Vec<u8>,
    prefix: Vec<u8>,
}

pub(super) struct Engine {
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: mpsc::Receiver<Command>,
    flows: BTreeMap<u64, Flow>,
    next_flow: u64,
    workers: HashMap<u64, Worker>,
    files: HashMap<Arc<Path>, LogFile>,
    buffers: Buffers,
    journal: Journal,
    common: Common,
    /// When lines or files have to be checked again.
    check: Option<Instant>,
}

impl Engine {
    pub fn new(
        commands: mpsc::Receiver<Command>,
        wake: Arc<EventFd>,
        events: UnboundedSender<Event>,
        journal: Journal,
    ) -> io::Result<Engine> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let compressor = Compressor::start(events.clone())?;
        Ok(Engine {
            epoll,
            wake: wake.clone(),
            commands,
            flows: BTreeMap::new(),
            next_flow: WAKE + 1,
            workers: HashMap::new(),
            files: HashMap::new(),
            buffers: Buffers {
                lines: Vec::with_capacity(BATCH),
                prefix: Vec::new(),
                shown: None,
            },
            journal,
            common: Common {
                stats: Stats::default(),
                events,
                names: AllNames::default(),
                compressor,
                hands: Hands::start(wake)?,
            },
            check: None,
        })
    }

    /// Runs until it is told to shut down, or until the last handle is dropped.
    pub fn run(mut self) {
        self.recover();
        let mut ready = [EpollEvent::empty(); 64];
        loop {
            // Fails only for a signal.
            let count = self.epoll.wait(&mut ready, self.timeout()).unwrap_or(0);
            if let Some(shown) = &mut self.buffers.shown {
                shown.patience = PATIENCE;
            }
            for event in &ready[..count] {
                match event.data() {
                    WAKE => {
                        let _ = self.wake.read();
                        self.collect();
                    }
                    id => {
                        self.turn(id);
                    }
                }
            }
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Shutdown) | Err(mpsc::TryRecvError::Disconnected) => {
                        return self.finish();
                    }
                    Ok(command) => self.obey(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.checks();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let Some(check) = self.check else {
            return EpollTimeout::NONE;
        };
        // Rounded up: waking a millisecond too early would be useless.
        let millis = check.saturating_duration_since(Instant::now()).as_millis() + 1;
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn check_at(&mut self, when: Instant) {
        self.check = Some(self.check.map_or(when, |check| check.min(when)));
    }

    /// Completes the batch during which the former pump was killed.
    fn recover(&mut self) {
        if let Some(pending) = self.journal.pending() {
            self.redo(pending.slot, pending.phase, |file, common| {
                pending.skip(|identity| file.size_of(identity, common))
            });
        }
    }

    /// Completes a batch of a stream that is not attached: `skip` returns what is in the file
    /// already.
    fn redo(
        &mut self,
        slot: usize,
        phase: Phase,
        skip: impl FnOnce(&mut LogFile, &mut Common) -> u64,
    ) {
        let Some(About {
            source,
            stream,
            settings,
        }) = self.journal.about(slot)
        else {
            return self.journal.give_up();
        };
        let path = self.acquire(settings.path(stream), &source.app, &settings);
        if let Some(file) = self.files.get_mut(&path) {
            let skip = skip(file, &mut self.common);
            self.journal.again(skip);
            let mut lane = Lane {
                source,
                stream,
                unfinished: self.journal.unfinished(slot),
                style: (&settings).into(),
                path: path.clone(),
                slot: Some(slot),
            };
            let now = Instant::now();
            let (journal, common) = (&mut self.journal, &mut self.common);
            lane.work_off(
                phase,
                skip,
                now,
                file,
                None,
                journal,
                &mut self.buffers,
                common,
            );
        }
        self.release(&path);
    }

    /// Reads once from a pipe and writes the lines that are then complete.
    fn turn(&mut self, id: u64) -> Got {
        let Some(flow) = self.flows.get_mut(&id) else {
            return Got::Nothing;
        };
        match self.journal.read(flow.lane.slot, &flow.pipe) {
            Ok(0) => {
                self.end(id);
                Got::End
            }
            Ok(n) => {
                let now = Instant::now();
                flow.touched = now;
                self.common.stats.bytes += n as u64;
                self.emit(id, now, Phase::Feed);
                if self
                    .flows
                    .get(&id)
                    .is_some_and(|f| !f.lane.unfinished.is_empty())
                {
                    self.check_at(now + QUIET);
                }
                Got::Bytes(n)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Got::Nothing,
            Err(error) => {
                bad_pipe(&self.common, &flow.lane.source, flow.lane.stream, &error);
                self.end(id);
                Got::End
            }
        }
    }

    /// Formats the records of a batch and writes them to the flow's file.
    fn emit(&mut self, id: u64, now: Instant, phase: Phase) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return self.journal.give_up();
        };
        let Some(file) = self.files.get_mut(&flow.lane.path) else {
            return self.journal.give_up();
        };
        let worker = self.workers.get_mut(&flow.lane.source.key);
        if phase != Phase::Feed {
            self.journal.begin(flow.lane.slot, phase);
        }
        flow.lane.work_off(
            phase,
            0,
            now,
            file,
            worker.map(|w| &mut w.tail),
            &mut self.journal,
            &mut self.buffers,
            &mut self.common,
        );
        if let Some(due) = file.due() {
            self.check_at(due);
        }
    }

    /// Reads what is in a pipe now, at most `limit` bytes.
    fn drain(&mut self, id: u64, limit: usize) {
        let mut sum = 0;
        while sum < limit
            && let Got::Bytes(n) = self.turn(id)
        {
            sum += n;
        }
    }

    /// Ends a pipe: its last line is complete as it is.
    fn end(&mut self, id: u64) {
        self.emit(id, Instant::now(), Phase::Finish);
        self.remove(id);
    }

    fn remove(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        let _ = self.epoll.delete(&flow.pipe);
        self.journal.release(flow.lane.slot);
        self.release(&flow.lane.path);
        if let Some(worker) = self.workers.get_mut(&flow.lane.source.key) {
            worker.flows.retain(|other| *other != id);
            if worker.forgotten && worker.flows.is_empty() {
                self.workers.remove(&flow.lane.source.key);
            }
        }
        Some(flow)
    }

    /// Closes a file that has no stream any more.
    fn release(&mut self, path: &Arc<Path>) {
        if let Some(file) = self.files.get_mut(path) {
            file.users = file.users.saturating_sub(1);
            if file.users == 0 {
                let now = Instant::now();
                file.collect(now, &mut self.common);
                file.retry(now, &mut self.common);
            }
            self.end_unused(path);
        }
    }

    /// Ends a file without a stream. One whose disk does not answer stays: each of its apps' starts would
    /// leave another thread behind otherwise.
    fn end_unused(&mut self, path: &Path) {
        if self
            .files
            .get(path)
            .is_some_and(|file| file.users == 0 && !file.is_away())
            && let Some(file) = self.files.remove(path)
        {
            file.end(&mut self.common);
        }
    }

    /// Continues with files whose disks have answered at last.
    fn collect(&mut self) {
        let now = Instant::now();
        let mut back = Vec::new();
        for (path, file) in self.files.iter_mut().filter(|(_, file)| file.is_away()) {
            file.collect(now, &mut self.common);
            back.push(path.clone());
        }
        for path in back {
            if let Some(due) = self.files.get(&path).and_then(LogFile::due) {
                self.check_at(due);
            }
            self.end_unused(&path);
        }
    }

    /// The file at `path`, with one more user and these settings.
    fn acquire(&mut self, path: &Path, app: &Arc<str>, settings: &Settings) -> Arc<Path> {
        let path = match self.files.get_key_value(path) {
            Some((path, _)) => path.clone(),
            None => Arc::from(path),
        };
        let file = self
            .files
            .entry(path.clone())
            .or_insert_with(|| LogFile::new(path.clone(), app.clone(), settings, &mut self.common));
        file.configure(settings);
        file.users += 1;
        path
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach { stream, settings } => self.attach(stream, &settings),
            Command::Tail { key, reply } => {
                let _ = reply.send(self.tail(key));
            }
            Command::Forget { key } => {
                if let Some(worker) = self.workers.get_mut(&key) {
                    worker.forgotten = true;
                    if worker.flows.is_empty() {
                        self.workers.remove(&key);
                    }
                }
            }
            Command::Detach { key, reply } => {
                let mut given = Vec::new();
                for id in self.ids(key) {
                    if let Some(Flow { lane, pipe, .. }) = self.remove(id) {
                        given.push(Detached {
                            source: lane.source,
                            stream: lane.stream,
                            pipe,
                            unfinished: lane.unfinished,
                        });
                    }
                }
                let _ = reply.send(given);
            }
            Command::Configure { app, settings } => self.configure(&app, &settings),
            Command::Note {
                app,
                settings,
                text,
            } => {
                let path = self.acquire(&settings.out, &app, &settings);
                if let Some(file) = self.files.get_mut(&path) {
                    file.note(&text, Instant::now(), &mut self.common);
                }
                self.release(&path);
            }
            Command::Adopted => {
                for slot in self.journal.unclaimed() {
                    self.journal.begin(Some(slot), Phase::Finish);
                    self.redo(slot, Phase::Finish, |_, _| 0);
                    self.journal.release(Some(slot));
                }
            }
            Command::Show { console } => {
                self.buffers.shown = Some(Shown {
                    console,
                    patience: PATIENCE,
                    lines: Vec::new(),
                    prefix: Vec::new(),
                });
            }
            Command::Reopen => {
                for file in self.files.values_mut() {
                    file.close(&mut self.common);
                }
            }
            Command::Flush { reply } => {
                self.ids(None)
                    .into_iter()
                    .for_each(|id| self.drain(id, PIPE));
                let _ = reply.send(());
            }
            Command::Stats { reply } => {
                let mut stats = self.common.stats.clone();
                stats.pipes = self.flows.len();
                stats.files = self.files.values().map(LogFile::stats).collect();
                stats.files.sort_by(|a, b| a.path.cmp(&b.path));
                let _ = reply.send(stats);
            }
            Command::Shutdown => {} // the loop has seen to it
        }
    }

    fn attach(&mut self, stream: Detached, settings: &Settings) {
        let Detached {
            source,
            stream,
            pipe,
            unfinished,
        } = stream;
        let id = self.next_flow;
        self.next_flow += 1;
        let watched = set_nonblocking(&pipe).and_then(|()| {
            Ok(self
                .epoll
                .add(&pipe, EpollEvent::new(EpollFlags::EPOLLIN, id))?)
        });
        if let Err(error) = watched {
            bad_pipe(&self.common, &source, stream, &error);
            return;
        }
        let path = self.acquire(settings.path(stream), &source.app, settings);
        self.workers.entry(source.key).or_default().flows.push(id);
        let about = About {
            source,
            stream,
            settings: settings.clone(),
        };
        let (slot, kept) = self.journal.claim(&about);
        let given = unfinished != Unfinished::default();
        if given {
            self.journal.keep(slot, &unfinished);
        }
        let touched = Instant::now();
        let lane = Lane {
            source: about.source,
            stream,
            unfinished: if given { unfinished } else { kept },
            style: settings.into(),
            path,
            slot,
        };
        if !lane.unfinished.is_empty() {
            self.check_at(touched + QUIET);
        }
        self.flows.insert(
            id,
            Flow {
                lane,
                pipe,
                touched,
            },
        );
    }

    fn configure(&mut self, app: &Arc<str>, settings: &Settings) {
        for id in self.ids(None) {
            let Some(flow) = self
                .flows
                .get_mut(&id)
                .filter(|f| f.lane.source.app == *app)
            else {
                continue;
            };
            let lane = &mut flow.lane;
            lane.style = settings.into();
            let old = lane.path.clone();
            let stream = lane.stream;
            if let Some(slot) = lane.slot {
                let about = About {
                    source: lane.source.clone(),
                    stream,
                    settings: settings.clone(),
                };
                if !self.journal.describe(slot, &about) {
                    self.journal.release(lane.slot.take());
                }
            }
            let new = self.acquire(settings.path(stream), app, settings);
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.lane.path = new;
            }
            self.release(&old);
        }
    }

    fn tail(&mut self, key: u64) -> Vec<TailLine> {
        let ids = self.ids(Some(key));
        ids.iter().for_each(|id| self.drain(*id, PIPE));
        let mut lines = self
            .workers
            .get(&key)
            .map(|w| w.tail.lines())
            .unwrap_or_default();
        for lane in ids
            .iter()
            .filter_map(|id| self.flows.get(id))
            .map(|f| &f.lane)
            .filter(|l| !l.unfinished.is_empty())
        {
            lines.push(TailLine {
                stream: lane.stream,
                text: tail::text(&lane.unfinished.bytes),
            });
        }
        let surplus = lines.len().saturating_sub(tail::LINES);
        lines.split_off(surplus)
    }

    /// The flows of one worker, or all.
    fn ids(&self, key: Option<u64>) -> Vec<u64> {
        match key {
            None => self.flows.keys().copied().collect(),
            Some(key) => {
                let worker = self.workers.get(&key);
                worker.map(|w| w.flows.clone()).unwrap_or_default()
            }
        }
    }

    /// Writes lines that have been quiet for long, and retries failed files.
    fn checks(&mut self) {
        let now = Instant::now();
        if self.check.is_none_or(|check| now < check) {
            return;
        }
        self.check = None;
        for id in self.ids(None) {
            let Some(flow) = self.flows.get(&id) else {
                continue;
            };
            let due = flow.touched + QUIET;
            if !flow.lane.unfinished.is_empty() && due <= now {
                self.emit(id, now, Phase::Cut);
            }
            // Half a character may remain of it.
            if let Some(flow) = self.flows.get(&id)
                && !flow.lane.unfinished.is_empty()
            {
                self.check_at(due.max(now + Duration::from_millis(1)));
            }
        }
        let mut next = None;
        for file in self.files.values_mut() {
            if file.due().is_some_and(|due| due <= now) {
                file.tend(now, &mut self.common);
            }
            next = [next, file.due()].into_iter().flatten().min();
        }
        if let Some(next) = next {
            self.check_at(next);
        }
    }

    /// Empties the pipes. A worker that keeps writing does not keep the pump from ending.
    fn finish(mut self) {
        for id in self.ids(None) {
            self.drain(id, 4 * PIPE);
            self.end(id);
        }
        // Those that are left wait for their disks.
        let deadline = Instant::now() + FAREWELL;
        for (_, mut file) in self.files.drain() {
            file.wait(deadline, &mut self.common);
            file.end(&mut self.common);
        }
    }
}

impl Shown {
    fn record(&mut self, record: Record<'_>) {
        format::record(self.console.format(), &self.prefix, record, &mut self.lines);
        if self.lines.len() >= SHOWN {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.lines.is_empty() {
            self.console.lines(&self.lines, &mut self.patience);
            self.lines.clear();
        }
    }
}

impl Lane {
    /// Processes one batch: formats its records, writes them without the first `skip` bytes, and
    /// records what remains.
    #[allow(
        clippy::too_many_arguments,
        reason = "parts of the engine, borrowed one by one"
    )]
    fn work_off(
        &mut self,
        phase: Phase,
        mut skip: u64,
        now: Instant,
        file: &mut LogFile,
        mut tail: Option<&mut Tail>,
        journal: &mut Journal,
        buffers: &mut Buffers,
        common: &mut Common,
    ) {
        let Buffers {
            lines,
            prefix,
            shown,
        } = buffers;
        // A batch that is repeated for a killed pump goes to the files alone.
        let mut shown = shown.as_mut().filter(|_| tail.is_some());
        if let Some(shown) = &mut shown {
            shown
                .console
                .prefix(&self.source, self.stream, &mut shown.prefix);
        }
        if skip > 0 {
            prefix.clear();
            prefix.extend_from_slice(journal.prefix());
        } else {
            format::prefix(self.style, &self.source, self.stream, prefix);
            journal.keep_prefix(prefix);
        }
        let notes: &Journal = journal;
        let mut write = |lines: &mut Vec<u8>, common: &mut Common| {
            let from = usize::try_from(skip).unwrap_or(usize::MAX).min(lines.len());
            skip -= from as u64;
            if from < lines.len() {
                if from > 0 && lines[from - 1] != b'\n' {
                    file.go_on();
                }
                file.write(lines, from, now, common, Some(notes));
            }
            lines.clear();
        };
        let chunk = notes.chunk();
        // Only the last lines of the chunk can stay in the tail, so it gets no others.
        let tail_from = match phase {
            Phase::Feed => memrchr_iter(b'\n', chunk).nth(tail::LINES).unwrap_or(0),
            Phase::Cut | Phase::Finish | Phase::Idle => 0,
        };
        lines.clear();
        let mut records = 0;
        let (format, stream) = (self.style.format, self.stream);
        let emit = |record: Record<'_>| {
            format::record(format, prefix, record, lines);
            records += 1;
            if let Some(shown) = &mut shown {
                shown.record(record);
            }
            if record.end >= tail_from
                && let Some(tail) = &mut tail
            {
                tail.push(stream, record.bytes);
            }
            if lines.len() >= BATCH {
                write(lines, common);
            }
        };
        match phase {
            Phase::Feed => self.unfinished.feed(chunk, emit),
            Phase::Cut => self.unfinished.cut(emit),
            Phase::Finish => self.unfinished.finish(emit),
            Phase::Idle => {}
        }
        if !lines.is_empty() {
            write(lines, common);
        }
        if let Some(shown) = shown {
            shown.flush();
        }
        common.stats.lines += records;
        journal.commit(&self.unfinished, records == 0);
    }
}

fn bad_pipe(common: &Common, source: &Source, stream: Stream, error: &io::Error) {
    let (source, error) = (source.clone(), error.to_string());
    let _ = common.events.send(Event::BadPipe {
        source,
        stream,
        error,
    });
}
