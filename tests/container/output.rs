//! stdout of a container: what rsup says, and what its workers print.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{Home, wait_for, wait_until};
use crate::support::{Container, admin, app, page, said, up, wait_said, web};

fn out(home: &Home) -> String {
    fs::read_to_string(home.path("stdout")).unwrap()
}

#[test]
fn text_has_a_line_for_each_event_with_its_source() {
    let home = Home::new();
    app(
        &home,
        "job",
        "command = [\"sh\", \"-c\", \"echo to out; echo to err >&2; printf unfinished; sleep 1000\"]\ninstances = 2",
    );
    let Some(container) = Container::start(&home, &[]) else {
        return;
    };
    up(&home, "job");
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
    let text = out(&home);
    for words in [
        "job:0 | to out",
        "job:1 | to out",
        "job:0 err | to err",
        "job:1 | unfinished",
        "rsup | rsup is up",
        "rsup | rsup is down",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    assert_eq!(fs::read_to_string(home.path("stderr")).unwrap(), "");
    assert!(
        text.lines().all(|line| line
            .split(' ')
            .next()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .is_ok()),
        "{text}"
    );
    // The files are what they always were.
    assert!(
        home.logs("job").contains("Z to out\n"),
        "{}",
        home.logs("job")
    );
}

#[test]
fn json_has_an_object_on_each_line() {
    let home = Home::new();
    let hostile = r#"printf 'say \"x\" \\\\ \\001\\377 é\\n'; echo err >&2; exit 3"#;
    app(
        &home,
        "job",
        &format!(
            "command = ['sh', '-c', '''{}''']\nrestart.policy = \"never\"",
            hostile.replace("\\\\", "\\")
        ),
    );
    let Some(container) = Container::start(&home, &["--log-format", "json"]) else {
        return;
    };
    container.ends_with(&home, 3);
    let text = out(&home);
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}")))
        .collect();
    assert!(
        lines.iter().all(|line| line["time"]
            .as_str()
            .is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok())),
        "{text}"
    );
    let streams: BTreeSet<&str> = lines
        .iter()
        .map(|line| line["stream"].as_str().unwrap())
        .collect();
    assert_eq!(streams, BTreeSet::from(["err", "out", "rsup"]));
    for line in &lines {
        if line["stream"] == "rsup" {
            assert!(
                line["level"].is_string() && line["line"].is_string(),
                "{line}"
            );
        } else {
            assert_eq!(
                (&line["app"], &line["instance"]),
                (&"job".into(), &0.into()),
                "{line}"
            );
        }
    }
    assert!(
        lines
            .iter()
            .any(|line| line["app"] == "job" && line["stream"] == "rsup")
    );
    assert_eq!(fs::read_to_string(home.path("stderr")).unwrap(), "");
}

/// Bytes of memory that rsup has, by the kernel's count.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// Prints 400,000 numbered lines, 24 MB, once the file `go` is there.
const SPEWER: &str = "command = [\"sh\", \"-c\", \"while [ ! -e go ]; do sleep 0.05; done; seq -f 'line %055.0f' 400000; echo spewed; exec sleep 1000\"]";

