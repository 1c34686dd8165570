//! `rsup logs`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use crate::cli::error::CliError;
use crate::cli::render::LogLines;
use crate::cli::{Context, targets};
use crate::config::AppName;
use crate::control::{FindLogs, LogFiles, Target};
use crate::logs::{Follower, Last, Stream, last_lines};

/// How long the last lines of a log are searched for: longer than it takes to unpack as much as is unpacked.
const PATIENCE: Duration = Duration::from_secs(15);

/// Show the last lines of apps' logs, and follow them with -f
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  rsup logs\n  rsup logs api -f\n  rsup logs api --err --lines 100"
)]
pub struct Args {
    /// Names; all apps without one
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Go on with each new line until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines of each app
    #[arg(short = 'n', long, value_name = "N", default_value_t = 15)]
    lines: usize,
    /// Only what was written to stderr
    #[arg(long, conflicts_with = "out")]
    err: bool,
    /// Only what was written to stdout
    #[arg(long)]
    out: bool,
    /// On a terminal, too, every byte as the app wrote it, with commands to the terminal in it
    #[arg(long)]
    raw: bool,
}

/// The log files of one app that the user asked for.
#[derive(Debug)]
struct Source {
    app: AppName,
    paths: Vec<(Stream, PathBuf)>,
    /// The user that the app runs as.
    user: Option<u32>,
}

pub fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let client = cx.client()?;
    let targets = if args.targets.is_empty() {
        vec![Target::All]
    } else {
        targets::select(&client, &args.targets)?.targets
    };
    let files = client.ask(&FindLogs(targets))?.into_iter();
    let sources: Vec<Source> = files.map(|files| source(files, &args)).collect();
    if sources.is_empty() {
        cx.out.note("there are no apps; `rsup start` starts some");
        return Ok(());
    }
    for source in sources.iter().filter(|source| {
        source
            .paths
            .iter()
            .all(|(_, path)| path == Path::new("/dev/null"))
    }) {
        cx.out.note(&format!(
            "the lines of {} are in no file; they go to where rsup was started",
            source.app
        ));
    }
    let names: Vec<_> = sources.iter().map(|source| source.app.clone()).collect();
    let show = LogLines::new(&cx.out, &names, args.raw);
    if args.follow {
        follow(sources, &args, &show)
    } else {
        last(sources, &args, cx, &show)
    }
}

fn source(files: LogFiles, args: &Args) -> Source {
    let mut paths = Vec::new();
    if !args.err {
        paths.push((Stream::Out, files.out.clone()));
    }
    // Both streams may go to the same file.
    if !args.out && (args.err || files.err != files.out) {
        paths.push((Stream::Err, files.err));
    }
    Source {
        app: files.app,
        paths,
        user: files.user,
    }
}

/// A log that cannot be read, or whose disk does not answer, hides no other.
fn last(sources: Vec<Source>, args: &Args, cx: &Context, show: &LogLines) -> Result<(), CliError> {
    let mut problem = None;
    for source in sources {
        let mut lines = Vec::new();
        for (stream, path) in &source.paths {
            match in_time(path, source.user, args.lines) {
                Ok(found) => {
                    if let Some(note) = found.note {
                        cx.out.note(&format!("{}: {note}", source.app));
                    }
                    lines.push(
                        found
                            .lines
                            .into_iter()
                            .map(|line| (*stream, line))
                            .collect(),
                    );
                }
                Err(error) => {
                    let why = format!("cannot read {}: {error}", path.display());
                    if let Some(other) = problem.replace(CliError::failed("local", why)) {
                        cx.out.problem(&other);
                    }
                }
            }
        }
        let mut lines = in_order_of_time(lines);
        show.write(
            &source.app,
            &lines.split_off(lines.len().saturating_sub(args.lines)),
        )?;
    }
    problem.map_or(Ok(()), Err)
}

