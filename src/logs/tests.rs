//! The pump as a whole: real pipes, real files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::place::Place;
use super::*;

struct Setup {
    dir: tempfile::TempDir,
    pump: Pump,
    events: UnboundedReceiver<Event>,
    settings: Settings,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().expect("tempdir");
    let (sender, events) = unbounded_channel();
    let pump = Pump::start(sender).expect("start");
    let settings = Settings {
        timestamps: false,
        ..Settings::new(
            dir.path().join("logs/out.log"),
            dir.path().join("logs/err.log"),
        )
    };
    Setup {
        dir,
        pump,
        events,
        settings,
    }
}

impl Setup {
    /// A worker's stdout.
    fn out(&self, key: u64) -> File {
        self.stream(key, Stream::Out)
    }

    fn stream(&self, key: u64, stream: Stream) -> File {
        let (read, write) = pipe().expect("pipe");
        self.pump.attach(source(key), stream, read, &self.settings);
        write.into()
    }

    fn flush(&self) {
        self.pump.flush().blocking_recv().expect("flush");
    }

    fn stats(&self) -> Stats {
        self.pump.stats().blocking_recv().expect("stats")
    }

    fn tail(&self, key: u64) -> Vec<String> {
        self.pump
            .tail(key)
            .blocking_recv()
            .expect("tail")
            .into_iter()
            .map(|l| l.text)
            .collect()
    }

    /// Waits until all pipes are closed.
    fn ended(&self) -> Stats {
        wait_for(|| Some(self.stats()).filter(|s| s.pipes == 0))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name)
    }

    fn text(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("read the log")
    }
}

/// The rotated files of a log, newest first, and whether they are compressed.
fn segments(path: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let place = Place::find(path, None, false)?;
    let found = super::rotate::segments(&place)?.into_iter();
    Ok(found
        .map(|segment| (path.with_file_name(segment.name), segment.gzipped))
        .collect())
}

fn source(key: u64) -> Source {
    Source {
        app: "api".into(),
        instance: 0,
        key,
    }
}

/// Asks until there is an answer; gives up after a minute.
fn wait_for<T>(mut answer: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The whole content of a log, oldest first.
pub(super) fn whole(path: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for (path, gzipped) in segments(path).expect("segments").into_iter().rev() {
        let mut file = File::open(&path).expect("open");
        if gzipped {
            MultiGzDecoder::new(file)
                .read_to_end(&mut all)
                .expect("gunzip");
        } else {
            file.read_to_end(&mut all).expect("read");
        }
    }
    if path.exists() {
        all.extend(fs::read(path).expect("read"));
    }
    all
}

fn sum(lines: &[u8]) -> (usize, u64) {
    lines
        .split_inclusive(|b| *b == b'\n')
        .fold((0, 0), |(count, sum), line| {
            let hash = line.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
                (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
            });
            (count + 1, sum + (hash >> 32))
        })
}

