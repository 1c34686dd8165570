//! The pump's thread: waits for pipes and commands, moves lines from the one to the files.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use memchr::memrchr_iter;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc::UnboundedSender;

use super::compress::Compressor;
use super::file::{Common, LogFile};
use super::format::{self, Style};
use super::frame::{Record, Unfinished};
use super::pipe::set_nonblocking;
use super::pump::{Command, Detached};
use super::rotate::Names;
use super::tail::{self, Tail};
use super::{Event, Settings, Source, Stats, Stream, TailLine};

/// A line without an end that nothing was added to for this long is written as far as it is, so that
/// a prompt can be seen. Long, because whole lines matter more.
pub const QUIET: Duration = Duration::from_secs(2);

/// What one pipe may deliver before the others have their turn. Fits the processor's cache together
/// with what is made of it.
const TURN: usize = 256 << 10;
/// Formatted lines are written at the latest when there are so many bytes of them.
const BATCH: usize = 512 << 10;
/// A pipe holds no more than this (but the administrator may allow more), so this empties it.
const PIPE: usize = 1 << 20;
const WAKE: u64 = 0;

/// One pipe and its place in the files.
struct Flow {
    source: Source,
    stream: Stream,
    pipe: File,
    unfinished: Unfinished,
    /// When something was last added to the unfinished line.
    touched: Instant,
    style: Style,
    path: Arc<Path>,
}

#[derive(Default)]
struct Worker {
    tail: Tail,
    flows: usize,
    forgotten: bool,
}

/// What a read came to.
enum Got {
    Bytes(usize),
    Nothing,
    End,
}

/// What happens to a flow's lines.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// This was read.
    Feed(&'a [u8]),
    /// It has been quiet for long.
    Cut,
    /// It has ended.
    Finish,
}

/// Buffers that all pipes share.
struct Buffers {
    read: Vec<u8>,
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
    common: Common,
    /// When lines or files have to be looked at again.
    check: Option<Instant>,
}

