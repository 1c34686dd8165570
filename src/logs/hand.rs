//! Threads that make the calls for files, so that a disk or a folder that does not answer (a network
//! or user-space file system without its server, a broken device) holds up its own log alone.
//!
//! All files share one thread as long as it answers in time. One that does not is left with its
//! file, and the others get a new one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::disk::{Answer, Ask, Disk};

/// How long one call for a file may hold up the pump.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

type Given = (Box<Disk>, Ask);
type Taken = (Box<Disk>, Answer);

/// The thread for the next call.
#[derive(Debug)]
pub(super) struct Hands {
    hand: Option<Hand>,
    /// Written to when a late call has ended.
    wake: Arc<EventFd>,
}

#[derive(Debug)]
struct Hand {
    give: Sender<Given>,
    take: Receiver<Taken>,
    late: Arc<AtomicBool>,
}

/// A call that has not ended in time.
#[derive(Debug)]
pub(super) struct Late(Receiver<Taken>);

/// What became of a call.
#[derive(Debug)]
pub(super) enum Called {
    Done(Box<Disk>, Answer),
    Late(Late),
    /// There is no thread to be had.
    Not(Box<Disk>, io::Error),
}

impl Hands {
    /// Starts the thread for the first call: later there may be none to be had.
    ///
    /// # Errors
    /// When there are no threads left.
    pub fn start(wake: Arc<EventFd>) -> io::Result<Hands> {
        let hand = Some(Hand::start(wake.clone())?);
        Ok(Hands { hand, wake })
    }

    /// Makes the calls for `ask`, and waits for them for a bounded time.
    pub fn call(&mut self, disk: Box<Disk>, ask: Ask) -> Called {
        let hand = match self.hand.take() {
            Some(hand) => hand,
            None => match Hand::start(self.wake.clone()) {
                Ok(hand) => hand,
                Err(error) => return Called::Not(disk, error),
            },
        };
        if let Err(mpsc::SendError((disk, _))) = hand.give.send((disk, ask)) {
            return Called::Not(disk, io::Error::other("the thread for files has ended"));
        }
        match hand.take.recv_timeout(PATIENCE) {
            Ok((disk, answer)) => {
                self.hand = Some(hand);
                Called::Done(disk, answer)
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                hand.late.store(true, Ordering::SeqCst);
                // It may have answered just before.
                match hand.take.try_recv() {
                    Ok((disk, answer)) => Called::Done(disk, answer),
                    Err(_) => Called::Late(Late(hand.take)),
                }
            }
        }
    }

    /// Closes a file.
    pub fn close(&mut self, disk: Box<Disk>) {
        // Nothing is left to do with the answer; without a thread it is closed here.
        drop(self.call(disk, Ask::Close));
    }
}

impl Hand {
    fn start(wake: Arc<EventFd>) -> io::Result<Hand> {
        let (give, given) = mpsc::channel::<Given>();
        let (answer, take) = mpsc::channel::<Taken>();
        let late = Arc::new(AtomicBool::new(false));
        let is_late = late.clone();
        thread::Builder::new()
            .name("rsup-files".into())
            .spawn(move || {
                while let Ok((mut disk, ask)) = given.recv() {
                    let done = disk.obey(ask);
                    if let Err(mpsc::SendError((disk, _))) = answer.send((disk, done)) {
                        // The log is given up; to close its file may take just as long.
                        drop(disk);
                    }
                    if is_late.load(Ordering::SeqCst) {
                        let _ = wake.write(1);
                        return;
                    }
                }
            })?;
        Ok(Hand { give, take, late })
    }
}

impl Late {
    /// The answer, if it is there; an error if there will be none.
    pub fn poll(&self) -> Result<Option<Taken>, ()> {
        match self.0.try_recv() {
            Ok(taken) => Ok(Some(taken)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(()),
        }
    }

    /// Waits for the answer.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Taken>, ()> {
        match self.0.recv_timeout(timeout) {
            Ok(taken) => Ok(Some(taken)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(()),
        }
    }
}
