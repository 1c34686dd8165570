//! The environment that `rsup start` hands to the daemon for its apps.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Variables that concern only the process they were set for: an app that finds its caller's
/// `NOTIFY_SOCKET` or `LISTEN_FDS` would take them for its own.
fn private(name: &str) -> bool {
    const PREFIXES: [&str; 5] = [
        "RSUP_",
        "LISTEN_FD",
        "NODE_CHANNEL_",
        "WATCHDOG_",
        "MEMORY_PRESSURE_",
    ];
    const NAMES: [&str; 9] = [
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "NODE_UNIQUE_ID",
        "MAINPID",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "SYSTEMD_EXEC_PID",
        "CREDENTIALS_DIRECTORY",
        "_",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// The variables that a daemon in the background takes from its caller. The others, secrets among
/// them, belong to one command; workers get those of their own start.
const OF_THE_DAEMON: [&str; 15] = [
    "RSUP_HOME",
    "RSUP_TAKEOVER",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "LOGNAME",
    "PATH",
    "SHELL",
    "TMPDIR",
    "TZ",
    "USER",
    // Where an earlier version had its files.
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
];

/// The environment of a daemon in the background.
pub fn of_daemon() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_the_daemons))
}

fn is_the_daemons(name: &str) -> bool {
    OF_THE_DAEMON.contains(&name)
}

/// The environment of this process for apps, and the names of variables that are left out because
/// they are not UTF-8.
pub fn of_caller() -> (BTreeMap<String, String>, Vec<String>) {
    pick(std::env::vars_os())
}

fn pick(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> (BTreeMap<String, String>, Vec<String>) {
    let mut kept = BTreeMap::new();
    let mut odd = Vec::new();
    for (name, value) in vars {
        match (name.into_string(), value.into_string()) {
            (Ok(name), _) if private(&name) => {}
            (Ok(name), Ok(value)) => drop(kept.insert(name, value)),
            (Ok(name), Err(_)) => odd.push(name),
            (Err(name), _) => odd.push(name.to_string_lossy().into_owned()),
        }
    }
    (kept, odd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn what_is_private_or_not_text_stays_behind() {
        let vars = [
            ("PATH", b"/bin".to_vec()),
            ("RSUP_HOME", b"/x".to_vec()),
            ("LISTEN_FDS", b"1".to_vec()),
            ("NOTIFY_SOCKET", b"@x".to_vec()),
            ("NODE_CHANNEL_FD", b"3".to_vec()),
            ("NODE_ENV", b"production".to_vec()),
            ("ODD", b"\xff".to_vec()),
        ];
        let (kept, odd) = pick(
            vars.into_iter()
                .map(|(name, value)| (name.into(), OsString::from_vec(value))),
        );
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["NODE_ENV", "PATH"]);
        assert_eq!(odd, ["ODD"]);
    }
}
