//! The tables `stop`, `restart`, `reload` and `log` of an app.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cursor::{Context, Cursor};
use super::raw::{Bad, Kind, Value};
use super::types::*;
use super::{keys, suggest, units, values};
use crate::exit::signal_number;

/// `[app.NAME.stop]`
pub(super) fn stop(cx: &mut Context, app: &mut Cursor<'_>) -> Stop {
    let mut c = app.sub(cx, "stop", &keys::STOP);
    let signal = c.get(cx, "signal", libc::SIGTERM, signal);
    let exit_codes = c.get(cx, "exit_codes", BTreeSet::new(), exit_codes);
    c.finish(cx);
    Stop { signal, exit_codes }
}

fn signal(value: &Value) -> Result<i32, Bad> {
    const HINT: &str =
        "write \"SIGTERM\", \"SIGINT\", \"SIGQUIT\" or another that the app takes as its end";
    let number = match (value.as_int(), value.as_str()) {
        (Some(n), _) => signal_number(&n.to_string()),
        (None, Some(name)) => signal_number(name),
        (None, None) => return Err(value.expected("the name of a signal").hint(HINT)),
    };
    match number {
        Some(libc::SIGKILL) => Err(value
            .bad("SIGKILL leaves a worker no time to finish its requests")
            .hint("that comes after `kill_timeout` anyway; write `kill_timeout = 0` to have it at once")),
        Some(libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU | libc::SIGCONT) => {
            Err(value.bad("this signal does not end a process").hint(HINT))
        }
        Some(number) => Ok(number),
        None => Err(value.bad("no such signal").hint(HINT)),
    }
}

fn exit_codes(value: &Value) -> Result<BTreeSet<i32>, Bad> {
    let items = match &value.kind {
        Kind::Array(items) => items.as_slice(),
        Kind::Int(_) => std::slice::from_ref(value),
        _ => {
            return Err(value
                .expected("a list of exit codes")
                .hint("write `exit_codes = [0]`"));
        }
    };
    items
        .iter()
        .map(|item| match item.kind {
            Kind::Int(n) if (0..=255).contains(&n) => Ok(n as i32),
            Kind::Int(n) => Err(item
                .bad(format!("{n} is not an exit code"))
                .hint("they go from 0 to 255")),
            _ => Err(item.expected("a number from 0 to 255")),
        })
        .collect()
}

/// `[app.NAME.restart]`
pub(super) fn restart(cx: &mut Context, app: &mut Cursor<'_>) -> Restart {
    let mut c = app.sub(cx, "restart", &keys::RESTART);
    let policy = c.get(cx, "policy", RestartPolicy::Always, restart_policy);
    let max_restarts = c.get(cx, "max_restarts", 15, |value| values::count(value, 0));
    let min_uptime = c.get(cx, "min_uptime", Duration::from_secs(1), units::duration);
    let backoff = c.get(cx, "backoff", Duration::from_millis(100), units::duration);
    // A first delay above the default of the last is accepted; only two written values can
    // contradict.
    let backoff_max = c.get(
        cx,
        "backoff_max",
        backoff.max(Duration::from_secs(15)),
        units::duration,
    );
    if let (true, Some(value)) = (backoff > backoff_max, c.take("backoff_max")) {
        let message = format!(
            "`backoff_max` is less than `backoff`, which is {}",
            units::show_duration(backoff)
        );
        cx.error(value.bad(message));
    }
    let reset_after = c.get(cx, "reset_after", Duration::from_secs(30), units::duration);
    c.finish(cx);
    Restart {
        policy,
        max_restarts,
        min_uptime,
        backoff,
        backoff_max,
        reset_after,
    }
}

fn restart_policy(value: &Value) -> Result<RestartPolicy, Bad> {
    const KNOWN: &[&str] = &["always", "on-failure", "never"];
    match (value.as_str(), &value.kind) {
        (Some("always"), _) => Ok(RestartPolicy::Always),
        (Some("on-failure"), _) => Ok(RestartPolicy::OnFailure),
        (Some("never"), _) => Ok(RestartPolicy::Never),
        (Some("no"), _) | (_, Kind::Bool(false)) => {
            Err(value.bad("not a policy").hint("rsup calls it \"never\""))
        }
        (Some("yes" | "unless-stopped"), _) | (_, Kind::Bool(true)) => {
            Err(value.bad("not a policy").hint("rsup calls it \"always\""))
        }
        (Some(other), _) => {
            let normal = other.to_lowercase().replace(['_', ' '], "-");
            Err(value
                .bad(format!("`{other}` is not a policy"))
                .hint(suggest::one_of(&normal, KNOWN)))
        }
        (None, _) => Err(value.expected("a string").hint(suggest::one_of("", KNOWN))),
    }
}

