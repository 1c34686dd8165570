//! `rsup startup`.

use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::cli::client::CallError;
use crate::cli::error::CliError;
use crate::cli::systemctl::{self, Manager, NAME};
use crate::cli::unit::{self, Scope, StopTimeout, Unit};
use crate::cli::{Context, render};
use crate::config::{self, AppSpec};
use crate::control::{Ping, Snapshot};
use crate::sys::cgroup;

/// Let systemd run rsup from boot on, and start it now
///
/// Installs a unit: the system's for root, otherwise the user's own. rsup then starts with the
/// machine, and systemd starts it again should it ever die. Nothing has to be running before.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  sudo rsup startup\n  rsup startup --print\n  rsup startup --socket supervisor.toml"
)]
pub struct Args {
    /// A file whose apps count for the unit's timeouts and sockets, beside those that run
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    /// Let a .socket unit hold the apps' listening sockets, from early boot on
    #[arg(long)]
    socket: bool,
    /// Only install it; it starts at the next boot
    #[arg(long)]
    no_start: bool,
    /// Print the unit and write nothing
    #[arg(long, conflicts_with = "no_start")]
    print: bool,
}

/// Which unit is meant.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The unit of this user, which runs while the user is logged in or lingers
    #[arg(long, conflicts_with = "system")]
    user: bool,
    /// The unit of the system
    #[arg(long)]
    system: bool,
    /// The name of the unit: needed for a second one, with another RSUP_HOME
    #[arg(long, default_value = NAME, value_parser = parse_name)]
    pub name: String,
}

impl Which {
    pub fn scope(&self) -> Scope {
        if self.system || (geteuid().is_root() && !self.user) {
            Scope::System
        } else {
            Scope::User
        }
    }
}

fn parse_name(name: &str) -> Result<String, String> {
    let name = name.strip_suffix(".service").unwrap_or(name);
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > 100 || !name.chars().all(good) || name.starts_with('.') {
        return Err("a unit's name has letters, digits, `_`, `.` and `-`".into());
    }
    Ok(name.to_owned())
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let scope = args.which.scope();
    let (apps, from, daemon) = apps(args.file.as_deref(), cx)?;
    let held = if args.socket {
        unit::listenable(&apps)
    } else {
        Default::default()
    };
    if args.socket && held.listen.is_empty() {
        let problem =
            CliError::usage("no app is known that listens, so a .socket unit would be empty");
        return Err(problem.hint(
            "start the apps first, or name their file: rsup startup --socket supervisor.toml",
        ));
    }
    for address in &held.left {
        cx.out.note(&format!(
            "{address} is not in the .socket unit; rsup opens it itself"
        ));
    }
    let unit = describe(&args, scope, StopTimeout::of(&apps, from), cx)?;
    let (service, socket) = (
        unit.service(),
        args.socket.then(|| unit::socket(&held, scope)),
    );
    if args.print {
        return print(&unit, service, socket, cx);
    }
    let manager = Manager::reach(scope)?;
    let folder = manager.folder()?;
    let path = |kind: &str| folder.join(format!("{}.{kind}", unit.name));
    let old = systemctl::read_own(&path("service"))?;
    let old_socket = systemctl::read_own(&path("socket"))?;
    if old
        .as_ref()
        .is_some_and(|text| !unit::is_for(text, &unit.env))
    {
        let problem = CliError::usage(format!(
            "{} is for another RSUP_HOME\nnothing was changed",
            path("service").display()
        ));
        return Err(problem.hint("give this one a name of its own: rsup startup --name NAME"));
    }
    let names: Vec<String> = socket
        .iter()
        .map(|_| "socket")
        .chain(["service"])
        .map(|kind| format!("{}.{kind}", unit.name))
        .collect();
    systemctl::write(&path("service"), &service)?;
    match &socket {
        Some(text) => systemctl::write(&path("socket"), text)?,
        None if old_socket.is_some() => remove_socket(manager, &path("socket"))?,
        None => {}
    }
    if let Some(why) = old.and_then(|text| unit::outdated(&text, unit.version)) {
        cx.out.note(&format!(
            "the unit that was there {why}; it is written anew"
        ));
    }
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    manager.ask(&["daemon-reload"])?;
    manager.ask(&[&["enable"][..], &words].concat())?;
    let mut installed = render::Installed {
        unit: path("service"),
        socket: socket.is_some().then(|| path("socket")),
        scope: scope.as_str(),
        timeout_stop_s: unit.stop.timeout.as_secs(),
        computed_from: unit.stop.because.clone(),
        started: false,
        waits_for: None,
    };
    let service_name = format!("{}.service", unit.name);
    let ours = manager.main_pid(&service_name);
    installed.waits_for = daemon.filter(|pid| Some(*pid) != ours);
    if !args.no_start {
        if ours.is_none() && !unit.has_subgroups() {
            make_room(manager, &service_name)?;
        }
        start(manager, &words, &installed, ours, cx)?;
        installed.started = installed.waits_for.is_none();
    }
    notes(scope, &installed, args.no_start, cx);
    let words = installed.to_string();
    cx.out.result("`rsup startup`", &installed, &words);
    Ok(())
}

