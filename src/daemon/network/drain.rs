//! Waits until nothing is left for a worker that takes no more traffic.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::sockets::Queue;
use crate::sys::listen::{Backlog, backlog};
use crate::sys::sockdiag::half_open;

/// Between two looks. A handshake on the same machine takes less; the first look comes after one
/// such pause, since a SYN that was being handled during the swap may still follow the old program.
const PAUSE: Duration = Duration::from_millis(2);

/// Resolves once the queues were seen empty twice in a row, and of the handshakes that were half
/// open at the beginning (which may complete on this slot: the program chose at SYN time) none is
/// left; or once the worker is `halted`, so that it will accept nothing. The caller bounds the time.
pub async fn until_empty(queues: Vec<Queue>, ports: Vec<u16>, halted: impl Fn() -> bool) {
    tokio::time::sleep(PAUSE).await;
    let mut early = handshakes(&ports);
    let mut pause = PAUSE;
    let mut quiet = 0;
    loop {
        if !early.is_empty() {
            let current = handshakes(&ports);
            early.retain(|handshake| current.contains(handshake));
        }
        quiet = if early.is_empty() && queues.iter().all(empty) {
            quiet + 1
        } else {
            0
        };
        if quiet == 2 || halted() {
            return;
        }
        tokio::time::sleep(pause).await;
        if quiet == 0 {
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

fn empty(queue: &Queue) -> bool {
    // A socket that somebody shut down holds nothing any more.
    !matches!(
        backlog(&queue.fd),
        Ok(Backlog::Listening { queued: 1.., .. })
    )
}

/// Where they cannot be listed, relaying covers those that come late.
fn handshakes(ports: &[u16]) -> HashSet<(SocketAddr, SocketAddr)> {
    ports
        .iter()
        .flat_map(|port| half_open(*port).unwrap_or_default())
        .collect()
}
