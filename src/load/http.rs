//! One HTTP/1.1 exchange over a connection: write the request, read the answer to its end.
//!
//! Smaller than a general client on purpose: it must tell a failed write, a failed read and an
//! early close apart, which general clients fold into one error, and it shares the cores with the
//! app.

use std::io;

use super::connect::Stream;

/// Bytes per read, and the largest head that is accepted.
const BUFFER: usize = 16 * 1024;
/// Bytes of a body that are kept, to learn which worker answered.
const SAMPLE: usize = 1024;

/// Why an exchange failed, and whether any byte of the answer had come by then.
#[derive(Debug)]
pub(super) struct Fault {
    pub cause: Cause,
    pub answered: bool,
}

#[derive(Debug)]
pub(super) enum Cause {
    /// The request could not be written.
    Write(io::Error),
    /// Reading the answer failed: reset, most of the time.
    Read(io::Error),
    /// The connection ended before the answer did.
    Closed(String),
    /// The answer is not HTTP/1.
    Bad(String),
}

/// A complete answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    /// Whether the connection may carry another request.
    pub reusable: bool,
    /// The body ended with the connection, which has therefore ended.
    pub at_eof: bool,
}

/// Buffers of one client, reused from request to request.
#[derive(Debug)]
pub(super) struct Buffers {
    input: Box<[u8]>,
    /// The beginning of the last answer's body.
    pub sample: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Buffers {
            input: vec![0; BUFFER].into_boxed_slice(),
            sample: Vec::with_capacity(SAMPLE),
        }
    }
}

/// Writes `request` and reads one answer to its end.
pub(super) async fn exchange(
    stream: &mut Stream,
    request: &[u8],
    buffers: &mut Buffers,
) -> Result<Answer, Fault> {
    buffers.sample.clear();
    stream.write_all(request).await.map_err(|e| Fault {
        cause: Cause::Write(e),
        answered: false,
    })?;

    let mut filled = 0;
    let mut seen = 0; // of heads before the last: 100 Continue, 103 Early Hints
    let head = loop {
        match Head::parse(&buffers.input[..filled]) {
            Ok(Some(head)) if (100..200).contains(&head.status) && head.status != 101 => {
                seen += head.len;
                buffers.input.copy_within(head.len..filled, 0);
                filled -= head.len;
                continue;
            }
            Ok(Some(head)) => break head,
            Ok(None) if filled == BUFFER => {
                let why = format!("the answer's head is larger than {BUFFER} bytes");
                return Err(Fault {
                    cause: Cause::Bad(why),
                    answered: true,
                });
            }
            Ok(None) => {}
            Err(why) => {
                return Err(Fault {
                    cause: Cause::Bad(why),
                    answered: true,
                });
            }
        }
        let answered = seen + filled > 0;
        match stream.read(&mut buffers.input[filled..]).await {
            Ok(0) if !answered => {
                let cause = Cause::Closed("closed without an answer".into());
                return Err(Fault { cause, answered });
            }
            Ok(0) => {
                let why = format!("closed within the answer's head, after {filled} bytes");
                return Err(Fault {
                    cause: Cause::Closed(why),
                    answered,
                });
            }
            Ok(n) => filled += n,
            Err(e) => {
                return Err(Fault {
                    cause: Cause::Read(e),
                    answered,
                });
            }
        }
    };

    let mut body = head.body;
    let mut got = 0;
    let mut bytes = head.len..filled;
    loop {
        let used = match body.take(&buffers.input[bytes.clone()], &mut buffers.sample) {
            Ok(used) => used,
            Err(why) => {
                return Err(Fault {
                    cause: Cause::Bad(why.into()),
                    answered: true,
                });
            }
        };
        got += used;
        if body.is_complete() {
            // Bytes beyond the answer belong to no request: the connection is not used again.
            let reusable = head.keep_alive && used == bytes.len();
            return Ok(Answer {
                status: head.status,
                reusable,
                at_eof: false,
            });
        }
        match stream.read(&mut buffers.input).await {
            Ok(0) if matches!(body, Body::UntilEof) => {
                return Ok(Answer {
                    status: head.status,
                    reusable: false,
                    at_eof: true,
                });
            }
            Ok(0) => {
                let why = format!("closed within the answer's body, after {got} bytes");
                return Err(Fault {
                    cause: Cause::Closed(why),
                    answered: true,
                });
            }
            Ok(n) => bytes = 0..n,
            Err(e) => {
                return Err(Fault {
                    cause: Cause::Read(e),
                    answered: true,
                });
            }
        }
    }
}

