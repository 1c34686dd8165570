//! The systemd units that `rsup startup` writes. Pure: facts in, text out.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{AppSpec, Listen, SocketFile};

/// The first line of every unit that rsup writes: others are never overwritten or removed.
pub const MARK: &str = "# Written by `rsup startup`";

/// Counted up when units of earlier versions should be written again. 2: rsup is started again
/// after its death where an app has limits and systemd is older than [`SUBGROUPS`].
const FORM: u32 = 2;
const FORM_LINE: &str = "# Form ";
/// The version of systemd that can start a process in a leaf of a delegated cgroup (`DelegateSubgroup=`).
const SUBGROUPS: u32 = 254;
const SUBGROUP: &str = "DelegateSubgroup=supervisor";

/// Descriptors in systemd's store: for each worker a socket per address, two log pipes, the
/// listener of its `bind`.
const STORED_FDS: u32 = 8192;
/// Seconds without a message after which systemd takes the event loop for stuck. The loop never
/// waits, but a slow disk may delay it.
const WATCHDOG: u64 = 30;
/// What a stop takes in addition to the apps' own timeouts.
const STOP_MARGIN: Duration = Duration::from_secs(15);
/// The stop timeout where no app is known: drain and kill timeouts are rarely higher.
const STOP_DEFAULT: Duration = Duration::from_secs(90);

/// Which manager runs the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    System,
    User,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
        }
    }

    /// The options before every verb of systemctl and journalctl.
    pub fn flag(self) -> &'static [&'static str] {
        match self {
            Self::System => &[],
            Self::User => &["--user"],
        }
    }
}

/// How long a stop may take, and what that is computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct StopTimeout {
    pub timeout: Duration,
    pub because: String,
}

impl StopTimeout {
    /// The timeout of these apps; `from` says where their settings come from.
    pub fn of(apps: &[AppSpec], from: &str) -> Self {
        let takes = |app: &AppSpec| app.drain_timeout.saturating_add(app.kill_timeout);
        match apps.iter().max_by_key(|app| takes(app)) {
            Some(app) => Self {
                timeout: takes(app).saturating_add(STOP_MARGIN),
                because: format!(
                    "drain_timeout {} + kill_timeout {} of {} ({from}) + {}",
                    time(app.drain_timeout),
                    time(app.kill_timeout),
                    app.name,
                    time(STOP_MARGIN)
                ),
            },
            None => Self {
                timeout: STOP_DEFAULT,
                because: "no app is known yet, so this is a default".into(),
            },
        }
    }
}

/// What the units are made of.
#[derive(Clone, Debug)]
pub struct Unit {
    pub scope: Scope,
    /// Without `.service`.
    pub name: String,
    /// The path of this program: one that stays valid after an update.
    pub program: PathBuf,
    /// Variables that give the daemon the same folders and settings as now.
    pub env: Vec<(String, String)>,
    /// The name of the runtime folder that systemd makes below its own.
    pub runtime_directory: Option<String>,
    /// The same for the state folder.
    pub state_directory: Option<String>,
    /// The path of the state folder.
    pub state: PathBuf,
    pub stop: StopTimeout,
    /// The version of systemd, where known: settings that an older one lacks are left out.
    pub version: Option<u32>,
    /// The service has a `.socket` unit.
    pub sockets: bool,
}

impl Unit {
    pub fn service(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_service(&mut text);
        text
    }

