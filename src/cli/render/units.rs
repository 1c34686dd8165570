//! Numbers as people read them.

/// A duration in its two largest units: `512 ms`, `4.2 s`, `3m 20s`, `3d 4h`.
pub fn duration(ms: u64) -> String {
    let pair = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{small_unit}"),
    };
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        // Cut, not rounded: 9.96 s must not become 10.0 s.
        1..10 => format!("{seconds}.{} s", ms % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// An amount of memory: `52.3 MB`, in powers of 1024 as every process viewer counts them.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.95 and more would be shown as 1000.0: the next unit reads better.
    while amount >= 999.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// `1 worker`, `2 workers`.
pub fn count(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Formats a setting: `5 s` and `500 MB` rather than `5.0 s` and `500.0 MB`.
pub fn round(text: &str) -> String {
    text.replace(".0 ", " ")
}

/// An app's text on one line, without colours and other control sequences of a terminal.
pub fn harmless(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\t' => plain.push(' '),
            '\x1b' if rest.next_if_eq(&'[').is_some() => {
                // A control sequence goes up to its first letter.
                let _ = rest.by_ref().find(|c| ('@'..='~').contains(c));
            }
            c if crate::human::is_harmful(c) => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let day = 86_400_000;
        for (ms, text) in [
            (0, "0 ms"),
            (512, "512 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (9_999, "9.9 s"),
            (59_999, "59 s"),
            (60_000, "1m"),
            (200_000, "3m 20s"),
            (3_600_000, "1h"),
            (7_500_000, "2h 5m"),
            (3 * day + 4 * 3_600_000, "3d 4h"),
            (400 * day, "400d"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn amounts() {
        for (amount, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KB"),
            (54_840_525, "52.3 MB"),
            ((1 << 20) - 1, "1.0 MB"),
            (1 << 30, "1.0 GB"),
            (u64::MAX, "16384.0 PB"),
        ] {
            assert_eq!(bytes(amount), text);
        }
    }

    #[test]
    fn control_characters_are_left_out() {
        assert_eq!(harmless("a\x1b[1;31mb\x1b[0m\tc\r\n"), "ab c");
        assert_eq!(harmless("a\x1b]0;b\x07\x1b[3"), "a]0;b");
    }
}
