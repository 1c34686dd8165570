//! Values of options that only the command line has.

use std::time::Duration;

/// `30s`, `250ms`; a bare number is milliseconds, as in the configuration.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(ms) => Duration::from_millis(ms),
        Err(_) => humantime::parse_duration(text).map_err(|_| "write it as 30s, 250ms or 10m".to_owned())?,
    };
    if parsed.is_zero() { Err("longer than nothing, please".into()) } else { Ok(parsed) }
}