/// The head of an answer.
#[derive(Debug)]
struct Head {
    len: usize,
    status: u16,
    keep_alive: bool,
    body: Body,
}

impl Head {
    /// `None`: more bytes are needed.
    fn parse(bytes: &[u8]) -> Result<Option<Head>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut headers = [httparse::EMPTY_HEADER; 96];
        let mut response = httparse::Response::new(&mut headers);
        let len = match response.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(e) => return Err(format!("not an HTTP answer: {e}")),
        };
        let status = response.code.unwrap_or_default();
        let mut keep_alive = response.version == Some(1);
        let mut length = None;
        let mut coded = false;
        let mut chunked = false;
        for header in response.headers.iter() {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                let n = std::str::from_utf8(value)
                    .ok()
                    .and_then(|v| v.parse::<u64>().ok());
                let Some(n) = n else {
                    return Err("Content-Length is not a number".into());
                };
                if length.is_some_and(|l| l != n) {
                    return Err("two different Content-Length".into());
                }
                length = Some(n);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                coded = true;
                chunked = last_token(value).eq_ignore_ascii_case(b"chunked");
            } else if header.name.eq_ignore_ascii_case("connection") {
                for token in value.split(|b| *b == b',').map(|t| t.trim_ascii()) {
                    if token.eq_ignore_ascii_case(b"close") {
                        keep_alive = false;
                    } else if token.eq_ignore_ascii_case(b"keep-alive")
                        && response.version == Some(0)
                    {
                        keep_alive = true;
                    }
                }
            }
        }
        let body = match length {
            _ if status < 200 || status == 204 || status == 304 => Body::Length(0),
            _ if chunked => Body::Chunked(Chunk::Size {
                value: 0,
                digits: 0,
            }),
            _ if coded => Body::UntilEof,
            Some(n) => Body::Length(n),
            None => Body::UntilEof,
        };
        // After 101 the connection speaks another protocol.
        keep_alive &= status != 101;
        Ok(Some(Head {
            len,
            status,
            keep_alive,
            body,
        }))
    }
}

fn last_token(value: &[u8]) -> &[u8] {
    value
        .rsplit(|b| *b == b',')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}

/// The position of the reader in a body.
#[derive(Debug)]
enum Body {
    /// This many bytes are still to come.
    Length(u64),
    Chunked(Chunk),
    UntilEof,
}

/// The position of the reader in a chunked body.
#[derive(Debug)]
enum Chunk {
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        value: u64,
    },
    Data {
        left: u64,
    },
    /// The line end after a chunk's data.
    DataEnd,
    /// In the lines after the last chunk; `line` bytes of the present one were read.
    Trailer {
        line: u64,
    },
    Done,
}

impl Body {
    fn is_complete(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Chunked(Chunk::Done))
    }

    /// Removes what belongs to the body from the front of `bytes`; returns how many bytes that was.
    fn take(&mut self, bytes: &[u8], sample: &mut Vec<u8>) -> Result<usize, &'static str> {
        match self {
            Body::UntilEof => {
                keep(sample, bytes);
                Ok(bytes.len())
            }
            Body::Length(left) => {
                let n = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                keep(sample, &bytes[..n]);
                *left -= n as u64;
                Ok(n)
            }
            Body::Chunked(state) => state.take(bytes, sample),
        }
    }
}

