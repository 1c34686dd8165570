//! What workers write gets to its files, whole and in order.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{Home, signal, wait_for, wait_until};
use crate::support::Life;

/// A shell script as an app that counts as ready at once.
fn job(home: &Home, script: &str, keys: &str) {
    home.write("app", script);
    home.app(
        "job",
        &format!("command = [\"sh\", \"app\"]\nrestart.min_uptime = \"20ms\"\n{keys}"),
    );
    home.ok(&["start"]);
}

fn is_time(text: &str) -> bool {
    text.len() == 24
        && text.ends_with('Z')
        && text.as_bytes()[10] == b'T'
        && text.as_bytes()[4] == b'-'
}

#[test]
fn each_stream_has_its_file_and_each_line_its_time() {
    let home = Home::new();
    job(&home, "echo to-out; echo to-err >&2; exec sleep 1000\n", "");
    home.wait_log("job", "to-out");
    home.wait_log("job", "to-err");
    let (out, err) = (home.log("job-out"), home.log("job-err"));
    for (text, words) in [(out, "to-out"), (err, "to-err")] {
        let (time, line) = text.trim_end().split_once(' ').unwrap();
        assert!(is_time(time) && line == words, "{text:?}");
    }
}

#[test]
fn json_lines() {
    let home = Home::new();
    job(
        &home,
        "echo 'a \"quoted\" line'; exec sleep 1000\n",
        "log.format = \"json\"",
    );
    let text = home.wait_log("job", "quoted");
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(line["line"], "a \"quoted\" line");
    assert_eq!(
        (
            line["app"].as_str(),
            line["instance"].as_u64(),
            line["stream"].as_str()
        ),
        (Some("job"), Some(0), Some("out"))
    );
    assert!(is_time(line["time"].as_str().unwrap()), "{line}");
}

#[test]
fn paths_of_the_users_choice() {
    let home = Home::new();
    job(
        &home,
        "echo one; echo two >&2; exec sleep 1000\n",
        "log = { out = \"logs/both.log\", err = \"logs/both.log\", timestamps = false }",
    );
    let read = || fs::read_to_string(home.path("logs/both.log")).unwrap_or_default();
    wait_until("both lines", || read().lines().count() == 2);
    let mut lines: Vec<_> = read().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["one", "two"]);
    assert!(home.ok(&["logs", "job"]).out.contains("two"));
}

fn gunzip(path: &Path) -> String {
    let mut text = String::new();
    let file = fs::File::open(path).unwrap();
    flate2::read::MultiGzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// All lines in the files of a log, rotated ones included.
fn all_lines(folder: &Path, name: &str) -> (Vec<String>, usize) {
    let mut lines = Vec::new();
    let mut compressed = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if !file.starts_with(name) {
            continue;
        }
        let text = if file.ends_with(".gz") {
            gunzip(&entry.path())
        } else {
            fs::read_to_string(entry.path()).unwrap()
        };
        compressed += usize::from(file.ends_with(".gz"));
        lines.extend(text.lines().map(str::to_owned));
    }
    (lines, compressed)
}

#[test]
fn rotation_in_a_burst_loses_nothing() {
    let home = Home::new();
    const LINES: usize = 60_000;
    job(
        &home,
        &format!(
            "seq 1 {LINES} | sed 's/$/ a line of the burst, long enough to fill some files/'\necho over >&2\nexec sleep 1000\n"
        ),
        "log = { max_size = \"200K\", keep = 1000, timestamps = false }",
    );
    home.wait_log("job", "over");
    // A stop waits for the last line.
    home.ok(&["stop", "job"]);
    let folder = home.rsup_home().join("state/logs");
    let complete = || {
        let (lines, compressed) = all_lines(&folder, "job-out");
        let mut numbers: Vec<usize> = lines
            .iter()
            .filter_map(|l| l.split(' ').next()?.parse().ok())
            .collect();
        numbers.sort_unstable();
        if compressed < 5 || numbers.len() != LINES {
            return Err(format!(
                "{} lines, {compressed} compressed files",
                numbers.len()
            ));
        }
        Ok(numbers)
    };
    let numbers = wait_for("every line, in compressed files", || {
        std::panic::catch_unwind(complete).unwrap_or_else(|_| Err("a file went away".into()))
    });
    assert!(numbers.iter().copied().eq(1..=LINES));
}

