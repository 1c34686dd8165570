//! Parsers of option values that only the command line has.

use std::time::Duration;

/// `30s`, `250ms`; a bare number is milliseconds, as in the configuration.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(ms) => Duration::from_millis(ms),
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "write it as 30s, 250ms or 10m".to_owned())?,
    };
    if parsed.is_zero() {
        Err("longer than nothing, please".into())
    } else {
        Ok(parsed)
    }
}

/// The path of an HTTP request, with its query: what may stand in a request line.
pub fn http_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("a path begins with a slash: /{text}"));
    }
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        Some(odd) => Err(format!("write {odd:?} percent-encoded")),
        None => Ok(text.to_owned()),
    }
}
