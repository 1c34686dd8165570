//! Durations and sizes as people read them.

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
