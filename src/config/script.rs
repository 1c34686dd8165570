//! `rsup start server.js -i 2`: an app from the command line, with the same checks as one of a
//! file.

use std::path::{Path, PathBuf};

use super::check;
use super::cursor::{Context, Machine};
use super::error::{CliError, ConfigErrors, Source};
use super::name;
use super::raw::{Bad, Entry, Kind, Span, Table, Value};
use super::types::AppSpec;

/// How the names of scripts end, and what runs them where that is plain.
pub const SCRIPTS: &[(&str, Option<&str>)] = &[
    ("js", Some("node")),
    ("mjs", Some("node")),
    ("cjs", Some("node")),
    ("ts", None),
    ("py", Some("python3")),
    ("rb", Some("ruby")),
    ("php", Some("php")),
    ("pl", Some("perl")),
    ("sh", Some("sh")),
    ("bash", Some("bash")),
];

/// What `rsup start` got instead of a file; every option as typed.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub name: Option<String>,
    /// A script or program with its arguments, or the words after `--`.
    pub command: Vec<String>,
    /// `-i`: a number, `max`, or a negative number.
    pub instances: Option<String>,
    pub listen: Vec<String>,
    /// Whether it takes its sockets from `LISTEN_FDS`.
    pub socket_activation: bool,
    /// Each is `NAME=value`.
    pub env: Vec<String>,
    pub env_file: Vec<String>,
    /// The folder of relative paths, where the app also runs unless `--cwd` names another.
    pub cwd: PathBuf,
    /// A path, or `tcp` or `notify`.
    pub readiness: Option<String>,
    /// A path, or `tcp`.
    pub liveness: Option<String>,
    pub max_memory: Option<String>,
    pub balance: Option<String>,
    pub listen_timeout: Option<String>,
    pub drain_timeout: Option<String>,
    pub kill_timeout: Option<String>,
    pub stop_signal: Option<String>,
    pub user: Option<String>,
}

/// The words of the command line as one text, so that an error can point into it.
#[derive(Default)]
struct Line {
    text: String,
}

impl Line {
    fn word(&mut self, word: &str) -> Span {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        let start = self.text.len();
        // A line break inside a word would break the excerpt; it is shown as a blank.
        let shown = shlex::try_quote(word)
            .unwrap_or_else(|_| word.into())
            .replace(['\n', '\r'], " ");
        self.text.push_str(&shown);
        start..self.text.len()
    }

    fn value(&mut self, option: &str, word: &str) -> Value {
        let start = self.word(option).start;
        let span = start..self.word(word).end;
        Value {
            kind: Kind::String(word.to_owned()),
            span,
        }
    }
}

fn entry(key: &str, value: Value) -> Entry {
    Entry {
        key: key.to_owned(),
        span: value.span.clone(),
        value,
    }
}

/// Checks an app given on the command line.
pub fn from_script(script: &Script) -> Result<AppSpec, ConfigErrors> {
    from_script_on(Machine::here(), script)
}

pub(super) fn from_script_on(machine: Machine, script: &Script) -> Result<AppSpec, ConfigErrors> {
    let mut line = Line::default();
    line.word("rsup");
    line.word("start");
    let mut bads = Vec::new();
    let name = script.name.as_ref().map(|given| {
        let value = line.value("--name", given);
        (given.clone(), value.span)
    });
    let mut entries = options(script, &mut line);
    entries.extend(variables(script, &mut line, &mut bads));
    let program = script.command.first();
    if program.is_some_and(|program| program.starts_with('-')) || name.is_some() {
        line.word("--");
    }
    let words = script.command.iter();
    let words: Vec<Value> = words
        .map(|word| Value {
            span: line.word(word),
            kind: Kind::String(word.clone()),
        })
        .collect();
    let base = super::absolute(&script.cwd);
    let (Some(program), Some(first), Some(span)) = (program, words.first(), whole(&words)) else {
        let source = Source::excerpt(Path::new("command line"), &line.text);
        let problem = CliError::error(&source, "nothing to start")
            .hint("write `rsup start server.js`, or `rsup start -n api -- ./server --flag`");
        return Err(ConfigErrors::new(vec![problem]));
    };
    let (name, name_span) = name.unwrap_or_else(|| (stem(program), first.span.clone()));
    let command = match interpreter(first, program, words.len() == 1, &base) {
        Ok(mut all) => {
            all.extend(words.into_iter().skip(1));
            all
        }
        Err(bad) => {
            bads.push(bad);
            // They stand in for the command that was not found, so that the rest is checked as well.
            words
        }
    };
    entries.push(entry("command", Kind::Array(command).at(span)));
    let app = Entry {
        key: name,
        span: name_span,
        value: Kind::Table(Table { entries }).at(0..line.text.len()),
    };
    finish(machine, line, base, app, bads)
}

