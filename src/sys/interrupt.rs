//! Threads that make system calls which another process may hold up, and a way to end such a call.

use std::ffi::c_int;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use super::raw;

/// Ignored by default (signal(7)), and of no other use here: one that comes too late does nothing.
const SIGNAL: c_int = libc::SIGURG;

/// A thread whose waiting system calls can be ended.
#[derive(Debug)]
pub struct Interruptible(JoinHandle<()>);

impl Interruptible {
    /// Runs `work` in a thread of its own.
    ///
    /// # Errors
    /// As `pthread_create(3)`.
    pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        handle_signal()?;
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map(Self)
    }

    /// Whether its work is done.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Makes the call that it waits in, if it does, fail with `EINTR`. It may be about to begin a call: repeat until
    /// it [is finished](Self::is_finished).
    pub fn interrupt(&self) {
        // SAFETY: the thread is not joined or detached before its handle is dropped, so its id is
        // its own.
        unsafe { libc::pthread_kill(self.0.as_pthread_t(), SIGNAL) };
    }
}

extern "C" fn nothing(_: c_int) {}

/// Without `SA_RESTART`, so that calls return.
fn handle_signal() -> io::Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_some() {
        return Ok(());
    }
    // SAFETY: all zeroes is a valid action: no flags and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it is async-signal-safe; the action lives through the call.
    raw::check(unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) })?;
    let _ = DONE.set(());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_read_that_would_wait_for_ever_ends() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let thread = {
            let ended = ended.clone();
            Interruptible::spawn("reads", move || {
                let mut byte = [0];
                let error = nix::unistd::read(reader.as_fd(), &mut byte).unwrap_err();
                assert_eq!(error, nix::errno::Errno::EINTR);
                ended.store(true, Ordering::SeqCst);
            })
            .unwrap()
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !thread.is_finished() {
            assert!(Instant::now() < deadline);
            thread.interrupt();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(ended.load(Ordering::SeqCst));
        // One that has ended needs none.
        thread.interrupt();
    }
}
