//! The daemon's memory after a million log lines, a thousand reloads and ten thousand crashes.
//!
//! ```text
//! cargo bench --bench flat [-- --quick]
//! ```

mod common;

use std::time::{Duration, Instant};

use common::{Bar, Options, Result, Rsup, Table, process, until, web};
use serde_json::Value;

/// What a round may leave in memory.
const FLAT: f64 = 1.0;

fn main() -> Result<()> {
    let options = Options::parse("flat: the daemon's memory in the long run");
    let port = web::free_port()?;
    let program = common::rsup::program();
    let rsup = Rsup::new()?;
    rsup.start(&format!(
        r#"
[app.web]
command = [{program:?}, "sample-app"]
instances = 2
listen = "127.0.0.1:{port}"
readiness = {{ path = "/readiness", interval = "5ms" }}
env = {{ WARM_MS = "0" }}
log = {{ max_size = "10M", keep = 2 }}
"#
    ))?;
    let daemon = rsup.daemon()?;
    // Whatever grows with use has grown after a tenth of it: caches, buffers, the kept last lines.
    log_lines(port, options.pick(100_000, 10_000))?;
    reloads(&rsup, options.pick(100, 10))?;
    crashes(&rsup, options.pick(1_000, 100))?;

    let mut table = Table::default();
    let start = resident(&rsup, daemon)?;
    table.row("warmed up", start, " MB", Bar::None, "VmRSS of the daemon");
    let mut before = start;
    let mut round = |what: &str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        let begin = Instant::now();
        work()?;
        let now = resident(&rsup, daemon)?;
        let detail = format!("{now:.2} MB, after {:.0} s", begin.elapsed().as_secs_f64());
        table.row(
            &format!("grown by {what}"),
            now - before,
            " MB",
            Bar::AtMost(FLAT),
            detail,
        );
        before = now;
        Ok(())
    };
    round("1,000,000 log lines", &|| {
        log_lines(port, options.pick(1_000_000, 50_000))
    })?;
    round("1,000 reloads", &|| reloads(&rsup, options.pick(1_000, 50)))?;
    round("10,000 crashes", &|| {
        crashes(&rsup, options.pick(10_000, 500))
    })?;
    let all = before - start;
    table.row(
        "grown by all of it",
        all,
        " MB",
        Bar::AtMost(FLAT),
        format!("pid {daemon} all along: {}", rsup.daemon()? == daemon),
    );
    table.print();
    rsup.stop()
}

/// In megabytes, once things are quiet.
fn resident(rsup: &Rsup, daemon: u32) -> Result<f64> {
    rsup.run(&["list"])?;
    std::thread::sleep(Duration::from_secs(2));
    process::status_mb(daemon, "VmRSS")
}

fn log_lines(port: u16, count: u64) -> Result<()> {
    let piece = 10_000.min(count);
    for _ in 0..count / piece {
        web::get(port, &format!("/log?n={piece}"))?;
    }
    Ok(())
}

fn reloads(rsup: &Rsup, count: u64) -> Result<()> {
    for _ in 0..count {
        rsup.run(&["reload", "web"])?;
    }
    Ok(())
}

/// Four workers that end at once, until they have been started so often.
fn crashes(rsup: &Rsup, count: u64) -> Result<()> {
    let file = rsup.home.path().join("storm.toml");
    let restart =
        "restart = { max_restarts = 1000000000, backoff = \"1ms\", backoff_max = \"1ms\" }";
    std::fs::write(
        &file,
        format!("[app.storm]\ncommand = [\"false\"]\ninstances = 4\n{restart}\n"),
    )?;
    // It fails, and goes on trying.
    let _ = rsup
        .command(&["start", &file.display().to_string()])
        .output()?;
    let restarts = || -> Result<u64> {
        let list: Value = serde_json::from_str(&rsup.run(&["list", "--json"])?)?;
        let storm = list
            .as_array()
            .and_then(|apps| apps.iter().find(|app| app["name"] == "storm"))
            .ok_or("no storm")?;
        Ok(storm["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|w| w["restarts"].as_u64())
            .sum())
    };
    until("so many crashes", Duration::from_secs(1200), || {
        std::thread::sleep(Duration::from_millis(100));
        restarts().is_ok_and(|n| n >= count)
    })?;
    rsup.run(&["delete", "storm"]).map(drop)
}
