//! How processes end, and what signals are called: plain facts that every layer shares.

use std::fmt;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// Cannot be caught, blocked or ignored (signal(7)).
pub const SIGKILL: i32 = Signal::SIGKILL as i32;

/// How a process ended (wait(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal {
        signal: i32,
        core_dumped: bool,
    },
    /// The kernel killed it at the memory limit of its cgroup.
    OutOfMemory,
    /// The kernel killed it for want of memory, at a limit above its own cgroup: of the container,
    /// of the unit, or of the machine where no limit can be seen.
    Starved {
        /// Bytes: the lowest limit that can be seen.
        limit: Option<u64>,
    },
    /// Another process collected the status (this one was not our child).
    Unknown,
}

impl Exit {
    /// By SIGKILL, from any sender.
    #[must_use]
    pub fn is_kill(self) -> bool {
        matches!(
            self,
            Self::Signal {
                signal: SIGKILL,
                ..
            }
        )
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal { signal, core_dumped } => {
                write!(f, "killed by {}", signal_name(*signal))?;
                if *core_dumped { f.write_str(" (core dumped)") } else { Ok(()) }
            }
            Self::OutOfMemory => f.write_str("killed by the kernel at its memory limit (limits.memory)"),
            Self::Starved { limit: Some(limit) } => {
                let limit = bytesize::ByteSize(*limit).display().iec();
                write!(f, "killed by the kernel for want of memory: the container's (or unit's) limit of {limit} was reached")
            }
            Self::Starved { limit: None } => {
                f.write_str("killed by the kernel for want of memory: that of the machine, or a limit that cannot be seen here")
            }
            Self::Unknown => f.write_str("ended with an unknown status"),
        }
    }
}

/// The name of a signal, with its SIG: `SIGTERM`, `SIGRTMIN+3`; a number without a name as
/// `signal 99`.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    if let Ok(known) = Signal::try_from(signal) {
        return known.as_str().to_owned();
    }
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    match signal - first {
        0 => "SIGRTMIN".to_owned(),
        n if n > 0 && signal <= last => format!("SIGRTMIN+{n}"),
        _ => format!("signal {signal}"),
    }
}

/// The number of a signal named `SIGTERM`, `term`, `15`, `SIGRTMIN+3` or `RTMAX-1`.
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    let upper = name.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = if let Some(rest) = short.strip_prefix("RTMIN") {
        libc::SIGRTMIN()
            + if rest.is_empty() {
                0
            } else {
                rest.strip_prefix('+')?.parse().ok()?
            }
    } else if let Some(rest) = short.strip_prefix("RTMAX") {
        libc::SIGRTMAX()
            - if rest.is_empty() {
                0
            } else {
                rest.strip_prefix('-')?.parse().ok()?
            }
    } else {
        return format!("SIG{short}")
            .parse::<Signal>()
            .ok()
            .map(|signal| signal as i32);
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX())
        .contains(&number)
        .then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(signal_number("SIGTERM"), Some(15));
        assert_eq!(signal_number("term"), Some(15));
        assert_eq!(signal_number(" 9 "), Some(9));
        assert_eq!(signal_number("SIGRTMIN+3"), Some(libc::SIGRTMIN() + 3));
        assert_eq!(signal_number("RTMAX-1"), Some(libc::SIGRTMAX() - 1));
        for bad in [
            "",
            "0",
            "-1",
            "99",
            "TREM",
            "SIG",
            "RTMIN+99",
            "RTMIN-1",
            "SIGSIGTERM",
        ] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
        for signal in 1..=libc::SIGRTMAX() {
            let name = signal_name(signal);
            if signal < libc::SIGSYS || signal >= libc::SIGRTMIN() {
                assert_eq!(signal_number(&name), Some(signal), "{name}");
            }
        }
        assert_eq!(signal_name(15), "SIGTERM");
        assert_eq!(signal_name(99), "signal 99");
        let exit = Exit::Signal {
            signal: 11,
            core_dumped: true,
        };
        assert_eq!(exit.to_string(), "killed by SIGSEGV (core dumped)");
    }
}
