//! The daemon's messages: on stderr, or on its console among the lines of the workers.

use std::fmt::{self, Write as _};
use std::io;
use std::panic;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, error, info, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::config::AppName;
use crate::human;
use crate::logs::{Console, stderr};

/// The target of messages about one app, which begin with its name.
const ABOUT_APP: &str = "rsup::app";

/// Sends messages to stderr from now on, as JSON if wanted. The path never blocks, and loses those
/// that stderr does not take.
///
/// # Errors
/// When there are no threads left.
pub fn on_stderr(json: bool) -> io::Result<Console> {
    let console = stderr::begin(if json { told_as_json } else { told })?;
    let writer = Lossy {
        console: console.clone(),
        json,
    };
    let writer = move || writer.clone();
    // The library would write its own errors to stderr, and panic if that fails.
    let builder = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_target(false)
        .log_internal_errors(false);
    // A second call in the same process (tests) keeps the first.
    let _ = if json {
        tracing::subscriber::set_global_default(builder.json().finish())
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&io::stderr());
        tracing::subscriber::set_global_default(builder.with_ansi(ansi).finish())
    };
    Ok(console)
}

/// Makes a panic a message like any other: std would write it to stderr itself, and wait for that.
pub fn of_panics(console: Console) {
    panic::set_hook(Box::new(move |panic| {
        // Empty unless `RUST_BACKTRACE` is set.
        let backtrace = std::backtrace::Backtrace::capture();
        let more = if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            format!("\n{backtrace}")
        } else {
            String::new()
        };
        error!("this is a bug in rsup: {panic}{more}");
        // The process may end after this.
        console.flush(stderr::LAST_WORDS);
    }));
}

/// Passes on whole messages, and never fails.
#[derive(Clone)]
struct Lossy {
    console: Console,
    json: bool,
}

impl io::Write for Lossy {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        if self.json {
            self.console.whole(message); // JSON has escapes of its own
        } else {
            self.console.whole(&harmless(message));
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A message in which there may be text from outside, such as the name of a process: it is no command to
/// the terminal that shows it, and further lines are indented, so that none looks like a message of its own.
fn harmless(message: &[u8]) -> Vec<u8> {
    let message = message.strip_suffix(b"\n").unwrap_or(message);
    let mut shown = Vec::with_capacity(message.len() + 1);
    for (number, line) in message.split(|byte| *byte == b'\n').enumerate() {
        if number > 0 {
            shown.extend_from_slice(b"\n    ");
        }
        shown.extend_from_slice(&human::log_line(line));
    }
    shown.push(b'\n');
    shown
}

/// A report of lost lines, as a message among the others.
fn told(text: &str) -> Vec<u8> {
    format!("{}  WARN {text}\n", time()).into_bytes()
}

fn told_as_json(text: &str) -> Vec<u8> {
    let object =
        serde_json::json!({ "timestamp": time(), "level": "WARN", "fields": { "message": text } });
    format!("{object}\n").into_bytes()
}

/// The time in the library's format.
fn time() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// Where messages go to the console, sends what is written to stderr beside them by the same kind
/// of path.
///
/// # Errors
/// When there are no threads left.
pub fn on_stderr_too() -> io::Result<Console> {
    stderr::begin(told)
}

/// Sends messages to the console from now on.
pub fn on_console(console: Console) {
    let subscriber = tracing_subscriber::registry()
        .with(Lines(console))
        .with(LevelFilter::INFO);
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Logs an event of an app.
pub fn about(app: &AppName, text: &str, bad: bool) {
    if bad {
        warn!(target: ABOUT_APP, "{app}: {text}");
    } else {
        info!(target: ABOUT_APP, "{app}: {text}");
    }
}

struct Lines(Console);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let text = format!("{}{}", words.message, words.facts);
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        match text
            .split_once(": ")
            .filter(|_| event.metadata().target() == ABOUT_APP)
        {
            Some((app, text)) => self.0.message(&level, Some(app), text),
            None => self.0.message(&level, None, &text),
        }
    }
}

/// The message, and further fields as ` name=value`.
#[derive(Default)]
struct Words {
    message: String,
    facts: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.facts, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::with_default;

    use super::*;
    use crate::logs::Format;

    #[test]
    fn messages_are_lines_of_the_console() {
        let (console, mut reader) = Console::new(Format::Json);
        let subscriber = tracing_subscriber::registry()
            .with(Lines(console))
            .with(LevelFilter::INFO);
        with_default(subscriber, || {
            info!(pid = 7, version = "1.0", "rsup is up");
            tracing::debug!("not worth a line");
            about(&AppName::new("web"), "0 exited: code 3\nand more", true);
        });
        let chunk = reader.take().expect("lines");
        let lines: Vec<serde_json::Value> = chunk
            .bytes
            .split_inclusive(|b| *b == b'\n')
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(
            (&lines[0]["line"], &lines[0]["level"]),
            (&"rsup is up pid=7 version=1.0".into(), &"info".into())
        );
        assert_eq!(
            (&lines[1]["app"], &lines[1]["level"]),
            (&"web".into(), &"warn".into())
        );
        assert_eq!(lines[1]["line"], "0 exited: code 3\nand more");
    }
}
