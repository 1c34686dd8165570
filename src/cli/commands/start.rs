//! `rsup start`.

use std::path::{Path, PathBuf};

use nix::sys::signal::SigSet;

use crate::cli::client::{CallError, Client};
use crate::cli::error::{CliError, FAILED};
use crate::cli::{Context, action, daemonize, log_folders, render, settings, targets};
use crate::config::AppSpec;
use crate::config::{self, Script};
use crate::control::{Action, FailureCode, Ping, Pong, Snapshot};
use crate::core::Settings;
use crate::daemon::{self, StartRequest};
use crate::logs;
use crate::paths::Paths;

/// Start the apps of a file, a script, a command, or stopped apps by name
///
/// Without an argument it starts what ./supervisor.toml describes. Apps that run already are left
/// alone; if their file says something else by now, that is an error which says what (`rsup up` brings
/// it about). It waits until all are ready; the daemon is started in the background if none runs.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  rsup start\n  rsup start /srv/api/supervisor.toml --only api\n  rsup start server.js -i 2 --listen 3000\n  rsup start -n api -- ./server --flag\n  rsup start api"
)]
pub struct Args {
    /// A configuration file, a script or program, or names of stopped apps (`all`)
    #[arg(value_name = "FILE|SCRIPT|NAME")]
    what: Vec<String>,
    /// Only these apps of the file
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
    /// Run in this terminal or container instead of the background, until Ctrl-C or SIGTERM
    ///
    /// What rsup says and what workers print goes to stdout, the latter to the log files as well. SIGTERM,
    /// SIGINT and SIGQUIT stop every app gracefully; a second one kills what is left. SIGHUP reads the
    /// configuration again and reloads every app, unless it tells that the terminal is gone, which is
    /// a stop. SIGUSR1 opens the log files anew. Other signals do nothing, and none is handed on: `rsup signal`
    /// sends any of them to the apps. The exit code is 0 after a graceful stop, 128 and the signal's number
    /// after a second signal, and that of the app that failed if all have ended by themselves.
    #[arg(long, conflicts_with = "no_wait")]
    foreground: bool,
    /// Return as soon as the daemon has accepted it
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    foreground_options: ForegroundArgs,
    #[command(flatten)]
    script: ScriptArgs,
    /// A command with its arguments, or arguments for the script
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// For a terminal or a container.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of --foreground")]
struct ForegroundArgs {
    /// How rsup's messages and the lines of all workers look on stdout; with `--json`, `json`
    #[arg(long, value_name = "FORMAT", value_enum, requires = "foreground")]
    log_format: Option<LogFormat>,
    /// Write no log files but those that the configuration names
    #[arg(long, requires = "foreground")]
    no_log_files: bool,
    /// Which apps have to end by themselves, and not be started again, for rsup to end as well
    #[arg(long, value_name = "WHEN", value_enum, requires = "foreground")]
    exit_when: Option<ExitWhen>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    /// `TIME app:instance | line`; ` err` before the bar marks what was written to stderr
    Text,
    /// An object on each line, with time, app, instance, stream (out, err or rsup) and line
    Json,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ExitWhen {
    /// All of them, none stopped by a command; this is the default
    All,
    /// One is enough; the others are stopped gracefully
    Any,
    /// It stays up whatever happens
    Never,
}

/// For an app without a file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of an app without a file")]
struct ScriptArgs {
    /// Name of the app; by default that of the script
    #[arg(short, long)]
    name: Option<String>,
    /// How many workers: a number, `max` (one per core), or `-1` (one core less)
    #[arg(short, long, value_name = "N", allow_hyphen_values = true)]
    instances: Option<String>,
    /// An address that the app listens on: a port, `HOST:PORT` or `unix:PATH`; may be repeated
    #[arg(short, long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// The app takes its sockets from `LISTEN_FDS`, as under systemd
    #[arg(long)]
    socket_activation: bool,
    /// A variable for the app; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A file with variables; may be repeated
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Where it runs, by default here
    #[arg(long, value_name = "FOLDER")]
    cwd: Option<PathBuf>,
    /// Ready once GET of this path answers 200 to 299; or `tcp`, or `notify`
    #[arg(long, value_name = "PATH")]
    readiness: Option<String>,
    /// Replaced once GET of this path fails; or `tcp`
    #[arg(long, value_name = "PATH")]
    liveness: Option<String>,
    /// Replaced once it uses more, for example `500M`
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<String>,
    /// `random`, or `source-ip` (sticky)
    #[arg(long, value_name = "HOW")]
    balance: Option<String>,
    /// A worker must be ready within this time, for example `10s`
    #[arg(long, value_name = "TIME")]
    listen_timeout: Option<String>,
    /// The longest wait for waiting connections before a worker is stopped
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<String>,
    /// From the stop signal to SIGKILL
    #[arg(long, value_name = "TIME")]
    kill_timeout: Option<String>,
    /// The signal that asks a worker to stop, SIGTERM by default
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// The user that workers run as; needs root
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

impl ScriptArgs {
    /// An option that was given, to be named in an error.
    fn given(&self) -> Option<&'static str> {
        let options = [
            (self.name.is_some(), "--name"),
            (self.instances.is_some(), "--instances"),
            (!self.listen.is_empty(), "--listen"),
            (self.socket_activation, "--socket-activation"),
            (!self.env.is_empty(), "--env"),
            (!self.env_file.is_empty(), "--env-file"),
            (self.cwd.is_some(), "--cwd"),
            (self.readiness.is_some(), "--readiness"),
            (self.liveness.is_some(), "--liveness"),
            (self.max_memory.is_some(), "--max-memory"),
            (self.balance.is_some(), "--balance"),
            (self.listen_timeout.is_some(), "--listen-timeout"),
            (self.drain_timeout.is_some(), "--drain-timeout"),
            (self.kill_timeout.is_some(), "--kill-timeout"),
            (self.stop_signal.is_some(), "--stop-signal"),
            (self.user.is_some(), "--user"),
        ];
        options
            .into_iter()
            .find_map(|(given, name)| given.then_some(name))
    }

