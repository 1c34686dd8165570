//! Processes as `/proc` shows them.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use super::Result;

/// What the figures depend on.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?");
    format!(
        "{cores} × {model}, Linux {}, load average before {load}",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

pub fn lives(pid: u32) -> bool {
    send(Pid::from_raw(pid as i32), None).is_ok()
}

pub fn kill(pid: u32) {
    let _ = send(Pid::from_raw(pid as i32), Signal::SIGKILL);
}

pub fn terminate(pid: u32) {
    let _ = send(Pid::from_raw(pid as i32), Signal::SIGTERM);
}

/// A field of `/proc/PID/status` that is in kB, in MB of 2^20.
pub fn status_mb(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .ok_or("no such field")?;
    let kb: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kb / 1024.0)
}

/// Processor time of all threads, to the nanosecond (`/proc/PID/task/TID/schedstat`). Threads that
/// end in between are missed, so it is compared with the ticks of `/proc/PID/stat`.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text
            .split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<u64> = after
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
    let by_ticks = Duration::from_millis(ticks.saturating_sub(2) * 10);
    Ok(Duration::from_nanos(nanoseconds).max(by_ticks))
}

/// The children of a process, over all its threads.
pub fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Kills a child of `parent` and spins until the parent has another one that was not there before:
/// from before kill(2) to the first sight of the successor.
pub fn time_to_successor(parent: u32, victim: u32) -> Result<Duration> {
    let before = children(parent);
    let begin = Instant::now();
    kill(victim);
    loop {
        if children(parent).iter().any(|pid| !before.contains(pid)) {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > Duration::from_secs(10) {
            return Err(format!("{victim} has no successor after 10 s").into());
        }
    }
}

/// What one run of a program takes, from spawn to its end, in milliseconds.
pub fn run_time(command: &mut std::process::Command) -> Result<f64> {
    command.stdout(std::process::Stdio::piped());
    let begin = Instant::now();
    let output = command.output()?;
    let time = begin.elapsed();
    if !output.status.success() || output.stdout.is_empty() {
        return Err(format!("{command:?}: {}", output.status).into());
    }
    Ok(super::ms(time))
}
