//! A time limit for other processes, in which time that rsup itself loses does not count.

use std::time::Duration;

use tokio::time::{Instant, timeout};

/// The limit is counted in this many slices; the late return of one shows that rsup lost time.
const SLICES: u32 = 8;

/// Why there was no result in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overrun {
    /// The limit passed.
    Late,
    /// rsup was stopped or too busy for most of the time, so the result is unknown.
    Unknown,
}

/// Waits for `what`, at most for `limit` of rsup's own running time: an answer may have been there
/// while rsup was stopped or too busy to see it.
///
/// # Errors
/// See [`Overrun`].
pub async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Result<T, Overrun> {
    let slice = limit / SLICES;
    let begin = Instant::now();
    let mut what = std::pin::pin!(what);
    let mut counted = 0;
    while counted < SLICES {
        let now = Instant::now();
        if now - begin > 4 * limit {
            return Err(Overrun::Unknown);
        }
        match timeout(slice, &mut what).await {
            Ok(result) => return Ok(result),
            Err(_) if now.elapsed() > 2 * slice => {}
            Err(_) => counted += 1,
        }
    }
    Err(Overrun::Late)
}
