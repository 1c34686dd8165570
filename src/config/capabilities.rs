//! The privileges of root, one by one (capabilities(7)).

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names in the order of their numbers (linux/capability.h).
static NAMES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities; serialised as the list of their names.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(u64);

impl Capabilities {
    pub const SETGID: u8 = 6;
    pub const SETUID: u8 = 7;
    pub const SETPCAP: u8 = 8;
    pub const SYS_NICE: u8 = 23;
    pub const SYS_RESOURCE: u8 = 24;

    /// Makes a set from a mask as in `/proc/PID/status`: bit N is capability N.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u64 {
        self.0
    }

    pub const fn has(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    /// The capabilities of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The number of a capability by name: `CAP_NET_BIND_SERVICE`, `net_bind_service` and the like.
    pub fn number(name: &str) -> Option<u8> {
        let normal = name.trim().to_ascii_uppercase().replace('-', "_");
        let short = normal.strip_prefix("CAP_").unwrap_or(&normal);
        NAMES
            .iter()
            .position(|known| known.strip_prefix("CAP_") == Some(short))
            .and_then(|at| u8::try_from(at).ok())
    }

    /// Every name that rsup knows.
    pub fn names() -> &'static [&'static str] {
        NAMES
    }

    fn each(self) -> impl Iterator<Item = String> {
        let name = |number: u8| {
            NAMES
                .get(usize::from(number))
                .map_or_else(|| number.to_string(), |name| (*name).to_owned())
        };
        (0..64).filter(move |number| self.has(*number)).map(name)
    }
}

impl FromIterator<u8> for Capabilities {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        Self(
            numbers
                .into_iter()
                .fold(0, |bits, number| bits | 1 << (number & 63)),
        )
    }
}

/// Formats as `CAP_CHOWN, CAP_KILL`; an empty set as `none`.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.each().collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.each()).finish()
    }
}

impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.each())
    }
}

impl<'de> Deserialize<'de> for Capabilities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        // A number stands for a capability that this rsup has no name for.
        let known =
            |name: &String| Self::number(name).or_else(|| name.parse().ok().filter(|n| *n < 64));
        let unknown = |name: &String| D::Error::custom(format!("no capability is called {name:?}"));
        names
            .iter()
            .map(|name| known(name).ok_or_else(|| unknown(name)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(Capabilities::number("CAP_NET_BIND_SERVICE"), Some(10));
        assert_eq!(Capabilities::number("net-bind-service"), Some(10));
        assert_eq!(Capabilities::number("cap_checkpoint_restore"), Some(40));
        assert_eq!(Capabilities::number("CAP_ALL"), None);
        for (name, number) in [
            ("SETGID", Capabilities::SETGID),
            ("SETUID", Capabilities::SETUID),
            ("SETPCAP", Capabilities::SETPCAP),
            ("SYS_NICE", Capabilities::SYS_NICE),
            ("SYS_RESOURCE", Capabilities::SYS_RESOURCE),
        ] {
            assert_eq!(Capabilities::number(name), Some(number));
        }
    }

    #[test]
    fn as_data_and_back() {
        let set: Capabilities = [10, 0, 63].into_iter().collect();
        assert_eq!(set.to_string(), "CAP_CHOWN, CAP_NET_BIND_SERVICE, 63");
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<Capabilities>(&text).unwrap(), set);
        assert!(serde_json::from_str::<Capabilities>("[\"CAP_X\"]").is_err());
        assert_eq!(Capabilities::default().to_string(), "none");
    }
}