/// The known apps, where they are known from, and the pid of the daemon that runs.
fn apps(
    file: Option<&Path>,
    cx: &Context,
) -> Result<(Vec<AppSpec>, &'static str, Option<u32>), CliError> {
    let client = cx.client()?;
    let (mut apps, daemon) = match client.try_ask(&Ping) {
        Ok(pong) => {
            let known = client.ask(&Snapshot)?.into_iter();
            (known.map(|known| known.spec).collect(), Some(pong.pid))
        }
        Err(CallError::NoDaemon) => (Vec::new(), None),
        Err(error) => return Err(client.explain(error)),
    };
    let from = if file.is_some() {
        "in the file"
    } else {
        "as it runs"
    };
    if let Some(file) = file {
        // The file is newer than what runs.
        let fresh = config::load(file)?.config.apps;
        apps.retain(|app| fresh.iter().all(|other| other.name != app.name));
        apps.extend(fresh);
    }
    Ok((apps, from, daemon))
}

fn describe(args: &Args, scope: Scope, stop: StopTimeout, cx: &Context) -> Result<Unit, CliError> {
    let paths = cx.paths()?;
    let runtime = match scope {
        Scope::System => Some(PathBuf::from("/run")),
        Scope::User => std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
    };
    let below = |folder: &Path, path: &Path| {
        path.strip_prefix(folder)
            .ok()
            .map(|rest| rest.display().to_string())
    };
    Ok(Unit {
        scope,
        name: args.which.name.clone(),
        program: program()?,
        env: systemctl::environment(scope)?,
        runtime_directory: runtime
            .and_then(|folder| below(&folder, &paths.runtime))
            .filter(|rest| rest == "rsup"),
        // A user's state folder is in ~/.config with systemd before 254, in ~/.local/state since.
        state_directory: (scope == Scope::System)
            .then(|| below(Path::new("/var/lib"), &paths.state))
            .flatten()
            .filter(|rest| rest == "rsup"),
        state: paths.state,
        stop,
        version: systemctl::version(),
        sockets: args.socket,
    })
}

/// The path of this program as it was called (by a path, or found through `PATH`): a link to the
/// newest version stays, the version that it names today does not.
fn program() -> Result<PathBuf, CliError> {
    let actual = std::env::current_exe()
        .map_err(|error| CliError::failed("local", format!("cannot find this program: {error}")))?;
    let called = std::env::args_os()
        .next()
        .map(PathBuf::from)
        .unwrap_or_default();
    let candidates: Vec<PathBuf> = if called.components().count() > 1 {
        crate::cwd::absolute(&called).into_iter().collect()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(&called))
            .collect()
    };
    let same = |path: &PathBuf| path.canonicalize().is_ok_and(|found| found == actual);
    let program = candidates.into_iter().find(same).unwrap_or(actual);
    let good = |text: &str| !text.contains(|c: char| c.is_control() || "\"'\\".contains(c));
    if program.to_str().is_none_or(|text| !good(text)) {
        let problem = CliError::usage(format!(
            "{} cannot name a program in a unit\nsystemd takes no quotes, backslashes and control characters there, and UTF-8 alone",
            program.display()
        ));
        return Err(problem.hint("copy rsup to another place, such as /usr/local/bin"));
    }
    Ok(program)
}

