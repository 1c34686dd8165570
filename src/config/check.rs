//! From the raw tree to a checked configuration: `[supervisor]` and `[app.NAME]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cursor::{Context, Cursor, Machine};
use super::listen::{self, Placed};
use super::raw::{Bad, Entry, Kind, Span, Table, Value};
use super::types::*;
use super::{
    admin, capacity, command, env, folder, keys, limits, policy, probe, socket, suggest, units,
    user, values,
};

/// The most workers that one app can have: the limit of the steering program, surge included.
pub const MOST_INSTANCES: u16 = 250;

/// Checks a whole file; the problems go to the context.
pub(super) fn config(cx: &mut Context, root: &Table, file: &Path) -> Config {
    let mut top = Cursor::new(root, &keys::ROOT, None);
    let supervisor = supervisor(cx, &mut top);
    let mut apps = Vec::new();
    let mut addresses = Vec::new();
    let mut any_app = false;
    match top.entry("app") {
        None => {}
        Some(Entry {
            value:
                Value {
                    kind: Kind::Table(table),
                    ..
                },
            ..
        }) if nameless(table).is_some() => {
            any_app = true;
            let span = nameless(table).unwrap_or_default();
            let bad = Bad {
                span,
                message: "the app has no name".to_owned(),
                hint: None,
            };
            cx.error(bad.hint("write `[app.NAME]` instead of `[app]`"));
        }
        Some(Entry {
            value:
                Value {
                    kind: Kind::Table(table),
                    ..
                },
            ..
        }) => {
            for entry in &table.entries {
                any_app = true;
                apps.extend(app(cx, entry, Some(file), &mut addresses));
            }
            if let Some(last) = table.entries.last() {
                capacity::check_all(cx, &apps, last.span.clone());
            }
        }
        Some(Entry { value, .. }) => {
            any_app = true;
            cx.error(
                value
                    .expected("a table for each app")
                    .hint("write `[app.NAME]`"),
            );
        }
    }
    any_app |= root.entries.len()
        > usize::from(root.get("supervisor").is_some()) + usize::from(root.get("app").is_some());
    top.finish(cx);
    listen::overlaps(cx, &addresses);
    admin::overlaps(cx, root, supervisor.admin, &addresses);
    if !any_app {
        let empty = cx.source.text.trim().is_empty();
        let message = if empty {
            "the file is empty"
        } else {
            "no app in this file"
        };
        let hint = "an app is a table `[app.NAME]` with a `command`; `rsup init` writes an example";
        let problem = super::error::CliError::error(&cx.source, message).hint(hint);
        cx.push(problem);
    }
    if let Some(folder) = &supervisor.log_dir {
        for app in &mut apps {
            app.log
                .out
                .get_or_insert_with(|| folder.join(format!("{}-out.log", app.name)));
            app.log
                .err
                .get_or_insert_with(|| folder.join(format!("{}-err.log", app.name)));
        }
    }
    Config { supervisor, apps }
}

/// The place of an app's command directly under `[app]`.
fn nameless(table: &Table) -> Option<Span> {
    let entry = table.get("command")?;
    (!matches!(entry.value.kind, Kind::Table(_))).then(|| entry.span.clone())
}

fn supervisor(cx: &mut Context, top: &mut Cursor<'_>) -> SupervisorSpec {
    let mut table = top.sub(cx, "supervisor", &keys::SUPERVISOR);
    let base = cx.base.clone();
    let log_dir = table.maybe(cx, "log_dir", |value| values::path(&base, value));
    let admin = admin::read(cx, &mut table);
    table.finish(cx);
    SupervisorSpec { log_dir, admin }
}

