//! rsup's own output in the foreground: the lines of its workers and its messages, as they come.

use std::io;
use std::thread;

use crate::logs::{Console, Format, sink, stderr};

/// Starts the thread that writes to stdout. The reader may hold it up for ever; no other thread
/// waits for it.
pub fn to_stdout(format: Format) -> io::Result<Console> {
    let (console, reader) = Console::new(format);
    let write = move || {
        sink::write_all(reader, &io::stdout(), |_, error, first| {
            if first {
                say(&format!(
                    "rsup: cannot write to stdout: {error}; its lines are lost from here on\n"
                ));
            }
        });
    };
    thread::Builder::new()
        .name("rsup-stdout".into())
        .spawn(write)?;
    Ok(console)
}

/// Writes to stderr, which may be as stuck as stdout.
fn say(text: &str) {
    if let Ok(console) = stderr::begin(|text| format!("rsup: {text}\n").into_bytes()) {
        console.whole(text.as_bytes());
    }
}