    fn write_service(&self, to: &mut String) -> fmt::Result {
        let program = quoted(&self.program);
        writeln!(to, "{MARK}; `rsup unstartup` removes it.")?;
        writeln!(
            to,
            "# Changes of your own survive both in `systemctl edit {}.service`.",
            self.name
        )?;
        writeln!(
            to,
            "{FORM_LINE}{FORM}: `rsup list` says when there is a better one.\n"
        )?;
        writeln!(
            to,
            "[Unit]\nDescription=rsup, process supervisor\nDocumentation=man:rsup(1)"
        )?;
        if self.scope == Scope::System {
            writeln!(
                to,
                "# An app may listen on an address that is there only once the network is."
            )?;
            writeln!(
                to,
                "Wants=network-online.target\nAfter=network-online.target"
            )?;
            writeln!(
                to,
                "# The program and the state may be on file systems of their own."
            )?;
            writeln!(to, "RequiresMountsFor={} {}", program, quoted(&self.state))?;
        }
        writeln!(
            to,
            "# A supervisor that died is started again, however often it happens."
        )?;
        writeln!(to, "StartLimitIntervalSec=0\n\n[Service]")?;
        writeln!(
            to,
            "# Started means: every app is ready. rsup says so itself, and how it does in words."
        )?;
        writeln!(to, "Type=notify\nNotifyAccess=main")?;
        writeln!(
            to,
            "ExecStart={program} daemon --service\nExecReload={program} reload all"
        )?;
        self.write_clean_up(to)?;
        for (name, value) in &self.env {
            writeln!(
                to,
                "Environment={}",
                quoted_text(&format!("{name}={value}"))
            )?;
        }
        if self.sockets {
            writeln!(to, "Sockets={}.socket", self.name)?;
        }
        self.write_life(to)?;
        self.write_limits(to)?;
        if self.scope == Scope::System {
            self.write_sandbox(to)?;
        }
        let target = if self.scope == Scope::System {
            "multi-user.target"
        } else {
            "default.target"
        };
        writeln!(to, "\n[Install]\nWantedBy={target}")
    }

    /// Whether systemd starts rsup in a leaf cgroup, where it is not in the way of the workers'
    /// controllers.
    pub fn has_subgroups(&self) -> bool {
        self.version.is_some_and(|version| version >= SUBGROUPS)
    }

    /// Begins with `-`: its failure changes nothing.
    fn write_clean_up(&self, to: &mut String) -> fmt::Result {
        writeln!(
            to,
            "# When systemd is asked to stop rsup and finds it dead, this stops its workers."
        )?;
        let mut flags = String::new();
        if self.scope == Scope::User {
            flags.push_str("--user ");
        }
        if !self.has_subgroups() {
            writeln!(
                to,
                "# systemd before {SUBGROUPS} cannot start rsup again while the cgroup of this unit has controllers enabled"
            )?;
            writeln!(
                to,
                "# for limits of workers. This disables them after rsup's death, and the next rsup sets the limits again."
            )?;
            writeln!(
                to,
                "# What a worker had in memory before is not counted any more by its limits.memory."
            )?;
            flags.push_str("--make-room ");
        }
        writeln!(
            to,
            "ExecStopPost=-{} after-service {flags}%n",
            quoted(&self.program)
        )
    }

    fn write_life(&self, to: &mut String) -> fmt::Result {
        writeln!(
            to,
            "\n# Start again at once after any death, but not after `rsup kill`, which ends it with 0."
        )?;
        writeln!(
            to,
            "Restart=always\nRestartSec=20ms\nRestartPreventExitStatus=0"
        )?;
        writeln!(
            to,
            "# The event loop itself pings. A core file would hold the apps' secrets, so no SIGABRT."
        )?;
        writeln!(to, "WatchdogSec={WATCHDOG}\nWatchdogSignal=SIGKILL")?;
        writeln!(
            to,
            "# systemd signals rsup alone, which stops its workers gracefully. When rsup dies, they live on"
        )?;
        writeln!(
            to,
            "# with their sockets for the next rsup to adopt (`mixed` would kill them first)."
        )?;
        writeln!(to, "KillMode=process")?;
        writeln!(
            to,
            "# A worker that the kernel kills for want of memory is rsup's to replace."
        )?;
        writeln!(to, "OOMPolicy=continue")?;
        writeln!(to, "# {}.", self.stop.because)?;
        writeln!(
            to,
            "# As long as apps start, reload or stop in their own time, rsup asks for more."
        )?;
        writeln!(
            to,
            "TimeoutStopSec={}",
            self.stop.timeout.as_millis().div_ceil(1000)
        )?;
        writeln!(to, "TimeoutStartSec=90")?;
        writeln!(
            to,
            "# Listening sockets, log pipes and the rest outlive rsup here, until the service is stopped."
        )?;
        writeln!(to, "FileDescriptorStoreMax={STORED_FDS}")
    }

