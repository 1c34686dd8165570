//! Requests per second of an Express app with two instances: under rsup, under PM2 in cluster mode, and
//! as two bare processes that share the port. All three are up at the same time and take turns.
//!
//! ```text
//! cargo bench --bench throughput [-- --quick]
//! ```

mod common;

use std::time::Duration;

use common::{Bar, Options, Peers, Result, Rsup, Table, median, process, web};
use serde_json::json;

/// The contestants, in the order of their turns.
const NAMES: [&str; 3] = ["rsup", "PM2", "bare"];

fn main() -> Result<()> {
    let options = Options::parse("throughput: an Express app, 2 instances, 20 clients");
    let Some(peers) = Peers::get() else {
        return Ok(());
    };
    let app = peers.app();
    let ports = [web::free_port()?, web::free_port()?, web::free_port()?];

    let rsup = Rsup::new()?;
    rsup.start(&format!(
        "[app.api]\ncommand = [\"node\", \"server.js\"]\ncwd = {app:?}\ninstances = 2\nlisten = \"127.0.0.1:{}\"\nreadiness = \"/readiness\"\n",
        ports[0]
    ))?;
    let pm2 = peers.pm2()?;
    pm2.start(&json!([{
        "name": "api", "script": "server.js", "cwd": app, "instances": 2, "exec_mode": "cluster", "wait_ready": true,
        "env": { "PORT": ports[1] },
    }]))?;
    common::until("PM2's app", Duration::from_secs(20), || {
        web::ready(ports[1])
    })?;
    let bare = web::bare_pair(&app, ports[2])?;

    let with_children = |daemon: u32| [vec![daemon], process::children(daemon)].concat();
    let contestants = Contestants {
        ports,
        pids: [
            with_children(rsup.daemon()?),
            with_children(pm2.daemon()?),
            bare.iter().map(|bare| bare.0.id()).collect(),
        ],
    };

    let mut table = Table::default();
    let mut failed = [0; 3];
    for keep_alive in [false, true] {
        let way = if keep_alive {
            "keep-alive"
        } else {
            "a connection per request"
        };
        for ours in [true, false] {
            let who = if ours { "built-in client" } else { "wrk or ab" };
            let Some((rates, costs)) =
                rounds(options, &contestants, keep_alive, ours, &mut failed)?
            else {
                println!("SKIPPED: {way} by wrk or ab, neither of which is installed");
                continue;
            };
            let [rsup, pm2, bare] = [0, 1, 2].map(|at| median(&rates[at]));
            let ratio = |other: usize| -> Vec<f64> {
                rates[0]
                    .iter()
                    .zip(&rates[other])
                    .map(|(a, b)| a / b)
                    .collect()
            };
            let (bar_pm2, bar_bare) = if keep_alive {
                (Bar::None, Bar::None)
            } else {
                (Bar::AtLeast(1.8), Bar::AtLeast(0.97))
            };
            table.row(
                &format!("{way}: rsup / PM2"),
                median(&ratio(1)),
                "x",
                bar_pm2,
                format!("{rsup:.0} / {pm2:.0} req/s, {who}"),
            );
            table.row(
                &format!("{way}: rsup / bare"),
                median(&ratio(2)),
                "x",
                bar_bare,
                format!("{rsup:.0} / {bare:.0} req/s, {who}"),
            );
            if ours {
                let [rsup, pm2, bare] = [0, 1, 2].map(|at| median(&costs[at]));
                let detail = format!("{rsup:.0} / {bare:.0} µs; PM2 {pm2:.0} µs; daemons included");
                table.row(
                    &format!("{way}: processor time per request, rsup / bare"),
                    rsup / bare,
                    "x",
                    Bar::None,
                    detail,
                );
            }
        }
    }
    table.print();
    let failed: Vec<String> = NAMES
        .iter()
        .zip(failed)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    println!(
        "failed requests seen by the built-in client: {}",
        failed.join(", ")
    );
    drop(bare);
    Ok(())
}

struct Contestants {
    ports: [u16; 3],
    /// Every process that serves it.
    pids: [Vec<u32>; 3],
}

/// By contestant and round.
type Figures = [Vec<f64>; 3];

/// Requests per second, and processor time per request in microseconds, which other processes on
/// the machine disturb less. `None` without a tool.
fn rounds(
    options: Options,
    contestants: &Contestants,
    keep_alive: bool,
    ours: bool,
    failed: &mut [u64; 3],
) -> Result<Option<(Figures, Figures)>> {
    let time = options.pick(Duration::from_secs(4), Duration::from_secs(1));
    let (mut rates, mut costs) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    // The first round warms up.
    for round in 0..=options.pick(7, 2) {
        let mut said = Vec::new();
        for turn in 0..3 {
            // Nobody is always first.
            let at = (turn + round) % 3;
            let port = contestants.ports[at];
            let used = || {
                contestants.pids[at]
                    .iter()
                    .map(|pid| process::cpu_time(*pid))
                    .sum::<Result<Duration>>()
            };
            let before = used()?;
            let (rate, requests) = if ours {
                let report = web::load(port, keep_alive, time)?;
                failed[at] += report.failed + report.keep_alive_races;
                (report.before.requests_per_s, report.requests as f64)
            } else {
                let Some(rate) = web::second_opinion(port, keep_alive, time) else {
                    return Ok(None);
                };
                (rate, rate * time.as_secs_f64())
            };
            let cost = (used()?.saturating_sub(before)).as_secs_f64() * 1e6 / requests;
            said.push(format!("{} {rate:.0} ({cost:.0} µs)", NAMES[at]));
            if round > 0 {
                rates[at].push(rate);
                costs[at].push(cost);
            }
        }
        println!(
            "  {}{}",
            said.join("  "),
            if round == 0 { "  (warm-up)" } else { "" }
        );
    }
    Ok(Some((rates, costs)))
}
