//! Everything that can happen to rsup and its workers, again and again, under load; and then the count.
//!
//! `cargo run --release --example chaos -- --time 1m --seed 7`
//!
//! Each step does one thing (or two at once), waits until the apps are as they should be, and books the
//! requests that failed meanwhile to it. A request may fail only if a *worker* that had accepted it was
//! killed. The same seed does the same things in the same order. Exit code 1 if anything was not as
//! it should be.

mod actions;
mod checks;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use actions::Action;
use clap::Parser;
use rsup::load::{self, Plan, Report};
use world::World;

#[derive(Parser)]
struct Args {
    /// How long, for example `1h`
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    time: Duration,
    /// What happens in which order; by default chosen at random, and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Requests a second, each on a connection of its own
    #[arg(long, default_value_t = 300.0)]
    rate: f64,
    /// Concurrent clients
    #[arg(long, default_value_t = 20)]
    connections: usize,
    /// Only this, again and again, for example `kill daemon in reload`; may be given several times
    #[arg(long)]
    only: Vec<Action>,
    /// Tell each step
    #[arg(long)]
    verbose: bool,
    /// The program; by default the one that was built beside this example
    #[arg(long)]
    rsup: Option<PathBuf>,
}

/// What one kind of action has brought about.
#[derive(Default)]
struct Tally {
    times: u64,
    requests: u64,
    failed: u64,
    problems: Vec<String>,
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
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!(
        "seed {seed}: --time {} --seed {seed} --rate {}",
        humantime::format_duration(args.time),
        args.rate
    );
    let mut world = World::start(args.rsup.clone())?;
    if let Some(why) = world.no_small_disk() {
        println!("the log disk is not filled up: {why}");
    }
    let baseline = checks::baseline(&world)?;
    let mut plan = Plan::for_url(&format!("http://127.0.0.1:{}/health", world.port))?;
    plan.connections = args.connections;
    plan.rate = Some(args.rate);
    plan.max_time = Duration::from_secs(24 * 3600);
    // Longer than anybody is held still here: a client that gives up would be no evidence.
    plan.timeout = Duration::from_secs(30);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let load = {
        let _inside = runtime.enter();
        load::start(plan)
    };
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let clients = std::thread::spawn(move || runtime.block_on(async { drop(ended.await) }));

    let among = if args.only.is_empty() {
        &actions::ALL[..]
    } else {
        &args.only
    };
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tallies: BTreeMap<Action, Tally> = BTreeMap::new();
    let (began, mut told) = (Instant::now(), Instant::now());
    let mut most_memory = 0;
    let mut excused = BTreeSet::new();
    let mut before_it: Option<Action> = None;
    while began.elapsed() < args.time {
        let action = Action::choose(among, &mut random, &world);
        let before = load.snapshot();
        let gaps = if action.may_lose_lines() {
            Some(checks::gaps(&world)?)
        } else {
            None
        };
        let tally = tallies.entry(action).or_default();
        tally.times += 1;
        let at = began.elapsed().as_secs_f64();
        if args.verbose {
            let relayed = world
                .view("web")
                .map(|view| view["relayed"].to_string())
                .unwrap_or_default();
            println!(
                "{at:8.2} s  {:<28} {relayed} passed on so far",
                action.name()
            );
        }
        if let Err(why) = action
            .run(&mut world, &mut random)
            .and_then(|()| world.settle())
        {
            let problem = format!("{at:.1} s: {action:?}: {why}");
            eprintln!("{problem}");
            tally.problems.push(problem);
        }
        all_answered(&load);
        if let Some(before) = gaps {
            excused.extend(checks::gaps(&world)?.difference(&before).cloned());
        }
        let after = load.snapshot();
        tally.requests += after.requests - before.requests;
        let failed = after.failed - before.failed;
        tally.failed += failed;
        if failed > 0 && !action.may_lose_requests() {
            let before = before_it.map_or_else(String::new, |it| format!(", after {it:?}"));
            eprintln!("{at:.1} s: {failed} requests failed in {action:?}{before}");
        }
        before_it = Some(action);
        most_memory = most_memory.max(world.daemon_memory());
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            let steps: u64 = tallies.values().map(|t| t.times).sum();
            println!(
                "{:6.0} s  {steps:>5} steps  {:>9} requests  {} failed",
                began.elapsed().as_secs_f64(),
                after.requests,
                after.failed
            );
            let _ = std::io::stdout().flush();
        }
    }
    let report = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(load.stop());
    drop(end);
    clients.join().map_err(|_| "the clients panicked")?;
    let broken = checks::broken_invariants(&mut world, &baseline, &excused);
    Ok(print(&report, &tallies, &broken, &excused, most_memory))
}

/// Waits until a step's requests have ended, so that each failure counts for the step that caused it. There are
/// moments without a request under way; on a machine too busy for one, the wait ends without.
fn all_answered(load: &load::Handle) {
    std::thread::sleep(Duration::from_millis(150));
    let deadline = Instant::now() + Duration::from_secs(5);
    while load.snapshot().in_flight > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The account; true if all is well.
fn print(
    report: &Report,
    tallies: &BTreeMap<Action, Tally>,
    broken: &[String],
    excused: &BTreeSet<String>,
    memory: u64,
) -> bool {
    println!(
        "\n{:<28} {:>6} {:>10} {:>7}",
        "what happened", "times", "requests", "failed"
    );
    let mut unexplained = 0;
    for (action, tally) in tallies {
        let excused = if action.may_lose_requests() {
            "accepted by a killed worker"
        } else {
            ""
        };
        println!(
            "{:<28} {:>6} {:>10} {:>7}  {excused}",
            action.name(),
            tally.times,
            tally.requests,
            tally.failed
        );
        if !action.may_lose_requests() {
            unexplained += tally.failed;
        }
    }
    let stats = &report.before;
    let ms = |us: Option<u64>| {
        us.map_or_else(|| "-".into(), |us| format!("{:.1} ms", us as f64 / 1000.0))
    };
    println!(
        "\n{} requests in {:.0} s, {} processes answered; latency: p50 {}, p99 {}, longest {}",
        report.requests,
        report.duration_ms as f64 / 1000.0,
        stats.pids.len(),
        ms(stats.p50_us),
        ms(stats.p99_us),
        ms(stats.max_us)
    );
    let failed = report.failed + report.keep_alive_races;
    println!(
        "{failed} failed, {} of them because a worker that had accepted them was killed",
        failed - unexplained.min(failed)
    );
    for (kind, count) in &stats.failures {
        println!("  {kind}: {count}");
    }
    if unexplained > 0 {
        for failure in &report.failures {
            println!("  {:>8} ms  {}", failure.at_ms, failure.detail);
        }
    }
    println!(
        "the daemon's memory was {:.1} MB at the most",
        memory as f64 / f64::from(1 << 20)
    );
    let problems: Vec<&String> = tallies.values().flat_map(|t| &t.problems).collect();
    for problem in problems.iter().copied().chain(broken) {
        println!("NOT AS IT SHOULD BE: {problem}");
    }
    for gap in excused {
        println!("lost with both the keeper and the daemon that had just read it: {gap}");
    }
    if broken.is_empty() {
        let lines = if excused.is_empty() {
            "no line"
        } else {
            "no other line"
        };
        println!(
            "checked: no orphan, no leaked descriptor or slot, {lines} of output lost or doubled, every worker ready"
        );
    }
    unexplained == 0 && problems.is_empty() && broken.is_empty()
}