    fn into_script(self, command: Vec<String>) -> Result<Script, CliError> {
        let here = || {
            crate::cwd::logical()
                .map_err(|error| CliError::of_here("cannot tell the current folder", &error))
        };
        let cwd = match self.cwd {
            Some(cwd) => crate::cwd::absolute(&cwd)
                .map_err(|error| CliError::of_here(&format!("--cwd {}", cwd.display()), &error))?,
            None => here()?,
        };
        Ok(Script {
            name: self.name,
            command,
            instances: self.instances,
            listen: self.listen,
            socket_activation: self.socket_activation,
            env: self.env,
            env_file: self.env_file,
            cwd,
            readiness: self.readiness,
            liveness: self.liveness,
            max_memory: self.max_memory,
            balance: self.balance,
            listen_timeout: self.listen_timeout,
            drain_timeout: self.drain_timeout,
            kill_timeout: self.kill_timeout,
            stop_signal: self.stop_signal,
            user: self.user,
        })
    }
}

/// What the arguments mean.
#[derive(Debug, PartialEq)]
enum Plan {
    File(PathBuf),
    /// A command, given by its words.
    Command(Vec<String>),
    /// Apps that the daemon knows.
    Names(Vec<String>),
    /// A file that exists; or the app of that name, if there is one.
    NameOrScript(String),
}

fn plan(args: &Args) -> Result<Plan, CliError> {
    let given = args.script.given();
    let no_script = |plan| match given {
        None => Ok(plan),
        Some(option) => Err(CliError::usage(format!(
            "{option} is for apps without a file\nin a file, the app's table says it"
        ))),
    };
    let plan = match (args.what.as_slice(), args.command.as_slice()) {
        ([], []) if given.is_some() => {
            return Err(CliError::usage("no app, script or file is given")
                .hint("rsup start -n NAME -- COMMAND"));
        }
        ([], []) => Plan::File("supervisor.toml".into()),
        ([file], []) if is_config(file) => no_script(Plan::File(file.into()))?,
        ([word], []) if given.is_some() => Plan::Command(vec![word.clone()]),
        ([word], []) if Path::new(word).is_file() || word.contains('/') => {
            Plan::NameOrScript(word.clone())
        }
        (words, []) => match words.iter().find(|word| is_config(word)) {
            Some(file) => {
                return Err(
                    CliError::usage("one file at a time").hint(format!("rsup start {file}"))
                );
            }
            None => no_script(Plan::Names(words.to_vec()))?,
        },
        ([], command) => Plan::Command(command.to_vec()),
        ([script], arguments) if !is_config(script) => {
            Plan::Command([std::slice::from_ref(script), arguments].concat())
        }
        _ => {
            return Err(CliError::usage("before `--` there is room for one script")
                .hint("rsup start -n NAME -- COMMAND"));
        }
    };
    match plan {
        Plan::File(_) => Ok(plan),
        _ if !args.only.is_empty() => Err(CliError::usage("--only goes with a configuration file")),
        _ => Ok(plan),
    }
}

/// A configuration, rsup's own or PM2's.
fn is_config(word: &str) -> bool {
    let name = Path::new(word)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.ends_with(".toml")
        || [".config.js", ".config.cjs", ".config.mjs"]
            .iter()
            .any(|end| name.ends_with(end))
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let mut settings = None;
    let apps = match plan(&args)? {
        Plan::File(file) => {
            let (apps, of_file) = from_file(&file, &args.only, cx)?;
            settings = Some(of_file);
            apps
        }
        Plan::Command(command) => vec![config::from_script(&args.script.into_script(command)?)?],
        Plan::Names(names) if args.foreground => {
            return Err(CliError::usage(format!(
                "--foreground needs a file, a script or a command, not `{}`",
                names.join(" ")
            )));
        }
        Plan::Names(names) => {
            return resume(&names, !args.no_wait, cx).map_err(|problem| no_such(problem, &names));
        }
        Plan::NameOrScript(word) => {
            if !args.foreground && known_to_daemon(&word, cx)? {
                return resume(&[word], !args.no_wait, cx);
            }
            vec![config::from_script(&args.script.into_script(vec![word])?)?]
        }
    };
    if args.foreground {
        foreground(apps, settings, &args.foreground_options, cx)
    } else {
        background(apps, settings, !args.no_wait, cx)
    }
}

/// Words that name neither an app nor a file: what they may have been meant as.
fn no_such(problem: CliError, words: &[String]) -> CliError {
    let CliError::Report { exit, mut report } = problem else {
        return problem;
    };
    let daemon = report.code != "no_daemon";
    let file = words.iter().find(|word| is_script(word));
    let here = crate::cwd::logical();
    if daemon && (report.code != "unknown_app" || file.is_none()) {
        return CliError::Report { exit, report };
    }
    let word = file.map_or_else(|| words.join(" "), Clone::clone);
    report.message = match &here {
        Ok(here) => format!(
            "there is no file `{word}` in {}, and no app of that name",
            here.display()
        ),
        Err(_) => format!(
            "there is no file `{word}`, and no app of that name: {}",
            config::NO_FOLDER
        ),
    };
    if !daemon {
        report.message.push_str("; no daemon runs");
    }
    report.hint = Some(match here.map(|here| similar(&here, &word)) {
        Err(_) => config::NO_FOLDER_HINT.into(),
        Ok(Some(similar)) => format!("did you mean `{similar}`?"),
        Ok(None) => {
            "rsup start FILE.toml, rsup start SCRIPT, or rsup start -n NAME -- COMMAND".into()
        }
    });
    CliError::Report { exit, report }
}

/// A file's name rather than that of an app: it ends like a script.
fn is_script(word: &str) -> bool {
    let end = Path::new(word).extension().and_then(|end| end.to_str());
    config::SCRIPTS
        .iter()
        .any(|(script, _)| Some(*script) == end)
}

/// A script or configuration in the folder that is called nearly so.
fn similar(folder: &Path, word: &str) -> Option<String> {
    let stem = |name: &str| {
        let stem = Path::new(name).file_stem();
        stem.map(|stem| stem.to_string_lossy().into_owned())
    };
    let distance = |name: &String| {
        if stem(name) == stem(word) {
            0
        } else {
            strsim::damerau_levenshtein(name, word)
        }
    };
    let files = std::fs::read_dir(folder).ok()?.flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names
        .filter(|name| is_script(name) || is_config(name))
        .filter(|name| distance(name) <= 1 + word.len() / 4)
        .min_by_key(|name| (distance(name), name.clone()))
}

pub fn from_file(
    file: &Path,
    only: &[String],
    cx: &Context,
) -> Result<(Vec<AppSpec>, Settings), CliError> {
    if file.extension().is_none_or(|extension| extension != "toml") {
        return Err(CliError::usage(format!(
            "{} is not a supervisor.toml\nPM2's files cannot be started as they are",
            file.display()
        ))
        .hint("`rsup init` writes a supervisor.toml to begin with"));
    }
    let loaded = config::load(file)?;
    for warning in &loaded.warnings {
        cx.out.warning(&warning.render(cx.out.error_look.color));
    }
    let settings = settings::of(file, &loaded);
    let mut apps = loaded.config.apps;
    if let Some(missing) = only
        .iter()
        .find(|name| !apps.iter().any(|spec| spec.name.as_str() == *name))
    {
        let names = targets::names(&apps);
        return Err(
            CliError::usage(format!("{} has no app `{missing}`", file.display()))
                .hint(format!("it has: {names}")),
        );
    }
    apps.retain(|spec| only.is_empty() || only.iter().any(|name| name == spec.name.as_str()));
    if apps.is_empty() {
        return Err(
            CliError::usage(format!("{} describes no apps", file.display()))
                .hint("add a table [app.NAME] with a command"),
        );
    }
    log_folders::notes(&apps, cx);
    Ok((apps, settings))
}

fn known_to_daemon(word: &str, cx: &Context) -> Result<bool, CliError> {
    let client = cx.client()?.for_a_start();
    match client.try_ask(&Snapshot) {
        Ok(known) => Ok(known.iter().any(|known| known.spec.name.as_str() == word)),
        Err(CallError::NoDaemon) => Ok(false),
        Err(error) => Err(client.explain(error)),
    }
}

/// Starts apps as they were last configured. After `rsup kill`, the next daemon knows them.
fn resume(names: &[String], wait: bool, cx: &Context) -> Result<(), CliError> {
    let paths = cx.paths()?;
    let mut client = cx.client()?.for_a_start();
    let mut waits = Waits::default();
    let outcomes = loop {
        let selection = match client.try_ask(&Snapshot) {
            Ok(known) => targets::resolve(names, known)?,
            Err(CallError::NoDaemon) if knows(&paths, names) => {
                client = daemonize::ensure(&paths)?;
                continue;
            }
            Err(error) => return Err(client.explain(error)),
        };
        targets::note_no_apps(&selection.known, cx);
        let start = Action::StartStopped {
            targets: selection.targets,
        };
        match action::sent(&cx.out, &client, start, Vec::new(), wait) {
            Ok(outcomes) => break outcomes,
            Err(error) => waits.for_the_end(&paths, &client, error, cx)?,
        }
    };
    action::conclude(&cx.out, &outcomes, wait)
}

/// Whether a daemon of before knew these apps, and the next one will.
fn knows(paths: &Paths, names: &[String]) -> bool {
    let known = daemon::known_from_before(paths);
    !known.is_empty()
        && names
            .iter()
            .all(|name| name == "all" || known.iter().any(|app| app.as_str() == name))
}

/// The wait for a daemon that is about to end, so that the next one can start what is asked for.
#[derive(Default)]
pub struct Waits {
    said: bool,
    /// How many daemons were there, and gone before they heard what is asked for.
    gone: u8,
}

/// More daemons than this do not end by themselves one after the other.
const GONE: u8 = 3;

impl Waits {
    /// An error, unless it is that the daemon ends, or has ended since it was found.
    pub fn for_the_end(
        &mut self,
        paths: &Paths,
        client: &Client,
        error: CallError,
        cx: &Context,
    ) -> Result<(), CliError> {
        if self.is_gone(&error) {
            return Ok(());
        }
        if !matches!(&error, CallError::Failed(why) if why.code == FailureCode::Ending) {
            return Err(client.explain(error));
        }
        if !std::mem::replace(&mut self.said, true) {
            cx.out
                .note("rsup is stopping every app; what is asked for is started after its end");
        }
        daemonize::until_it_ends(paths)
    }

