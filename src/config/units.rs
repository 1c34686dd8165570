//! Durations, sizes and shares, as users write them.

use std::time::Duration;

use super::raw::{Bad, Kind, Value};

pub(super) const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const DURATION_HINT: &str = "write \"30s\", \"250ms\", \"10m\", or 30000 (milliseconds)";
const SIZE_HINT: &str = "write \"500M\", \"1G\", or a number of bytes";

/// `"30s"`, `"250ms"`, `"1m 30s"`; a bare integer is milliseconds.
pub(super) fn duration(value: &Value) -> Result<Duration, Bad> {
    let parsed = match &value.kind {
        Kind::Int(n) => millis(*n),
        Kind::String(text) => parse_duration(text),
        Kind::Float(n) if n.is_finite() && *n >= 0.0 => {
            return Err(value
                .bad("a duration without a unit is a whole number of milliseconds")
                .hint(format!("write \"{n}s\" if it is seconds")));
        }
        _ => return Err(value.expected("a duration").hint(DURATION_HINT)),
    };
    parsed.map_err(|message| value.bad(message).hint(DURATION_HINT))
}

/// A duration that is not zero.
pub(super) fn positive_duration(value: &Value) -> Result<Duration, Bad> {
    match duration(value)? {
        Duration::ZERO => Err(value.bad("a duration of zero makes no sense here")),
        some => Ok(some),
    }
}

fn millis(n: i64) -> Result<Duration, String> {
    let n = u64::try_from(n).map_err(|_| "a duration cannot be negative".to_owned())?;
    at_most_a_year(Duration::from_millis(n))
}

fn at_most_a_year(duration: Duration) -> Result<Duration, String> {
    if duration > YEAR {
        Err("longer than a year".to_owned())
    } else {
        Ok(duration)
    }
}

/// Parses the text of a duration.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if let Ok(n) = text.parse::<i64>() {
        return millis(n);
    }
    if text.starts_with('-') {
        return Err("a duration cannot be negative".to_owned());
    }
    if let Some((whole, rest)) = text.split_once('.') {
        return fraction(whole, rest).ok_or_else(|| format!("`{text}` is not a duration"));
    }
    // To humantime `M` is a month, which is never meant here.
    if text.contains('M') {
        return Err(format!("`{text}`: minutes are written with a small m"));
    }
    match humantime::parse_duration(text) {
        Ok(duration) => at_most_a_year(duration),
        Err(humantime::DurationError::UnknownUnit { unit, .. }) => {
            Err(format!("`{unit}` is not a unit of time"))
        }
        Err(_) => Err(format!("`{text}` is not a duration")),
    }
}

/// `1.5s`: one number with a fraction and one unit.
fn fraction(whole: &str, rest: &str) -> Option<Duration> {
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (decimals, unit) = rest.split_at(digits);
    let unit = match unit.trim() {
        "ms" => 0.001,
        "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(decimals) {
        return None;
    }
    let number: f64 = format!("{whole}.{decimals}").parse().ok()?;
    at_most_a_year(Duration::try_from_secs_f64(number * unit).ok()?).ok()
}

/// Formats a duration so that [`parse_duration`] reads it back: the largest units without a loss.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        n if n % 3_600_000 == 0 => format!("{}h", n / 3_600_000),
        n if n % 60_000 == 0 => format!("{}m", n / 60_000),
        n if n % 1000 == 0 => format!("{}s", n / 1000),
        n => format!("{n}ms"),
    }
}

/// `"500M"`, `"1G"`: powers of 1024, as PM2 reads them; a bare integer is bytes.
pub(super) fn size(value: &Value) -> Result<u64, Bad> {
    match &value.kind {
        Kind::Int(n) => {
            u64::try_from(*n).map_err(|_| value.bad("a size cannot be negative").hint(SIZE_HINT))
        }
        Kind::String(text) => {
            parse_size(text).map_err(|message| value.bad(message).hint(SIZE_HINT))
        }
        _ => Err(value.expected("a size").hint(SIZE_HINT)),
    }
}

/// Parses the text of a size.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size");
    let trimmed = text.trim();
    let end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let shift = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "%" => return Err("a share of the machine's memory is not understood".to_owned()),
        other if number.is_empty() || other.is_empty() => return Err(wrong()),
        _ => return Err(format!("`{}` is not a unit of size", unit.trim())),
    };
    let unit = 1u64 << shift;
    if let Ok(n) = number.parse::<u64>() {
        return n
            .checked_mul(unit)
            .ok_or_else(|| format!("`{text}` is too large"));
    }
    let n: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = n * unit as f64;
    if bytes < 1e18 {
        Ok(bytes as u64)
    } else {
        Err(format!("`{text}` is too large"))
    }
}

/// `"50%"` → 50.
pub(super) fn percent(text: &str) -> Option<u32> {
    let number = text.trim().strip_suffix('%')?.trim_end();
    number.parse().ok().filter(|n| (1..=100).contains(n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("30s"), Ok(30_000));
        assert_eq!(ms("250ms"), Ok(250));
        assert_eq!(ms(" 10m "), Ok(600_000));
        assert_eq!(ms("1m 30s"), Ok(90_000));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("1.5s"), Ok(1500));
        assert_eq!(ms("0.5h"), Ok(1_800_000));
        assert_eq!(ms("3000"), Ok(3000));
        assert_eq!(ms("0"), Ok(0));
        for wrong in [
            "",
            "s",
            "abc",
            "10x",
            "-5s",
            "-5",
            "10M",
            "1.s",
            "1.5",
            ".5s",
            "1e3s",
            "400d",
            "99999999999999999999s",
            "1.5s 2s",
            "inf",
        ] {
            assert!(ms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(parse_size("500M"), Ok(500 << 20));
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("64 KiB"), Ok(64 << 10));
        assert_eq!(parse_size("10mb"), Ok(10 << 20));
        assert_eq!(parse_size("1048576"), Ok(1 << 20));
        for wrong in [
            "",
            "M",
            "-1M",
            "1.2.3M",
            "ten",
            "5X",
            "50%",
            "99999999999T",
            "nan",
            "1e30",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(percent("50%"), Some(50));
        assert_eq!(percent("100 %"), Some(100));
        for wrong in ["0%", "101%", "50", "%", "-1%", "1.5%"] {
            assert_eq!(percent(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(ms in 0u64..=31_536_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }

        #[test]
        fn a_size_is_its_number_times_its_unit(n in 0u64..1_000_000, (unit, shift) in prop::sample::select(vec![("", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)])) {
            prop_assert_eq!(parse_size(&format!("{n}{unit}")), Ok(n << shift));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = (parse_duration(&text), parse_size(&text), percent(&text));
        }

        #[test]
        fn nothing_near_a_unit_panics(text in "[0-9.eE+-]{0,22} ?(ms|s|m|h|d|M|G|T|%)?") {
            let _ = (parse_duration(&text), parse_size(&text), percent(&text));
        }
    }
}