impl Engine {
    pub fn new(commands: mpsc::Receiver<Command>, wake: Arc<EventFd>, events: UnboundedSender<Event>) -> io::Result<Engine> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let names = Arc::new(Names::default());
        let compressor = Compressor::start(names.clone(), events.clone())?;
        Ok(Engine {
            epoll,
            wake,
            commands,
            flows: BTreeMap::new(),
            next_flow: WAKE + 1,
            workers: HashMap::new(),
            files: HashMap::new(),
            buffers: Buffers { read: vec![0; TURN], lines: Vec::with_capacity(BATCH), prefix: Vec::new() },
            common: Common { stats: Stats::default(), events, names, compressor },
            check: None,
        })
    }

    /// Runs until told to shut down, or until nobody is left who could.
    pub fn run(mut self) {
        let mut ready = [EpollEvent::empty(); 64];
        loop {
            // It fails for a signal only.
            let count = self.epoll.wait(&mut ready, self.timeout()).unwrap_or(0);
            for event in &ready[..count] {
                match event.data() {
                    WAKE => {
                        let _ = self.wake.read();
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
        // Rounded up: a millisecond too early would be a turn for nothing.
        let millis = check.saturating_duration_since(Instant::now()).as_millis() + 1;
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn check_at(&mut self, when: Instant) {
        self.check = Some(self.check.map_or(when, |check| check.min(when)));
    }

    /// Reads once from a pipe and writes what lines that completes.
    fn turn(&mut self, id: u64) -> Got {
        let Some(flow) = self.flows.get_mut(&id) else {
            return Got::Nothing;
        };
        let read = loop {
            match flow.pipe.read(&mut self.buffers.read) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            Ok(0) => {
                self.end(id);
                Got::End
            }
            Ok(n) => {
                let now = Instant::now();
                flow.touched = now;
                self.common.stats.bytes += n as u64;
                let read = std::mem::take(&mut self.buffers.read);
                self.emit(id, now, Step::Feed(&read[..n]));
                self.buffers.read = read;
                if self.flows.get(&id).is_some_and(|f| !f.unfinished.is_empty()) {
                    self.check_at(now + QUIET);
                }
                Got::Bytes(n)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Got::Nothing,
            Err(error) => {
                bad_pipe(&self.common, &flow.source, flow.stream, &error);
                self.end(id);
                Got::End
            }
        }
    }

    /// Formats the records that a step yields and writes them to the flow's file.
    fn emit(&mut self, id: u64, now: Instant, step: Step<'_>) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let Some(file) = self.files.get_mut(&flow.path) else {
            return;
        };
        let mut tail = self.workers.get_mut(&flow.source.key).map(|w| &mut w.tail);
        let Buffers { lines, prefix, .. } = &mut self.buffers;
        let common = &mut self.common;
        // Only the last lines of the chunk can stay in the tail: don't bother it with the others.
        let tail_from = match step {
            Step::Feed(chunk) => memrchr_iter(b'\n', chunk).nth(tail::LINES).unwrap_or(0),
            Step::Cut | Step::Finish => 0,
        };
        format::prefix(flow.style, &flow.source, flow.stream, prefix);
        lines.clear();
        let emit = |record: Record<'_>| {
            format::record(flow.style.format, prefix, record, lines);
            common.stats.lines += 1;
            if record.end >= tail_from
                && let Some(tail) = &mut tail
            {
                tail.push(flow.stream, record.bytes);
            }
            if lines.len() >= BATCH {
                file.write(lines, now, common);
                lines.clear();
            }
        };
        match step {
            Step::Feed(chunk) => flow.unfinished.feed(chunk, emit),
            Step::Cut => flow.unfinished.cut(emit),
            Step::Finish => flow.unfinished.finish(emit),
        }
        if !lines.is_empty() {
            file.write(lines, now, common);
        }
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

    /// A pipe has ended: its last line is complete as it is.
    fn end(&mut self, id: u64) {
        self.emit(id, Instant::now(), Step::Finish);
        self.remove(id);
    }

    fn remove(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        let _ = self.epoll.delete(&flow.pipe);
        self.release(&flow.path);
        if let Some(worker) = self.workers.get_mut(&flow.source.key) {
            worker.flows -= 1;
            if worker.forgotten && worker.flows == 0 {
                self.workers.remove(&flow.source.key);
            }
        }
        Some(flow)
    }

    /// Closes a file that no stream writes to.
    fn release(&mut self, path: &Arc<Path>) {
        if let Some(file) = self.files.get_mut(path) {
            file.users = file.users.saturating_sub(1);
            if file.users == 0 {
                file.retry(Instant::now(), &mut self.common);
                self.files.remove(path);
            }
        }
    }

    /// The file at `path`, with one more user and these settings.
    fn acquire(&mut self, path: &Path, app: &Arc<str>, settings: &Settings) -> Arc<Path> {
        let path = match self.files.get_key_value(path) {
            Some((path, _)) => path.clone(),
            None => Arc::from(path),
        };
        let file = self.files.entry(path.clone()).or_insert_with(|| LogFile::new(path.clone(), app.clone(), settings));
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
                    if worker.flows == 0 {
                        self.workers.remove(&key);
                    }
                }
            }
            Command::Detach { key, reply } => {
                let mut given = Vec::new();
                for id in self.ids(key) {
                    if let Some(Flow { source, stream, pipe, unfinished, .. }) = self.remove(id) {
                        given.push(Detached { source, stream, pipe: OwnedFd::from(pipe), unfinished });
                    }
                }
                let _ = reply.send(given);
            }
            Command::Configure { app, settings } => self.configure(&app, &settings),
            Command::Note { app, settings, text } => {
                let path = self.acquire(&settings.out, &app, &settings);
                if let Some(file) = self.files.get_mut(&path) {
                    file.note(&text, Instant::now(), &mut self.common);
                }
                self.release(&path);
            }
            Command::Reopen => self.files.values_mut().for_each(LogFile::close),
            Command::Flush { reply } => {
                self.ids(None).into_iter().for_each(|id| self.drain(id, PIPE));
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
        let Detached { source, stream, pipe, unfinished } = stream;
        let id = self.next_flow;
        self.next_flow += 1;
        let watched =
            set_nonblocking(&pipe).and_then(|()| Ok(self.epoll.add(&pipe, EpollEvent::new(EpollFlags::EPOLLIN, id))?));
        if let Err(error) = watched {
            bad_pipe(&self.common, &source, stream, &error);
            return;
        }
        let path = self.acquire(settings.path(stream), &source.app, settings);
        self.workers.entry(source.key).or_default().flows += 1;
        let touched = Instant::now();
        if !unfinished.is_empty() {
            self.check_at(touched + QUIET);
        }
        let (pipe, style) = (File::from(pipe), settings.into());
        self.flows.insert(id, Flow { source, stream, pipe, unfinished, touched, style, path });
    }

    fn configure(&mut self, app: &Arc<str>, settings: &Settings) {
        for id in self.ids(None) {
            let Some(flow) = self.flows.get_mut(&id).filter(|f| f.source.app == *app) else {
                continue;
            };
            flow.style = settings.into();
            let old = flow.path.clone();
            let stream = flow.stream;
            let new = self.acquire(settings.path(stream), app, settings);
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.path = new;
            }
            self.release(&old);
        }
    }

    fn tail(&mut self, key: u64) -> Vec<TailLine> {
        let ids = self.ids(Some(key));
        ids.iter().for_each(|id| self.drain(*id, PIPE));
        let mut lines = self.workers.get(&key).map(|w| w.tail.lines()).unwrap_or_default();
        for flow in ids.iter().filter_map(|id| self.flows.get(id)).filter(|f| !f.unfinished.is_empty()) {
            lines.push(TailLine { stream: flow.stream, text: tail::text(&flow.unfinished.bytes) });
        }
        let surplus = lines.len().saturating_sub(tail::LINES);
        lines.split_off(surplus)
    }

    /// The flows of one worker, or all.
    fn ids(&self, key: Option<u64>) -> Vec<u64> {
        let wanted = |flow: &Flow| key.is_none_or(|key| flow.source.key == key);
        self.flows.iter().filter(|(_, flow)| wanted(flow)).map(|(id, _)| *id).collect()
    }

    /// Writes lines that have been quiet for long, and tries files in trouble.
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
            if !flow.unfinished.is_empty() && due <= now {
                self.emit(id, now, Step::Cut);
            }
            // Half a character may be left of it.
            if let Some(flow) = self.flows.get(&id)
                && !flow.unfinished.is_empty()
            {
                self.check_at(due.max(now + Duration::from_millis(1)));
            }
        }
        let mut next = None;
        for file in self.files.values_mut() {
            if file.due().is_some_and(|due| due <= now) {
                file.retry(now, &mut self.common);
            }
            next = [next, file.due()].into_iter().flatten().min();
        }
        if let Some(next) = next {
            self.check_at(next);
        }
    }

    /// Empties the pipes. A worker that writes on and on does not keep the pump from ending.
    fn finish(mut self) {
        for id in self.ids(None) {
            self.drain(id, 4 * PIPE);
            self.end(id);
        }
    }
}

fn bad_pipe(common: &Common, source: &Source, stream: Stream, error: &io::Error) {
    let (source, error) = (source.clone(), error.to_string());
    let _ = common.events.send(Event::BadPipe { source, stream, error });
}
