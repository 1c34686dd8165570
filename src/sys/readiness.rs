//! Descriptors whose readability the event loop waits for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::spawn::ExecReport;
use super::takeover::Listener;

/// Types that own one descriptor, name it by `as_raw_fd` alike at all times, and close it when they
/// are dropped and not before.
trait Steady: AsRawFd {}
impl Steady for OwnedFd {}
impl Steady for Arc<OwnedFd> {}
impl Steady for ExecReport {}
impl Steady for Listener {}

/// Waits for `fd` in the current runtime.
///
/// # Errors
/// As `epoll_ctl(2)`.
#[allow(
    private_bounds,
    reason = "the trait says what may be waited for, here alone"
)]
pub fn readable<T: Steady>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: by `Steady`, the registered descriptor stays open and the same until the AsyncFd,
    // which deregisters it first, drops its owner.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
