//! `rsup verify`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::cli::client::Interrupt;
use crate::cli::error::CliError;
use crate::cli::load_test::{self, Expected, Halt, LoadTest, Step, Verdict};
use crate::cli::values::{duration, http_path};
use crate::cli::{Context, reread, targets};
use crate::config::{AppSpec, Check, Listen};
use crate::control::Known;
use crate::core::{AppPhase, AppView, Settings, WorkerPhase};
use crate::load::{self, FailureKind, Plan};

/// Put load on an app, reload it meanwhile, and count the failed requests
///
/// The load goes to the first address that the app listens on; after a third of the time the app is
/// reloaded, exactly as `rsup reload` does it (its file is read again). Exit code 0 if every request
/// was answered with 200 to 299 and the reload was done; 1 otherwise.
///
/// With --keep-alive connections carry many requests, and there is a race that no supervisor can
/// prevent: a stopping worker closes an idle connection at the very moment at which the client uses
/// it again. Such a request is lost all the same, so it counts, on a line of its own, unless
/// --allow-keep-alive-races is given. Allow them where the real clients (a reverse proxy, a browser)
/// try such a request again. An app avoids them if, from SIGTERM on, it answers with `Connection:
/// close` and leaves idle connections open a little longer.
///
/// Ctrl-C ends it early, with what is known so far; a reload under way goes on.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  rsup verify api
  rsup verify api --rps 500 --duration 30s --path /health
  rsup verify api --keep-alive --connections 50

With --json, one document:
  passed       true if the exit code is 0
  interrupted  Ctrl-C came before the end
  reasons      why it did not pass, in words
  reloads      of each: at_ms, took_ms, as_expected, revision, failure, old_workers_serve
  load         requests, failed, keep_alive_races; before, during, after (each with p50_us,
               p95_us, p99_us, max_us, failures by kind); failures, series, markers
If there was no load at all (no such app, wrong path) it is {code, message, hint} instead.")]
pub struct Args {
    /// The app
    #[arg(value_name = "APP")]
    pub app: String,
    /// Requests a second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rps: u32,
    /// How long to go on, at least: a third before the reload, a third or more after it
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = duration)]
    pub duration: Duration,
    /// The path that is asked for; by default /, or that of the readiness check if / is no page
    #[arg(long, value_name = "PATH", value_parser = http_path)]
    pub path: Option<String>,
    /// Clients at the same time, each with one connection
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub connections: u16,
    /// A request that is not answered within this time has failed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Use connections for more than one request
    #[arg(long)]
    pub keep_alive: bool,
    /// Pass although requests met a connection that was just being closed; see above
    #[arg(long, requires = "keep_alive")]
    pub allow_keep_alive_races: bool,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let interrupt = Interrupt::hold_all();
    let client = cx.client()?;
    let selection =
        targets::select(&client, std::slice::from_ref(&args.app))?.whole_apps("verify")?;
    let [known] = selection.apps()[..] else {
        return Err(CliError::usage("verify takes one app at a time"));
    };
    let old = &known.spec;
    let listen = fit(known)?;
    let (mut specs, settings) = reread::for_command(&[known], &selection.known, &cx.out)?;
    let Some(spec) = specs.pop() else {
        return Err(CliError::usage("verify takes one app at a time"));
    };
    if !spec.listen.contains(listen) {
        let now = spec
            .listen
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        return Err(CliError::failed(
            "listen",
            format!(
                "{} listens on {listen}, and its file says another address now: {now}",
                spec.name
            ),
        )
        .hint(format!("rsup reload {}", spec.name)));
    }
    let mut plan = plan(&args, old, listen, spec.reload.deadline);
    let default_path = choose_path(&args, &mut plan, old, &interrupt)?;
    try_once(&args, &plan, &spec, &interrupt)?;

    if !cx.out.json {
        let how = if args.keep_alive {
            "kept connections"
        } else {
            "a new connection for each"
        };
        let rps = load::report::thousands(args.rps.into());
        cx.out.text(&format!(
            "{}: GET {} on {}, {rps} requests a second, {how}\n\n",
            spec.name, plan.path, plan.target
        ))?;
    }
    let name = spec.name.clone();
    let script = |test: &mut LoadTest<'_>| reload(test, spec, settings, args.duration);
    let mut verdict = load_test::run(&cx.out, &client, &interrupt, &name, plan, script)?;
    if args.allow_keep_alive_races && verdict.only_races() {
        verdict.reasons.clear();
        verdict.passed = true;
    }
    verdict.remarks = remarks(&verdict, &args, default_path);
    verdict.conclude(&cx.out)
}

/// The reload under load.
fn reload(
    test: &mut LoadTest<'_>,
    spec: AppSpec,
    settings: Vec<Settings>,
    duration: Duration,
) -> Result<(), Halt> {
    test.until(duration / 3)?;
    test.reload(Step {
        label: "reload",
        words: "reload",
        spec,
        settings,
        expected: Expected::Done,
        last: true,
    })?;
    test.hold(duration / 3)?;
    test.until(duration)
}