#[test]
fn bytes_that_are_no_text_and_a_line_without_end() {
    let home = Home::new();
    job(
        &home,
        "printf 'bad \\377\\376 bytes\\n'; printf 'no end'; sleep 0.1; exit 5\n",
        "restart.policy = \"never\"\nlog.timestamps = false",
    );
    home.wait_view("job", "its end", |v| v["workers"][0]["phase"] == "exited");
    let read = || fs::read(home.rsup_home().join("state/logs/job-out.log")).unwrap_or_default();
    wait_until("both lines", || read().ends_with(b"no end\n"));
    assert!(read().starts_with(b"bad \xff\xfe bytes\n"));
    home.ok(&["logs", "job", "--json"]).says(&["bytes"]);
}

#[test]
fn the_last_words_of_a_crash_are_there() {
    let home = Home::new();
    job(
        &home,
        "sleep 0.1\nseq 1 5000\necho last words >&2\nkill -9 $$\n",
        "restart.policy = \"never\"\nlog.timestamps = false",
    );
    home.wait_view("job", "its end", |v| v["workers"][0]["phase"] == "exited");
    home.wait_log("job", "last words");
    wait_until("every line", || home.log("job-out").lines().count() == 5000);
}

#[test]
fn logs_shows_the_last_lines() {
    let home = Home::new();
    job(
        &home,
        "seq 1 40 | sed 's/^/number /'\necho complaint >&2\nexec sleep 1000\n",
        "",
    );
    home.wait_log("job", "complaint");
    home.wait_log("job", "number 40");
    let lines = |args: &[&str]| {
        home.ok(args)
            .out
            .lines()
            .map(|l| l.split_once(' ').map_or("", |(_, rest)| rest).to_owned())
            .collect::<Vec<_>>()
    };
    let shown = lines(&["logs", "job"]);
    assert_eq!(shown.len(), 15, "{shown:?}");
    assert!(
        shown.contains(&"number 40".into()) && shown.contains(&"complaint".into()),
        "{shown:?}"
    );
    assert_eq!(
        lines(&["logs", "job", "--lines", "3", "--out"]),
        ["number 38", "number 39", "number 40"]
    );
    assert_eq!(lines(&["logs", "job", "--err"]), ["complaint"]);
    let json = home
        .ok(&["logs", "job", "--lines", "1", "--out", "--json"])
        .out;
    let line: Value = serde_json::from_str(json.trim()).unwrap();
    assert_eq!(
        (line["app"].as_str(), line["stream"].as_str()),
        (Some("job"), Some("out"))
    );
    home.run(&["logs", "jib"])
        .code(1)
        .says(&["jib", "did you mean `job`"]);
}