/// Checks one app; `None` if it has no usable name or command.
pub(super) fn app(
    cx: &mut Context,
    entry: &Entry,
    source: Option<&Path>,
    addresses: &mut Vec<Placed>,
) -> Option<AppSpec> {
    let name = app_name(cx, entry);
    let Kind::Table(table) = &entry.value.kind else {
        let key = &entry.key;
        let bad = Bad {
            span: entry.span.clone(),
            message: format!("`app.{key}` is {}, not an app", entry.value.describe()),
            hint: None,
        };
        cx.error(bad.hint("write `[app.NAME]` above the keys of an app"));
        return None;
    };
    let mut c = Cursor::new(table, &keys::APP, Some(&entry.key));

    let command = app_command(cx, &mut c, entry, table);
    let (cwd, cwd_resolved, folder) = working_directory(cx, &mut c);
    if let (Some(words), Some(value)) = (&command, c.take("command")) {
        command::one_string(cx, value, words, &cwd_resolved);
    }
    let cores = cx.machine;
    let instances = c.get(cx, "instances", 1, |value| instances(value, cores));
    let listen = listen::read(cx, c.take("listen"));
    if let Some(name) = &name {
        addresses.extend(listen.iter().map(|(listen, span)| Placed {
            app: name.clone(),
            listen: listen.clone(),
            span: span.clone(),
        }));
    }
    let placed = listen;
    let listen: Vec<Listen> = placed.iter().map(|(listen, _)| listen.clone()).collect();
    let socket_activation = c.get(cx, "socket_activation", false, values::boolean);
    let hide_port = c.get(cx, "hide_port", HidePort::Auto, hide_port);
    useless_without_port(cx, &mut c, &listen, (socket_activation, hide_port));
    let env = env::read(cx, &mut c);
    contradicting_port(cx, &env, &listen);
    let listen_timeout = c.get(
        cx,
        "listen_timeout",
        Duration::from_secs(10),
        units::positive_duration,
    );
    let drain_timeout = c.get(cx, "drain_timeout", Duration::from_secs(5), units::duration);
    let hold_timeout = c.get(cx, "hold_timeout", hold_timeout(), units::positive_duration);
    let kill_timeout = c.get(cx, "kill_timeout", Duration::from_secs(30), units::duration);
    if let (true, Some(value)) = (kill_timeout.is_zero(), c.take("kill_timeout")) {
        cx.warn(
            value.bad(
                "with a kill_timeout of zero, workers are killed in the midst of their requests",
            ),
        );
    }
    let max_memory = c.maybe(cx, "max_memory", values::max_memory);
    let balance = c.get(cx, "balance", Balance::Random, balance);
    let stop = policy::stop(cx, &mut c);
    let restart = policy::restart(cx, &mut c);
    let reload = policy::reload(cx, &mut c, restart.min_uptime, listen_timeout);
    let log = policy::log(cx, &mut c);
    let run_as = user::read(cx, &mut c);
    let text = cx.source.clone();
    let umask = c.maybe(cx, "umask", |value| {
        user::umask(value, text.text.get(value.span.clone()).unwrap_or_default())
    });
    let limits = limits::read(cx, &mut c, max_memory);
    let socket = socket::read(cx, &mut c, &placed, run_as.as_ref(), umask);
    let (readiness, liveness) =
        probe::read(cx, &mut c, &listen, listen_timeout, restart.min_uptime);
    let counted = c.span_of("instances");
    c.finish(cx);

    let spec = AppSpec {
        name: name?,
        source: source.map(Path::to_owned),
        source_resolved: source.and_then(|file| file.canonicalize().ok()),
        command: command?,
        cwd,
        cwd_resolved,
        folder,
        instances,
        listen,
        socket_activation,
        hide_port,
        env: env.vars,
        readiness,
        liveness,
        listen_timeout,
        drain_timeout,
        hold_timeout,
        kill_timeout,
        max_memory,
        balance,
        stop,
        restart,
        reload,
        log,
        run_as,
        umask,
        limits,
        socket,
    };
    capacity::check(cx, &spec, &placed, counted);
    Some(spec)
}

fn app_name(cx: &mut Context, entry: &Entry) -> Option<AppName> {
    let why = match AppName::parse(&entry.key) {
        Ok(name) => return Some(name),
        Err(why) => why,
    };
    let named = format!("`{}`", entry.key);
    let message = if why.starts_with(&named) {
        why
    } else {
        format!("{named}: {why}")
    };
    cx.error(Bad {
        span: entry.span.clone(),
        message,
        hint: None,
    });
    None
}

fn app_command(
    cx: &mut Context,
    c: &mut Cursor<'_>,
    entry: &Entry,
    table: &Table,
) -> Option<Vec<String>> {
    if let Some(value) = c.take("command") {
        command::shell_habits(cx, value);
        return c.maybe(cx, "command", command::read);
    }
    let bad = Bad {
        span: entry.span.clone(),
        message: format!("app `{}` has no `command`", entry.key),
        hint: None,
    };
    // A key of another supervisor gets the hint for that key.
    let of_another = ["script", "cmd"]
        .into_iter()
        .any(|key| table.get(key).is_some());
    cx.error(if of_another {
        bad
    } else {
        bad.hint(command::HINT)
    });
    None
}

/// Warns of keys that mean nothing without an address to listen on.
fn useless_without_port(
    cx: &mut Context,
    c: &mut Cursor<'_>,
    listen: &[Listen],
    (socket_activation, hide_port): (bool, HidePort),
) {
    if let Some(value) = c.take("socket_activation")
        && socket_activation
        && listen.is_empty()
    {
        let bad = value.bad("there are no sockets to hand over: the app has no `listen`");
        cx.warn(bad.hint("write `listen = 3001`, or leave `socket_activation` out"));
    }
    if let Some(value) = c.take("hide_port")
        && hide_port == HidePort::Always
        && listen.iter().all(|address| address.tcp().is_none())
    {
        let bad = value.bad("there is no TCP port to hide");
        cx.warn(bad.hint("write `listen = 3001`, or leave `hide_port` out"));
    }
}

