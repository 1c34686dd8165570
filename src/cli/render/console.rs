//! rsup's own output in the foreground: the lines of its workers and its messages, as they come.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error_text;
use crate::cli::problem::Problem;
use crate::logs::{Console, Format, Reader};

/// How much is written at once. A pipe takes so much in one go as soon as somebody reads it.
const PIECE: usize = 16 << 10;
/// How long the end of rsup waits for whoever reads its output.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The thread that writes to stdout. It may be held up for ever by whoever should read that; nobody
/// waits for it.
pub struct Writer {
    console: Console,
    ended: mpsc::Receiver<()>,
}

/// Starts it.
pub fn to_stdout(format: Format) -> Result<(Console, Writer), Problem> {
    let (console, reader) = Console::new(format);
    let (sender, ended) = mpsc::channel();
    thread::Builder::new()
        .name("rsup-stdout".into())
        .spawn(move || {
            write(reader);
            drop(sender);
        })
        .map_err(|error| Problem::failed("local", format!("cannot start a thread: {error}")))?;
    Ok((console.clone(), Writer { console, ended }))
}

impl Writer {
    /// Writes what is left, unless nobody reads it.
    pub fn finish(self) {
        self.console.close();
        // The answer is the end of the other side.
        let _ = self.ended.recv_timeout(LAST_LINES);
    }
}

fn write(mut reader: Reader) {
    while let Some(chunk) = reader.take() {
        let mut done = 0;
        while let Some(piece) = chunk.bytes.get(done..(done + PIECE).min(chunk.bytes.len())).filter(|p| !p.is_empty()) {
            if let Err(error) = whole(piece) {
                if reader.failed(&chunk, done, &error.to_string()) {
                    error_text(&format!("rsup: cannot write to stdout: {error}; its lines are lost from here on\n"));
                }
                break;
            }
            done += piece.len();
            reader.wrote(piece.len());
        }
    }
}

/// Stdout may be non-blocking, by somebody else's doing.
fn whole(mut bytes: &[u8]) -> io::Result<()> {
    let out = io::stdout();
    while !bytes.is_empty() {
        // Past the buffer of `Stdout`, which would hide how much was written.
        match nix::unistd::write(&out, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
