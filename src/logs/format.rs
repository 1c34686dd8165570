//! The format of lines in a file.

use std::io::Write as _;

use super::frame::Record;
use super::{Format, Settings, Source, Stream};

/// The settings for the format of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub format: Format,
    pub timestamps: bool,
}

impl From<&Settings> for Style {
    fn from(settings: &Settings) -> Self {
        Style {
            format: settings.format,
            timestamps: settings.timestamps,
        }
    }
}

/// Marks the end of a part that is continued, and the beginning of its continuation.
const MORE: &[u8] = "…".as_bytes();

/// Writes the prefix of every line of `stream` of `source`. It is the same for a whole batch of
/// lines: the clock is read once for it.
pub(super) fn prefix(style: Style, source: &Source, stream: Stream, out: &mut Vec<u8>) {
    head(
        style,
        &source.app,
        Some(source.instance),
        stream.name(),
        out,
    );
}

/// The prefix of a line among those of all apps.
pub(super) fn console_prefix(format: Format, source: &Source, stream: Stream, out: &mut Vec<u8>) {
    match format {
        Format::Json => prefix(
            Style {
                format,
                timestamps: true,
            },
            source,
            stream,
            out,
        ),
        Format::Text => {
            out.clear();
            let mark = if stream == Stream::Err { " err" } else { "" };
            // Writing to a Vec can't fail.
            let _ = write!(
                out,
                "{:.3} {}:{}{mark} | ",
                jiff::Timestamp::now(),
                source.app,
                source.instance
            );
        }
    }
}

/// A message of rsup itself among the lines of all apps.
pub(super) fn message(format: Format, level: &str, app: Option<&str>, text: &str) -> Vec<u8> {
    let now = jiff::Timestamp::now();
    let mut line = Vec::new();
    match format {
        Format::Json => {
            let object = Message {
                time: format!("{now:.3}"),
                level,
                app,
                stream: "rsup",
                line: text,
            };
            let _ = serde_json::to_writer(&mut line, &object);
        }
        Format::Text => {
            let about = app.map(|app| format!("{app}: ")).unwrap_or_default();
            let mark = if level == "info" {
                String::new()
            } else {
                format!("{level}: ")
            };
            let _ = write!(
                line,
                "{now:.3} rsup | {mark}{about}{}",
                crate::human::one_line(&text.replace('\n', " "))
            );
        }
    }
    line.push(b'\n');
    line
}

#[derive(serde::Serialize)]
struct Message<'a> {
    time: String,
    level: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    stream: &'a str,
    line: &'a str,
}

fn head(style: Style, app: &str, instance: Option<u32>, stream: &str, out: &mut Vec<u8>) {
    out.clear();
    // Writing to a Vec can't fail.
    let now = style.timestamps.then(jiff::Timestamp::now);
    match (style.format, now) {
        (Format::Text, None) => {}
        (Format::Text, Some(now)) => {
            let _ = write!(out, "{now:.3} ");
        }
        (Format::Json, now) => {
            out.push(b'{');
            if let Some(now) = now {
                let _ = write!(out, "\"time\":\"{now:.3}\",");
            }
            out.extend_from_slice(b"\"app\":");
            let _ = serde_json::to_writer(&mut *out, app);
            if let Some(instance) = instance {
                let _ = write!(out, ",\"instance\":{instance}");
            }
            let _ = write!(out, ",\"stream\":\"{stream}\",\"line\":");
        }
    }
}

/// Appends a record, behind its `prefix`, with its newline.
#[inline]
pub(super) fn record(format: Format, prefix: &[u8], record: Record<'_>, out: &mut Vec<u8>) {
    match format {
        Format::Text => {
            out.reserve(prefix.len() + record.bytes.len() + 2 * MORE.len() + 1);
            out.extend_from_slice(prefix);
            if record.continued {
                out.extend_from_slice(MORE);
            }
            out.extend_from_slice(record.bytes);
            if record.partial {
                out.extend_from_slice(MORE);
            }
            out.push(b'\n');
        }
        Format::Json => {
            out.extend_from_slice(prefix);
            if needs_no_escape(record.bytes) {
                out.push(b'"');
                out.extend_from_slice(record.bytes);
                out.push(b'"');
            } else {
                let _ = serde_json::to_writer(&mut *out, &*String::from_utf8_lossy(record.bytes));
            }
            let end: &[u8] = if record.partial {
                b",\"partial\":true}\n"
            } else {
                b"}\n"
            };
            out.extend_from_slice(end);
        }
    }
}