/// `[app.NAME.reload]`
pub(super) fn reload(
    cx: &mut Context,
    app: &mut Cursor<'_>,
    min_uptime: Duration,
    listen_timeout: Duration,
) -> Reload {
    let mut c = app.sub(cx, "reload", &keys::RELOAD);
    let max_surge = c.get(cx, "max_surge", Surge::Percent(25), max_surge);
    let min_ready = c.get(cx, "min_ready", min_uptime, units::duration);
    let least = min_ready.saturating_add(listen_timeout);
    // Long timeouts of one worker extend the default; a written deadline must have room for one
    // worker.
    let deadline = c.get(
        cx,
        "deadline",
        Duration::from_secs(600).max(least),
        units::positive_duration,
    );
    if let Some(value) = c.take("deadline") {
        let long = units::show_duration(deadline);
        if min_ready >= deadline {
            cx.error(value.bad(format!(
                "no reload could end: `min_ready` alone is {}",
                units::show_duration(min_ready)
            )));
        } else if deadline < least {
            cx.warn(value.bad(format!(
                "a `deadline` of {long} may pass before the `listen_timeout` of the first worker"
            )));
        }
    }
    let auto_rollback = c.get(cx, "auto_rollback", true, values::boolean);
    c.finish(cx);
    Reload {
        max_surge,
        min_ready,
        deadline,
        auto_rollback,
    }
}

fn max_surge(value: &Value) -> Result<Surge, Bad> {
    const HINT: &str = "write a number of workers from 1 on, or a share of `instances` as \"50%\"";
    if let Some(text) = value.as_str()
        && text.contains('%')
    {
        let share = units::percent(text).ok_or_else(|| {
            value
                .bad(format!("`{text}` is not a share"))
                .hint("from \"1%\" to \"100%\"")
        })?;
        return Ok(Surge::Percent(u8::try_from(share).unwrap_or(100)));
    }
    match value.as_int() {
        Some(n @ 1..=250) => Ok(Surge::Workers(n as u16)),
        Some(0) => Err(value
            .bad("without room for a replacement nothing can be replaced")
            .hint(HINT)),
        Some(n) => Err(value.bad(format!("{n} is out of range")).hint(HINT)),
        None => Err(value.expected("a number").hint(HINT)),
    }
}

/// `[app.NAME.log]`
pub(super) fn log(cx: &mut Context, app: &mut Cursor<'_>) -> Log {
    let mut c = app.sub(cx, "log", &keys::LOG);
    let base = cx.base.clone();
    let out = c.maybe(cx, "out", |value| values::path(&base, value));
    let err = c.maybe(cx, "err", |value| values::path(&base, value));
    let format = c.get(cx, "format", LogFormat::Text, |value| {
        match value.as_str() {
            Some("text") => Ok(LogFormat::Text),
            Some("json") => Ok(LogFormat::Json),
            Some(other) => Err(value
                .bad(format!("`{other}` is not a format"))
                .hint(suggest::one_of(other, &["text", "json"]))),
            None => Err(value
                .expected("a string")
                .hint(suggest::one_of("", &["text", "json"]))),
        }
    });
    let timestamps = c.get(cx, "timestamps", true, values::boolean);
    let max_size = c.get(cx, "max_size", 50 << 20, |value| {
        match units::size(value)? {
            n @ 1..4096 => Err(value
                .bad(format!("{n} bytes are too few for a log"))
                .hint("write \"50M\", or 0 for no rotation")),
            n => Ok(n),
        }
    });
    let keep = c.get(cx, "keep", 10, |value| values::count(value, 0));
    let compress = c.get(cx, "compress", true, values::boolean);
    c.finish(cx);
    Log {
        out,
        err,
        format,
        timestamps,
        max_size,
        keep,
        compress,
    }
}
