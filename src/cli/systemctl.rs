//! systemd as this machine has it: whether it runs, where units go, and `systemctl`.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use super::problem::{FAILED, Problem, Report};
use super::unit::{self, MARK, Scope};

/// Lines of the journal that go with an error.
const LOG_LINES: &str = "10";

/// The name of the unit unless another one is given.
pub const NAME: &str = "rsup";

/// systemd is the init of this machine (sd_booted(3)).
pub fn is_init() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Its version, where there is a systemctl.
pub fn version() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1)?.parse().ok()
}

/// One of systemd's managers.
#[derive(Clone, Copy, Debug)]
pub struct Manager(pub Scope);

impl Manager {
    /// That of this user, which must run.
    pub fn reach(scope: Scope) -> Result<Self, Problem> {
        if !is_init() {
            let what = "systemd does not run here (there is no /run/systemd/system), so no unit was installed";
            let hint = "in a container, or under another init, let it run `rsup start --foreground FILE`; \
                        `rsup startup --print` shows the unit for a machine with systemd";
            return Err(Problem::failed("no_systemd", what).hint(hint));
        }
        let manager = Self(scope);
        match scope {
            Scope::System if !geteuid().is_root() => Err(Problem::usage("the system's units are for root to write")
                .hint("sudo rsup startup for root's apps; `rsup startup --user` for those of this user")),
            Scope::System => Ok(manager),
            Scope::User => manager.ask(&["show", "--property=Version"]).map(|_| manager).map_err(|error| {
                let uid = geteuid();
                let hint = format!(
                    "log in as this user (su and sudo give no session), or: loginctl enable-linger, then \
                     XDG_RUNTIME_DIR=/run/user/{uid} rsup startup"
                );
                error.hint(hint)
            }),
        }
    }

    /// Where the units go that an administrator or a user installs.
    pub fn folder(self) -> Result<PathBuf, Problem> {
        match self.0 {
            Scope::System => Ok("/etc/systemd/system".into()),
            Scope::User => {
                let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
                let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
                let config = config.ok_or_else(|| Problem::usage("HOME is not set, so there is no place for a unit"))?;
                Ok(config.join("systemd/user"))
            }
        }
    }

    /// What `systemctl` prints.
    pub fn ask(self, words: &[&str]) -> Result<String, Problem> {
        let shown = || format!("systemctl {}", [self.0.flag(), words].concat().join(" "));
        let output = Command::new("systemctl").args(self.0.flag()).args(words).output().map_err(|error| match error.kind() {
            ErrorKind::NotFound => Problem::failed("no_systemd", "there is no systemctl in PATH"),
            _ => Problem::failed("systemd", format!("cannot run {}: {error}", shown())),
        })?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.trim();
            let why = if why.is_empty() { output.status.to_string() } else { why.to_owned() };
            return Err(Problem::failed("systemd", format!("{} failed\n{why}", shown())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a unit; what the journal says of it goes with the error.
    pub fn start(self, unit: &str, wait: bool) -> Result<(), Problem> {
        let words: &[&str] = if wait { &["start", unit] } else { &["start", "--no-block", unit] };
        self.ask(words).map(drop).map_err(|problem| {
            let Problem::Report { report, .. } = problem else { return problem };
            let log = self.journal(unit);
            let hint = format!("journalctl {}", [self.0.flag(), &["-u", unit]].concat().join(" "));
            Problem::Report { exit: FAILED, report: Report { log, ..report }.hint(hint) }
        })
    }

    fn journal(self, unit: &str) -> Vec<String> {
        let words = ["-u", unit, "-n", LOG_LINES, "-o", "cat", "--no-pager", "--quiet"];
        let output = Command::new("journalctl").args(self.0.flag()).args(words).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).lines().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// The main process of a service, if it runs.
    pub fn main_pid(self, unit: &str) -> Option<u32> {
        self.ask(&["show", "--property=MainPID", "--value", unit]).ok()?.parse().ok().filter(|pid| *pid != 0)
    }
}

/// Variables that a daemon under systemd needs to be the one of these folders and settings.
pub fn environment(scope: Scope) -> Result<Vec<(String, String)>, Problem> {
    let names: &[&str] = match scope {
        Scope::System => &["RSUP_HOME", "RSUP_TAKEOVER"],
        Scope::User => &["RSUP_HOME", "RSUP_TAKEOVER", "XDG_STATE_HOME"],
    };
    let text = |name: &str, value: OsString| {
        let value = value.into_string().map_err(|_| Problem::usage(format!("{name} is not UTF-8, which a unit has to be")))?;
        if value.contains(char::is_control) {
            return Err(Problem::usage(format!("{name} has a control character in it, which a unit cannot have")));
        }
        Ok(value)
    };
    let mut env = Vec::new();
    for name in names {
        let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else { continue };
        let value = match *name {
            "RSUP_HOME" => std::path::absolute(&value).map(PathBuf::into_os_string).unwrap_or(value),
            _ => value,
        };
        env.push(((*name).to_owned(), text(name, value)?));
    }
    Ok(env)
}

/// The manager and the name of an installed unit that is for just the daemon that the environment
/// means: then that daemon is systemd's to start.
pub fn installed() -> Option<(Manager, String)> {
    if !is_init() {
        return None;
    }
    let scope = if geteuid().is_root() { Scope::System } else { Scope::User };
    let (manager, env) = (Manager(scope), environment(scope).ok()?);
    let ours = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK) && unit::is_for(&text, &env));
    let files = std::fs::read_dir(manager.folder().ok()?).ok()?.flatten().map(|entry| entry.path());
    let found = files.filter(|path| path.extension().is_some_and(|end| end == "service")).find(|path| ours(path))?;
    Some((manager, found.file_name()?.to_str()?.to_owned()))
}

/// Writes a unit, all of it or nothing. One that is not ours stays.
pub fn write(path: &Path, text: &str) -> Result<(), Problem> {
    let fail = |error: std::io::Error| Problem::failed("local", format!("cannot write {}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
        let mut file = tempfile::Builder::new().prefix(".rsup").tempfile_in(folder).map_err(fail)?;
        file.write_all(text.as_bytes()).map_err(fail)?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(open).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        file.persist(path).map_err(|error| fail(error.error))?;
    }
    Ok(())
}

/// What is in a unit file of ours; `None` if there is none.
pub fn read_own(path: &Path) -> Result<Option<String>, Problem> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => Ok(Some(text)),
        Ok(_) => Err(Problem::usage(format!("{} was not written by `rsup startup`\nnothing was changed", path.display()))
            .hint("move it away, or choose another name with --name")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::failed("local", format!("cannot read {}: {error}", path.display()))),
    }
}
