//! Requests per second of an Express app with two instances: under rsup, under PM2 in cluster mode, and
//! as two bare processes that share the port. All three are up at the same time and take turns.
//!
//! ```text
//! cargo bench --bench throughput [-- --quick]
//! ```

mod common;

use std::time::Duration;

use common::{Bar, Options, Peers, Result, Rsup, Table, median, web};
use serde_json::json;

/// The contestants, in the order of their turns.
const NAMES: [&str; 3] = ["rsup", "PM2", "bare"];

fn main() -> Result<()> {
    let options = Options::parse("throughput: an Express app, 2 instances, 20 clients");
    let Some(peers) = Peers::get() else { return Ok(()) };
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
    common::until("PM2's app", Duration::from_secs(20), || web::ready(ports[1]))?;
    let bare = web::bare_pair(&app, ports[2])?;

    let mut table = Table::default();
    let mut failed = [0; 3];
    for keep_alive in [false, true] {
        let way = if keep_alive { "keep-alive" } else { "a connection per request" };
        for ours in [true, false] {
            let who = if ours { "built-in client" } else { "wrk or ab" };
            let Some(rates) = rounds(options, ports, keep_alive, ours, &mut failed)? else {
                println!("SKIPPED: {way} by wrk or ab, neither of which is installed");
                continue;
            };
            let [rsup, pm2, bare] = [0, 1, 2].map(|at| median(&rates[at]));
            let ratio = |other: usize| -> Vec<f64> { rates[0].iter().zip(&rates[other]).map(|(a, b)| a / b).collect() };
            let (bar_pm2, bar_bare) = if keep_alive { (Bar::None, Bar::None) } else { (Bar::AtLeast(1.8), Bar::AtLeast(0.97)) };
            table.row(&format!("{way}: rsup / PM2"), median(&ratio(1)), "x", bar_pm2, format!("{rsup:.0} / {pm2:.0} req/s, {who}"));
            table.row(&format!("{way}: rsup / bare"), median(&ratio(2)), "x", bar_bare, format!("{rsup:.0} / {bare:.0} req/s, {who}"));
        }
    }
    table.print();
    let failed: Vec<String> = NAMES.iter().zip(failed).map(|(name, count)| format!("{name} {count}")).collect();
    println!("failed requests seen by the built-in client: {}", failed.join(", "));
    drop(bare);
    Ok(())
}

/// Requests per second by contestant and round; the ratios are of runs next to each other. `None`
/// without a tool.
fn rounds(options: Options, ports: [u16; 3], keep_alive: bool, ours: bool, failed: &mut [u64; 3]) -> Result<Option<[Vec<f64>; 3]>> {
    let time = options.pick(Duration::from_secs(4), Duration::from_secs(1));
    let mut rates = [const { Vec::new() }; 3];
    // The first round warms up.
    for round in 0..=options.pick(7, 2) {
        let mut said = Vec::new();
        for turn in 0..3 {
            // Nobody is always first.
            let at = (turn + round) % 3;
            let rate = if ours {
                let report = web::load(ports[at], keep_alive, time)?;
                failed[at] += report.failed + report.keep_alive_races;
                report.before.requests_per_s
            } else {
                match web::second_opinion(ports[at], keep_alive, time) {
                    Some(rate) => rate,
                    None => return Ok(None),
                }
            };
            said.push(format!("{} {rate:.0}", NAMES[at]));
            if round > 0 {
                rates[at].push(rate);
            }
        }
        println!("  {}{}", said.join("  "), if round == 0 { "  (warm-up)" } else { "" });
    }
    Ok(Some(rates))
}