impl Chunk {
    fn take(&mut self, bytes: &[u8], sample: &mut Vec<u8>) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            *self = match *self {
                Chunk::Data { left } => {
                    let n = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                    keep(sample, &bytes[at..at + n]);
                    at += n;
                    match left - n as u64 {
                        0 => Chunk::DataEnd,
                        left => Chunk::Data { left },
                    }
                }
                Chunk::Done => break,
                ref line => {
                    at += 1;
                    line.next(byte)?
                }
            };
        }
        Ok(at)
    }

    /// The state after one byte of a line.
    fn next(&self, byte: u8) -> Result<Chunk, &'static str> {
        Ok(match (self, byte) {
            (&Chunk::Size { digits: 0, .. }, b'\n' | b'\r' | b';') => {
                return Err("a chunk without a size");
            }
            (&Chunk::Size { value, .. } | &Chunk::Extension { value }, b'\n') => match value {
                0 => Chunk::Trailer { line: 0 },
                left => Chunk::Data { left },
            },
            (&Chunk::Size { value, .. }, b';' | b'\r' | b' ' | b'\t') => Chunk::Extension { value },
            (&Chunk::Size { value, digits }, _) => match (byte as char).to_digit(16) {
                Some(digit) if digits < 16 => Chunk::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                },
                _ => return Err("a chunk's size is not a number"),
            },
            (&Chunk::Extension { value }, _) => Chunk::Extension { value },
            (Chunk::DataEnd, b'\r') => Chunk::DataEnd,
            (Chunk::DataEnd, b'\n') => Chunk::Size {
                value: 0,
                digits: 0,
            },
            (Chunk::DataEnd, _) => return Err("a chunk is longer than its size"),
            (Chunk::Trailer { line: 0 }, b'\n') => Chunk::Done,
            (Chunk::Trailer { .. }, b'\n') => Chunk::Trailer { line: 0 },
            (&Chunk::Trailer { line }, b'\r') => Chunk::Trailer { line },
            (&Chunk::Trailer { line }, _) => Chunk::Trailer { line: line + 1 },
            (&Chunk::Data { left }, _) => Chunk::Data { left },
            (Chunk::Done, _) => Chunk::Done,
        })
    }
}

/// Keeps the first bytes of a body.
fn keep(sample: &mut Vec<u8>, bytes: &[u8]) {
    let room = SAMPLE - sample.len().min(SAMPLE);
    sample.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds an answer in pieces of `step` bytes; returns the body and what was left over.
    fn read(answer: &[u8], step: usize) -> Result<(Vec<u8>, usize), String> {
        let head = Head::parse(answer)?.ok_or("head is not complete")?;
        let mut body = head.body;
        let mut sample = Vec::new();
        let mut rest = &answer[head.len..];
        while !rest.is_empty() && !body.is_complete() {
            let piece = &rest[..rest.len().min(step)];
            let used = body.take(piece, &mut sample)?;
            rest = &rest[used..];
        }
        if !body.is_complete() {
            return Err("incomplete".into());
        }
        Ok((sample, rest.len()))
    }

    #[test]
    fn bodies_end_where_they_should_however_they_are_cut() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n\
            5;a=b\r\nhello\r\n00A \r\n, world!!!\r\n0\r\nX: y\r\n\r\nHTTP";
        let length = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP";
        for step in 1..60 {
            assert_eq!(
                read(chunked, step),
                Ok((b"hello, world!!!".to_vec(), 4)),
                "step {step}"
            );
            assert_eq!(
                read(length, step),
                Ok((b"hello".to_vec(), 4)),
                "step {step}"
            );
        }
    }

    #[test]
    fn malformed_answers_are_refused() {
        for (answer, why) in [
            (&b"SSH-2.0-OpenSSH_9\r\n"[..], "not an HTTP answer"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
                "not a number",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                "different",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                "not a number",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
                "longer",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
                "without a size",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111",
                "not a number",
            ),
        ] {
            let error = read(answer, 100).expect_err("accepted");
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn head_tells_whether_the_connection_lives_on() {
        let keep = |s: &str| {
            Head::parse(s.as_bytes())
                .ok()
                .flatten()
                .map(|h| h.keep_alive)
        };
        assert_eq!(
            keep("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            Some(true)
        );
        assert_eq!(
            keep("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n"),
            Some(false)
        );
        assert_eq!(keep("HTTP/1.0 200 OK\r\n\r\n"), Some(false));
        assert_eq!(
            keep("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"),
            Some(true)
        );
        assert_eq!(keep("HTTP/1.1 200 OK\r\n"), None);
    }
}
