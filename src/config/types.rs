//! The checked configuration: every default filled in, every relative path resolved, every value in range.
//!
//! These types also travel over the control socket and are part of the saved state, so they are
//! plain data without behaviour that needs the outside world.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::capabilities::Capabilities;

/// Name of an app: 1 to 64 characters of `[A-Za-z0-9_.-]`, not beginning with `-` or `.`, not `all`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct AppName(Arc<str>);

impl TryFrom<String> for AppName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name)
    }
}

impl AppName {
    /// The most bytes of a name.
    pub const LONGEST: usize = 64;

    /// Takes a name that has already been checked ([`AppName::parse`] checks).
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Checks a name as a user wrote it; the error says what is wrong with it.
    pub fn parse(name: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.is_empty() || name.len() > Self::LONGEST {
            return Err(format!("a name has 1 to {} characters", Self::LONGEST));
        }
        if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
            return Err(format!(
                "`{bad}` cannot be in a name; letters, digits, `_`, `.` and `-` can"
            ));
        }
        if name.starts_with(['-', '.']) {
            return Err("a name begins with a letter, a digit or `_`".into());
        }
        if name == "all" {
            return Err("`all` means every app; choose another name".into());
        }
        Ok(Self::new(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shared string, for holders that outlive the configuration.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The settings of one app. A reload makes a new one; a running worker keeps the one it was started
/// with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppSpec {
    pub name: AppName,
    /// The file it was read from; `None` if it came from the command line.
    pub source: Option<PathBuf>,
    /// [`Self::source`] with symbolic links followed when it was read; `None` in a state of a
    /// version that did not record it.
    #[serde(default)]
    pub source_resolved: Option<PathBuf>,
    /// Program and arguments; never given to a shell.
    pub command: Vec<String>,
    /// Working directory as written, made absolute but with symbolic links kept.
    pub cwd: PathBuf,
    /// [`Self::cwd`] with symbolic links followed at the time of start or reload: where workers run.
    pub cwd_resolved: PathBuf,
    /// The identity of [`Self::cwd_resolved`] at that time; `None` in a state of a version that did
    /// not record it.
    #[serde(default)]
    pub folder: Option<FolderId>,
    /// Wanted number of workers, at least 1.
    pub instances: u16,
    /// Addresses that all workers share; empty for a plain process.
    pub listen: Vec<Listen>,
    /// The workers take their sockets from `LISTEN_FDS` (sd_listen_fds(3)).
    #[serde(default)]
    pub socket_activation: bool,
    /// Whether connections of a worker to its own port are refused until it has bound it.
    #[serde(default)]
    pub hide_port: HidePort,
    /// Environment from `env_file` and `env` (the latter wins), on top of the environment of `rsup
    /// start`.
    pub env: BTreeMap<String, String>,
    pub readiness: Probe,
    pub liveness: Option<Probe>,
    /// From the start of a worker until it is ready.
    pub listen_timeout: Duration,
    /// Upper bound of the wait for an old worker's accept queue to empty.
    pub drain_timeout: Duration,
    /// How long a connection waits for a worker while none is ready; then rsup closes it.
    #[serde(default = "hold_timeout")]
    pub hold_timeout: Duration,
    /// From the stop signal to SIGKILL.
    pub kill_timeout: Duration,
    /// Resident bytes of a worker with its descendants; above them it is replaced.
    pub max_memory: Option<u64>,
    pub balance: Balance,
    pub stop: Stop,
    pub restart: Restart,
    pub reload: Reload,
    pub log: Log,
    /// The user that workers run as; `None`: the user that rsup runs as.
    #[serde(default)]
    pub run_as: Option<RunAs>,
    /// Permission bits that files of the workers do not get (umask(2)); `None`: rsup's own mask.
    #[serde(default)]
    pub umask: Option<u32>,
    #[serde(default)]
    pub limits: Limits,
    /// Owner and mode of unix socket files.
    #[serde(default)]
    pub socket: SocketSpec,
}

impl AppSpec {
    /// Owner and mode of its unix socket files; what the settings leave out is as the bind(2) of a
    /// worker would make it.
    pub fn socket_file(&self) -> SocketFile {
        let named = |said: &Option<Named>| said.as_ref().map(|named| named.id);
        SocketFile {
            // unix_bind_bsd in net/unix/af_unix.c: the mode of the socket's inode, 0777, less the umask.
            mode: self
                .socket
                .mode
                .or_else(|| self.umask.map(|mask| 0o777 & !mask)),
            uid: named(&self.socket.owner).or_else(|| self.run_as.as_ref().map(|who| who.uid)),
            gid: named(&self.socket.group),
            app_gid: self.run_as.as_ref().map(|who| who.gid),
        }
    }

    /// A copy for display, with every value that may be a secret replaced.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        let hide = |values: &mut BTreeMap<String, String>| {
            values
                .values_mut()
                .for_each(|value| HIDDEN.clone_into(value))
        };
        hide(&mut self.env);
        for probe in [Some(&mut self.readiness), self.liveness.as_mut()]
            .into_iter()
            .flatten()
        {
            if let Check::Http { headers, .. } = &mut probe.check {
                hide(headers);
            }
        }
        self
    }
}

