//! The long form of "reload after reload under load, and not one request fails":
//! `cargo run --release --example zero_loss -- --app sample --requests 1000000 --reloads 100`
//!
//! Runs a daemon of its own (from `--rsup`), two workers of the app, and clients that make a
//! connection per request, and reloads all the while. Exit code 1 if a request or a reload failed.

use std::error::Error;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use rsup::load::{self, Handle, Plan, Report};

#[derive(Parser)]
struct Args {
    /// What to reload
    #[arg(long, value_enum, default_value_t = App::Sample)]
    app: App,
    /// Requests, at least
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// Reloads, at least; spread over the requests
    #[arg(long, default_value_t = 100)]
    reloads: u64,
    /// Concurrent clients
    #[arg(long, default_value_t = 20)]
    connections: usize,
    #[arg(long, default_value_t = 2)]
    instances: u16,
    /// The program; by default the one that was built beside this example
    #[arg(long)]
    rsup: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum App {
    Sample,
    Express,
    Python,
    Go,
}

/// The daemon; ends with it.
struct Daemon {
    rsup: PathBuf,
    home: tempfile::TempDir,
}

impl Daemon {
    fn rsup(&self, args: &[&str]) -> std::io::Result<Output> {
        let mut command = Command::new(&self.rsup);
        command
            .args(args)
            .env("RSUP_HOME", self.home.path())
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command.output()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.rsup(&["kill"]);
    }
}

fn quoted(text: impl AsRef<Path>) -> String {
    toml::Value::from(text.as_ref().to_string_lossy().into_owned()).to_string()
}

/// Runs a command that prepares an app.
fn prepare(command: &mut Command) -> Result<(), Box<dyn Error>> {
    match command.status()?.success() {
        true => Ok(()),
        false => Err(format!("{command:?} failed").into()),
    }
}

/// The lines of the app's table.
fn table(app: App, rsup: &Path, home: &Path) -> Result<String, Box<dyn Error>> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = project.join("tests/apps");
    Ok(match app {
        App::Sample => format!(
            "command = [{}, \"sample-app\"]\nreadiness = \"/readiness\"",
            quoted(rsup)
        ),
        App::Express => {
            let folder = home.join("express-api");
            std::fs::create_dir(&folder)?;
            for file in ["package.json", "server.js"] {
                std::fs::copy(
                    project.join("examples/express-api").join(file),
                    folder.join(file),
                )?;
            }
            prepare(
                Command::new("npm")
                    .args(["install", "--no-audit", "--no-fund", "--silent"])
                    .current_dir(&folder),
            )?;
            format!(
                "command = [\"node\", \"server.js\"]\ncwd = {}\nreadiness = \"/readiness\"",
                quoted(folder)
            )
        }
        App::Python => format!(
            "command = [\"python3\", {}]",
            quoted(sources.join("server.py"))
        ),
        App::Go => {
            let program = home.join("server");
            prepare(
                Command::new("go")
                    .env("GO111MODULE", "off")
                    .arg("build")
                    .arg("-o")
                    .arg(&program)
                    .arg(sources.join("server.go")),
            )?;
            format!("command = [{}]\nreadiness = \"/\"", quoted(program))
        }
    })
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let beside = || {
        Some(
            std::env::current_exe()
                .ok()?
                .parent()?
                .parent()?
                .join("rsup"),
        )
    };
    let rsup = args
        .rsup
        .clone()
        .or_else(beside)
        .filter(|path| path.is_file())
        .ok_or("there is no rsup beside this example: cargo build --release, or --rsup PATH")?;
    let daemon = Daemon {
        rsup: rsup.canonicalize()?,
        home: tempfile::Builder::new().prefix("rsup").tempdir_in("/tmp")?,
    };
    let port = free_port()?;
    let table = table(args.app, &daemon.rsup, daemon.home.path())?;
    let config = format!(
        "[app.web]\n{table}\ninstances = {}\nlisten = \"127.0.0.1:{port}\"\n",
        args.instances
    );
    std::fs::write(daemon.home.path().join("supervisor.toml"), config)?;
    let started = daemon.rsup(&["start"])?;
    if !started.status.success() {
        return Err(format!(
            "rsup start failed: {}",
            String::from_utf8_lossy(&started.stderr)
        )
        .into());
    }
    let (report, reloads, failed) = measure(args, &daemon, port)?;
    print(args, &report, reloads, failed);
    Ok(report.is_lossless()
        && failed == 0
        && reloads >= args.reloads
        && report.requests >= args.requests)
}

/// Below the ports that clients get.
fn free_port() -> Result<u16, Box<dyn Error>> {
    let from = 10_000 + (std::process::id() % 10_000) as u16;
    (from..30_000)
        .find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .ok_or_else(|| "no port is free".into())
}

fn measure(args: &Args, daemon: &Daemon, port: u16) -> Result<(Report, u64, u64), Box<dyn Error>> {
    let mut plan = Plan::for_url(&format!("http://127.0.0.1:{port}/health"))?;
    plan.connections = args.connections;
    plan.max_time = Duration::from_secs(24 * 3600);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let load = {
        let _inside = runtime.enter();
        load::start(plan)
    };
    // The clients run on a thread of their own, beside this one.
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let clients = std::thread::spawn(move || runtime.block_on(async { drop(ended.await) }));
    let (began, mut told) = (Instant::now(), Instant::now());
    let (mut reloads, mut failed) = (0, 0);
    while load.snapshot().requests < args.requests || reloads < args.reloads {
        // One after the other as soon as the requests have caught up.
        let due = reloads < args.reloads
            && load.snapshot().requests >= args.requests / args.reloads.max(1) * reloads;
        if due {
            let output = daemon.rsup(&["reload", "web"])?;
            reloads += 1;
            if !output.status.success() {
                failed += 1;
                eprintln!(
                    "reload {reloads} failed: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            progress(&load, began, reloads);
        }
    }
    let report = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(load.stop());
    drop(end);
    clients.join().map_err(|_| "the clients panicked")?;
    Ok((report, reloads, failed))
}

fn progress(load: &Handle, began: Instant, reloads: u64) {
    let now = load.snapshot();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{seconds:6.0} s  {:>9} requests  {:>5.0}/s  {reloads:>4} reloads  {} failed",
        now.requests,
        now.requests as f64 / seconds,
        now.failed + now.keep_alive_races
    );
    let _ = std::io::stdout().flush();
}

fn print(args: &Args, report: &Report, reloads: u64, failed: u64) {
    let stats = &report.before;
    let ms = |us: Option<u64>| {
        us.map_or_else(|| "-".into(), |us| format!("{:.1} ms", us as f64 / 1000.0))
    };
    println!(
        "\n{:?}: {} requests on {} connections, {} clients, {:.0} s",
        args.app,
        report.requests,
        report.connections_opened,
        report.connections,
        report.duration_ms as f64 / 1000.0
    );
    println!(
        "{reloads} reloads of {} workers, {failed} of them failed; {} processes answered",
        args.instances,
        stats.pids.len()
    );
    println!(
        "latency: p50 {}, p95 {}, p99 {}, longest {}",
        ms(stats.p50_us),
        ms(stats.p95_us),
        ms(stats.p99_us),
        ms(stats.max_us)
    );
    println!(
        "failed requests: {}",
        report.failed + report.keep_alive_races
    );
    for (kind, count) in &stats.failures {
        println!("  {kind}: {count}");
    }
    for failure in report.failures.iter().take(20) {
        println!("  {:>8} ms  {}", failure.at_ms, failure.detail);
    }
}