/// Warns of a variable PORT that contradicts `listen`.
fn contradicting_port(cx: &mut Context, env: &env::Env, listen: &[Listen]) {
    let address = listen.iter().find_map(Listen::tcp);
    let (Some(span), Some(address), Some(port)) = (&env.port, address, env.vars.get("PORT")) else {
        return;
    };
    if *port != address.port().to_string() {
        let message = format!("PORT is {port} here, but `listen` says {}", address.port());
        cx.warn(Bad {
            span: span.clone(),
            message,
            hint: Some("leave PORT out; rsup sets it from `listen`".to_owned()),
        });
    }
}

/// The working directory: as written but absolute, with links followed, and its identity.
fn working_directory(cx: &mut Context, c: &mut Cursor<'_>) -> (PathBuf, PathBuf, Option<FolderId>) {
    let base = cx.base.clone();
    let cwd = c.maybe(cx, "cwd", |value| {
        let cwd = values::path(&base, value)?;
        match folder::resolve(&cwd) {
            Ok((resolved, id)) => Ok((cwd, resolved, Some(id))),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                Err(value.bad(format!("{} is not a folder", cwd.display())))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let bad = value.bad(format!("no such folder: {}", cwd.display()));
                Err(match value.as_str() {
                    Some(text) if !text.starts_with('/') => {
                        bad.hint(format!("relative paths are relative to {}", base.display()))
                    }
                    _ => bad,
                })
            }
            Err(error) => Err(value.bad(format!("{}: {error}", cwd.display()))),
        }
    });
    cwd.unwrap_or_else(|| match folder::resolve(&base) {
        Ok((resolved, id)) => (base, resolved, Some(id)),
        Err(_) => (base.clone(), base, None),
    })
}

fn instances(value: &Value, machine: Machine) -> Result<u16, Bad> {
    const HINT: &str = "write a number, \"max\" (one for each core) or -1 (all cores but one)";
    if value.as_str() == Some("max") {
        return Ok(clamp(machine.cores));
    }
    match value.as_int() {
        Some(0) => Err(value
            .bad("no instances at all")
            .hint("to stop an app, run `rsup stop`; in a file, 1 is the least")),
        Some(n) if n < 0 => {
            Ok(clamp(machine.cores.saturating_sub(
                usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX),
            )))
        }
        Some(n) => match u16::try_from(n) {
            Ok(n) if n <= MOST_INSTANCES => Ok(n),
            _ => Err(value
                .bad(format!("{n} instances are too many"))
                .hint(format!("{MOST_INSTANCES} is the most"))),
        },
        None => match value.as_str() {
            Some(text) => Err(value
                .bad(format!("`{text}` is not a number of instances"))
                .hint(HINT)),
            None => Err(value.expected("a number").hint(HINT)),
        },
    }
}

fn clamp(cores: usize) -> u16 {
    u16::try_from(cores)
        .unwrap_or(MOST_INSTANCES)
        .clamp(1, MOST_INSTANCES)
}

fn hide_port(value: &Value) -> Result<HidePort, Bad> {
    const HINT: &str = "write true, false, or \"auto\": rsup finds out by itself";
    match (&value.kind, value.as_str()) {
        (Kind::Bool(true), _) => Ok(HidePort::Always),
        (Kind::Bool(false), _) => Ok(HidePort::Never),
        (_, Some("auto")) => Ok(HidePort::Auto),
        (_, Some(other)) => Err(value
            .bad(format!("`{other}` is neither a boolean nor \"auto\""))
            .hint(HINT)),
        (_, None) => Err(value.expected("a boolean or \"auto\"").hint(HINT)),
    }
}

fn balance(value: &Value) -> Result<Balance, Bad> {
    const KNOWN: &[&str] = &["random", "source-ip"];
    match value.as_str() {
        Some("random") => Ok(Balance::Random),
        Some("source-ip") => Ok(Balance::SourceIp),
        Some(other) => {
            let bad = value.bad(format!("`{other}` is not a way of balancing"));
            Err(match other {
                "sticky" | "ip-hash" | "ip_hash" | "source_ip" => bad.hint("rsup calls it \"source-ip\""),
                "round-robin" | "round_robin" | "rr" | "least-connections" | "least_conn" => bad.hint(
                    "the kernel chooses as a connection arrives: \"random\", or \"source-ip\" to keep a client at its worker",
                ),
                _ => bad.hint(suggest::one_of(other, KNOWN)),
            })
        }
        None => Err(value.expected("a string").hint(suggest::one_of("", KNOWN))),
    }
}
