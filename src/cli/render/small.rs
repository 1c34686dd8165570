//! The answers that are one line or a few.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::style::{Look, Paint};
use super::units::{bytes, count, duration, harmless};
use crate::config::{AppName, Config, HIDDEN};
use crate::control::{self, AdminView, WorkerEnv};
use crate::exit::signal_name;

/// The answer of `rsup ping`.
#[derive(Debug, Serialize)]
pub struct Pong(pub control::Pong);

impl fmt::Display for Pong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the daemon runs: pid {}, rsup {}, up {}",
            self.0.pid,
            harmless(&self.0.version),
            duration(self.0.uptime_ms)
        )?;
        match self.0.memory {
            Some(memory) => writeln!(f, ", {}", bytes(memory))?,
            None => writeln!(f)?,
        }
        for trouble in &self.0.troubles {
            writeln!(f, "{}", harmless(trouble))?;
        }
        match &self.0.admin {
            None => Ok(()),
            Some(AdminView {
                address,
                source,
                problem: None,
            }) => {
                writeln!(
                    f,
                    "admin listener: http://{address}/ (from {})",
                    harmless(&source.display().to_string())
                )
            }
            Some(AdminView {
                problem: Some(problem),
                ..
            }) => writeln!(f, "{}", harmless(problem)),
        }
    }
}

/// The answer of `rsup upgrade`.
#[derive(Debug, Serialize)]
pub struct Upgraded {
    pub program: PathBuf,
    pub before: String,
    pub version: String,
}

impl fmt::Display for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, version) = (harmless(&self.before), harmless(&self.version));
        writeln!(
            f,
            "the daemon is rsup {version} now ({}), and was rsup {before}; no worker was touched",
            self.program.display()
        )
    }
}

/// The answer of `rsup kill`.
#[derive(Debug, Serialize)]
pub struct Killed {
    /// Whether there was a daemon.
    pub killed: bool,
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.killed {
            f.write_str("every app is stopped, and the daemon has ended\n")?;
        }
        Ok(())
    }
}

/// The answer of `rsup init`.
#[derive(Debug, Serialize)]
pub struct Written {
    pub file: PathBuf,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "wrote {}; look it over, then `rsup start`",
            self.file.display()
        )
    }
}

/// The answer of `rsup signal`.
pub fn signalled(signal: i32, pids: &[u32]) -> String {
    let name = signal_name(signal);
    match pids {
        [] => "no worker runs; nothing was sent\n".into(),
        _ => {
            let list = pids
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            format!(
                "sent {name} to {} (pid {list})\n",
                count(pids.len() as u64, "worker")
            )
        }
    }
}

/// The answer of `rsup check`.
pub fn checked(file: &Path, config: &Config, look: Look) -> String {
    let mut text = format!(
        "{}: {}, no errors\n",
        file.display(),
        count(config.apps.len() as u64, "app")
    );
    for app in &config.apps {
        let listen = app
            .listen
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let on = if listen.is_empty() {
            String::new()
        } else {
            format!(" on {listen}")
        };
        let name = look.paint(Paint::Bold, app.name.as_str());
        text.push_str(&format!(
            "  {name}  {}{on}\n",
            count(app.instances.into(), "worker")
        ));
    }
    text
}

/// Variables that are never secret: those of rsup itself (beside `RSUP_…`), and those of every
/// session.
const OPEN: [&str; 18] = [
    "PORT",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "NODE_APP_INSTANCE",
    "NODE_ENV",
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "LANG",
    "LC_ALL",
    "TERM",
    "TZ",
    "HOSTNAME",
    "TMPDIR",
];

/// One worker in the answer of `rsup env`.
#[derive(Debug, Serialize)]
pub struct Environment {
    app: AppName,
    instance: u16,
    pid: Option<u32>,
    /// `None`: hidden.
    env: BTreeMap<String, Option<String>>,
}

impl Environment {
    /// With `all`, secrets too.
    pub fn of(worker: WorkerEnv, all: bool) -> Self {
        let open = |name: &str| all || name.starts_with("RSUP_") || OPEN.contains(&name);
        let shown = |(name, value): (String, String)| {
            let value = open(&name).then_some(value);
            (name, value)
        };
        let WorkerEnv {
            app,
            instance,
            pid,
            env,
        } = worker;
        Self {
            app,
            instance,
            pid,
            env: env.into_iter().map(shown).collect(),
        }
    }
}

/// The answer of `rsup env`: assignments that a shell can read. A hidden value must not pass for
/// the real one, so its line is a comment.
pub fn environments(workers: &[Environment], look: Look) -> String {
    let mut text = String::new();
    let mut hidden = 0;
    for (index, worker) in workers.iter().enumerate() {
        if workers.len() > 1 {
            let pid = worker
                .pid
                .map(|pid| format!(" (pid {pid})"))
                .unwrap_or_default();
            let title = format!("# {}:{}{pid}", worker.app, worker.instance);
            text.push_str(&format!(
                "{}{}\n",
                if index == 0 { "" } else { "\n" },
                look.paint(Paint::Dim, &title)
            ));
        }
        for (name, value) in &worker.env {
            match value {
                // Quoting fails only on a zero byte, which no environment can hold.
                Some(value) => text.push_str(&format!(
                    "{name}={}\n",
                    shlex::try_quote(value).unwrap_or_default()
                )),
                None => {
                    hidden += 1;
                    text.push_str(&format!(
                        "{}\n",
                        look.paint(Paint::Dim, &format!("# {name}={HIDDEN}"))
                    ));
                }
            }
        }
    }
    if hidden > 0 {
        let note = format!(
            "# {} hidden; --show-values shows them",
            count(hidden, "value")
        );
        text.push_str(&format!("{}\n", look.paint(Paint::Dim, &note)));
    }
    text
}
