//! From the raw tree to a checked configuration: `[supervisor]` and `[app.NAME]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cursor::{Context, Cursor, Machine};
use super::listen::{self, Placed};
use super::raw::{Bad, Entry, Kind, Span, Table, Value};
use super::types::*;
use super::{
    admin, capacity, env, folder, keys, limits, policy, probe, socket, suggest, units, user,
};

/// The most workers that one app can have: the limit of the steering program, surge included.
pub const MOST_INSTANCES: u16 = 250;
const COMMAND_HINT: &str =
    "write `command = [\"node\", \"server.js\"]` or `command = \"node server.js\"`";

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
    let log_dir = table.maybe(cx, "log_dir", |value| path(&base, value));
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
    let name = match AppName::parse(&entry.key) {
        Ok(name) => Some(name),
        Err(message) => {
            let named = format!("`{}`", entry.key);
            let message = if message.starts_with(&named) {
                message
            } else {
                format!("{named}: {message}")
            };
            cx.error(Bad {
                span: entry.span.clone(),
                message,
                hint: None,
            });
            None
        }
    };
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

    let command = match c.take("command") {
        Some(value) => {
            shell_habits(cx, value);
            c.maybe(cx, "command", command)
        }
        None => {
            let known = |key: &str| table.get(key).is_some();
            let message = format!("app `{}` has no `command`", entry.key);
            let bad = Bad {
                span: entry.span.clone(),
                message,
                hint: None,
            };
            // A key of another supervisor gets the hint for that key.
            cx.error(if known("script") || known("cmd") {
                bad
            } else {
                bad.hint(COMMAND_HINT)
            });
            None
        }
    };
    let (cwd, cwd_resolved, folder) = working_directory(cx, &mut c);
    if let (Some(words), Some(value)) = (&command, c.take("command")) {
        one_string(cx, value, words, &cwd_resolved);
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
    let socket_activation = c.get(cx, "socket_activation", false, policy::boolean);
    if let (true, true, Some(value)) = (
        socket_activation,
        listen.is_empty(),
        c.take("socket_activation"),
    ) {
        let bad = value.bad("there are no sockets to hand over: the app has no `listen`");
        cx.warn(bad.hint("write `listen = 3001`, or leave `socket_activation` out"));
    }
    let hide_port = c.get(cx, "hide_port", HidePort::Auto, hide_port);
    if let (HidePort::Always, None, Some(value)) = (
        hide_port,
        listen.iter().find_map(Listen::tcp),
        c.take("hide_port"),
    ) {
        cx.warn(
            value
                .bad("there is no TCP port to hide")
                .hint("write `listen = 3001`, or leave `hide_port` out"),
        );
    }
    let env = env::read(cx, &mut c);
    if let (Some(span), Some(addr), Some(port)) = (
        env.port,
        listen.iter().find_map(Listen::tcp),
        env.vars.get("PORT"),
    ) && *port != addr.port().to_string()
    {
        let message = format!("PORT is {port} here, but `listen` says {}", addr.port());
        cx.warn(Bad {
            span,
            message,
            hint: Some("leave PORT out; rsup sets it from `listen`".to_owned()),
        });
    }
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
    let max_memory = c.maybe(cx, "max_memory", max_memory);
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

/// A list of words, or one string that is split as a shell splits words.
pub(super) fn command(value: &Value) -> Result<Vec<String>, Bad> {
    let words: Vec<String> = match &value.kind {
        Kind::String(text) => {
            shlex::split(text).ok_or_else(|| value.bad("a quote in it is not closed"))?
        }
        Kind::Array(items) => items
            .iter()
            .map(|item| match &item.kind {
                Kind::String(text) => Ok(text.clone()),
                Kind::Int(n) => Ok(n.to_string()),
                _ => Err(item
                    .expected("a string")
                    .hint("each argument is a string of its own")),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(value.expected("a list of strings").hint(COMMAND_HINT)),
    };
    let Some(program) = words.first() else {
        return Err(value.bad("an empty command").hint(COMMAND_HINT));
    };
    if words.iter().any(|word| word.contains('\0')) {
        return Err(value.bad("an argument cannot contain a NUL"));
    }
    if program.is_empty() {
        return Err(value.bad("the program has no name").hint(COMMAND_HINT));
    }
    if program.starts_with("~/") {
        suggest::plain_path(value, program)?;
    }
    match &value.kind {
        Kind::String(text) => match words.iter().find(|word| is_operator(word)) {
            Some(operator) => Err(value
                .bad(format!(
                    "`{operator}` needs a shell, and commands are not given to one"
                ))
                .hint(with_shell(text))),
            None if is_assignment(program) => Err(value
                .bad(format!("`{program}` is not a program"))
                .hint("variables go into `env`")),
            None => Ok(words),
        },
        _ => Ok(words),
    }
}

fn with_shell(text: &str) -> String {
    format!("write [\"sh\", \"-c\", {text:?}]")
}

fn is_operator(word: &str) -> bool {
    [
        "&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1", "&>",
    ]
    .contains(&word)
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// Warns of `$PORT` in a command: the program gets it unexpanded, which is seldom meant.
fn shell_habits(cx: &mut Context, value: &Value) {
    let Some(text) = value.as_str() else { return };
    let Some(words) = shlex::split(text) else {
        return;
    };
    let shell = words.first().is_some_and(|program| {
        program
            .rsplit('/')
            .next()
            .is_some_and(|name| name.ends_with("sh"))
    });
    let variable = words.iter().find(|word| {
        let after = word.split_once('$').map_or("", |(_, after)| after);
        after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '{' || c == '(')
    });
    if let (false, Some(word)) = (shell, variable) {
        let bad = value.bad(format!(
            "`command`: `{word}` reaches the program as it stands: no shell expands it"
        ));
        cx.warn(bad.hint(with_shell(&format!("exec {text}"))));
    }
}

/// A list of one string with blanks in it is a program of that name; where there is none, it was meant as a
/// command with its arguments.
fn one_string(cx: &mut Context, value: &Value, words: &[String], cwd: &Path) {
    let (Kind::Array(_), [program]) = (&value.kind, words) else {
        return;
    };
    if !program.contains(' ') || is_there(program, cwd) {
        return;
    }
    let bad = value.bad(format!(
        "`command`: a list with one string is a program of that name, and there is no file `{program}`"
    ));
    cx.warn(
        bad.hint(
            "write each word as a string of its own, or the whole command without the brackets",
        ),
    );
}

/// Whether exec finds the program: in PATH, if its name has no slash (execvp(3)).
fn is_there(program: &str, cwd: &Path) -> bool {
    if program.contains('/') {
        return cwd.join(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// The working directory: as written but absolute, with links followed, and its identity.
fn working_directory(cx: &mut Context, c: &mut Cursor<'_>) -> (PathBuf, PathBuf, Option<FolderId>) {
    let base = cx.base.clone();
    let cwd = c.maybe(cx, "cwd", |value| {
        let cwd = path(&base, value)?;
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

/// Makes a path absolute; it need not exist.
pub(super) fn path(base: &Path, value: &Value) -> Result<PathBuf, Bad> {
    let Some(text) = value.as_str() else {
        return Err(value.expected("a path"));
    };
    suggest::plain_path(value, text)?;
    Ok(base.join(text).components().collect())
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

pub(super) fn max_memory(value: &Value) -> Result<u64, Bad> {
    match units::size(value)? {
        0 => Err(value
            .bad("no process lives in no memory")
            .hint("leave it out for no limit")),
        n if n < 1 << 20 => {
            let bad = value.bad(format!("{n} bytes are less than any process needs"));
            Err(match value.as_int() {
                Some(_) => bad.hint(format!("write \"{n}M\" if it is megabytes")),
                None => bad.hint("write \"100M\" or more"),
            })
        }
        n => Ok(n),
    }
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
