//! Durations, sizes and texts from outside as people read them.

use std::borrow::Cow;
use std::time::Duration;

/// `512 ms`, `3.2 s`, then minutes and more in whole seconds.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 if ms % 1000 < 50 => format!("{} s", ms / 1000),
        1000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string(),
    }
}

/// `52.3 MiB`.
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// Text from outside, harmless as part of a line: control characters (so that it neither ends the
/// line nor reaches the terminal as a command) and characters that turn the direction of writing
/// are shown escaped, as `\n`, `\u{1b}`, `\u{202e}`.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut harmless = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_harmful(char) {
            harmless.extend(char.escape_default());
        } else {
            harmless.push(char);
        }
    }
    Cow::Owned(harmless)
}

/// C0, DEL and C1; line and paragraph separators; bidirectional controls (UAX #9, 2).
pub fn is_harmful(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A line of a log for a terminal: as [`one_line`], but tabs and colours (SGR sequences, ECMA-48
/// 8.3.117) stay. What is not UTF-8 is shown as `\xff`. Colours that the line leaves set are reset
/// at its end.
pub fn log_line(line: &[u8]) -> Cow<'_, [u8]> {
    if line.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(line);
    }
    let mut shown = Vec::with_capacity(line.len() + 16);
    let mut coloured = false;
    // The end of a line of Windows.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    for chunk in line.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(char) = rest.chars().next() {
            let length = match sgr(rest) {
                0 => {
                    if char != '\t' && is_harmful(char) {
                        shown.extend(char.escape_default().map(|c| c as u8));
                    } else {
                        shown.extend_from_slice(&rest.as_bytes()[..char.len_utf8()]);
                    }
                    char.len_utf8()
                }
                length => {
                    shown.extend_from_slice(&rest.as_bytes()[..length]);
                    coloured = true;
                    length
                }
            };
            rest = &rest[length..];
        }
        for byte in chunk.invalid() {
            shown.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
    if coloured {
        shown.extend_from_slice(b"\x1b[0m");
    }
    Cow::Owned(shown)
}

/// The length of the SGR sequence that the text begins with; 0 if it begins with something else.
fn sgr(text: &str) -> usize {
    let Some(parameters) = text.strip_prefix("\x1b[") else {
        return 0;
    };
    let end = parameters
        .bytes()
        .position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'));
    match end {
        Some(end) if parameters.as_bytes()[end] == b'm' => end + 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_stay_on_their_line_and_off_the_terminal() {
        for (text, shown) in [
            ("node server.js — ü", "node server.js — ü"),
            ("a\nerror: b\r", "a\\nerror: b\\r"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            (
                "a\u{202e}b\u{2066}c\u{2028}",
                "a\\u{202e}b\\u{2066}c\\u{2028}",
            ),
        ] {
            assert_eq!(one_line(text), shown);
        }
    }

    #[test]
    fn lines_of_logs_keep_their_colours_and_nothing_else() {
        for (line, shown) in [
            (&b"plain"[..], &b"plain"[..]),
            (b"a\tb \xc3\xbc", b"a\tb \xc3\xbc"),
            (b"\x1b[1;31mred", b"\x1b[1;31mred\x1b[0m"),
            (b"\x1b[2J\x1b[m", b"\\u{1b}[2J\x1b[m\x1b[0m"),
            (b"\x1b]52;c;eA==\x07", b"\\u{1b}]52;c;eA==\\u{7}"),
            (b"\xff\xc2\x9b1m\x1b", b"\\xff\\u{9b}1m\\u{1b}"),
            (b"progress\rdone", b"progress\\rdone"),
            (b"\x1b[12", b"\\u{1b}[12"),
        ] {
            assert_eq!(
                String::from_utf8_lossy(&log_line(line)),
                String::from_utf8_lossy(shown)
            );
        }
    }
}