/// Whether a line, as most are, is ASCII that needs no escape in a JSON string. Looks at every byte
/// without leaving the loop, so that the compiler can vectorise it.
fn needs_no_escape(line: &[u8]) -> bool {
    let plain = |byte: u8| (b' '..0x80).contains(&byte) & (byte != b'"') & (byte != b'\\');
    line.iter().fold(true, |all, &byte| all & plain(byte))
}

/// A line of rsup itself in the file of an app.
pub(super) fn own_line(style: Style, app: &str, text: &str) -> Vec<u8> {
    let mut line = Vec::new();
    head(style, app, None, "rsup", &mut line);
    match style.format {
        Format::Text => {
            line.extend_from_slice(b"rsup: ");
            let text = text.replace('\n', " ");
            line.extend_from_slice(crate::human::one_line(&text).as_bytes());
        }
        Format::Json => {
            let _ = serde_json::to_writer(&mut line, text);
            line.push(b'}');
        }
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(style: Style, bytes: &[u8], continued: bool, partial: bool) -> Vec<u8> {
        let source = Source {
            app: "a\"b".into(),
            instance: 3,
            key: 1,
        };
        let (mut head, mut out) = (Vec::new(), Vec::new());
        prefix(style, &source, Stream::Err, &mut head);
        record(
            style.format,
            &head,
            Record {
                bytes,
                continued,
                partial,
                end: 0,
            },
            &mut out,
        );
        out
    }

    #[test]
    fn text_keeps_every_byte() {
        let style = Style {
            format: Format::Text,
            timestamps: false,
        };
        assert_eq!(one(style, b"\xff\0 x\r", false, false), b"\xff\0 x\r\n");
        assert_eq!(one(style, b"x", true, true), "…x…\n".as_bytes());
        let stamped = one(
            Style {
                timestamps: true,
                ..style
            },
            b"hello",
            false,
            false,
        );
        let stamped = String::from_utf8(stamped).expect("UTF-8");
        let (time, rest) = stamped.split_once(' ').expect("a space");
        assert_eq!(
            (time.len(), rest),
            ("2024-06-01T12:00:00.000Z".len(), "hello\n")
        );
        assert!(time.parse::<jiff::Timestamp>().is_ok());
    }

    #[test]
    fn json_is_json_whatever_the_line() {
        let style = Style {
            format: Format::Json,
            timestamps: true,
        };
        let line = one(style, b"say \"\x01\xff\"\\ \xc3\xa9", false, true);
        let value: serde_json::Value = serde_json::from_slice(&line).expect("valid JSON");
        assert_eq!(value["line"], "say \"\u{1}\u{fffd}\"\\ é");
        assert_eq!(
            (&value["app"], &value["instance"]),
            (&"a\"b".into(), &3.into())
        );
        assert_eq!(
            (&value["stream"], &value["partial"]),
            (&"err".into(), &true.into())
        );
        for byte in 0..=255 {
            let bytes = [b'a', byte, b'z'];
            let value: serde_json::Value =
                serde_json::from_slice(&one(style, &bytes, false, false)).expect("valid JSON");
            assert_eq!(value["line"], *String::from_utf8_lossy(&bytes));
        }
        let own: serde_json::Value =
            serde_json::from_slice(&own_line(style, "api", "x\ny")).expect("valid JSON");
        assert_eq!(
            (&own["stream"], &own["line"]),
            (&"rsup".into(), &"x\ny".into())
        );
    }
}
