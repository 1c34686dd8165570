//! What a service manager passes to the process that it starts: descriptors from 3 on and a few
//! variables (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::inherit;

/// Variables for this process alone, whose children would take them for their own.
const VARIABLES: [&str; 7] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// The first passed descriptor (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// The most that are examined: more than a service can have in its store and in sockets.
const MOST: i32 = 1 << 20;

/// What was passed to this process.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Descriptors with their names, close-on-exec. The name is empty where none was given.
    pub fds: Vec<(String, OwnedFd)>,
    /// The variables as found. When this process executes another program and keeps its pid, that
    /// program needs those of notification and watchdog again.
    pub variables: BTreeMap<&'static str, String>,
}

/// Takes all of it, once: a second call finds nothing. The variables are removed from the
/// environment, unless another thread that could read it runs at this moment.
#[must_use]
pub fn take() -> Inherited {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Inherited::default();
    }
    let variables: BTreeMap<_, _> = VARIABLES
        .iter()
        .filter_map(|name| std::env::var(name).ok().map(|value| (*name, value)))
        .collect();
    if !variables.is_empty() {
        inherit::forget(&VARIABLES);
    }
    let names = claim(&variables, std::process::id());
    let mut fds = Vec::with_capacity(names.len());
    for (number, name) in (FIRST..).zip(names) {
        // A descriptor that is not open has no name either.
        fds.extend(inherit::take(number).ok().map(|fd| (name, fd)));
    }
    Inherited { fds, variables }
}

/// The names of the descriptors that are meant for `pid`.
fn claim(variables: &BTreeMap<&'static str, String>, pid: u32) -> Vec<String> {
    let number = |name: &str| {
        variables
            .get(name)
            .and_then(|text| text.parse::<u32>().ok())
    };
    if number("LISTEN_PID") != Some(pid) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS")
        .and_then(|n| i32::try_from(n).ok())
        .unwrap_or(0)
        .min(MOST);
    let mut names = variables
        .get("LISTEN_FDNAMES")
        .map(|names| names.split(':'))
        .into_iter()
        .flatten();
    (0..count)
        .map(|_| names.next().unwrap_or_default().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(variables: &[(&'static str, &str)]) -> Vec<String> {
        claim(
            &variables
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            7,
        )
    }

    #[test]
    fn descriptors_are_taken_only_by_the_process_that_they_are_meant_for() {
        assert_eq!(
            claimed(&[
                ("LISTEN_PID", "7"),
                ("LISTEN_FDS", "2"),
                ("LISTEN_FDNAMES", "a:b")
            ]),
            ["a", "b"]
        );
        assert_eq!(
            claimed(&[
                ("LISTEN_PID", "8"),
                ("LISTEN_FDS", "2"),
                ("LISTEN_FDNAMES", "a:b")
            ]),
            [""; 0]
        );
        assert_eq!(claimed(&[("LISTEN_FDS", "2")]), [""; 0]);
    }

    #[test]
    fn names_may_be_missing_and_numbers_may_be_nonsense() {
        assert_eq!(
            claimed(&[
                ("LISTEN_PID", "7"),
                ("LISTEN_FDS", "3"),
                ("LISTEN_FDNAMES", "a")
            ]),
            ["a", "", ""]
        );
        for wrong in ["", "-1", "x", "99999999999"] {
            assert_eq!(
                claimed(&[("LISTEN_PID", "7"), ("LISTEN_FDS", wrong)]),
                [""; 0],
                "{wrong}"
            );
        }
    }
}