#[test]
fn an_output_that_nobody_reads_holds_up_nobody() {
    let home = Home::new();
    app(
        &home,
        "spewer",
        &format!("{SPEWER}\nrestart.min_uptime = \"50ms\""),
    );
    let port = web(&home, "web", "");
    let address = admin(&home);
    let stderr = Stdio::from(fs::File::create(home.path("stderr")).unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    let Some(container) = Container::start_with(&home, &[], writer.into(), stderr) else {
        return;
    };
    up(&home, "web");
    up(&home, "spewer");
    let before = memory(container.pid());
    home.write("go", "");
    home.wait_log("spewer", "spewed");
    home.ok(&["reload", "web"]);
    assert_eq!(page(([127, 0, 0, 1], port).into(), "/").status, 200);
    let grown = memory(container.pid()).saturating_sub(before);
    assert!(
        grown < 12 << 20,
        "{grown} bytes for 24 MB of lines that nobody reads"
    );
    assert_eq!(
        home.logs("spewer").matches("line 0").count(),
        400_000,
        "the files lack nothing"
    );
    let metrics = page(address, "/metrics").body;
    let lost: u64 = metrics
        .lines()
        .find_map(|line| line.strip_prefix("rsup_log_lost_lines_total{sink=\"stdout\"} "))
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(lost > 300_000, "{lost}");
    // Somebody reads again: every line is there or counted.
    let stop = std::thread::spawn(move || {
        let (mut seen, mut told) = (0, 0);
        for line in BufReader::new(reader).lines() {
            let line = line.unwrap();
            seen += u64::from(line.contains("spewer:0 | line 0"));
            if let Some((_, rest)) = line.split_once(" bytes in ") {
                told += rest.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
        }
        (seen, told)
    });
    home.ok(&["stop", "web"]);
    container.signal(Signal::SIGTERM);
    assert_eq!(container.end().code(), Some(0));
    let (seen, told) = stop.join().unwrap();
    assert!(told >= lost, "{told} of {lost} are told");
    // Some lines of others may be among the lost.
    assert!(
        (400_000..400_100).contains(&(seen + told)),
        "{seen} seen, {told} told"
    );
}

#[test]
fn an_output_that_is_closed_ends_nothing() {
    let home = Home::new();
    let port = web(&home, "web", "");
    let address = admin(&home);
    let stderr = Stdio::from(fs::File::create(home.path("stderr")).unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    let Some(container) = Container::start_with(&home, &[], writer.into(), stderr) else {
        return;
    };
    up(&home, "web");
    drop(reader);
    page(([127, 0, 0, 1], port).into(), "/log?n=1000");
    wait_for("the loss is counted", || {
        let metrics = page(address, "/metrics").body;
        let lost = metrics
            .lines()
            .find_map(|line| line.strip_prefix("rsup_log_lost_lines_total{sink=\"stdout\"} "));
        if lost.is_some_and(|lost| lost.parse::<u64>().unwrap() >= 1000) {
            Ok(())
        } else {
            Err(metrics)
        }
    });
    home.ok(&["reload", "web"]);
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
    assert_eq!(
        said(&home).matches("cannot write to stdout: ").count(),
        1,
        "{}",
        said(&home)
    );
}

#[test]
fn without_log_files_there_are_none() {
    let home = Home::new();
    app(
        &home,
        "job",
        "command = [\"sh\", \"-c\", \"echo hello; sleep 1000\"]\nrestart.min_uptime = \"50ms\"",
    );
    app(
        &home,
        "kept",
        "command = [\"sh\", \"-c\", \"echo kept; sleep 1000\"]\nrestart.min_uptime = \"50ms\"\nlog.out = \"kept.log\"",
    );
    let Some(container) = Container::start(&home, &["--no-log-files"]) else {
        return;
    };
    wait_said(&home, "job:0 | hello");
    wait_until("the file that was asked for", || {
        fs::read_to_string(home.path("kept.log")).is_ok_and(|text| text.contains("kept"))
    });
    up(&home, "job");
    assert_eq!(
        fs::read_dir(home.rsup_home().join("state/logs"))
            .unwrap()
            .count(),
        0
    );
    home.ok(&["logs", "job"]).says(&["in no file"]);
    container.signal(Signal::SIGTERM);
    container.ends_with(&home, 0);
}

#[test]
fn a_failure_to_begin_is_told_in_the_format_that_was_asked_for() {
    let home = Home::new();
    let port = web(&home, "web", "");
    let _holder = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let Some(container) = Container::start(&home, &["--log-format", "json"]) else {
        return;
    };
    container.ends_with(&home, 1);
    let text = out(&home);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error", "{text}");
    assert!(
        last["line"].as_str().unwrap().contains(&port.to_string()),
        "{text}"
    );
}
