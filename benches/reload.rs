//! What a reload of two workers takes beside the app's own start and end, and what it costs the
//! clients. The app's own times are measured without a supervisor: from its spawn to the first 200 of
//! `/readiness`, and from SIGTERM to its end. A rolling reload cannot take less than those of each
//! worker, one after the other.
//!
//! ```text
//! cargo bench --bench reload [-- --quick]
//! ```

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::peers::Pm2;
use common::web::{self, Bare};
use common::{Bar, Options, Peers, Result, Rsup, Table, median, ms, process};
use rsup::load;
use serde_json::json;

/// What Express is given to warm up, as an app that connects to its database.
const WARM_MS: &str = "500";

fn main() -> Result<()> {
    let options = Options::parse("reload: 2 workers, one after the other");
    let mut table = Table::default();
    let sample = [
        common::rsup::program().display().to_string(),
        "sample-app".to_owned(),
    ];
    wall(options, "sample app", &sample, Path::new("/"), &mut table)?;
    if let Some(peers) = Peers::get() {
        let node = ["node".to_owned(), "server.js".to_owned()];
        let port = wall(options, "Express", &node, &peers.app(), &mut table)?;
        let pm2 = peers.pm2()?;
        let pm2_port = web::free_port()?;
        pm2.start(&json!([{
            "name": "app", "script": "server.js", "cwd": peers.app(), "instances": 2, "exec_mode": "cluster",
            "wait_ready": true, "listen_timeout": 10000, "kill_timeout": 30000, "env": { "PORT": pm2_port, "WARM_MS": WARM_MS },
        }]))?;
        common::until("PM2's app", Duration::from_secs(20), || {
            web::ready(pm2_port)
        })?;
        let mut times = Vec::new();
        for _ in 0..options.pick(7, 2) {
            times.push(process::run_time(&mut pm2.command(&["reload", "app"]))?);
        }
        let own = port.1;
        table.row(
            "Express: pm2 reload / own times",
            median(&times) / own,
            "x",
            Bar::None,
            format!("{:.0} ms / {own:.0} ms", median(&times)),
        );
        failures(options, &port.0, &pm2, pm2_port, &mut table)?;
    }
    table.print();
    Ok(())
}

/// A daemon with the app, its port.
type Ours = (Rsup, u16);

/// Returns what runs, and twice the app's own times.
fn wall(
    options: Options,
    name: &str,
    command: &[String],
    cwd: &Path,
    table: &mut Table,
) -> Result<(Ours, f64)> {
    let port = web::free_port()?;
    let rsup = Rsup::new()?;
    rsup.start(&format!(
        "[app.app]\ncommand = {command:?}\ncwd = {cwd:?}\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\nreload = {{ min_ready = 0 }}\nenv = {{ WARM_MS = \"{WARM_MS}\" }}\n"
    ))?;
    let (mut reloads, mut starts, mut ends, mut ratios) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // The first round warms up.
    for round in 0..=options.pick(9, 3) {
        let (start, end) = own_times(command, cwd)?;
        let reload = process::run_time(&mut rsup.command(&["reload", "app"]))?;
        println!("  {name}: start {start:.1} ms, end {end:.1} ms, reload {reload:.1} ms");
        if round > 0 {
            reloads.push(reload);
            starts.push(start);
            ends.push(end);
            ratios.push(reload / (2.0 * (start + end)));
        }
    }
    let own = 2.0 * (median(&starts) + median(&ends));
    let detail = format!(
        "{:.0} ms / 2 × ({:.0} ms start + {:.1} ms end)",
        median(&reloads),
        median(&starts),
        median(&ends)
    );
    table.row(
        &format!("{name}: rsup reload / own times"),
        median(&ratios),
        "x",
        Bar::AtMost(1.1),
        detail,
    );
    Ok(((rsup, port), own))
}

fn own_times(command: &[String], cwd: &Path) -> Result<(f64, f64)> {
    let port = web::free_port()?;
    let begin = Instant::now();
    let child = Command::new(&command[0])
        .args(&command[1..])
        .current_dir(cwd)
        .env("PORT", port.to_string())
        .env("WARM_MS", WARM_MS)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let bare = Bare(child);
    common::until("the app itself", Duration::from_secs(20), || {
        web::ready(port)
    })?;
    let start = ms(begin.elapsed());
    Ok((start, ms(bare.stop()?)))
}

/// Requests that failed for each reload, under full load.
fn failures(
    options: Options,
    (rsup, port): &Ours,
    pm2: &Pm2,
    pm2_port: u16,
    table: &mut Table,
) -> Result<()> {
    let reloads = options.pick(5, 1);
    for keep_alive in [false, true] {
        let way = if keep_alive {
            "keep-alive"
        } else {
            "a connection per request"
        };
        let ours = under_load(*port, keep_alive, reloads, || {
            rsup.command(&["reload", "app"])
        })?;
        let theirs = under_load(pm2_port, keep_alive, reloads, || {
            pm2.command(&["reload", "app"])
        })?;
        for (name, report) in [("rsup", ours), ("PM2", theirs)] {
            let each = (report.failed + report.keep_alive_races) as f64 / reloads as f64;
            let detail = format!(
                "{} failed and {} keep-alive races in {} requests, {reloads} reloads",
                report.failed, report.keep_alive_races, report.requests
            );
            // Without help from the app, the keep-alive race is lost to every server that closes idle connections.
            let bar = if name == "rsup" && !keep_alive {
                Bar::AtMost(0.0)
            } else {
                Bar::None
            };
            table.row(
                &format!("{way}: failed per {name} reload"),
                each,
                "",
                bar,
                detail,
            );
        }
    }
    Ok(())
}

fn under_load(
    port: u16,
    keep_alive: bool,
    reloads: usize,
    reload: impl Fn() -> Command,
) -> Result<load::Report> {
    let commands: Vec<Command> = (0..reloads).map(|_| reload()).collect();
    let report = web::runtime()?.block_on(async {
        let load = load::start(web::plan(port, keep_alive, Duration::from_secs(120)));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let done = tokio::task::spawn_blocking(move || {
            commands.into_iter().try_for_each(|mut command| {
                process::run_time(&mut command)
                    .map(drop)
                    .map_err(|why| why.to_string())
            })
        });
        let done = done.await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let report = load.stop().await;
        done.map_err(|why| why.to_string())
            .and_then(|done| done)
            .map(|()| report)
    });
    Ok(report?)
}
