//! rsup's own output in the foreground: the lines of its workers and its messages, as they come.

use std::io;
use std::os::fd::AsFd;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error_text;
use crate::logs::{Console, Format, Reader};

/// How much is written at once. A pipe takes so much in one go as soon as somebody reads it.
const PIECE: usize = 16 << 10;
/// Starts the thread that writes to stdout. It may be held up for ever by whoever should read that; nobody
/// waits for it.
pub fn to_stdout(format: Format) -> io::Result<Console> {
    let (console, reader) = Console::new(format);
    thread::Builder::new().name("rsup-stdout".into()).spawn(move || write(reader))?;
    Ok(console)
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