    fn write_limits(&self, to: &mut String) -> fmt::Result {
        if self.runtime_directory.is_some() || self.state_directory.is_some() {
            writeln!(
                to,
                "\n# For this user alone: the control socket gives full power over the apps."
            )?;
        }
        if let Some(name) = &self.runtime_directory {
            writeln!(
                to,
                "RuntimeDirectory={name}\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes"
            )?;
        }
        if let Some(name) = &self.state_directory {
            writeln!(to, "StateDirectory={name}\nStateDirectoryMode=0700")?;
        }
        writeln!(
            to,
            "\n# The cgroup below this unit is rsup's, for the apps' limits."
        )?;
        writeln!(to, "Delegate=yes")?;
        if self.has_subgroups() {
            writeln!(to, "{SUBGROUP}")?;
        }
        writeln!(
            to,
            "# Workers get these too; rsup itself needs a few descriptors for each of them."
        )?;
        writeln!(
            to,
            "LimitNOFILE=65536:524288\nTasksMax=infinity\nSyslogIdentifier=rsup"
        )
    }

    fn write_sandbox(&self, to: &mut String) -> fmt::Result {
        writeln!(
            to,
            "\n# All of this holds for the workers as well, so it is only what no server needs. What breaks"
        )?;
        writeln!(
            to,
            "# some app is left to you: NoNewPrivileges (sudo), PrivateTmp (sockets in /tmp), ProtectSystem and"
        )?;
        writeln!(
            to,
            "# ProtectHome (where apps live and write), MemoryDenyWriteExecute (every just-in-time compiler),"
        )?;
        writeln!(
            to,
            "# RestrictSUIDSGID (deploys that keep modes), RestrictNamespaces (browsers, containers)."
        )?;
        writeln!(
            to,
            "# No kernel modules are loaded, and the kernel's log is neither read nor written."
        )?;
        writeln!(to, "ProtectKernelModules=yes\nProtectKernelLogs=yes")?;
        writeln!(
            to,
            "# Personalities of other systems turn off address randomisation."
        )?;
        writeln!(to, "LockPersonality=yes")?;
        writeln!(
            to,
            "# No worker reboots the machine, sets its clock, reaches for raw memory and devices, or changes"
        )?;
        writeln!(to, "# the security policy.")?;
        writeln!(
            to,
            "CapabilityBoundingSet=~CAP_SYS_MODULE CAP_SYSLOG CAP_SYS_BOOT CAP_SYS_TIME CAP_SYS_RAWIO CAP_MAC_ADMIN CAP_MAC_OVERRIDE"
        )
    }
}

