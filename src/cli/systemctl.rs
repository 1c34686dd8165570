//! systemd as this machine has it: whether it runs, where units go, and `systemctl`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::error::{CliError, FAILED, Report};
use super::unit::{self, MARK, Scope};
use crate::daemon;
use crate::paths::{self, Paths};

/// Lines of the journal that are shown with an error.
const LOG_LINES: &str = "10";

/// Time in which a service that cannot be started reaches a final state: rsup itself pauses before
/// it exits.
const MOMENT: Duration = Duration::from_millis(2500);
const POLL: Duration = Duration::from_millis(20);

/// The name of the unit unless another one is given.
pub const NAME: &str = "rsup";

/// systemd is the init of this machine (sd_booted(3)).
pub fn is_init() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The version of systemd, where there is a systemctl.
pub fn version() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// One of systemd's managers.
#[derive(Clone, Copy, Debug)]
pub struct Manager(pub Scope);

impl Manager {
    /// The manager of this scope, which must run.
    pub fn reach(scope: Scope) -> Result<Self, CliError> {
        if !is_init() {
            let what = "systemd does not run here (there is no /run/systemd/system), so no unit was installed";
            let hint = "in a container, or under another init, let it run `rsup start --foreground FILE`; \
                        `rsup startup --print` shows the unit for a machine with systemd";
            return Err(CliError::failed("no_systemd", what).hint(hint));
        }
        let manager = Self(scope);
        match scope {
            Scope::System if !geteuid().is_root() => Err(CliError::usage("the system's units are for root to write")
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

    /// The folder for units that an administrator or a user installs.
    pub fn folder(self) -> Result<PathBuf, CliError> {
        match self.0 {
            Scope::System => Ok("/etc/systemd/system".into()),
            Scope::User => {
                let given = std::env::var_os("XDG_CONFIG_HOME")
                    .map(PathBuf::from)
                    .filter(|path| path.is_absolute());
                let config = given.or_else(|| paths::home().map(|home| home.join(".config")));
                let config = config.ok_or_else(|| {
                    CliError::usage("HOME is not set, so there is no place for a unit")
                })?;
                Ok(config.join("systemd/user"))
            }
        }
    }

    /// All folders that may hold units, whatever the environment says.
    fn folders(self) -> Vec<PathBuf> {
        let usual = match self.0 {
            Scope::System => None,
            Scope::User => paths::home().map(|home| home.join(".config/systemd/user")),
        };
        let mut folders: Vec<PathBuf> = self.folder().into_iter().chain(usual).collect();
        folders.dedup();
        folders
    }

    /// `systemctl` for this manager. The user's manager is also found without the variables of a
    /// session, as in cron and after su(1): at `/run/user/UID` (user@.service(5)).
    fn systemctl(self) -> Command {
        let mut command = Command::new("systemctl");
        command.args(self.0.flag());
        let runtime = PathBuf::from(format!("/run/user/{}", geteuid()));
        let has_session = ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"]
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        if self.0 == Scope::User && !has_session && runtime.is_dir() {
            command.env("XDG_RUNTIME_DIR", runtime);
        }
        command
    }

    /// Runs `systemctl` and returns what it prints.
    pub fn ask(self, words: &[&str]) -> Result<String, CliError> {
        let shown = || format!("systemctl {}", [self.0.flag(), words].concat().join(" "));
        let output = self
            .systemctl()
            .args(words)
            .output()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    CliError::failed("no_systemd", "there is no systemctl in PATH")
                }
                _ => CliError::failed("systemd", format!("cannot run {}: {error}", shown())),
            })?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.trim();
            let why = if why.is_empty() {
                output.status.to_string()
            } else {
                why.to_owned()
            };
            return Err(CliError::failed(
                "systemd",
                format!("{} failed\n{why}", shown()),
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a unit; an error carries the last lines of its journal.
    pub fn start(self, unit: &str, wait: bool) -> Result<(), CliError> {
        let words: &[&str] = if wait {
            &["start", unit]
        } else {
            &["start", "--no-block", unit]
        };
        self.ask(words).map(drop).map_err(|problem| {
            let CliError::Report { report, .. } = problem else {
                return problem;
            };
            let log = self.journal(unit);
            let hint = format!(
                "journalctl {}",
                [self.0.flag(), &["-u", unit]].concat().join(" ")
            );
            CliError::Report {
                exit: FAILED,
                report: Report { log, ..report }.hint(hint),
            }
        })
    }

    fn journal(self, unit: &str) -> Vec<String> {
        let words = [
            "-u",
            unit,
            "-n",
            LOG_LINES,
            "-o",
            "cat",
            "--no-pager",
            "--quiet",
        ];
        let output = Command::new("journalctl")
            .args(self.0.flag())
            .args(words)
            .output();
        output
            .map(|o| {
                String::from_utf8_lossy(&o.stdout)
                    .lines()
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Whether a job that stops the unit is under way, even if only to start it again afterwards.
    pub fn is_asked_to_stop(self, unit: &str) -> bool {
        // The columns are JOB UNIT TYPE STATE.
        let jobs = self
            .ask(&["list-jobs", "--no-legend", "--plain", "--no-pager", unit])
            .unwrap_or_default();
        jobs.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&unit) && matches!(words.get(2), Some(&("stop" | "restart")))
        })
    }

    /// The cgroup of a service.
    pub fn cgroup(self, unit: &str) -> Option<String> {
        self.ask(&["show", "--property=ControlGroup", "--value", unit])
            .ok()
            .filter(|path| !path.is_empty())
    }

    /// Why a service that should run is down, according to systemd. `None`: it runs, was stopped,
    /// or is being started for the first time.
    fn why_down(self, unit: &str) -> Option<String> {
        let deadline = Instant::now() + MOMENT;
        let names = "--property=ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,NRestarts";
        loop {
            let text = self.ask(&["show", names, unit]).ok()?;
            let facts: BTreeMap<&str, &str> = text
                .lines()
                .filter_map(|line| line.split_once('='))
                .collect();
            let fact = |name: &str| facts.get(name).copied().unwrap_or_default();
            let restarts: u64 = fact("NRestarts").parse().unwrap_or(0);
            let ended = fact("ExecMainCode") != "0";
            match (fact("ActiveState"), fact("SubState")) {
                ("failed", _) | (_, "auto-restart" | "auto-restart-queued") => {
                    return Some(in_words(fact, restarts));
                }
                ("deactivating", _) if ended && restarts > 0 => {
                    return Some(in_words(fact, restarts));
                }
                // Asks again: the result of this attempt is known within a moment.
                ("activating" | "deactivating", _) if restarts > 0 && Instant::now() < deadline => {
                    std::thread::sleep(POLL)
                }
                _ => return None,
            }
        }
    }

    /// The main process of a service, if it runs.
    pub fn main_pid(self, unit: &str) -> Option<u32> {
        self.ask(&["show", "--property=MainPID", "--value", unit])
            .ok()?
            .parse()
            .ok()
            .filter(|pid| *pid != 0)
    }
}

fn in_words<'a>(fact: impl Fn(&str) -> &'a str, restarts: u64) -> String {
    let status = fact("ExecMainStatus");
    let how = match (fact("ExecMainCode"), status) {
        // CLD_EXITED of waitid(2).
        ("1", _) => {
            let step = status
                .parse()
                .ok()
                .and_then(step_of_start)
                .map_or_else(String::new, |step| format!("/{step}"));
            format!("its process exited with status {status}{step}")
        }
        ("2" | "3", _) => format!("its process was killed by signal {status}"),
        _ => "its process was not run".to_owned(),
    };
    let result = Some(fact("Result"))
        .filter(|result| *result != "success")
        .map_or_else(String::new, |result| format!(", result {result}"));
    let again = if fact("ActiveState") == "failed" {
        "systemd has given up"
    } else {
        "systemd tries again"
    };
    format!(
        "{how}{result}; {again}, after {restarts} {}",
        if restarts == 1 { "restart" } else { "restarts" }
    )
}

/// The step that systemd could not do before it ran the program (systemd.exec(5), "Process Exit
/// Codes"): the likelier ones.
fn step_of_start(status: u32) -> Option<&'static str> {
    Some(match status {
        200 => "CHDIR",
        203 => "EXEC",
        205 => "LIMITS",
        208 => "STDIN",
        209 => "STDOUT",
        217 => "USER",
        218 => "CAPABILITIES",
        219 => "CGROUP",
        226 => "NAMESPACE",
        228 => "SECCOMP",
        233 => "RUNTIME_DIRECTORY",
        238 => "STATE_DIRECTORY",
        _ => return None,
    })
}

/// The error where no daemon answers because systemd cannot start it; `None` if that is not the
/// cause.
pub fn trouble(paths: &Paths) -> Option<CliError> {
    let (manager, unit) = installed()?;
    let why = manager.why_down(&unit)?;
    let mut message = format!("no daemon runs: systemd cannot start {unit}\n{why}");
    if let Some(left) = daemon::left_behind(paths).filter(|left| *left > 0) {
        message.push_str(&format!("\nworkers that serve on without it: {left}"));
    }
    let hint = manager.outdated(&unit).map_or_else(
        || {
            let flags = manager.0.flag().join(" ");
            format!(
                "journalctl {flags}{}-u {unit}",
                if flags.is_empty() { "" } else { " " }
            )
        },
        |(why, command)| format!("the unit {why}: `{command}` writes it anew and starts it"),
    );
    let report = Report {
        log: manager.journal(&unit),
        ..Report::new("systemd", message)
    }
    .hint(hint);
    Some(CliError::Report {
        exit: FAILED,
        report,
    })
}

/// Variables that make a daemon under systemd use these folders and settings.
pub fn environment(scope: Scope) -> Result<Vec<(String, String)>, CliError> {
    let names: &[&str] = match scope {
        Scope::System => &["RSUP_HOME", "RSUP_TAKEOVER"],
        Scope::User => &["RSUP_HOME", "RSUP_TAKEOVER"],
    };
    let text = |name: &str, value: OsString| {
        let value = value
            .into_string()
            .map_err(|_| CliError::usage(format!("{name} is not UTF-8, which a unit has to be")))?;
        if value.contains(char::is_control) {
            return Err(CliError::usage(format!(
                "{name} has a control character in it, which a unit cannot have"
            )));
        }
        Ok(value)
    };
    let mut env = Vec::new();
    for name in names {
        let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let value = match *name {
            "RSUP_HOME" => std::path::absolute(&value)
                .map(PathBuf::into_os_string)
                .unwrap_or(value),
            _ => value,
        };
        env.push(((*name).to_owned(), text(name, value)?));
    }
    Ok(env)
}

/// The manager and the name of an installed unit for the very daemon that the environment means:
/// systemd then starts that daemon.
pub fn installed() -> Option<(Manager, String)> {
    if !is_init() {
        return None;
    }
    let scope = if geteuid().is_root() {
        Scope::System
    } else {
        Scope::User
    };
    let (manager, env) = (Manager(scope), environment(scope).ok()?);
    let ours = |path: &Path| {
        std::fs::read_to_string(path)
            .is_ok_and(|text| text.starts_with(MARK) && unit::is_for(&text, &env))
    };
    let files = manager
        .folders()
        .into_iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|folder| folder.flatten().map(|entry| entry.path()));
    let found = files
        .filter(|path| path.extension().is_some_and(|end| end == "service"))
        .find(|path| ours(path))?;
    Some((manager, found.file_name()?.to_str()?.to_owned()))
}

