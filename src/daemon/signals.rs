//! Signals to the daemon.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that mean something to the daemon.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    child: Signal,
    hangup: Signal,
    reopen: Signal,
}

/// What a signal means.
#[derive(Clone, Copy, Debug)]
pub enum Caught {
    /// SIGTERM, SIGINT.
    Stop,
    /// Some child ended; workers are noticed by their pidfd, others are to be taken away.
    Child,
    /// The terminal is gone.
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
        })
    }

    pub async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.terminate.recv() => Caught::Stop,
            _ = self.interrupt.recv() => Caught::Stop,
            _ = self.hangup.recv() => Caught::Hangup,
            _ = self.reopen.recv() => Caught::Reopen,
            _ = self.child.recv() => Caught::Child,
        }
    }
}
