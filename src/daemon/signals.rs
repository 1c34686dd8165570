//! Signals to the daemon.

use std::io;

use nix::sys::signal::Signal as Nix;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the daemon handles.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    child: Signal,
    hangup: Signal,
    reopen: Signal,
    quit: Signal,
    /// Caught without effect: by default they would end a daemon that is not the first process of
    /// its container, and leave its workers without one.
    _harmless: Vec<Signal>,
}

/// Signals whose default is to end the process (signal(7)), and that have no meaning for rsup.
/// SIGPIPE is ignored already. `rsup signal` sends these, as any other, to the apps.
const HARMLESS: [Nix; 6] = [
    Nix::SIGUSR2,
    Nix::SIGALRM,
    Nix::SIGVTALRM,
    Nix::SIGPROF,
    Nix::SIGIO,
    Nix::SIGPWR,
];

/// The meaning of a signal.
#[derive(Clone, Copy, Debug)]
pub enum Caught {
    /// Stop; the signal is SIGTERM, SIGINT or SIGQUIT.
    Stop(i32),
    /// A child ended; workers are noticed by their pidfd, others are reaped.
    Child,
    /// The terminal is gone; without one, the configuration is read again.
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