impl Manager {
    /// Why an installed unit should be written again, and the command that does it.
    pub fn outdated(self, unit: &str) -> Option<(String, String)> {
        let text = std::fs::read_to_string(self.folder().ok()?.join(unit)).ok()?;
        let why = unit::outdated(&text, version())?;
        Some((
            why,
            unit::rewrite(self.0, unit.strip_suffix(".service").unwrap_or(unit), &text),
        ))
    }
}

/// Writes a unit, all of it or nothing. A unit that rsup did not write stays.
pub fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let fail = |error: std::io::Error| {
        CliError::failed("local", format!("cannot write {}: {error}", path.display()))
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
        let mut file = tempfile::Builder::new()
            .prefix(".rsup")
            .tempfile_in(folder)
            .map_err(fail)?;
        file.write_all(text.as_bytes()).map_err(fail)?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file()
            .set_permissions(open)
            .and_then(|()| file.as_file().sync_all())
            .map_err(fail)?;
        file.persist(path).map_err(|error| fail(error.error))?;
    }
    Ok(())
}

/// The text of a unit file that rsup wrote; `None` if there is no file.
pub fn read_own(path: &Path) -> Result<Option<String>, CliError> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => Ok(Some(text)),
        Ok(_) => Err(CliError::usage(format!(
            "{} was not written by `rsup startup`\nnothing was changed",
            path.display()
        ))
        .hint("move it away, or choose another name with --name")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::failed(
            "local",
            format!("cannot read {}: {error}", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_systemd_cannot_start_it() {
        let words = |state: &str, result: &str, code: &str, status: &str, restarts| {
            let fact = |name: &str| match name {
                "ActiveState" => state,
                "Result" => result,
                "ExecMainCode" => code,
                "ExecMainStatus" => status,
                other => panic!("{other}"),
            };
            in_words(fact, restarts)
        };
        assert_eq!(
            words("activating", "exit-code", "1", "219", 7),
            "its process exited with status 219/CGROUP, result exit-code; systemd tries again, after 7 restarts"
        );
        assert_eq!(
            words("failed", "signal", "2", "9", 1),
            "its process was killed by signal 9, result signal; systemd has given up, after 1 restart"
        );
        assert_eq!(
            words("deactivating", "success", "1", "1", 2),
            "its process exited with status 1; systemd tries again, after 2 restarts"
        );
        assert_eq!(
            words("failed", "resources", "0", "0", 0),
            "its process was not run, result resources; systemd has given up, after 0 restarts"
        );
    }
}