/// The identity of a folder at a start or reload: tells a new release from the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderId {
    /// Device and inode (inode(7)): they differ when a folder was replaced by another of the same
    /// name.
    pub dev: u64,
    pub ino: u64,
    /// Git's `HEAD` in it: the full commit.
    pub commit: Option<String>,
}

/// The placeholder for a hidden value.
pub const HIDDEN: &str = "***";

/// A user with its groups, as looked up at the last start or reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// Its name; its number if it has no name.
    pub user: String,
    pub group: String,
    pub uid: u32,
    pub gid: u32,
    /// The supplementary groups, no others.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    pub shell: PathBuf,
}

/// `[app.NAME.socket]`: `None` means as the app's own `user`, `group` and `umask` give it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketSpec {
    /// Permission bits; connect(2) needs the permission to write.
    pub mode: Option<u32>,
    pub owner: Option<Named>,
    pub group: Option<Named>,
}

/// A user or group, as looked up at the last start or reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name; its number if it has no name.
    pub name: String,
    pub id: u32,
}

/// Owner and mode of a unix socket file; `None` means rsup's own user, group and umask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketFile {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    /// The group from the settings.
    pub gid: Option<u32>,
    /// The workers' group: for a file without a group in the settings, in a folder that does not
    /// choose one (setgid, inode(7)).
    pub app_gid: Option<u32>,
}

/// What a worker may use and do; `None` means as rsup itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Open files, soft and hard.
    pub nofile: Option<u64>,
    /// -20 to 19 (nice(2)).
    pub nice: Option<i8>,
    /// Programs that it executes gain no privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// The only capabilities that the worker, and what it executes, can have.
    pub capabilities: Option<Capabilities>,
    /// Bytes of a worker with its descendants; the kernel kills it at this limit (`memory.max` of a
    /// cgroup).
    pub memory: Option<u64>,
    /// In cores, for a worker with its descendants (`cpu.max`).
    pub cpu: Option<f64>,
    /// Processes and threads of a worker with its descendants (`pids.max`).
    pub tasks: Option<u32>,
}

impl Limits {
    /// Whether enforcing them needs a cgroup.
    pub fn need_cgroup(&self) -> bool {
        self.memory.is_some() || self.cpu.is_some() || self.tasks.is_some()
    }
}

/// An address that the workers of an app listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Listen {
    /// One SO_REUSEPORT group. `v6only` is false for `[::]` given as a bare port or `[::]:port`.
    Tcp { addr: SocketAddr, v6only: bool },
    /// One descriptor shared by all workers: connections cannot be steered.
    Unix(PathBuf),
}

impl Listen {
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { addr, .. } => Some(*addr),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { addr, .. } => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// For programs that test their port by connecting to it before they bind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HidePort {
    /// Decided by what the first worker does.
    #[default]
    Auto,
    Always,
    Never,
}

/// How a new connection finds its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    #[default]
    Random,
    /// Sticky: the same client address goes to the same worker while the set of workers is the same.
    SourceIp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    pub check: Check,
    /// From one check to the next. A starting worker is checked more often at first.
    pub interval: Duration,
    pub timeout: Duration,
    /// From the start of the worker to the first check.
    pub initial_delay: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Check {
    /// GET `path` on the worker's own slot of the first TCP address.
    Http {
        path: String,
        host: Option<String>,
        headers: BTreeMap<String, String>,
        expect_status: Vec<RangeInclusive<u16>>,
    },
    /// The worker accepts a connection on its own slot of the first TCP address.
    Tcp,
    /// A command that exits 0; runs in the worker's directory with its environment and `RSUP_PID`.
    Exec { command: Vec<String> },
    /// sd_notify `READY=1` or Node's `process.send('ready')`.
    Notify,
    /// The worker lives for `restart.min_uptime`: the only check for a process without a listener.
    Alive,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal number, SIGTERM by default.
    pub signal: i32,
    /// Exit codes after which a worker is not started again, whatever the policy.
    pub exit_codes: BTreeSet<i32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// Consecutive exits before `min_uptime` until the worker is given up as `errored`.
    pub max_restarts: u32,
    pub min_uptime: Duration,
    /// First delay; doubled at each further crash, with jitter. The first restart after
    /// [`Self::reset_after`] of quiet happens at once.
    pub backoff: Duration,
    pub backoff_max: Duration,
    /// After this uptime a worker's restart count and backoff start anew.
    pub reset_after: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// Workers beyond `instances` that may live during a reload.
    pub max_surge: Surge,
    /// A replacement counts as ready only after it has been ready this long.
    pub min_ready: Duration,
    /// The limit for the whole reload.
    pub deadline: Duration,
    /// Workers already replaced go back to the old revision when a later one fails.
    pub auto_rollback: bool,
}

