//! Lines of logs: as the app wrote them, behind the app's name if there are several apps.

use serde::Serialize;

use super::{Output, Paint};
use crate::cli::error::CliError;
use crate::config::AppName;
use crate::human::log_line;
use crate::logs::Stream;

/// Writes lines of logs to stdout.
#[derive(Debug)]
pub struct LogLines<'a> {
    out: &'a Output,
    /// Width of the longest name; 0: one app alone needs no names.
    width: usize,
    /// On a terminal: nothing but colours of an app's own reaches it.
    harmless: bool,
}

/// With `--json`: one document per line.
#[derive(Serialize)]
struct Document<'a> {
    app: &'a AppName,
    stream: Stream,
    line: std::borrow::Cow<'a, str>,
}

impl<'a> LogLines<'a> {
    /// Writes lines of these apps; `raw`: on a terminal, too, as they are.
    pub fn new(out: &'a Output, apps: &[AppName], raw: bool) -> Self {
        let width = if apps.len() > 1 {
            apps.iter().map(|app| app.as_str().len()).max().unwrap_or(0)
        } else {
            0
        };
        let harmless = out.look.terminal && !raw;
        Self {
            out,
            width,
            harmless,
        }
    }

    /// Writes some lines of one app.
    pub fn write(&self, app: &AppName, lines: &[(Stream, Vec<u8>)]) -> Result<(), CliError> {
        let mut bytes = Vec::new();
        for (stream, line) in lines {
            if self.out.json {
                let document = Document {
                    app,
                    stream: *stream,
                    line: String::from_utf8_lossy(line),
                };
                serde_json::to_writer(&mut bytes, &document)
                    .map_err(|error| CliError::failed("local", error.to_string()))?;
            } else {
                bytes.extend_from_slice(self.prefix(app, *stream).as_bytes());
                if self.harmless {
                    bytes.extend_from_slice(&log_line(line));
                } else {
                    bytes.extend_from_slice(line);
                }
            }
            bytes.push(b'\n');
        }
        self.out.bytes(&bytes)
    }

    fn prefix(&self, app: &AppName, stream: Stream) -> String {
        if self.width == 0 {
            return String::new();
        }
        let paint = if stream == Stream::Err {
            Paint::Bad
        } else {
            Paint::Dim
        };
        self.out
            .look
            .paint(paint, &format!("{app:<width$} | ", width = self.width))
    }
}