/// The last lines of a log, if they are found in time.
fn in_time(path: &Path, user: Option<u32>, count: usize) -> io::Result<Last> {
    let (sender, found) = mpsc::channel();
    let of = path.to_owned();
    let look = move || drop(sender.send(last_lines(&of, user, count)));
    std::thread::Builder::new().spawn(look)?;
    found.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let why = format!("no answer within {} s", PATIENCE.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

/// One thread per app waits for its files; this one prints.
fn follow(sources: Vec<Source>, args: &Args, show: &LogLines) -> Result<(), CliError> {
    let (sender, receiver) = mpsc::sync_channel(64);
    let last = args.lines;
    for Source { app, paths, user } in sources {
        let sender = sender.clone();
        let wait = move || {
            let mut follower = match Follower::new(paths, user, last) {
                Ok(follower) => follower,
                Err(error) => return drop(sender.send((app, Err(error)))),
            };
            loop {
                let lines = follower.next();
                let failed = lines.is_err();
                if sender.send((app.clone(), lines)).is_err() || failed {
                    return;
                }
            }
        };
        std::thread::Builder::new().spawn(wait).map_err(|error| {
            CliError::failed(
                "local",
                crate::sys::needs::words("cannot start a thread", &error),
            )
        })?;
    }
    drop(sender);
    for (app, lines) in receiver {
        let lines = lines.map_err(|error| {
            CliError::failed("local", format!("cannot follow the logs of {app}: {error}"))
        })?;
        show.write(&app, &lines)?;
    }
    Ok(())
}

type Line = (Stream, Vec<u8>);

/// The lines of two files in the order of their timestamps, where each line has one; otherwise file
/// after file.
fn in_order_of_time(files: Vec<Vec<Line>>) -> Vec<Line> {
    let mut timed = Vec::new();
    let mut all_tell = true;
    for lines in files {
        // A line without a time belongs to the one before it.
        let mut time = Vec::new();
        for line in lines {
            if let Some(own) = time_of(&line.1) {
                time = own.to_vec();
            }
            all_tell &= !time.is_empty();
            timed.push((time.clone(), line));
        }
    }
    if all_tell {
        timed.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
    timed.into_iter().map(|(_, line)| line).collect()
}

/// The timestamp `2024-06-01T12:00:00.000Z` at the beginning of a line, or of its `"time"` in JSON.
fn time_of(line: &[u8]) -> Option<&[u8]> {
    const LENGTH: usize = "2024-06-01T12:00:00.000Z".len();
    let text = line.strip_prefix(br#"{"time":""#).unwrap_or(line);
    let time = text.get(..LENGTH)?;
    let shape = time.iter().enumerate().all(|(index, byte)| match index {
        4 | 7 => *byte == b'-',
        10 => *byte == b'T',
        13 | 16 => *byte == b':',
        19 => *byte == b'.',
        23 => *byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    shape.then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(out: &[&str], err: &[&str]) -> Vec<String> {
        let lines = |stream, lines: &[&str]| {
            lines
                .iter()
                .map(|line| (stream, line.as_bytes().to_vec()))
                .collect()
        };
        let merged = in_order_of_time(vec![lines(Stream::Out, out), lines(Stream::Err, err)]);
        merged
            .into_iter()
            .map(|(_, line)| String::from_utf8(line).unwrap())
            .collect()
    }

    #[test]
    fn lines_with_times_are_merged() {
        let (a, b, c) = (
            "2024-06-01T12:00:00.000Z a",
            "2024-06-01T12:00:00.001Z b",
            "2024-06-01T12:00:01.000Z c",
        );
        assert_eq!(merged(&[a, c], &[b, "  at b"]), [a, b, "  at b", c]);
        let (a, b) = (
            r#"{"time":"2024-06-01T12:00:02.000Z","line":"a"}"#,
            r#"{"time":"2024-06-01T12:00:01.000Z","line":"b"}"#,
        );
        assert_eq!(merged(&[a], &[b]), [b, a]);
    }

    #[test]
    fn lines_without_times_stay_together() {
        assert_eq!(merged(&["z", "y"], &["a"]), ["z", "y", "a"]);
        assert_eq!(
            merged(&["2024-06-01T12:00:00.000Z a"], &["b"]),
            ["2024-06-01T12:00:00.000Z a", "b"]
        );
    }
}