/// A number of workers, at least 1, or a share of the wanted ones; written as in the file: `2`, `"25%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenSurge", into = "WrittenSurge")]
pub enum Surge {
    Workers(u16),
    Percent(u8),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenSurge {
    Workers(u16),
    Share(String),
}

impl From<Surge> for WrittenSurge {
    fn from(surge: Surge) -> Self {
        match surge {
            Surge::Workers(workers) => Self::Workers(workers),
            Surge::Percent(percent) => Self::Share(format!("{percent}%")),
        }
    }
}

impl TryFrom<WrittenSurge> for Surge {
    type Error = String;

    fn try_from(written: WrittenSurge) -> Result<Self, String> {
        match written {
            WrittenSurge::Workers(workers) => Ok(Self::Workers(workers)),
            WrittenSurge::Share(text) => text
                .strip_suffix('%')
                .and_then(|percent| percent.parse().ok())
                .map(Self::Percent)
                .ok_or_else(|| format!("`{text}` is no max_surge")),
        }
    }
}

impl fmt::Display for Surge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers(workers) => write!(f, "{workers}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// The time that proxies commonly wait for an answer.
pub fn hold_timeout() -> Duration {
    Duration::from_secs(60)
}

impl AppSpec {
    /// Workers beyond `instances` that may live during a reload. A share is rounded up, and limited
    /// to the slots that there can be.
    pub fn surge(&self, instances: u16) -> u16 {
        match self.reload.max_surge {
            Surge::Workers(workers) => workers,
            Surge::Percent(percent) => {
                let share = (u32::from(instances) * u32::from(percent)).div_ceil(100);
                // One more slot is the holding slot: connections wait there while no worker is
                // ready.
                let room = self.most_slots().saturating_sub(u32::from(instances) + 1);
                u16::try_from(share.min(room).max(1)).unwrap_or(u16::MAX)
            }
        }
    }

    /// The most slots of any one address, by the address that can have the fewest.
    fn most_slots(&self) -> u32 {
        let only_v6 = |listen: &Listen| match listen {
            Listen::Tcp { addr, v6only } => {
                addr.is_ipv6() && (*v6only || !addr.ip().is_unspecified())
            }
            Listen::Unix(_) => false,
        };
        if self.listen.iter().any(only_v6) {
            // See `sys/steer.rs`, `MAX_PROBED_V6`.
            63
        } else {
            u32::from(super::MOST_INSTANCES) * 2
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// `None`: `<log folder>/<app>-out.log`.
    pub out: Option<PathBuf>,
    /// `None`: `<log folder>/<app>-err.log`.
    pub err: Option<PathBuf>,
    pub format: LogFormat,
    pub timestamps: bool,
    /// Bytes; 0 switches rotation off.
    pub max_size: u64,
    /// Rotated files that are kept.
    pub keep: u32,
    pub compress: bool,
}

impl Log {
    /// One line per message, as the app wrote it: the default.
    pub fn plain() -> Self {
        Self {
            out: None,
            err: None,
            format: LogFormat::Text,
            timestamps: true,
            max_size: 50 << 20,
            keep: 10,
            compress: true,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[supervisor]`: the daemon's own settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SupervisorSpec {
    /// The folder of `<app>-out.log` and `<app>-err.log`; `None`: `logs` in the state folder.
    pub log_dir: Option<PathBuf>,
    /// The address where rsup itself answers `/health`, `/readiness`, `/liveness` and `/metrics`
    /// over HTTP; `None`: none.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
}

/// A whole configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub supervisor: SupervisorSpec,
    /// In the order of the file.
    pub apps: Vec<AppSpec>,
}
