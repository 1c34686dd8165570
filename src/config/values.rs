//! Values that several tables have.

use std::path::{Path, PathBuf};

use super::raw::{Bad, Kind, Value};
use super::{suggest, units};

/// Makes a path absolute; it need not exist.
pub(super) fn path(base: &Path, value: &Value) -> Result<PathBuf, Bad> {
    let Some(text) = value.as_str() else {
        return Err(value.expected("a path"));
    };
    suggest::plain_path(value, text)?;
    Ok(base.join(text).components().collect())
}

pub(super) fn max_memory(value: &Value) -> Result<u64, Bad> {
    match units::size(value)? {
        0 => Err(value
            .bad("no process lives in no memory")
            .hint("leave it out for no limit")),
        n if n < 1 << 20 => {
            let bad = value.bad(format!("{n} bytes are less than any process needs"));
            Err(match value.as_int() {
                Some(_) => bad.hint(format!("write \"{n}M\" if it is megabytes")),
                None => bad.hint("write \"100M\" or more"),
            })
        }
        n => Ok(n),
    }
}

pub(super) fn boolean(value: &Value) -> Result<bool, Bad> {
    match (&value.kind, value.as_str()) {
        (Kind::Bool(b), _) => Ok(*b),
        (_, Some(text @ ("true" | "false"))) => Err(value
            .expected("true or false")
            .hint(format!("write {text} without quotes"))),
        (_, Some("yes" | "on")) | (Kind::Int(1), _) => {
            Err(value.expected("true or false").hint("write true"))
        }
        (_, Some("no" | "off")) | (Kind::Int(0), _) => {
            Err(value.expected("true or false").hint("write false"))
        }
        _ => Err(value.expected("true or false")),
    }
}

/// A whole number from `least` on.
pub(super) fn count(value: &Value, least: u32) -> Result<u32, Bad> {
    let what = format!("a whole number from {least} on");
    let n = value.as_int().ok_or_else(|| value.expected(&what))?;
    u32::try_from(n)
        .ok()
        .filter(|n| *n >= least)
        .ok_or_else(|| value.bad(format!("{n} is not {what}")))
}
