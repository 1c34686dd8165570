//! What the daemon itself costs: memory with two workers, processor time while 100 workers idle, and
//! the time from a worker's death to the fork of its successor.
//!
//! ```text
//! cargo bench --bench daemon [-- --quick] [memory] [respawn] [idle]
//! ```

mod common;

use std::fmt::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Bar, Options, Peers, Result, Rsup, Table, median, ms, process, web};
use serde_json::json;

fn main() -> Result<()> {
    let options = Options::parse("daemon: memory, respawn, idle");
    let topics: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |topic: &str| topics.is_empty() || topics.iter().any(|wanted| wanted == topic);
    let peers = Peers::get();
    let mut table = Table::default();
    if wanted("memory") {
        memory(options, peers.as_ref(), &mut table)?;
    }
    if wanted("respawn") {
        respawn(options, peers.as_ref(), &mut table)?;
    }
    if wanted("idle") {
        idle(options, peers.as_ref(), &mut table)?;
    }
    table.print();
    Ok(())
}

fn web_app(port: u16, instances: usize, more: &str) -> String {
    let program = common::rsup::program();
    format!(
        "[app.web]\ncommand = [{program:?}, \"sample-app\"]\ninstances = {instances}\nlisten = \"127.0.0.1:{port}\"\n{more}\n"
    )
}

fn memory(options: Options, peers: Option<&Peers>, table: &mut Table) -> Result<()> {
    let port = web::free_port()?;
    let rsup = Rsup::new()?;
    rsup.start(&web_app(
        port,
        2,
        "readiness = \"/readiness\"\nmax_memory = \"500M\"",
    ))?;
    let daemon = rsup.daemon()?;
    sleep(Duration::from_secs(2));
    let measured = || -> Result<(f64, String)> {
        let (anon, file) = (
            process::status_mb(daemon, "RssAnon")?,
            process::status_mb(daemon, "RssFile")?,
        );
        Ok((
            process::status_mb(daemon, "VmRSS")?,
            format!("{anon:.2} MB of its own, {file:.2} MB of program files"),
        ))
    };
    let (resident, detail) = measured()?;
    table.row(
        "daemon's resident memory, 2 workers",
        resident,
        " MB",
        Bar::AtMost(8.0),
        detail,
    );
    // A working day.
    for _ in 0..options.pick(10, 2) {
        rsup.run(&["reload", "web"])?;
        for _ in 0..10 {
            rsup.run(&["list"])?;
            rsup.run(&["describe", "web"])?;
        }
    }
    web::get(
        port,
        &format!("/log?n={}", options.pick(2_000_000, 100_000)),
    )
    .or_else(|_| web::get(port, "/health"))?;
    web::load(
        port,
        false,
        options.pick(Duration::from_secs(5), Duration::from_secs(1)),
    )?;
    sleep(Duration::from_secs(2));
    let (resident, detail) = measured()?;
    table.row(
        "  after reloads, lists, logs and load",
        resident,
        " MB",
        Bar::AtMost(8.0),
        detail,
    );
    rsup.stop()?;
    if let Some(peers) = peers {
        let pm2 = peers.pm2()?;
        pm2.start(&json!([{ "name": "api", "script": "server.js", "cwd": peers.app(), "instances": 2, "exec_mode": "cluster", "env": { "PORT": port } }]))?;
        sleep(Duration::from_secs(2));
        table.row(
            "  PM2's daemon, 2 workers",
            process::status_mb(pm2.daemon()?, "VmRSS")?,
            " MB",
            Bar::None,
            "",
        );
    }
    Ok(())
}

