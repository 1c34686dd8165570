//! The messages between the daemon and its keeper: one per packet of a `SOCK_SEQPACKET` pair, a
//! letter and its argument; a descriptor, if any, travels beside it.

use crate::exit::{Exit, SIGKILL};

/// Raised when an older keeper could misunderstand a message. A daemon that finds a keeper of
/// another version starts one of its own.
pub const VERSION: u8 = 1;

/// The longest name of a kept descriptor, in bytes (as for systemd's `FDNAME=`).
pub const LONGEST_NAME: usize = 255;

/// Bytes for any message. A longer packet is cut, and then invalid.
pub const LONGEST: usize = 1 + LONGEST_NAME;

/// From the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToKeeper {
    /// The first message; answered by [`FromKeeper::Hello`].
    Hello(u8),
    /// Keep the descriptor that comes with this, in place of one of the same name.
    Keep(String),
    /// Close the descriptor of that name.
    Drop(String),
    /// Answered by all [`FromKeeper::Kept`] and then [`FromKeeper::AllKept`].
    GiveBack,
    /// How did this process end, which became the keeper's child? Answered by
    /// [`FromKeeper::Ended`].
    HowEnded(u32),
    /// The daemon ends on purpose; the keeper ends too.
    Bye,
}

/// From the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromKeeper {
    Hello(u8),
    /// Comes with the descriptor.
    Kept(String),
    AllKept,
    /// [`Exit::Unknown`] for a process that was never the keeper's child, or has not ended.
    Ended(u32, Exit),
}

impl ToKeeper {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(version) => vec![b'H', *version],
            Self::Keep(name) => [b"K", name.as_bytes()].concat(),
            Self::Drop(name) => [b"D", name.as_bytes()].concat(),
            Self::GiveBack => vec![b'G'],
            Self::HowEnded(pid) => [b"X".as_slice(), &pid.to_be_bytes()].concat(),
            Self::Bye => vec![b'B'],
        }
    }

    /// `None` for an invalid message.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (letter, rest) = packet.split_first()?;
        Some(match (letter, rest) {
            (b'H', [version]) => Self::Hello(*version),
            (b'K', name) => Self::Keep(parse_name(name)?),
            (b'D', name) => Self::Drop(parse_name(name)?),
            (b'G', []) => Self::GiveBack,
            (b'X', pid) => Self::HowEnded(u32::from_be_bytes(pid.try_into().ok()?)),
            (b'B', []) => Self::Bye,
            _ => return None,
        })
    }
}

impl FromKeeper {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(version) => vec![b'h', *version],
            Self::Kept(name) => [b"k", name.as_bytes()].concat(),
            Self::AllKept => vec![b'e'],
            Self::Ended(pid, exit) => {
                let (kind, number) = match exit {
                    Exit::Code(code) => (0, *code),
                    Exit::Signal {
                        signal,
                        core_dumped: false,
                    } => (1, *signal),
                    Exit::Signal {
                        signal,
                        core_dumped: true,
                    } => (2, *signal),
                    // A keeper sees it as a kill.
                    Exit::OutOfMemory | Exit::Starved { .. } => (1, SIGKILL),
                    Exit::Unknown => (3, 0),
                };
                [
                    b"x".as_slice(),
                    &pid.to_be_bytes(),
                    &[kind],
                    &number.to_be_bytes(),
                ]
                .concat()
            }
        }
    }

    /// `None` for an invalid message.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (letter, rest) = packet.split_first()?;
        Some(match (letter, rest) {
            (b'h', [version]) => Self::Hello(*version),
            (b'k', name) => Self::Kept(parse_name(name)?),
            (b'e', []) => Self::AllKept,
            (b'x', rest) => {
                let (pid, rest) = rest.split_first_chunk::<4>()?;
                let (kind, number) = rest.split_first()?;
                let number = i32::from_be_bytes(number.try_into().ok()?);
                let exit = match kind {
                    0 => Exit::Code(number),
                    1 | 2 => Exit::Signal {
                        signal: number,
                        core_dumped: *kind == 2,
                    },
                    3 if number == 0 => Exit::Unknown,
                    _ => return None,
                };
                Self::Ended(u32::from_be_bytes(*pid), exit)
            }
            _ => return None,
        })
    }
}

/// Whether systemd's `FDNAME=` allows the name as well: printable ASCII without `:`.
pub fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| (b' '..=b'~').contains(&b) && b != b':')
}

fn parse_name(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes)
        .ok()
        .filter(|name| is_name(name))?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        "[ -9;-~]{1,255}"
    }

    fn to_keeper() -> impl Strategy<Value = ToKeeper> {
        prop_oneof![
            any::<u8>().prop_map(ToKeeper::Hello),
            name().prop_map(ToKeeper::Keep),
            name().prop_map(ToKeeper::Drop),
            Just(ToKeeper::GiveBack),
            any::<u32>().prop_map(ToKeeper::HowEnded),
            Just(ToKeeper::Bye),
        ]
    }

    fn from_keeper() -> impl Strategy<Value = FromKeeper> {
        let exit = prop_oneof![
            any::<i32>().prop_map(Exit::Code),
            (any::<i32>(), any::<bool>()).prop_map(|(signal, core_dumped)| Exit::Signal {
                signal,
                core_dumped
            }),
            Just(Exit::Unknown),
        ];
        prop_oneof![
            any::<u8>().prop_map(FromKeeper::Hello),
            name().prop_map(FromKeeper::Kept),
            Just(FromKeeper::AllKept),
            (any::<u32>(), exit).prop_map(|(pid, exit)| FromKeeper::Ended(pid, exit)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood(there in to_keeper(), back in from_keeper()) {
            prop_assert!(there.encode().len() <= LONGEST && back.encode().len() <= LONGEST);
            prop_assert_eq!(ToKeeper::parse(&there.encode()), Some(there));
            prop_assert_eq!(FromKeeper::parse(&back.encode()), Some(back));
        }

        #[test]
        fn whatever_is_understood_was_said_so(packet in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(message) = ToKeeper::parse(&packet) {
                prop_assert_eq!(message.encode(), packet.clone());
            }
            if let Some(message) = FromKeeper::parse(&packet) {
                prop_assert_eq!(message.encode(), packet);
            }
        }
    }

    #[test]
    fn names_that_no_store_could_keep_are_refused() {
        for bad in ["", "a:b", "a\nb", "ä", &"x".repeat(256)] {
            assert_eq!(
                ToKeeper::parse(&ToKeeper::Keep(bad.into()).encode()),
                None,
                "{bad}"
            );
        }
    }
}