/// The options that stand for keys of the file.
fn options(script: &Script, line: &mut Line) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (option, key, given) in [
        ("--instances", "instances", &script.instances),
        ("--max-memory", "max_memory", &script.max_memory),
        ("--balance", "balance", &script.balance),
        ("--listen-timeout", "listen_timeout", &script.listen_timeout),
        ("--drain-timeout", "drain_timeout", &script.drain_timeout),
        ("--kill-timeout", "kill_timeout", &script.kill_timeout),
        ("--user", "user", &script.user),
    ] {
        let value = given.as_ref().map(|given| line.value(option, given));
        entries.extend(value.map(|value| entry(key, value)));
    }
    for (option, key, given) in [
        ("--readiness", "readiness", &script.readiness),
        ("--liveness", "liveness", &script.liveness),
    ] {
        let value = given.as_ref().map(|given| line.value(option, given));
        entries.extend(value.map(|value| entry(key, probe(value))));
    }
    if let Some(given) = &script.stop_signal {
        let value = line.value("--stop-signal", given);
        let span = value.span.clone();
        let stop = Table {
            entries: vec![entry("signal", value)],
        };
        entries.push(entry("stop", Kind::Table(stop).at(span)));
    }
    for (option, key, given) in [
        ("--listen", "listen", &script.listen),
        ("--env-file", "env_file", &script.env_file),
    ] {
        let values: Vec<Value> = given.iter().map(|word| line.value(option, word)).collect();
        let span = whole(&values);
        entries.extend(span.map(|span| entry(key, Kind::Array(values).at(span))));
    }
    if script.socket_activation {
        let span = line.word("--socket-activation");
        entries.push(entry("socket_activation", Kind::Bool(true).at(span)));
    }
    entries
}

/// `--env`, as the table `env`; of two with one name the later counts.
fn variables(script: &Script, line: &mut Line, bads: &mut Vec<Bad>) -> Option<Entry> {
    let mut entries = Vec::new();
    for word in &script.env {
        let value = line.value("--env", word);
        let Some((key, text)) = word.split_once('=') else {
            let bad = value.bad(format!("`{word}` has no `=`"));
            bads.push(bad.hint(format!("write {word}=value")));
            continue;
        };
        entries.retain(|earlier: &Entry| earlier.key != key);
        entries.push(entry(key, Kind::String(text.to_owned()).at(value.span)));
    }
    let span = entries.first()?.span.clone();
    Some(entry("env", Kind::Table(Table { entries }).at(span)))
}

fn finish(
    machine: Machine,
    line: Line,
    base: PathBuf,
    app: Entry,
    bads: Vec<Bad>,
) -> Result<AppSpec, ConfigErrors> {
    let mut cx = Context::new(
        Source::excerpt(Path::new("command line"), &line.text),
        base,
        machine,
    );
    for bad in bads {
        cx.error(bad);
    }
    let mut addresses = Vec::new();
    let spec = check::app(&mut cx, &app, None, &mut addresses);
    super::listen::overlaps(&mut cx, &addresses);
    match spec {
        Some(spec) if !cx.failed => Ok(spec),
        _ => {
            cx.problems.sort_by_key(CliError::order);
            Err(ConfigErrors::new(cx.problems))
        }
    }
}

/// The span from the first value to the last.
fn whole(values: &[Value]) -> Option<Span> {
    Some(values.first()?.span.start..values.last()?.span.end)
}

/// `tcp` and `notify` are keywords on the command line; all else is a path.
fn probe(value: Value) -> Value {
    match value.as_str() {
        Some(kind @ ("tcp" | "notify")) => {
            let yes = Value {
                kind: Kind::Bool(true),
                span: value.span.clone(),
            };
            Value {
                span: value.span.clone(),
                kind: Kind::Table(Table {
                    entries: vec![entry(kind, yes)],
                }),
            }
        }
        _ => value,
    }
}

/// The name of an app from its script: the file's name without its extension, as far as it can be one.
fn stem(program: &str) -> String {
    let path = Path::new(program);
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    name::derived(&stem.to_string_lossy()).map_or_else(|| "app".to_owned(), |name| name.to_string())
}

/// Puts the first words of the command together: what runs the script, and the script.
fn interpreter(value: &Value, program: &str, alone: bool, cwd: &Path) -> Result<Vec<Value>, Bad> {
    use std::os::unix::fs::PermissionsExt;
    let word = |text: &str| Value {
        kind: Kind::String(text.to_owned()),
        span: value.span.clone(),
    };
    let path = cwd.join(program);
    let extension = Path::new(program)
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let with = SCRIPTS.iter().find(|(script, _)| *script == extension);
    let with = with.and_then(|(_, interpreter)| *interpreter);
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        // A program found through PATH.
        Err(_) if !program.contains('/') && with.is_none() && extension != "ts" => {
            if alone && program.contains(' ') {
                return Err(value
                    .bad(format!("`{program}` is one word here"))
                    .hint(format!("write `rsup start -n NAME -- {program}`")));
            }
            return Ok(vec![word(program)]);
        }
        Err(_) => return Err(value.bad(format!("no such file: {}", path.display()))),
    };
    if metadata.is_dir() && !program.contains('/') && with.is_none() {
        return Ok(vec![word(program)]);
    }
    if metadata.is_dir() {
        return Err(value
            .bad(format!("{} is a folder", path.display()))
            .hint("name the script, or the file of the configuration in it"));
    }
    let executable = metadata.permissions().mode() & 0o111 != 0;
    // A plain name would be looked up in PATH only.
    let here = || {
        if program.contains('/') {
            word(program)
        } else {
            word(&format!("./{program}"))
        }
    };
    match with {
        Some(interpreter) => Ok(vec![word(interpreter), word(program)]),
        None if executable => Ok(vec![here()]),
        None if extension == "ts" => Err(value
            .bad("rsup does not know what should run TypeScript")
            .hint(format!("say it: `rsup start -n {} -- npx tsx {program}`, or name the compiled .js file", stem(program)))),
        None => Err(value.bad(format!("{program} is not executable")).hint(format!(
            "run `chmod +x {program}`, or name what runs it: `rsup start -n {} -- PROGRAM {program}`",
            stem(program)
        ))),
    }
}