/// The `.socket` unit beside it.
pub fn socket(held: &Listenable, scope: Scope) -> String {
    let mut text = format!("{MARK} --socket; `rsup unstartup` removes it.\n\n");
    text.push_str("[Unit]\nDescription=Listening sockets of the apps of rsup\n\n[Socket]\n");
    text.push_str("# They listen from early boot on, and while rsup is down: clients wait then, and are not refused.\n");
    for address in &held.listen {
        let _ = match address {
            Listen::Tcp { addr, .. } => writeln!(text, "ListenStream={addr}"),
            Listen::Unix(path) => writeln!(
                text,
                "ListenStream={}",
                escaped(&path.display().to_string())
            ),
        };
    }
    if let Some(SocketFile {
        mode,
        uid,
        gid,
        app_gid,
    }) = held.file
    {
        text.push_str("# Of the files of all unix sockets here: as the app's own user and umask or [app.NAME.socket] have it.\n");
        // UMask= defaults to 0022 (systemd.exec(5)).
        let _ = writeln!(text, "SocketMode={:04o}", mode.unwrap_or(0o755));
        // A user's systemd cannot change the owner of a file.
        let owner = [("SocketUser", uid), ("SocketGroup", gid.or(app_gid))]
            .into_iter()
            .filter(|_| scope == Scope::System);
        for (key, id) in owner.filter_map(|(key, id)| Some((key, id?))) {
            let _ = writeln!(text, "{key}={id}");
        }
    }
    let v6only = held.listen.iter().any(|listen| {
        matches!(
            listen,
            Listen::Tcp {
                addr: SocketAddr::V6(_),
                v6only: true
            }
        )
    });
    let both = if v6only { "ipv6-only" } else { "both" };
    let _ = write!(
        text,
        "BindIPv6Only={both}\nBacklog=4096\nFileDescriptorName=listen\n\n"
    );
    text.push_str("[Install]\nWantedBy=sockets.target\n");
    text
}

/// The addresses for one `.socket` unit.
#[derive(Debug, Default)]
pub struct Listenable {
    /// Each address once.
    pub listen: Vec<Listen>,
    /// Owner and mode of its unix sockets; `None` without one.
    pub file: Option<SocketFile>,
    /// Addresses that the unit cannot hold beside the others.
    pub left: Vec<Listen>,
}

/// Sorts addresses into those that one `.socket` unit can hold and those that it cannot: IPv6
/// sockets with and without IPv4, and owner and mode of unix sockets, are settings of the whole
/// unit; port 0 is not an address.
pub fn listenable(apps: &[AppSpec]) -> Listenable {
    let all: BTreeMap<Listen, SocketFile> = apps
        .iter()
        .flat_map(|app| {
            app.listen
                .iter()
                .map(|listen| (listen.clone(), app.socket_file()))
        })
        .collect();
    let dual = |listen: &Listen| {
        matches!(
            listen,
            Listen::Tcp {
                addr: SocketAddr::V6(_),
                v6only: false
            }
        )
    };
    let only = |listen: &Listen| {
        matches!(
            listen,
            Listen::Tcp {
                addr: SocketAddr::V6(_),
                v6only: true
            }
        )
    };
    let any_dual = all.keys().any(dual);
    let file = all
        .iter()
        .find(|(listen, _)| listen.tcp().is_none())
        .map(|(_, file)| *file);
    let held = |listen: &Listen, of: &SocketFile| match listen.tcp() {
        Some(addr) => !(any_dual && only(listen)) && addr.port() != 0,
        None => Some(*of) == file,
    };
    let (listen, left): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(listen, of)| held(listen, of));
    let addresses =
        |list: Vec<(Listen, SocketFile)>| list.into_iter().map(|(listen, _)| listen).collect();
    Listenable {
        listen: addresses(listen),
        file,
        left: addresses(left),
    }
}

/// Whether an existing unit is for the daemon with this environment.
pub fn is_for(text: &str, env: &[(String, String)]) -> bool {
    let line = |(name, value): &(String, String)| {
        format!("Environment={}", quoted_text(&format!("{name}={value}")))
    };
    let wanted = env.iter().find(|(name, _)| name == "RSUP_HOME").map(line);
    let found = text
        .lines()
        .find(|line| line.starts_with("Environment=") && line.contains("RSUP_HOME="));
    found == wanted.as_deref()
}