    fn is_gone(&mut self, error: &CallError) -> bool {
        self.gone += u8::from(matches!(error, CallError::NoDaemon));
        matches!(error, CallError::NoDaemon) && self.gone <= GONE
    }
}

fn foreground(
    apps: Vec<AppSpec>,
    settings: Option<Settings>,
    args: &ForegroundArgs,
    cx: &Context,
) -> Result<(), CliError> {
    let paths = cx.paths()?;
    paths.create().map_err(CliError::usage)?;
    let client = Client::new(&paths)?.of_next_daemon();
    match client.try_ask(&Ping) {
        Err(CallError::NoDaemon) => {}
        Ok(Pong { pid, .. }) => {
            let problem = CliError::failed(
                "already_running",
                format!("a daemon runs already (pid {pid})"),
            );
            return Err(problem.hint("leave out --foreground, or end it with `rsup kill`"));
        }
        Err(error) => return Err(client.explain(error)),
    }
    let start = Some(StartRequest {
        apps,
        base_env: cx.base_env(),
    });
    // The caller may block signals, and the first process of a container is told to stop by one.
    SigSet::empty().thread_set_mask().map_err(|error| {
        CliError::failed("local", format!("cannot let signals through: {error}"))
    })?;
    let format = match args.log_format {
        Some(LogFormat::Json) => logs::Format::Json,
        None if cx.out.json => logs::Format::Json,
        Some(LogFormat::Text) | None => logs::Format::Text,
    };
    let options = daemon::Options {
        foreground: true,
        start,
        settings,
        given_anew: true,
        log_format: Some(format),
        open_console: Some(render::to_stdout),
        no_log_files: args.no_log_files,
        exit_when: match args.exit_when.unwrap_or(ExitWhen::All) {
            ExitWhen::All => daemon::ExitWhen::All,
            ExitWhen::Any => daemon::ExitWhen::Any,
            ExitWhen::Never => daemon::ExitWhen::Never,
        },
        ..Default::default()
    };
    daemon::run(paths, options).map_err(|error| match format {
        // It is among the other objects.
        logs::Format::Json if !matches!(error, daemon::Error::Ended { .. }) => {
            CliError::AlreadyReported(FAILED)
        }
        logs::Format::Json | logs::Format::Text => error.into(),
    })
}

fn background(
    apps: Vec<AppSpec>,
    settings: Option<Settings>,
    wait: bool,
    cx: &Context,
) -> Result<(), CliError> {
    let paths = cx.paths()?;
    let base_env = cx.base_env();
    let mut waits = Waits::default();
    let outcomes = loop {
        let client = daemonize::ensure(&paths)?;
        let start = Action::Start {
            apps: apps.clone(),
            base_env: base_env.clone(),
        };
        let settings = settings.iter().cloned().collect();
        match action::sent(&cx.out, &client, start, settings, wait) {
            Ok(outcomes) => break outcomes,
            Err(error) => waits.for_the_end(&paths, &client, error, cx)?,
        }
    };
    action::conclude(&cx.out, &outcomes, wait)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    fn planned(line: &str) -> Result<Plan, u8> {
        let words = std::iter::once("start").chain(line.split_whitespace());
        plan(&Alone::try_parse_from(words).map_err(|_| 99u8)?.args)
            .map_err(|problem| problem.exit())
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_arguments_mean() {
        assert_eq!(planned(""), Ok(Plan::File("supervisor.toml".into())));
        assert_eq!(
            planned("x/y.toml --only api web"),
            Ok(Plan::File("x/y.toml".into()))
        );
        assert_eq!(
            planned("ecosystem.config.cjs"),
            Ok(Plan::File("ecosystem.config.cjs".into()))
        );
        assert_eq!(planned("api"), Ok(Plan::Names(words("api"))));
        assert_eq!(planned("api web:1"), Ok(Plan::Names(words("api web:1"))));
        assert_eq!(
            planned("server.js -i 2 -n api"),
            Ok(Plan::Command(words("server.js")))
        );
        assert_eq!(
            planned("server.js -i -1"),
            Ok(Plan::Command(words("server.js")))
        );
        assert_eq!(planned("./run"), Ok(Plan::NameOrScript("./run".into())));
        assert_eq!(planned("Cargo.toml"), Ok(Plan::File("Cargo.toml".into())));
        assert_eq!(
            planned("-n api -- ./server --flag"),
            Ok(Plan::Command(words("./server --flag")))
        );
        assert_eq!(
            planned("server.js -- --port 1"),
            Ok(Plan::Command(words("server.js --port 1")))
        );
    }

    #[test]
    fn a_daemon_that_ends_between_two_calls_is_no_error_but_not_for_ever() {
        let mut waits = Waits::default();
        let mut gone = || waits.is_gone(&CallError::NoDaemon);
        let answers: Vec<bool> = std::iter::repeat_with(&mut gone).take(5).collect();
        assert_eq!(answers, [true, true, true, false, false]);
        assert!(!Waits::default().is_gone(&CallError::Silent));
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "-n api",
            "a.toml -n api",
            "a.toml b.toml",
            "a b -i 2",
            "a b -- c",
            "a.toml -- c",
            "api --only web",
            "server.js -i 2 --only x",
        ] {
            assert_eq!(planned(line), Err(2), "{line}");
        }
    }
}