#[test]
fn lines_of_many_workers_never_mix_and_are_all_there() {
    let s = setup();
    const WORKERS: u64 = 40;
    const LINES: usize = 500;
    let writers: Vec<_> = (0..WORKERS)
        .map(|key| {
            let mut pipe = s.out(key);
            thread::spawn(move || {
                let all: String = (0..LINES)
                    .map(|n| format!("{key} {n} {}\n", "x".repeat(n % 200)))
                    .collect();
                for piece in all.as_bytes().chunks(97) {
                    pipe.write_all(piece).expect("write");
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|w| w.join().expect("writer"));
    s.ended();
    let text = String::from_utf8(s.text("out.log")).expect("UTF-8");
    let mut next: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let [key, n, xs] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let expected = next.entry(key).or_default();
        assert_eq!((n.parse(), xs.len()), (Ok(*expected), *expected % 200));
        assert!(xs.bytes().all(|b| b == b'x'));
        *expected += 1;
    }
    assert_eq!(next.len() as u64, WORKERS);
    assert!(next.values().all(|n| *n == LINES));
}

#[test]
fn a_burst_is_kept_whole_across_rotation_and_compression() {
    let mut s = setup();
    s.settings = Settings {
        max_size: 4_000_000,
        keep: 100,
        ..s.settings
    };
    let mut block: Vec<u8> = (0..2000)
        .flat_map(|n| format!("{n} {}\n", "y".repeat(n % 190)).into_bytes())
        .collect();
    block.extend(b"\xff\xfe not UTF-8\n");
    let blocks = 50_000_000 / block.len();
    let mut pipe = s.out(1);
    let sent = block.clone();
    let writer =
        thread::spawn(move || (0..blocks).for_each(|_| pipe.write_all(&sent).expect("write")));
    // The pump answers meanwhile.
    wait_for(|| (!s.tail(1).is_empty()).then_some(()));
    writer.join().expect("writer");
    let stats = s.ended();
    assert_eq!((stats.lost_bytes, stats.errors), (0, 0));
    assert_eq!(stats.bytes, (blocks * block.len()) as u64);
    let path = s.path("out.log");
    wait_for(|| {
        segments(&path)
            .ok()
            .filter(|all| all.iter().enumerate().all(|(at, it)| it.1 == (at > 0)))
    });
    assert_eq!(
        segments(&path).expect("segments").len() as u64,
        stats.rotations
    );
    assert!(stats.rotations >= 12);
    let (count, hash) = sum(&block);
    assert_eq!(sum(&whole(&path)), (count * blocks, hash * blocks as u64));
    for (path, _) in segments(&path).expect("segments").iter().filter(|it| !it.1) {
        assert!(fs::metadata(path).expect("metadata").len() <= s.settings.max_size);
    }
}

#[test]
fn rotation_keeps_the_newest_files_only() {
    let mut s = setup();
    s.settings = Settings {
        max_size: 100,
        keep: 3,
        compress: false,
        ..s.settings
    };
    let mut pipe = s.out(1);
    for n in 0..100 {
        writeln!(pipe, "line {n:04}").expect("write"); // ten to a file
    }
    drop(pipe);
    s.ended();
    let expected: String = (60..100).map(|n| format!("line {n:04}\n")).collect();
    assert_eq!(
        String::from_utf8(whole(&s.path("out.log"))).expect("UTF-8"),
        expected
    );
    assert_eq!(segments(&s.path("out.log")).expect("segments").len(), 3);
}

#[test]
fn an_endless_line_survives_in_parts() {
    let s = setup();
    let mut pipe = s.out(1);
    let line: Vec<u8> = (0..10_000_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
    pipe.write_all(&line).expect("write");
    pipe.write_all(b"\nnext\n").expect("write");
    drop(pipe);
    s.ended();
    let text = String::from_utf8(s.text("out.log")).expect("UTF-8");
    assert!(text.ends_with("\nnext\n"));
    assert!(text.lines().all(|l| l.len() <= MAX_LINE + 6));
    let rejoined = text.replace("…\n…", "");
    assert_eq!(rejoined.lines().next().map(str::as_bytes), Some(&line[..]));
}

#[test]
fn a_line_without_end_is_written_at_the_end_and_is_in_the_tail_before() {
    let s = setup();
    let (mut out, mut err) = (s.out(7), s.stream(7, Stream::Err));
    out.write_all(b"listening\n").expect("write");
    err.write_all(b"panic: \xff\r\n").expect("write");
    out.write_all(b"bye").expect("write");
    assert_eq!(s.tail(7), ["listening", "panic: \u{fffd}", "bye"]);
    s.pump.forget(7);
    drop((out, err));
    s.ended();
    assert_eq!(s.text("out.log"), b"listening\nbye\n");
    assert_eq!(s.text("err.log"), b"panic: \xff\r\n");
    assert!(s.tail(7).is_empty());
}

#[test]
fn a_prompt_shows_after_a_while() {
    let s = setup();
    let mut pipe = s.out(1);
    pipe.write_all(b"Password: ").expect("write");
    wait_for(|| {
        fs::read(s.path("out.log"))
            .ok()
            .filter(|t| t == "Password: …\n".as_bytes())
    });
    pipe.write_all(b"ok\n").expect("write");
    s.flush();
    assert_eq!(s.text("out.log"), "Password: …\n…ok\n".as_bytes());
}

#[test]
fn one_file_for_both_streams_as_json_with_time() {
    let mut s = setup();
    s.settings = Settings {
        err: s.settings.out.clone(),
        format: Format::Json,
        timestamps: true,
        ..s.settings
    };
    let (mut out, mut err) = (s.out(1), s.stream(1, Stream::Err));
    out.write_all(b"\"a\"\n").expect("write");
    s.flush();
    err.write_all(b"\xff\n").expect("write");
    s.flush();
    s.pump.note("api".into(), &s.settings, "restarted");
    s.flush();
    let lines: Vec<serde_json::Value> = s
        .text("out.log")
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).expect("JSON"))
        .collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|l| (l["stream"].as_str(), l["line"].as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (Some("out"), Some("\"a\"")),
            (Some("err"), Some("\u{fffd}")),
            (Some("rsup"), Some("restarted"))
        ]
    );
    assert!(lines.iter().all(|l| {
        l["time"]
            .as_str()
            .is_some_and(|t| t.parse::<jiff::Timestamp>().is_ok())
    }));
    assert_eq!(s.stats().files.len(), 1);
}

#[test]
fn a_full_disk_costs_lines_but_never_a_worker() {
    let mut s = setup();
    fs::create_dir(s.dir.path().join("logs")).expect("create_dir");
    std::os::unix::fs::symlink("/dev/full", s.path("out.log")).expect("symlink");
    let mut pipe = s.out(1);
    let line = format!("{}\n", "z".repeat(99));
    for _ in 0..50_000 {
        pipe.write_all(line.as_bytes()).expect("write"); // 5 MB: more than a pipe holds
    }
    s.flush();
    let stats = s.stats();
    assert_eq!((stats.lost_lines, stats.lost_bytes), (50_000, 5_000_000));
    assert_eq!(stats.files[0].lost_bytes, 5_000_000);
    assert!(
        stats.files[0]
            .error
            .as_ref()
            .is_some_and(|e| e.contains("No space left"))
    );
    assert!(
        matches!(s.events.blocking_recv(), Some(Event::Failed { error, .. }) if error.contains("No space left"))
    );
    // There is room again: the file states what it lacks, though nothing more is written to it.
    fs::remove_file(s.path("out.log")).expect("remove");
    let recovered = s.events.blocking_recv();
    assert!(matches!(
        recovered,
        Some(Event::Recovered {
            lost_bytes: 5_000_000,
            lost_lines: 50_000,
            ..
        })
    ));
    pipe.write_all(b"after\n").expect("write");
    s.flush();
    let text = String::from_utf8(s.text("out.log")).expect("UTF-8");
    let (first, rest) = text.split_once('\n').expect("lines");
    assert!(
        first.starts_with("rsup: 5000000 bytes in 50000 lines were lost here: No space left"),
        "{first}"
    );
    assert_eq!(rest, "after\n");
}

#[test]
fn a_log_that_is_a_fifo_nobody_reads_holds_up_nobody() {
    let s = setup();
    fs::create_dir(s.dir.path().join("logs")).expect("create_dir");
    nix::unistd::mkfifo(&s.path("out.log"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let reader = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(s.path("out.log"))
        .expect("open");
    let mut pipe = s.out(1);
    for _ in 0..30_000 {
        pipe.write_all(&[b'q'; 99]).expect("write");
        pipe.write_all(b"\n").expect("write");
    }
    s.flush();
    let stats = s.stats();
    assert!(stats.lost_bytes > 0 && stats.lost_bytes < 3_000_000);
    drop(reader);
}

#[test]
fn a_file_that_is_moved_or_deleted_is_made_again() {
    let s = setup();
    let mut pipe = s.out(1);
    let mut say = |text: &str| {
        pipe.write_all(text.as_bytes()).expect("write");
        s.flush();
    };
    say("one\n");
    fs::rename(s.path("out.log"), s.path("moved")).expect("rename");
    say("two\n");
    assert_eq!(
        (s.text("moved"), s.text("out.log")),
        (b"one\n".to_vec(), b"two\n".to_vec())
    );
    fs::remove_dir_all(s.path("")).expect("remove");
    say("three\n");
    assert_eq!(s.text("out.log"), b"three\n");
    File::create(s.path("out.log")).expect("truncate");
    s.pump.reopen();
    say("four\n");
    assert_eq!(s.text("out.log"), b"four\n");
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(s.path("out.log"))
        .expect("metadata")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7137, 0);
}

#[test]
fn a_stream_can_go_on_in_another_pump() {
    let s = setup();
    let mut pipe = s.out(1);
    pipe.write_all(b"one\ntw").expect("write");
    s.flush();
    let mut given = s.pump.detach_all().blocking_recv().expect("detach");
    pipe.write_all(b"o\nthree\n").expect("write");
    s.pump.shutdown();
    let stream = given.pop().expect("a stream");
    assert_eq!(
        (stream.source.key, &stream.unfinished.bytes[..]),
        (1, &b"tw"[..])
    );
    let (sender, _events) = unbounded_channel();
    let next = Pump::start(sender).expect("start");
    next.resume(stream, &s.settings);
    next.shutdown();
    assert_eq!(s.text("out.log"), b"one\ntwo\nthree\n");
}

#[test]
fn children_of_children_keep_their_pipe() {
    let s = setup();
    // The grandchild outlives its parent, and writes on request.
    let script = "exec 3<&0; (read x <&3; echo late $x) & echo early >&2";
    let mut shell = Command::new("sh");
    let (out, err) = (
        OwnedFd::from(s.out(2)),
        OwnedFd::from(s.stream(2, Stream::Err)),
    );
    let mut child = shell
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(err)
        .spawn()
        .expect("sh");
    drop(shell); // it holds write ends
    let mut stdin = child.stdin.take().expect("stdin");
    assert!(child.wait().expect("wait").success());
    assert_eq!(s.tail(2), ["early"]);
    stdin.write_all(b"words\n").expect("write");
    s.ended();
    assert_eq!(s.text("out.log"), b"late words\n");
}

#[test]
fn a_chatty_worker_does_not_starve_the_others() {
    let s = setup();
    let mut chatty = s.out(1);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = thread::spawn(move || {
        let block = b"noise noise noise\n".repeat(4000);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            chatty.write_all(&block).expect("write");
        }
    });
    let mut quiet = s.stream(2, Stream::Err);
    for n in 0..50 {
        writeln!(quiet, "quiet {n}").expect("write");
        wait_for(|| {
            fs::read_to_string(s.path("err.log"))
                .ok()
                .filter(|t| t.lines().count() == n + 1)
        });
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().expect("writer");
}

#[test]
fn a_follower_sees_every_line_once_while_the_log_rotates() {
    let mut s = setup();
    s.settings = Settings {
        max_size: 20_000,
        keep: 1000,
        ..s.settings
    };
    let mut pipe = s.out(1);
    writeln!(pipe, "0").expect("write");
    s.flush();
    let mut follower =
        Follower::new([(Stream::Out, s.path("out.log"))], None, 1).expect("follower");
    const LINES: usize = 100_000;
    // The writer stays within a few rotations of the reader: one that falls far behind may miss
    // some.
    let read = Arc::new(AtomicUsize::new(0));
    let seen_by_writer = read.clone();
    let writer = thread::spawn(move || {
        for n in 1..LINES {
            while n - seen_by_writer.load(Ordering::Relaxed).min(n) > 1000 {
                thread::sleep(Duration::from_millis(1));
            }
            // In one call: half a line that waits for long would be written as a part.
            pipe.write_all(format!("{n}\n").as_bytes()).expect("write");
        }
    });
    let mut seen = 0;
    while seen < LINES {
        for (_, line) in follower.next().expect("next") {
            assert_eq!(String::from_utf8(line).expect("UTF-8"), seen.to_string());
            seen += 1;
        }
        read.store(seen, Ordering::Relaxed);
    }
    writer.join().expect("writer");
    assert!(s.stats().rotations > 10);
}

#[test]
fn a_pipe_that_cannot_be_watched_is_reported() {
    let mut s = setup();
    let file: OwnedFd = tempfile::tempfile().expect("tempfile").into();
    s.pump.attach(source(1), Stream::Out, file, &s.settings);
    assert!(matches!(
        s.events.blocking_recv(),
        Some(Event::BadPipe {
            stream: Stream::Out,
            ..
        })
    ));
    assert_eq!(s.stats().pipes, 0);
}