/// Why a unit that rsup wrote should be written again for this version of systemd; `None` if it is
/// current.
pub fn outdated(text: &str, version: Option<u32>) -> Option<String> {
    let form = text.lines().find_map(|line| {
        line.strip_prefix(FORM_LINE)?
            .split(':')
            .next()?
            .parse()
            .ok()
    });
    if form.unwrap_or(1) < FORM {
        return Some(format!(
            "was written by an earlier rsup; with it, systemd before {SUBGROUPS} cannot start rsup again after a death where an app has \
             limits.memory, cpu or tasks"
        ));
    }
    let subgroup = text.lines().any(|line| line == SUBGROUP);
    let version = version.filter(|version| (*version >= SUBGROUPS) != subgroup)?;
    Some(if subgroup {
        format!(
            "was written for systemd {SUBGROUPS} or later, and this is {version}, which may not be able to start rsup again after its death"
        )
    } else {
        format!(
            "was written for systemd before {SUBGROUPS}, and this is {version}, which needs no limits to be set again after rsup's death"
        )
    })
}

/// The command that writes the unit of this name again.
pub fn rewrite(scope: Scope, name: &str, text: &str) -> String {
    let mut command = "rsup startup".to_owned();
    if scope == Scope::User {
        command.push_str(" --user");
    }
    if name != super::systemctl::NAME {
        command.push_str(&format!(" --name {name}"));
    }
    if text.lines().any(|line| line.starts_with("Sockets=")) {
        command.push_str(" --socket");
    }
    command
}

fn time(of: Duration) -> String {
    humantime::format_duration(of).to_string()
}

fn quoted(path: &Path) -> String {
    quoted_text(&path.display().to_string())
}

