//! A pump whose process is killed, again and again, while workers write: every line is in the files
//! exactly once, in order and whole.

use std::collections::BTreeMap;
use std::env;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::unbounded_channel;

use super::tests::whole;
use super::*;

/// The task of the child.
const TASK: &str = "RSUP_TEST_PUMP";

#[derive(Serialize, Deserialize)]
struct Task {
    streams: Vec<(PathBuf, Source, Stream, Settings)>,
    /// Runs until the pipes have ended; otherwise until it is killed.
    last: bool,
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Ok(task) = env::var(TASK) else { return };
    let task: Task = serde_json::from_str(&task).expect("a task");
    let (events, mut troubles) = unbounded_channel();
    let journal = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("stdin");
    let pump = Pump::start_with_journal(events, journal).expect("start");
    for (path, source, stream, settings) in task.streams {
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .expect("pipe");
        let key = source.key;
        pump.attach(source, stream, OwnedFd::from(pipe), &settings);
        assert!(pump.tail(key).blocking_recv().is_ok());
    }
    pump.adopted();
    println!("ready");
    while !task.last || pump.stats().blocking_recv().expect("stats").pipes > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    pump.shutdown();
    assert!(troubles.try_recv().is_err());
}

/// A worker's stream; the test holds both its ends.
struct Worker {
    source: Source,
    stream: Stream,
    settings: Settings,
    read: OwnedFd,
    writer: Option<JoinHandle<usize>>,
}

/// The pump's process, running.
fn pump(workers: &[Worker], journal: &OwnedFd, last: bool) -> Child {
    let own = format!("/proc/{}/fd", std::process::id());
    let streams = workers
        .iter()
        .map(|w| {
            (
                Path::new(&own).join(w.read.as_raw_fd().to_string()),
                w.source.clone(),
                w.stream,
                w.settings.clone(),
            )
        })
        .collect();
    let task = serde_json::to_string(&Task { streams, last }).expect("JSON");
    let mut child = Command::new(env::current_exe().expect("our name"))
        .args(["--exact", "logs::killed_tests::child", "--nocapture"])
        .env(TASK, task)
        .stdin(Stdio::from(journal.try_clone().expect("dup")))
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut said = BufReader::new(child.stdout.take().expect("stdout"));
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert!(
            said.read_line(&mut line).expect("read") > 0,
            "the pump did not start"
        );
    }
    // The child's test harness may print more.
    thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    child
}

fn line(key: u64, number: usize) -> String {
    let length = match key % 10 {
        3 => number * 7919 % 150_000, // many are longer than what is written at once
        _ => number * 7919 % 230,
    };
    format!("{key} {number} {}", "x\"".repeat(length / 2))
}

/// Writes numbered lines until it is stopped; returns how many.
fn write(key: u64, mut pipe: File, stop: &AtomicBool) -> usize {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        match key % 10 {
            // Many lines at once.
            1 => {
                let mut block = String::new();
                while block.len() < 100_000 {
                    block += &line(key, number);
                    block.push('\n');
                    number += 1;
                }
                pipe.write_all(block.as_bytes()).expect("write");
                thread::sleep(Duration::from_millis(10));
            }
            // In pieces.
            2 => {
                let text = line(key, number) + "\n";
                for piece in text.as_bytes().chunks(1 + number % 90) {
                    pipe.write_all(piece).expect("write");
                    thread::sleep(Duration::from_micros(fastrand::u64(..2000)));
                }
                number += 1;
            }
            3 => {
                pipe.write_all((line(key, number) + "\n").as_bytes())
                    .expect("write");
                thread::sleep(Duration::from_micros(fastrand::u64(..1000)));
                number += 1;
            }
            // Line by line, without a pause.
            _ => {
                pipe.write_all((line(key, number) + "\n").as_bytes())
                    .expect("write");
                number += 1;
                if number % 64 == 0 {
                    thread::sleep(Duration::from_millis(3));
                }
            }
        }
    }
    pipe.write_all(line(key, number).as_bytes()).expect("write"); // and no end of it
    number + 1
}

#[test]
fn nothing_is_lost_or_doubled_when_the_pump_is_killed() {
    let kills = env::var("RSUP_TEST_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let dir = tempfile::tempdir().expect("tempdir");
    let settings = |out: &str, err: &str| Settings {
        max_size: 1_500_000,
        keep: 100_000,
        ..Settings::new(dir.path().join(out), dir.path().join(err))
    };
    let plain = Settings {
        timestamps: false,
        max_size: 700_000,
        ..settings("long", "-")
    };
    let json = Settings {
        format: Format::Json,
        compress: false,
        ..settings("json", "json")
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers: Vec<Worker> = [
        (1, Stream::Out, settings("out", "err")),
        (11, Stream::Out, settings("out", "err")),
        (2, Stream::Out, settings("out", "err")),
        (12, Stream::Err, settings("out", "err")),
        (4, Stream::Err, settings("out", "err")),
        (3, Stream::Out, plain),
        (21, Stream::Out, json.clone()),
        (22, Stream::Err, json.clone()),
        (24, Stream::Out, json),
    ]
    .into_iter()
    .map(|(key, stream, settings)| {
        let (read, write_end) = pipe().expect("pipe");
        let stop = stop.clone();
        let writer = Some(thread::spawn(move || write(key, write_end.into(), &stop)));
        let source = Source {
            app: format!("app{key}").into(),
            instance: 0,
            key,
        };
        Worker {
            source,
            stream,
            settings,
            read,
            writer,
        }
    })
    .collect();

    let journal = Journal::create(Path::new("/tmp")).expect("journal");
    for _ in 0..kills {
        let mut child = pump(&workers, &journal, false);
        thread::sleep(Duration::from_micros(fastrand::u64(..30_000)));
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
    stop.store(true, Ordering::Relaxed);
    // Some writers wait for room in their pipe.
    let mut child = pump(&workers, &journal, true);
    let written: BTreeMap<u64, usize> = workers
        .iter_mut()
        .map(|w| {
            (
                w.source.key,
                w.writer.take().expect("writer").join().expect("writer"),
            )
        })
        .collect();
    assert!(child.wait().expect("wait").success());

    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    let mut odd: Vec<String> = Vec::new();
    let (mut lost, mut doubled) = (0, 0);
    for name in ["out", "err", "json", "long"] {
        let text = String::from_utf8(whole(&dir.path().join(name))).expect("UTF-8");
        let text = if name == "long" {
            text.replace("…\n…", "")
        } else {
            text
        };
        for raw in text.lines() {
            let value: Option<serde_json::Value> = serde_json::from_str(raw).ok();
            let text = match (name, &value) {
                ("json", value) => value
                    .as_ref()
                    .and_then(|v| v["line"].as_str())
                    .unwrap_or("not JSON"),
                ("long", _) => raw,
                _ => raw.split_once("Z ").map_or("no time", |(_, text)| text),
            };
            let mut words = text.splitn(3, ' ').map(str::parse::<usize>);
            let (Some(Ok(key)), Some(Ok(number))) = (words.next(), words.next()) else {
                odd.push(raw.chars().take(200).collect());
                continue;
            };
            let next = seen.entry(key as u64).or_default();
            if text != line(key as u64, number) {
                odd.push(raw.chars().take(200).collect());
            }
            lost += number.saturating_sub(*next);
            doubled += next.saturating_sub(number);
            *next = number + 1;
        }
    }
    println!(
        "{kills} kills, lines {written:?}, {lost} lost, {doubled} doubled, {} odd",
        odd.len()
    );
    assert_eq!((lost, doubled, odd), (0, 0, Vec::new()));
    assert_eq!(seen, written);
}