struct Follower {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    fn start(home: &Home) -> Self {
        let mut child = home
            .rsup()
            .args(["logs", "job", "-f"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    #[track_caller]
    fn sees(&self, words: &str) {
        wait_for(&format!("`{words}` by the follower"), || {
            match self.lines.try_iter().find(|line| line.contains(words)) {
                Some(_) => Ok(()),
                None => Err("not yet"),
            }
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_follower_sees_each_new_line() {
    let home = Home::new();
    job(
        &home,
        "echo before\nfor i in 1 2 3; do while [ ! -e say.$i ]; do sleep 0.02; done; cat say.$i; done\nexec sleep 1000\n",
        "",
    );
    home.wait_log("job", "before");
    let follower = Follower::start(&home);
    follower.sees("before");
    for i in 1..=3 {
        fs::write(home.path("new"), format!("news {i}\n")).unwrap();
        fs::rename(home.path("new"), home.path(&format!("say.{i}"))).unwrap();
        follower.sees(&format!("news {i}"));
    }
}

#[test]
fn a_reader_that_stands_still_stops_nobody() {
    let home = Home::new();
    job(
        &home,
        "echo before\nwhile [ ! -e go ]; do sleep 0.02; done\nseq 1 200000\necho over >&2\nexec sleep 1000\n",
        "",
    );
    let follower = Follower::start(&home);
    follower.sees("before");
    signal(follower.child.id(), Signal::SIGSTOP);
    home.write("go", "");
    home.wait_log("job", "over");
    home.ok(&["ping"]);
    signal(follower.child.id(), Signal::SIGCONT);
    follower.sees(" 200000");
}

#[test]
fn files_are_opened_again_on_demand() {
    let home = Home::new();
    job(
        &home,
        "i=0\nwhile :; do i=$((i+1)); echo $i; sleep 0.02; done\n",
        "log.timestamps = false",
    );
    home.wait_log("job", "3\n");
    let log = home.rsup_home().join("state/logs/job-out.log");
    let moved = home.path("moved.log");
    fs::rename(&log, &moved).unwrap();
    signal(home.daemon(), Signal::SIGUSR1);
    wait_until("a new file with lines", || {
        home.log("job-out").lines().count() > 3
    });
    let text = fs::read_to_string(&moved).unwrap() + &home.log("job-out");
    let numbers: Vec<usize> = text.lines().filter_map(|l| l.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len()), "{numbers:?}");
}

#[test]
fn names_stand_before_the_lines_of_several_apps() {
    let home = Home::new();
    job(&home, "echo from-job; exec sleep 1000\n", "");
    home.ok(&[
        "start",
        "-n",
        "second",
        "--",
        "sh",
        "-c",
        "echo from-second; exec sleep 1000",
    ]);
    home.wait_log("job", "from-job");
    home.wait_log("second", "from-second");
    let out = home.ok(&["logs"]).out;
    assert!(
        out.contains("job    | ") && out.contains("second | "),
        "{out}"
    );
}

/// What a command prints on a terminal.
fn on_a_terminal(home: &Home, args: &[&str]) -> Vec<u8> {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = home.rsup();
    command.args(args).stdout(terminal.slave);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut shown = Vec::new();
    // EIO once the last process has closed it.
    let _ = fs::File::from(terminal.master).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    shown
}

#[test]
fn a_terminal_gets_colours_and_no_commands() {
    let home = Home::new();
    job(
        &home,
        "printf '\\033]0;title\\007\\033[2J\\033[32mgreen\\033[0m\\tend\\n'; exec sleep 1000\n",
        "log.timestamps = false",
    );
    home.wait_log("job", "end");
    let sent = b"\x1b]0;title\x07\x1b[2J\x1b[32mgreen\x1b[0m\tend\n";
    let crlf = |text: &[u8]| [&text[..text.len() - 1], b"\r\n"].concat();
    assert_eq!(
        home.ok(&["logs", "job"]).out.as_bytes(),
        sent,
        "a pipe gets every byte"
    );
    let shown = on_a_terminal(&home, &["logs", "job"]);
    assert_eq!(
        String::from_utf8_lossy(&shown),
        "\\u{1b}]0;title\\u{7}\\u{1b}[2J\x1b[32mgreen\x1b[0m\tend\x1b[0m\r\n"
    );
    assert_eq!(on_a_terminal(&home, &["logs", "job", "--raw"]), crlf(sent));
}

#[test]
fn the_log_of_the_daemon_has_a_bound_and_loses_no_line() {
    let home = Home::new();
    home.app(
        "job",
        "command = [\"sleep\", \"1000\"]\nrestart = { min_uptime = \"50ms\" }",
    );
    home.ok(&["start"]);
    let log = home.rsup_home().join("state/daemon.log");
    let former = log.with_extension("log.1");
    let fill = || {
        let file = fs::File::options().write(true).open(&log).unwrap();
        file.set_len(10_000_000).unwrap();
    };
    for round in 0..2 {
        fill();
        home.ok(&["reload", "job"]);
        wait_until("another file", || {
            former.exists() && fs::metadata(&log).unwrap().len() < 1_000_000
        });
        home.wait_view("job", "it is ready", |v| v["phase"] == "ready");
        let text = home.daemon_log();
        assert!(text.contains("job: "), "round {round}: {text}");
        // The keeper had the former file; so would the next daemon.
        let daemon = home.daemon();
        signal(daemon, Signal::SIGKILL);
        wait_until("the next daemon", || home.daemon() != daemon);
        wait_for("both say it in the present file", || {
            let text = home.daemon_log();
            let said = ["keeper: started the daemon again", "rsup is up"];
            if said.iter().all(|words| text.contains(words)) {
                Ok(())
            } else {
                Err(text)
            }
        });
    }
    let count = |name: &str| fs::metadata(log.with_extension(name)).is_ok();
    assert!(count("log.1") && count("log.2") && !count("log.3"));
    home.ok(&["kill"]);
    wait_until("everybody has ended", || home.processes().is_empty());
}