/// Formats a text as one word of a unit file (systemd.syntax(7)): quoted where needed, with
/// specifiers escaped. The settings that use it, the path of a program included, expand no
/// variables.
fn quoted_text(text: &str) -> String {
    let text = escaped(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.+=:@%,".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

fn escaped(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn unit() -> Unit {
        Unit {
            scope: Scope::System,
            name: "rsup".into(),
            program: "/usr/local/bin/rsup".into(),
            env: Vec::new(),
            runtime_directory: Some("rsup".into()),
            state_directory: Some("rsup".into()),
            state: "/var/lib/rsup".into(),
            stop: StopTimeout::of(&[], ""),
            version: Some(252),
            sockets: false,
        }
    }

    fn apps(text: &str) -> Vec<AppSpec> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("supervisor.toml");
        std::fs::write(&file, text).unwrap();
        config::load(&file).unwrap().config.apps
    }

    #[test]
    fn the_unit_of_the_system() {
        insta::assert_snapshot!("unit_of_the_system", unit().service());
    }

    #[test]
    fn the_unit_of_a_user_has_no_sandbox_and_its_own_home() {
        let mut user = unit();
        user.scope = Scope::User;
        user.env = vec![("RSUP_HOME".into(), "/home/u/a 100% $x".into())];
        (user.runtime_directory, user.state_directory) = (None, None);
        user.version = Some(255);
        insta::assert_snapshot!("unit_of_a_user", user.service());
    }

    #[test]
    fn the_stop_timeout_is_above_that_of_the_slowest_app() {
        let apps = apps(
            "[app.a]\ncommand = [\"true\"]\nkill_timeout = \"2m\"\ndrain_timeout = \"5s\"\n[app.b]\ncommand = [\"true\"]\nkill_timeout = \"1s\"\n",
        );
        let stop = StopTimeout::of(&apps, "as the daemon has it");
        assert_eq!(stop.timeout, Duration::from_secs(140));
        assert_eq!(
            stop.because,
            "drain_timeout 5s + kill_timeout 2m of a (as the daemon has it) + 15s"
        );
        assert!(StopTimeout::of(&[], "").because.contains("default"));
    }

    #[test]
    fn the_socket_unit_has_every_address_once() {
        let apps = apps(
            "[app.a]\ncommand = [\"true\"]\nlisten = [8080, \"127.0.0.1:9000\", \"unix:/run/a 1.sock\"]\n[app.b]\ncommand = [\"true\"]\nlisten = 8081\n",
        );
        let held = listenable(&apps);
        assert_eq!(held.left, []);
        let text = socket(&held, Scope::System);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("ListenStream="))
            .collect();
        assert_eq!(
            lines,
            [
                "ListenStream=127.0.0.1:9000",
                "ListenStream=[::]:8080",
                "ListenStream=[::]:8081",
                "ListenStream=/run/a 1.sock"
            ]
        );
        assert!(text.contains("BindIPv6Only=both"));
        assert!(
            text.contains("SocketMode=0755\n") && !text.contains("SocketUser"),
            "{text}"
        );
    }

    #[test]
    fn one_socket_unit_has_one_kind_of_socket_files() {
        let apps = apps(
            "[app.a]\ncommand = [\"true\"]\nlisten = [\"unix:/run/a.sock\", 8080]\nuser = 4242\ngroup = 4243\nsocket = { mode = \"0620\" }\n[app.b]\ncommand = [\"true\"]\nlisten = [\"unix:/run/b.sock\", 8081]\n",
        );
        let held = listenable(&apps);
        assert_eq!(held.left, [Listen::Unix("/run/b.sock".into())]);
        let text = socket(&held, Scope::System);
        assert!(
            text.contains("SocketMode=0620\nSocketUser=4242\nSocketGroup=4243\n"),
            "{text}"
        );
        let text = socket(&held, Scope::User);
        assert!(
            text.contains("SocketMode=0620\n") && !text.contains("SocketUser"),
            "{text}"
        );
    }

    #[test]
    fn words_are_quoted_where_they_must_be() {
        assert_eq!(quoted_text("/usr/bin/rsup"), "/usr/bin/rsup");
        assert_eq!(quoted_text("/a b/100%"), "\"/a b/100%%\"");
        assert_eq!(quoted_text("a\"b\\c$d"), "\"a\\\"b\\\\c$d\"");
    }

    #[test]
    fn an_older_unit_is_known() {
        let at = |version| {
            Unit {
                version: Some(version),
                ..unit()
            }
            .service()
        };
        assert_eq!(
            (outdated(&at(252), Some(253)), outdated(&at(257), Some(254))),
            (None, None)
        );
        assert_eq!(outdated(&at(252), None), None);
        assert!(
            outdated(&at(252), Some(257))
                .unwrap()
                .contains("before 254, and this is 257")
        );
        assert!(
            outdated(&at(257), Some(252))
                .unwrap()
                .contains("254 or later, and this is 252")
        );
        // As rsup 0.1.0 wrote it.
        let first: String = at(257)
            .lines()
            .filter(|line| !line.starts_with("# Form") && !line.starts_with("ExecStopPost"))
            .map(|l| format!("{l}\n"))
            .collect();
        for version in [None, Some(252), Some(257)] {
            assert!(outdated(&first, version).unwrap().contains("earlier rsup"));
        }
        // A unit of a later rsup is kept.
        assert_eq!(
            outdated(&at(252).replace("# Form 2", "# Form 12"), Some(252)),
            None
        );
    }

    #[test]
    fn the_command_that_writes_it_anew() {
        assert_eq!(
            rewrite(Scope::System, "rsup", &unit().service()),
            "rsup startup"
        );
        let text = Unit {
            sockets: true,
            ..unit()
        }
        .service();
        assert_eq!(
            rewrite(Scope::User, "other", &text),
            "rsup startup --user --name other --socket"
        );
    }

    #[test]
    fn a_unit_belongs_to_one_home() {
        let home = vec![("RSUP_HOME".to_owned(), "/x y".to_owned())];
        let mut of_home = unit();
        of_home.env = home.clone();
        assert!(is_for(&of_home.service(), &home));
        assert!(!is_for(&of_home.service(), &[]));
        assert!(is_for(&unit().service(), &[]));
        assert!(!is_for(&unit().service(), &home));
    }
}