/// The address that the load goes to; an error if the app is in no state for a test.
fn fit(Known { spec, view }: &Known) -> Result<&Listen, CliError> {
    let app = &spec.name;
    let AppView {
        phase,
        instances,
        operation,
        reason,
        workers,
        ..
    } = view;
    if let Some(operation) = operation {
        let what = operation.kind.as_str();
        return Err(
            CliError::failed("busy", format!("{app} is busy: {what} is under way"))
                .hint("try again when `rsup list` shows it ready"),
        );
    }
    if *phase != AppPhase::Ready {
        let ready = workers
            .iter()
            .filter(|worker| worker.phase == WorkerPhase::Ready)
            .count();
        let mut what = format!(
            "{app} is {}: {ready} of {instances} workers ready",
            phase.as_str()
        );
        if let Some(reason) = reason {
            what.push_str(&format!("\n{reason}"));
        }
        return Err(CliError::failed("not_ready", what).hint(format!("rsup describe {app}")));
    }
    let tcp = spec.listen.iter().find(|listen| listen.tcp().is_some());
    tcp.or(spec.listen.first()).ok_or_else(|| {
        CliError::failed(
            "bad_request",
            format!(
                "{app} has no address that rsup knows of, so there is nothing to send requests to"
            ),
        )
        .hint("add `listen` to its table, or `--listen` to its start")
    })
}

fn plan(args: &Args, spec: &AppSpec, listen: &Listen, deadline: Duration) -> Plan {
    let host = match &spec.readiness.check {
        Check::Http { host, .. } => host.clone(),
        Check::Tcp | Check::Exec { .. } | Check::Notify | Check::Alive => None,
    };
    let target = match listen {
        // A dual-stack wildcard serves IPv4, whatever address the app asked for when it bound its
        // port.
        Listen::Tcp {
            addr,
            v6only: false,
        } if addr.ip() == Ipv6Addr::UNSPECIFIED => {
            load::Target::Tcp((Ipv4Addr::LOCALHOST, addr.port()).into())
        }
        Listen::Tcp { addr, .. } => load::Target::Tcp(*addr),
        Listen::Unix(path) => load::Target::Unix(path.clone()),
    };
    let plan = Plan::new(target, args.path.clone().unwrap_or_else(|| "/".into()));
    Plan {
        host: host.unwrap_or(plan.host),
        connections: args.connections.into(),
        keep_alive: args.keep_alive,
        rate: Some(args.rps.into()),
        // The load is ended explicitly; this limit is for a daemon that never answers.
        max_time: args.duration + deadline + Duration::from_secs(60),
        timeout: args.timeout,
        ..plan
    }
}

/// The path without `--path`: `/`, which users request, if it answers. The second choice is the
/// readiness check's path, which a stopping worker may answer with 503 on purpose; true if it was
/// taken.
fn choose_path(
    args: &Args,
    plan: &mut Plan,
    spec: &AppSpec,
    interrupt: &Interrupt,
) -> Result<bool, CliError> {
    let Check::Http { path, .. } = &spec.readiness.check else {
        return Ok(false);
    };
    if args.path.is_some()
        || *path == plan.path
        || load_test::one_request(plan, interrupt)?.failures.is_empty()
    {
        return Ok(false);
    }
    plan.path.clone_from(path);
    Ok(true)
}

/// Reports a wrong path before anything happens.
fn try_once(
    args: &Args,
    plan: &Plan,
    spec: &AppSpec,
    interrupt: &Interrupt,
) -> Result<(), CliError> {
    let report = load_test::one_request(plan, interrupt)?;
    let Some(failure) = report.failures.first() else {
        return Ok(());
    };
    let what = format!(
        "GET {} on {} fails before any reload: {}",
        plan.path, plan.target, failure.detail
    );
    let hint = match (failure.kind, &args.path) {
        (FailureKind::Status(_), _) => format!(
            "name a path that answers 200 to 299: rsup verify {} --path /health",
            spec.name
        ),
        (FailureKind::BadResponse, _) => "only plain HTTP/1 can be tried".into(),
        (FailureKind::Timeout, _) => {
            "name another path, or allow it more time: --timeout 30s".into()
        }
        _ => format!("rsup describe {0}; rsup logs {0}", spec.name),
    };
    Err(CliError::failed("bad_answer", what).hint(hint))
}

fn remarks(verdict: &Verdict, args: &Args, default_path: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if verdict.load.keep_alive_races > 0 {
        let judged = if args.allow_keep_alive_races {
            "They do not count here, as --allow-keep-alive-races says."
        } else {
            "They count. If the real clients try such requests again: --allow-keep-alive-races."
        };
        remarks.push(format!(
            "Keep-alive races: a stopping worker closed an idle connection just as it was used again.\n\
             No supervisor can prevent that; the app can: from SIGTERM on, answer with\n\
             `Connection: close`, and leave idle connections open a little longer. {judged}"
        ));
    }
    let stats = &verdict.load;
    let unready = [&stats.during, &stats.after]
        .iter()
        .filter_map(|phase| phase.failures.get(&FailureKind::Status(503)))
        .sum::<u64>();
    if default_path && unready > 0 && unready == verdict.load.failed {
        remarks.push(
            "All of them are 503 on the path of the readiness check, which a stopping worker may\n\
             answer on purpose. Try a path that users ask for: --path /"
                .into(),
        );
    }
    remarks
}
