//! The handle of the log pump.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::console::Console;
use super::engine::Engine;
use super::journal::Journal;
use super::{Event, Settings, Source, Stats, Stream, TailLine, Unfinished};

/// The log pump: reads the output of all workers and writes it to files, in a thread of its own.
/// All methods but [`shutdown`](Pump::shutdown) return at once; requests are handled in order. When
/// the last handle is dropped the pump shuts down.
#[derive(Clone)]
pub struct Pump(Arc<Handle>);

struct Handle {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A pipe that the pump has given back, with all that another pump needs to continue with it.
#[derive(Debug)]
pub struct Detached {
    /// The worker at its other end.
    pub source: Source,
    /// Which stream.
    pub stream: Stream,
    /// The read end.
    pub pipe: Arc<OwnedFd>,
    /// What was read of an unfinished line.
    pub unfinished: Unfinished,
}

pub(super) enum Command {
    Attach {
        stream: Detached,
        settings: Box<Settings>,
    },
    Tail {
        key: u64,
        reply: oneshot::Sender<Vec<TailLine>>,
    },
    Forget {
        key: u64,
    },
    Detach {
        key: Option<u64>,
        reply: oneshot::Sender<Vec<Detached>>,
    },
    Configure {
        app: Arc<str>,
        settings: Box<Settings>,
    },
    Note {
        app: Arc<str>,
        settings: Box<Settings>,
        text: String,
    },
    Adopted,
    Show {
        console: Console,
    },
    Reopen,
    Flush {
        reply: oneshot::Sender<()>,
    },
    Stats {
        reply: oneshot::Sender<Stats>,
    },
    Shutdown,
}

impl Pump {
    /// Starts the pump. It reports failures through `events`.
    ///
    /// # Errors
    /// When there are no file descriptors or threads left.
    pub fn start(events: UnboundedSender<Event>) -> io::Result<Pump> {
        Pump::start_with_journal(events, Journal::create(&std::env::temp_dir())?)
    }

    /// Starts a pump that loses nothing when its process is killed, if another process holds
    /// duplicates of its pipes and of `journal`: the next pump with the same journal completes the
    /// batch of this one, and continues with each stream that is [attached](Pump::attach) to it
    /// with the same [`key`](Source::key). The process that used the journal before must have
    /// ended.
    ///
    /// # Errors
    /// When there are no file descriptors, memory or threads left. `InvalidInput` if `journal` was not made
    /// by [`Journal::create`] of this version, or was opened anew instead of duplicated.
    pub fn start_with_journal(
        events: UnboundedSender<Event>,
        journal: OwnedFd,
    ) -> io::Result<Pump> {
        let (commands, queue) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let engine = Engine::new(queue, wake.clone(), events, Journal::open(journal)?)?;
        let thread = thread::Builder::new()
            .name("rsup-logs".into())
            .spawn(move || engine.run())?;
        Ok(Pump(Arc::new(Handle {
            commands,
            wake,
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// From now on all that arrives on `pipe` goes to the app's file for `stream`, until every
    /// process that holds the other end has closed it. If the file is in use, these settings now
    /// apply to it.
    pub fn attach(
        &self,
        source: Source,
        stream: Stream,
        pipe: impl Into<Arc<OwnedFd>>,
        settings: &Settings,
    ) {
        self.resume(
            Detached {
                source,
                stream,
                pipe: pipe.into(),
                unfinished: Unfinished::default(),
            },
            settings,
        );
    }

    /// Reports that all live streams of the former pump are attached: the unfinished lines of the
    /// others are written and forgotten.
    pub fn adopted(&self) {
        self.0.send(Command::Adopted);
    }

    /// Continues with a pipe that another pump has given back.
    pub fn resume(&self, stream: Detached, settings: &Settings) {
        self.0.send(Command::Attach {
            stream,
            settings: settings.clone().into(),
        });
    }

    /// The last lines of a worker, both streams as they arrived: at most 20 lines and 8 KiB, each
    /// cut at 500 bytes. First reads what is in the worker's pipes at this moment, so the last
    /// lines of a dead worker are included; so is an unfinished line. Empty for an unknown key.
    pub fn tail(&self, key: u64) -> oneshot::Receiver<Vec<TailLine>> {
        self.0.ask(|reply| Command::Tail { key, reply })
    }

    /// Drops this worker's tail once its pipes have ended: it is not needed any more. Its output is
    /// still written until then.
    pub fn forget(&self, key: u64) {
        self.0.send(Command::Forget { key });
    }

    /// Gives back the pipes of a worker, and what was read of their unfinished lines.
    pub fn detach(&self, key: u64) -> oneshot::Receiver<Vec<Detached>> {
        self.0.ask(|reply| Command::Detach {
            key: Some(key),
            reply,
        })
    }

    /// Gives back the pipes of all workers. Their content stays in them for the next reader.
    pub fn detach_all(&self) -> oneshot::Receiver<Vec<Detached>> {
        self.0.ask(|reply| Command::Detach { key: None, reply })
    }

    /// From now on the streams of this app go to the files, and in the format, of these settings.
    pub fn configure(&self, app: Arc<str>, settings: &Settings) {
        self.0.send(Command::Configure {
            app,
            settings: settings.clone().into(),
        });
    }

    /// Writes a line of rsup itself into the app's `out` file.
    pub fn note(&self, app: Arc<str>, settings: &Settings, text: impl Into<String>) {
        self.0.send(Command::Note {
            app,
            settings: settings.clone().into(),
            text: text.into(),
        });
    }

    /// From now on every line also goes to `console`.
    pub fn show_on(&self, console: Console) {
        self.0.send(Command::Show { console });
    }

    /// Closes all files, and opens them again when there is something to write.
    pub fn reopen(&self) {
        self.0.send(Command::Reopen);
    }

    /// Answers when all that is in the pipes at this moment is in the files, except for unfinished
    /// lines.
    pub fn flush(&self) -> oneshot::Receiver<()> {
        self.0.ask(|reply| Command::Flush { reply })
    }

    /// What the pump has done so far.
    pub fn stats(&self) -> oneshot::Receiver<Stats> {
        self.0.ask(|reply| Command::Stats { reply })
    }

    /// Writes what is in the pipes, unfinished lines too, closes everything and ends the thread.
    /// Blocks until that is done. Workers that live on get SIGPIPE if no other process holds their
    /// pipes' read ends.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }
}

impl Handle {
    fn send(&self, command: Command) {
        // Fails after shutdown only: then there is nothing to do, and the caller finds its answer's
        // sender dropped.
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }

    fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply));
        answer
    }

    fn shutdown(&self) {
        self.send(Command::Shutdown);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Pump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pump")
    }
}
