//! `rsup list` as a whole process, from its spawn to its end, with 2 workers and with 100 (ten apps
//! of ten); beside it `pm2 list`. The workers are `sleep`.
//!
//! ```text
//! cargo bench --bench list [-- --quick]
//! ```

mod common;

use std::fmt::Write;
use std::process::Command;

use common::{Bar, Options, Peers, Result, Rsup, Table, median, process};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let options = Options::parse("list: as a whole process");
    let mut table = Table::default();
    for (apps, instances) in [(1, 2), (10, 10)] {
        let rsup = Rsup::new()?;
        let mut toml = String::new();
        for app in 0..apps {
            writeln!(
                toml,
                "[app.app{app}]\ncommand = [\"sleep\", \"100000\"]\ninstances = {instances}\nrestart.min_uptime = \"50ms\""
            )?;
        }
        rsup.start(&toml)?;
        let times = run(options.pick(200, 30), || rsup.command(&["list"]))?;
        let floor = run(options.pick(200, 30), || {
            let mut echo = Command::new("/bin/echo");
            echo.arg("x");
            echo
        })?;
        let detail = format!(
            "quarter {:.2}, worst {:.2} ms; /bin/echo {:.2} ms",
            quantile(&times, 0.25),
            quantile(&times, 1.0),
            median(&floor)
        );
        table.row(
            &format!("rsup list, {} workers", apps * instances),
            median(&times),
            " ms",
            Bar::AtMost(3.0),
            detail,
        );
        if let Some(ms) = hyperfine(&rsup) {
            table.row(
                "  the same by hyperfine -N",
                ms,
                " ms",
                Bar::AtMost(3.0),
                "",
            );
        }
    }
    if let Some(peers) = Peers::get() {
        for workers in options.pick(vec![2, 100], vec![2]) {
            let pm2 = peers.pm2()?;
            pm2.start(&json!([{ "name": "app", "script": "/bin/sleep", "args": "100000", "interpreter": "none", "instances": workers, "exec_mode": "fork" }]))?;
            let times = run(options.pick(10, 3), || pm2.command(&["list"]))?;
            table.row(
                &format!("pm2 list, {workers} workers"),
                median(&times),
                " ms",
                Bar::None,
                "",
            );
        }
    }
    table.print();
    Ok(())
}

fn run(count: usize, command: impl Fn() -> Command) -> Result<Vec<f64>> {
    (0..count)
        .map(|_| process::run_time(&mut command()))
        .collect()
}

fn quantile(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// A second opinion, if it is installed.
fn hyperfine(rsup: &Rsup) -> Option<f64> {
    let file = rsup.home.path().join("hyperfine.json");
    let list = format!("{} list", common::rsup::program().display());
    let mut command = Command::new("hyperfine");
    command
        .args([
            "-N",
            "--style=none",
            "--warmup=5",
            "--runs=100",
            "--export-json",
        ])
        .arg(&file)
        .arg(list);
    command.env("RSUP_HOME", rsup.home.path());
    command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let result: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    Some(result["results"][0]["median"].as_f64()? * 1000.0)
}
