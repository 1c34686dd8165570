//! Writes the lines of a [`Console`](super::Console) to a descriptor, in a thread that may block.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Reader;

/// Bytes per write. A pipe takes this many at once as soon as its reader reads.
const PIECE: usize = 16 << 10;

/// Writes until the console is closed. A stuck reader may hold it up for ever; no other thread
/// waits for it. `lost` gets the lines that could not be written, the reason, and whether it is the
/// first failure in a row.
pub fn write_all(reader: Reader, out: &impl AsFd, lost: impl FnMut(&[u8], &io::Error, bool)) {
    write_all_after(reader, out, |_| {}, lost);
}

/// The same; calls `before` with the number of bytes that are written next.
pub(super) fn write_all_after(
    mut reader: Reader,
    out: &impl AsFd,
    mut before: impl FnMut(usize),
    mut lost: impl FnMut(&[u8], &io::Error, bool),
) {
    // The last byte that was written: after a failure within a line, the next one begins on a new
    // line.
    let mut last = b'\n';
    let mut failing = false;
    while let Some(chunk) = reader.take() {
        let mut done = 0;
        before(chunk.bytes.len());
        while let Some(piece) = chunk
            .bytes
            .get(done..(done + PIECE).min(chunk.bytes.len()))
            .filter(|p| !p.is_empty())
        {
            let mended = if failing && last != b'\n' {
                write(out, b"\n")
            } else {
                (0, None)
            };
            let (written, error) = match mended {
                (_, None) => write(out, piece),
                (_, error) => (0, error),
            };
            if let Some(byte) = written.checked_sub(1).and_then(|at| piece.get(at)) {
                last = *byte;
            }
            done += written;
            if written > 0 {
                reader.wrote(written);
            }
            failing = error.is_some();
            if let Some(error) = error {
                let rest = chunk.bytes.get(done..).unwrap_or_default();
                // First: once nothing waits any more, `flush` returns, and the process may end.
                lost(rest, &error, !reader.is_failing());
                reader.failed(&chunk, done, &error.to_string());
                break;
            }
        }
    }
}

/// Returns how much was written, and why no more. Another process may have made the descriptor
/// non-blocking.
fn write(out: &impl AsFd, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match nix::unistd::write(out, rest) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => match poll(
                &mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)],
                PollTimeout::NONE,
            ) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(why) => return (written, Some(why.into())),
            },
            Err(why) => return (written, Some(why.into())),
        }
    }
    (written, None)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::super::{Console, Format};
    use super::*;

    #[test]
    fn what_is_lost_has_been_told_when_nothing_waits_any_more() {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let full = full.expect("/dev/full");
        let (console, reader) = Console::new(Format::Text);
        let (tell, told) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            write_all(reader, &full, |lines, _, _| {
                // A slow witness.
                std::thread::sleep(Duration::from_millis(50));
                drop(tell.send(lines.to_vec()));
            });
        });
        console.whole(b"the last words\n");
        console.flush(Duration::from_secs(60));
        assert_eq!(told.try_recv().expect("told"), b"the last words\n");
        console.close();
        writer.join().expect("the writer");
    }

    #[test]
    fn a_pipe_that_is_full_and_does_not_wait_is_waited_for() {
        let (mut from, to) = io::pipe().expect("a pipe");
        nix::fcntl::fcntl(
            &to,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .expect("fcntl");
        let (console, reader) = Console::new(Format::Text);
        let writer =
            std::thread::spawn(move || write_all(reader, &to, |_, why, _| panic!("{why}")));
        let line = [&[b'x'; 99][..], b"\n"].concat();
        for _ in 0..5000 {
            console.whole(&line); // 500 kB, of which a pipe takes 64
        }
        console.close();
        let mut text = Vec::new();
        from.read_to_end(&mut text).expect("read");
        writer.join().expect("the writer");
        assert_eq!((text.len(), console.lost().lines), (500_000, 0));
    }
}