fn print(
    unit: &Unit,
    service: String,
    socket: Option<String>,
    cx: &Context,
) -> Result<(), CliError> {
    let folder = Manager(unit.scope).folder()?;
    let file = |kind: &str| folder.join(format!("{}.{kind}", unit.name));
    let units: Vec<_> = [(file("service"), Some(service)), (file("socket"), socket)]
        .into_iter()
        .filter_map(|(file, text)| Some(render::UnitFile { file, text: text? }))
        .collect();
    if cx.out.json {
        cx.out.document(&units)
    } else {
        cx.out.text(&render::units(&units))
    }
}

fn remove_socket(manager: Manager, path: &Path) -> Result<(), CliError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    manager.ask(&["disable", "--now", &name])?;
    std::fs::remove_file(path).map_err(|error| {
        CliError::failed(
            "local",
            format!("cannot remove {}: {error}", path.display()),
        )
    })
}

/// An rsup that died under an older unit may have left its cgroup so that systemd before 254 cannot
/// start another; cleans that up.
fn make_room(manager: Manager, unit: &str) -> Result<(), CliError> {
    let Some(folder) = manager.cgroup(unit).and_then(|path| cgroup::folder(&path)) else {
        return Ok(());
    };
    cgroup::make_room(&folder)
        .map_err(|why| CliError::failed("cgroup", format!("systemd cannot start {unit}\n{why}")))
}

/// Starts the unit. A daemon that a shell has started holds the folders and the ports: the unit
/// waits for its end.
fn start(
    manager: Manager,
    words: &[&str],
    installed: &render::Installed,
    ours: Option<u32>,
    cx: &Context,
) -> Result<(), CliError> {
    for unit in words {
        let socket = unit.ends_with(".socket");
        if socket && (installed.waits_for.is_some() || ours.is_some()) {
            cx.out.note(&format!(
                "{unit} cannot have its ports while rsup has them; `systemctl restart {unit}` when rsup is stopped, or reboot"
            ));
            continue;
        }
        if !socket && installed.waits_for.is_none() && !cx.out.json {
            cx.out
                .note("starting it; that is done when every app is ready");
        }
        manager.start(unit, installed.waits_for.is_none())?;
    }
    Ok(())
}

fn notes(scope: Scope, installed: &render::Installed, no_start: bool, cx: &Context) {
    if let Some(pid) = installed.waits_for {
        let then = if no_start {
            "end it before the service is started"
        } else {
            "the service waits for its end and takes over then"
        };
        cx.out.note(&format!(
            "a daemon that is not systemd's runs (pid {pid}); {then}: `rsup kill`, which stops its apps, and `rsup start`"
        ));
    }
    let user = config::User::by_uid(geteuid().as_raw())
        .ok()
        .flatten()
        .map(|user| user.name);
    match scope {
        Scope::User => {
            let lingers = user
                .as_ref()
                .is_some_and(|user| Path::new("/var/lib/systemd/linger").join(user).exists());
            if !lingers {
                cx.out.note("it runs only while you are logged in; `loginctl enable-linger` lets it run from boot on");
            }
        }
        Scope::System => {
            if let Ok(user) = std::env::var("SUDO_USER")
                && user != "root"
            {
                cx.out.note(&format!(
                    "this is for the apps of root; for those of {user}: rsup startup, without sudo"
                ));
            }
        }
    }
}
