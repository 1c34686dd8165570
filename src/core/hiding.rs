//! Programs that test their port by connecting to it before they bind it (`serve`, robyn). They find
//! rsup's own listener, or an older worker behind it, and give up, take another port, or wait for ever.
//!
//! Where the port is *hidden* from a worker, its connections to it are refused until it has bound it,
//! as if nobody listened there. That costs each of its connections a round trip to the daemon, so it
//! is done for those alone that need it. What the first worker of a command does decides:
//!
//! * It binds its port: hiding is not needed, and never thought of again.
//! * It fails without having bound it, and there are traces of a test: another one is started at once
//!   in its place, with the port hidden. The action goes on, and the restart policy counts nothing.
//! * That one is refused a connection to its port and then binds it: so it is from now on.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::types::Time;

/// Whether the port has to be hidden from the workers of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hiding {
    /// No worker of it has come so far as to tell.
    #[default]
    Unknown,
    /// A worker has bound its port without, or failed with.
    Unneeded,
    /// A worker failed in the way of such programs.
    Trying,
    /// A worker was refused a connection to its port, and then bound it.
    Needed { since: Time },
}

/// What a worker did about the port of its app.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    /// It was started with the port hidden from it.
    pub hidden: bool,
    /// Ports of its own that it has bound.
    pub bound: BTreeSet<u16>,
    /// It has bound another one instead, or before.
    pub elsewhere: bool,
    /// rsup refused it a connection.
    pub refused: bool,
    /// There were traces of a test.
    pub tested: bool,
    /// When they are looked for.
    pub look: Option<Time>,
}

/// What may be left of connections to a port that nobody has bound yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traces {
    /// Connections from this machine that wait for a worker, but were closed by their client before it
    /// said a word.
    pub abandoned: u32,
    /// Others of this machine that their client has closed: maybe a test that an older worker answered,
    /// maybe an ordinary client.
    pub others: bool,
}

/// So many abandoned connections are a program that tests its port again and again; nobody who looks
/// whether a port is open does it so often while a worker starts.
const LOOP: u32 = 20;

/// A worker that has not bound its port by then is looked after: now, and each time that it is twice as old.
pub const FIRST_LOOK: Duration = Duration::from_secs(1);

impl Port {
    /// Takes in what was found. True if this cannot be a worker that merely takes its time.
    pub fn found(&mut self, traces: Traces) -> bool {
        let Traces { abandoned, others } = traces;
        self.tested |= abandoned > 0 || others;
        abandoned >= LOOP || (abandoned > 0 && self.elsewhere)
    }
}

/// Whether a connection to the address `target` of this machine may come to who listens on `ours`. There may
/// be somebody else at the same port of another address. A connection to «any» is one to loopback (ip(7)).
pub fn reaches(target: IpAddr, ours: IpAddr) -> bool {
    let (target, ours) = (target.to_canonical(), ours.to_canonical());
    let target = match target.is_unspecified() {
        true if target.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        true => Ipv6Addr::LOCALHOST.into(),
        false => target,
    };
    match ours.is_unspecified() {
        true => ours.is_ipv6() || target.is_ipv4(),
        false => ours == target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_reached() {
        let cases = [
            ("127.0.0.1", "0.0.0.0", true),
            ("10.0.0.5", "::", true),
            ("::1", "::", true),
            ("0.0.0.0", "127.0.0.1", true),
            ("::", "::1", true),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("::1", "0.0.0.0", false),
            ("127.0.0.1", "10.0.0.5", false),
            ("10.0.0.5", "127.0.0.1", false),
            ("127.0.0.9", "127.0.0.1", false),
            ("0.0.0.0", "10.0.0.5", false),
        ];
        for (target, ours, expected) in cases {
            assert_eq!(
                reaches(target.parse().unwrap(), ours.parse().unwrap()),
                expected,
                "{target} to {ours}"
            );
        }
    }
}
