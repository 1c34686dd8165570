//! The open connections of the admin listener. Where there are too many, one of those that have asked
//! nothing for a while goes: that of the client with the most of them that has been silent the longest.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// A request has this long to arrive before its connection counts as silent.
const GRACE: Duration = Duration::from_millis(100);
/// How often it is looked whether one counts as silent by now.
const AGAIN: Duration = Duration::from_millis(10);

#[derive(Clone, Default)]
pub struct Connections(Arc<Shared>);

#[derive(Default)]
struct Shared {
    open: Mutex<Open>,
    ended: Notify,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// In the order of their beginnings.
    all: BTreeMap<u64, Connection>,
}

struct Connection {
    peer: IpAddr,
    since: Instant,
    has_asked: bool,
    /// `None` until its task runs.
    task: Option<AbortHandle>,
}

/// A connection's entry, which ends with it.
pub struct Entry {
    number: u64,
    connections: Connections,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection of this client. If there are `most` already, a silent one is ended; if none
    /// is silent, this waits until one is, or has its answer.
    pub async fn enter(&self, peer: IpAddr, most: usize) -> Entry {
        loop {
            let ended = self.0.ended.notified();
            if let Some(number) = self.try_enter(peer, most, GRACE) {
                let connections = self.clone();
                return Entry {
                    number,
                    connections,
                };
            }
            let _ = tokio::time::timeout(AGAIN, ended).await;
        }
    }

    fn try_enter(&self, peer: IpAddr, most: usize, grace: Duration) -> Option<u64> {
        let mut open = self.open();
        if open.all.len() >= most {
            let ended = open.longest_silent(grace)?;
            if let Some(task) = open.all.remove(&ended).and_then(|ended| ended.task) {
                task.abort();
            }
        }
        open.next += 1;
        let number = open.next;
        let connection = Connection {
            peer,
            since: Instant::now(),
            has_asked: false,
            task: None,
        };
        open.all.insert(number, connection);
        Some(number)
    }
}

impl Open {
    fn longest_silent(&self, grace: Duration) -> Option<u64> {
        let is_silent = |one: &Connection| !one.has_asked && one.since.elapsed() >= grace;
        let silent = || self.all.iter().filter(|(_, one)| is_silent(one));
        let mut of_client: HashMap<IpAddr, usize> = HashMap::new();
        silent().for_each(|(_, one)| *of_client.entry(one.peer).or_default() += 1);
        let most = of_client.values().max()?;
        silent()
            .find(|(_, one)| of_client.get(&one.peer) == Some(most))
            .map(|(number, _)| *number)
    }
}

impl Entry {
    /// The task that serves it, which ends it when it is aborted.
    pub fn served_by(connections: &Connections, number: u64, task: AbortHandle) {
        match connections.open().all.get_mut(&number) {
            Some(connection) => connection.task = Some(task),
            // It had to go before its task ran.
            None => task.abort(),
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// A whole request has come.
    pub fn has_asked(&self) {
        if let Some(connection) = self.connections.open().all.get_mut(&self.number) {
            connection.has_asked = true;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open().all.remove(&self.number);
        self.connections.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const MANY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn the_client_with_the_most_silent_ones_loses_the_oldest_of_them() {
        let all = Connections::default();
        let enter = |peer| all.try_enter(peer, 4, Duration::ZERO);
        let first = enter(ONE).unwrap();
        let others: Vec<u64> = (0..3).map(|_| enter(MANY).unwrap()).collect();
        let newest = enter(MANY).unwrap();
        let there: Vec<u64> = all.open().all.keys().copied().collect();
        assert_eq!(there, [first, others[1], others[2], newest]);
        for number in there {
            let connections = all.clone();
            Entry {
                number,
                connections,
            }
            .has_asked();
        }
        // Each of those entries ended with its last line.
        assert!(all.open().all.is_empty());
    }

    #[test]
    fn one_that_has_asked_stays() {
        let all = Connections::default();
        let asked = Entry {
            number: all.try_enter(ONE, 1, Duration::ZERO).unwrap(),
            connections: all.clone(),
        };
        asked.has_asked();
        assert_eq!(all.try_enter(MANY, 1, Duration::ZERO), None);
        drop(asked);
        assert!(all.try_enter(MANY, 1, Duration::ZERO).is_some());
        // A new one has time to ask.
        let hour = Duration::from_secs(3600);
        assert_eq!(all.try_enter(ONE, 1, hour), None);
    }
}