/// Many apps, each killed once: the first restart of a worker has no delay by policy.
fn respawn(options: Options, peers: Option<&Peers>, table: &mut Table) -> Result<()> {
    let apps = options.pick(50, 10);
    let kill_all = |daemon: u32, victims: Vec<u32>| -> Result<Vec<f64>> {
        let time = |victim| {
            sleep(Duration::from_millis(50));
            process::time_to_successor(daemon, victim).map(ms)
        };
        victims.into_iter().map(time).collect()
    };
    let rsup = Rsup::new()?;
    let mut toml = String::new();
    for app in 0..apps {
        writeln!(
            toml,
            "[app.app{app}]\ncommand = [\"sleep\", \"100000\"]\nrestart.min_uptime = \"50ms\""
        )?;
    }
    rsup.start(&toml)?;
    sleep(Duration::from_secs(1));
    let daemon = rsup.daemon()?;
    let times = kill_all(daemon, process::children(daemon))?;
    let detail = format!(
        "{} kills, worst {:.2} ms; a look at /proc takes {:.3} ms",
        times.len(),
        worst(&times),
        a_look(daemon)
    );
    table.row(
        "rsup: death to the successor's fork",
        median(&times),
        " ms",
        Bar::AtMost(3.0),
        detail,
    );
    rsup.stop()?;
    if let Some(peers) = peers {
        let pm2 = peers.pm2()?;
        let app = |at| json!({ "name": format!("app{at}"), "script": "/bin/sleep", "args": "100000", "interpreter": "none", "exec_mode": "fork" });
        pm2.start(&(0..10).map(app).collect())?;
        sleep(Duration::from_secs(2));
        let daemon = pm2.daemon()?;
        let times = kill_all(daemon, process::children(daemon))?;
        let detail = format!("{} kills, worst {:.2} ms", times.len(), worst(&times));
        table.row(
            "  PM2: death to the successor's fork",
            median(&times),
            " ms",
            Bar::None,
            detail,
        );
    }
    Ok(())
}

fn worst(times: &[f64]) -> f64 {
    times.iter().copied().fold(0.0, f64::max)
}

fn a_look(daemon: u32) -> f64 {
    let begin = Instant::now();
    (0..100).for_each(|_| drop(process::children(daemon)));
    ms(begin.elapsed()) / 100.0
}

fn idle(options: Options, peers: Option<&Peers>, table: &mut Table) -> Result<()> {
    let workers = 100;
    let time = options.pick(Duration::from_secs(60), Duration::from_secs(6));
    let sleeps = format!(
        "[app.sleep]\ncommand = [\"sleep\", \"100000\"]\ninstances = {workers}\nmax_memory = \"500M\"\nrestart.min_uptime = \"50ms\"\n"
    );
    let web = web_app(web::free_port()?, workers, "max_memory = \"500M\"");
    for (what, toml) in [("sleep", sleeps), ("web app, tcp readiness", web)] {
        let rsup = Rsup::new()?;
        rsup.start(&toml)?;
        let (share, detail) = share_of_core(rsup.daemon()?, time)?;
        table.row(
            &format!("rsup, {workers} × {what}: idle"),
            share,
            " %",
            Bar::AtMost(0.2),
            detail,
        );
    }
    if let Some(peers) = peers {
        let pm2 = peers.pm2()?;
        pm2.start(&json!([{
            "name": "sleep", "script": "/bin/sleep", "args": "100000", "interpreter": "none", "instances": workers,
            "exec_mode": "fork", "max_memory_restart": "500M",
        }]))?;
        let (share, detail) = share_of_core(pm2.daemon()?, time)?;
        table.row(
            &format!("  PM2, {workers} × sleep: idle"),
            share,
            " %",
            Bar::None,
            detail,
        );
    }
    Ok(())
}

/// Of one core, in percent, once things are quiet.
fn share_of_core(pid: u32, time: Duration) -> Result<(f64, String)> {
    sleep(Duration::from_secs(3));
    let (before, begin) = (process::cpu_time(pid)?, Instant::now());
    sleep(time);
    let (used, elapsed) = (
        process::cpu_time(pid)?.saturating_sub(before),
        begin.elapsed(),
    );
    Ok((
        100.0 * used.as_secs_f64() / elapsed.as_secs_f64(),
        format!("{:.1} ms in {:.0} s", ms(used), elapsed.as_secs_f64()),
    ))
}
