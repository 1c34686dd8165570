//! What the log pump costs beside `cat`: a child process writes lines of about 100 bytes into a pipe,
//! which the pump turns into log files with its default settings (timestamps, rotation, compression),
//! and which `cat` turns into one plain file; the latter also with a pipe as large as the pump's, so
//! that the pipe's share can be told from the program's. All are timed from the start of the child until the
//! last line is in a file.
//!
//! ```text
//! cargo bench --bench logs [-- --quick] [MEGABYTES] [ROUNDS] [lines] [json]     # 300 7
//! ```
//! With `lines`, the child makes a system call for every line instead of every 64 KiB. With `json`,
//! the pump writes that.

mod common;

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bar, Options, Result, Table};
use nix::fcntl::{FcntlArg, fcntl};
use rsup::logs::{Event, Format, Pump, Settings, Source, Stats, Stream, pipe};
use tokio::sync::mpsc::unbounded_channel;

const GENERATE: &str = "RSUP_BENCH_GENERATE";
const BLOCK: usize = 64 << 10;

fn main() -> Result<()> {
    if let Ok(spec) = env::var(GENERATE) {
        return generate(&spec);
    }
    let options = Options::parse("logs: the pump beside cat");
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut numbers = arguments.iter().filter_map(|a| a.parse::<usize>().ok());
    let megabytes = numbers.next().unwrap_or_else(|| options.pick(300, 30));
    let rounds = numbers.next().unwrap_or_else(|| options.pick(7, 3));
    let unit = if arguments.iter().any(|a| a == "lines") {
        "lines"
    } else {
        "blocks"
    };
    let format = if arguments.iter().any(|a| a == "json") {
        Format::Json
    } else {
        Format::Text
    };
    let spec = format!("{megabytes} {unit}");
    println!("{megabytes} MB written in {unit}, {format:?}, {rounds} rounds");

    let before = resident()?;
    let (mut cats, mut wide_cats, mut pumps) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let cat = in_folder(|dir| through_cat(&spec, dir, false))?;
        let wide_cat = in_folder(|dir| through_cat(&spec, dir, true))?;
        let (pump, stats) = in_folder(|dir| through_pump(&spec, dir, format))?;
        println!(
            "{} cat {:.3} s   cat, 1 MiB pipe {:.3} s   rsup {:.3} s   {} lines, {} rotations, {} lost, RSS {} KiB",
            if round == 0 { "warm-up" } else { "       " },
            cat.as_secs_f64(),
            wide_cat.as_secs_f64(),
            pump.as_secs_f64(),
            stats.lines,
            stats.rotations,
            stats.lost_bytes,
            resident()?,
        );
        if round > 0 {
            cats.push(cat);
            wide_cats.push(wide_cat);
            pumps.push(pump);
        }
    }
    let ratios = |others: &[Duration]| -> Vec<f64> {
        pumps
            .iter()
            .zip(others)
            .map(|(pump, other)| pump.as_secs_f64() / other.as_secs_f64())
            .collect()
    };
    let seconds = |times: &[Duration]| {
        common::median(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
    };
    let (pump, cat, wide_cat) = (seconds(&pumps), seconds(&cats), seconds(&wide_cats));
    let mut table = Table::default();
    let name = format!("{megabytes} MB of lines: rsup / cat");
    table.row(
        &name,
        common::median(&ratios(&cats)),
        "x",
        Bar::AtMost(2.0),
        format!("{pump:.3} s / {cat:.3} s"),
    );
    let detail = format!("{pump:.3} s / {wide_cat:.3} s");
    table.row(
        "  with a pipe as large as ours",
        common::median(&ratios(&wide_cats)),
        "x",
        Bar::None,
        detail,
    );
    table.print();
    println!("RSS before {before} KiB, after {} KiB", resident()?);
    Ok(())
}

fn in_folder<T>(run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = tempfile::tempdir()?;
    run(dir.path())
}

/// The child: writes so many megabytes of lines to stdout.
fn generate(spec: &str) -> Result<()> {
    let (megabytes, unit) = spec.split_once(' ').ok_or("MEGABYTES UNIT")?;
    let mut left = megabytes.parse::<usize>()? * 1_000_000;
    let mut block = Vec::with_capacity(BLOCK + 128);
    let mut number = 0;
    while block.len() < BLOCK {
        number += 1;
        writeln!(
            block,
            "GET /api/v1/orders/{number:08} 200 {:>4} bytes in {:>3} ms, user agent curl/8.5.0, trace 7f3a9c{number:06x}",
            number % 5000,
            number % 97
        )?;
    }
    let mut out = File::from(std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?);
    let lines: Vec<&[u8]> = block.split_inclusive(|b| *b == b'\n').collect();
    while left > 0 {
        if unit == "lines" {
            for line in &lines {
                out.write_all(line)?;
            }
        } else {
            out.write_all(&block)?;
        }
        left = left.saturating_sub(block.len());
    }
    Ok(())
}

fn child(spec: &str) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.env(GENERATE, spec);
    Ok(command)
}

fn through_cat(spec: &str, dir: &Path, wide: bool) -> Result<Duration> {
    let file = File::create(dir.join("out.log"))?;
    let start = Instant::now();
    let mut generator = child(spec)?.stdout(Stdio::piped()).spawn()?;
    let pipe = generator.stdout.take().ok_or("no pipe")?;
    if wide {
        fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(1 << 20))?;
    }
    let mut cat = Command::new("cat").stdin(pipe).stdout(file).spawn()?;
    let done = generator.wait()?.success() && cat.wait()?.success();
    if !done {
        return Err("the generator or cat failed".into());
    }
    Ok(start.elapsed())
}

fn through_pump(spec: &str, dir: &Path, format: Format) -> Result<(Duration, Stats)> {
    let (events, mut troubles) = unbounded_channel::<Event>();
    let settings = Settings {
        format,
        ..Settings::new(dir.join("out.log"), dir.join("err.log"))
    };
    let pump = Pump::start(events)?;
    let start = Instant::now();
    let (read, write) = pipe()?;
    pump.attach(
        Source {
            app: "bench".into(),
            instance: 0,
            key: 1,
        },
        Stream::Out,
        read,
        &settings,
    );
    let mut command = child(spec)?;
    let mut generator = command.stdout(write).spawn()?;
    drop(command); // and with it our copy of the write end
    if !generator.wait()?.success() {
        return Err("the generator failed".into());
    }
    // The answer comes after what was in the pipe.
    pump.flush().blocking_recv()?;
    let mut stats = pump.stats().blocking_recv()?;
    while stats.pipes > 0 {
        stats = pump.stats().blocking_recv()?;
    }
    let time = start.elapsed();
    pump.shutdown();
    match troubles.try_recv() {
        Ok(trouble) => Err(format!("{trouble:?}").into()),
        Err(_) => Ok((time, stats)),
    }
}

/// Resident memory of this process, which the pump is part of, in KiB.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no size")?.parse()?)
}
