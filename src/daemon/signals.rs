//! Signals to the daemon.

use std::io;

use nix::sys::signal::Signal as Nix;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that mean something to the daemon.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    child: Signal,
    hangup: Signal,
    reopen: Signal,
    quit: Signal,
    /// Caught so that they do nothing: left alone they would end a daemon that is not the first
    /// process of its container, and leave its workers without one.
    _harmless: Vec<Signal>,
}

/// Signals whose default is the end of the process (signal(7)), and that mean nothing to rsup. SIGPIPE is
/// ignored already. `rsup signal` sends these, as any, to the apps.
const HARMLESS: [Nix; 6] = [
    Nix::SIGUSR2,
    Nix::SIGALRM,
    Nix::SIGVTALRM,
    Nix::SIGPROF,
    Nix::SIGIO,
    Nix::SIGPWR,
];

/// What a signal means.
#[derive(Clone, Copy, Debug)]
pub enum Caught {
    /// This one: SIGTERM, SIGINT, SIGQUIT.
    Stop(i32),
    /// Some child ended; workers are noticed by their pidfd, others are to be taken away.
    Child,
    /// The terminal is gone; without one, the configuration is to be read again.
    Hangup,
    /// Log files were moved away by another tool.
    Reopen,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            child: signal(SignalKind::child())?,
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            quit: signal(SignalKind::quit())?,
            _harmless: HARMLESS
                .iter()
                .map(|kind| signal(SignalKind::from_raw(*kind as i32)))
                .collect::<io::Result<_>>()?,
        })
    }

    pub async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.terminate.recv() => Caught::Stop(Nix::SIGTERM as i32),
            _ = self.interrupt.recv() => Caught::Stop(Nix::SIGINT as i32),
            _ = self.quit.recv() => Caught::Stop(Nix::SIGQUIT as i32),
            _ = self.hangup.recv() => Caught::Hangup,
            _ = self.reopen.recv() => Caught::Reopen,
            _ = self.child.recv() => Caught::Child,
        }
    }
}
