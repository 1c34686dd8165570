//! `readiness` and `liveness`: a path, or a table with one kind of check.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;

use super::cursor::{Context, Cursor};
use super::keys::{self, Section};
use super::raw::{Bad, Kind, Span, Table, Value};
use super::types::{Check, Listen, Probe};
use super::{command, units, values};

const SUCCESS: RangeInclusive<u16> = 200..=299;

fn kinds_of(key: &str) -> &'static str {
    match key {
        "liveness" => "one of `path = \"/live\"`, `tcp = true` and `exec = [\"./check\"]`",
        _ => "one of `path = \"/ready\"`, `tcp = true`, `exec = [\"./check\"]` and `notify = true`",
    }
}

/// The kinds of probes that the app's addresses allow.
struct Reach {
    tcp: bool,
    unix: bool,
}

/// Reads both probes of an app; the default of readiness depends on its addresses.
pub(super) fn read(
    cx: &mut Context,
    app: &mut Cursor<'_>,
    listen: &[Listen],
    listen_timeout: Duration,
    min_uptime: Duration,
) -> (Probe, Option<Probe>) {
    // A wrong address is reported already; its absence is no second error.
    let wrong_listen = listen.is_empty() && app.span_of("listen").is_some();
    let reach = Reach {
        tcp: wrong_listen || listen.iter().any(|l| l.tcp().is_some()),
        unix: listen.iter().any(|l| l.tcp().is_none()),
    };
    let fallback = if reach.tcp { Check::Tcp } else { Check::Alive };
    let written = app.entry("readiness");
    let readiness = match written {
        Some(entry) => probe(cx, &entry.value, &keys::READINESS, app, &reach),
        None => None,
    };
    let readiness = readiness.unwrap_or_else(|| with_defaults(fallback, &keys::READINESS));
    possible(cx, app, &readiness, listen_timeout, min_uptime);

    let live = app.entry("liveness");
    let liveness = live.and_then(|entry| probe(cx, &entry.value, &keys::LIVENESS, app, &reach));
    if let (
        Some(Probe {
            check: Check::Http {
                path: live_path, ..
            },
            ..
        }),
        Check::Http { path, .. },
        Some(entry),
    ) = (&liveness, &readiness.check, live)
        && live_path == path
    {
        let bad = Bad {
            span: entry.span.clone(),
            message: "liveness asks the same path as readiness".to_owned(),
            hint: None,
        };
        cx.warn(
            bad.hint(
                "a worker that is only busy for a while would be replaced; give liveness a path that depends on nothing else",
            ),
        );
    }
    (readiness, liveness)
}

fn with_defaults(check: Check, section: &'static Section) -> Probe {
    let live = std::ptr::eq(section, &keys::LIVENESS);
    Probe {
        check,
        interval: if live {
            Duration::from_secs(10)
        } else {
            Duration::from_millis(250)
        },
        timeout: Duration::from_secs(1),
        initial_delay: Duration::ZERO,
        success_threshold: 1,
        failure_threshold: 3,
    }
}

/// Refuses a readiness check that no worker could pass within `listen_timeout`.
fn possible(
    cx: &mut Context,
    app: &Cursor<'_>,
    readiness: &Probe,
    listen_timeout: Duration,
    min_uptime: Duration,
) {
    let (least, why) = match readiness.check {
        Check::Alive => (
            min_uptime,
            "without `listen` or `readiness` a worker is ready after `restart.min_uptime`",
        ),
        _ => {
            let tries = readiness
                .interval
                .saturating_mul(readiness.success_threshold.saturating_sub(1));
            (
                readiness.initial_delay.saturating_add(tries),
                "its readiness takes `initial_delay` and `success_threshold` intervals",
            )
        }
    };
    if least < listen_timeout {
        return;
    }
    let span = ["listen_timeout", "readiness", "restart"]
        .iter()
        .find_map(|key| app.span_of(key))
        .unwrap_or(0..0);
    let message = format!(
        "no worker could be ready: it takes {} at least, and `listen_timeout` is {}",
        units::show_duration(least),
        units::show_duration(listen_timeout)
    );
    cx.error(Bad {
        span,
        message,
        hint: Some(why.to_owned()),
    });
}

fn probe(
    cx: &mut Context,
    value: &Value,
    section: &'static Section,
    app: &Cursor<'_>,
    reach: &Reach,
) -> Option<Probe> {
    let key = if std::ptr::eq(section, &keys::LIVENESS) {
        "liveness"
    } else {
        "readiness"
    };
    match &value.kind {
        Kind::Table(table) => table_probe(cx, value, table, section, key, app, reach),
        Kind::String(_) => {
            let read =
                path(value).and_then(|path| reachable(&value.span, key, reach).map(|()| path));
            match read {
                Ok(path) => Some(with_defaults(http(path), section)),
                Err(bad) => {
                    cx.error(Bad {
                        message: format!("`{key}`: {}", bad.message),
                        ..bad
                    });
                    None
                }
            }
        }
        _ => {
            let bad = value.expected("a path or a table").hint(format!(
                "a path as \"/ready\", or a table with {}",
                kinds_of(key)
            ));
            cx.error(Bad {
                message: format!("`{key}`: {}", bad.message),
                ..bad
            });
            None
        }
    }
}

fn http(path: String) -> Check {
    Check::Http {
        path,
        host: None,
        headers: BTreeMap::new(),
        expect_status: vec![SUCCESS],
    }
}

fn table_probe(
    cx: &mut Context,
    value: &Value,
    table: &Table,
    section: &'static Section,
    key: &'static str,
    app: &Cursor<'_>,
    reach: &Reach,
) -> Option<Probe> {
    let mut c = app.inside(table, section);
    let defaults = with_defaults(Check::Tcp, section);
    let failed = std::mem::take(&mut cx.failed);

    let path = c.maybe(cx, "path", path);
    let tcp = c.get(cx, "tcp", false, values::boolean);
    let exec = c.maybe(cx, "exec", command::read);
    let notify = c.get(cx, "notify", false, values::boolean);
    let expect_status = c.get(cx, "expect_status", vec![SUCCESS], expect_status);
    let host = c.maybe(cx, "host", host);
    let headers = c
        .take("headers")
        .map(|value| headers(cx, value))
        .unwrap_or_default();
    let interval = c.get(cx, "interval", defaults.interval, units::positive_duration);
    let timeout = c.get(cx, "timeout", defaults.timeout, units::positive_duration);
    let initial_delay = c.get(cx, "initial_delay", defaults.initial_delay, units::duration);
    let success_threshold = c.get(cx, "success_threshold", 1, |value| values::count(value, 1));
    let failure_threshold = c.get(cx, "failure_threshold", 3, |value| values::count(value, 1));

    let kinds: Vec<&'static str> = [
        ("path", c.span_of("path").is_some()),
        ("tcp", tcp),
        ("exec", c.span_of("exec").is_some()),
        ("notify", notify),
    ]
    .into_iter()
    .filter_map(|(kind, is)| is.then_some(kind))
    .collect();
    let kind = match kinds.as_slice() {
        [] => {
            if !cx.failed {
                cx.error(
                    value
                        .bad(format!("`{key}` does not say what to check"))
                        .hint(format!("write {}", kinds_of(key))),
                );
            }
            None
        }
        [kind] => Some(*kind),
        [first, second, ..] => {
            let span = c.span_of(second).unwrap_or(value.span.clone());
            let bad = Bad {
                span,
                message: format!("`{second}` beside `{first}`: a probe is of one kind"),
                hint: None,
            };
            cx.error(bad.hint("leave all but one out"));
            None
        }
    };
    if let Some(kind) = kind {
        let span = c.span_of(kind).unwrap_or(value.span.clone());
        if let ("path" | "tcp", Err(bad)) = (kind, reachable(&span, key, reach)) {
            cx.error(bad);
        }
        if (kind, key) == ("notify", "liveness") {
            let bad = Bad {
                span,
                message: "`notify` tells once that a worker is ready, not that it still lives"
                    .to_owned(),
                hint: None,
            };
            cx.error(bad.hint("use `path`, `tcp` or `exec` for liveness"));
        }
        for only_http in ["expect_status", "host", "headers"] {
            if let (false, Some(span)) = (kind == "path", c.span_of(only_http)) {
                let message = format!("`{only_http}` goes with `path`, not with `{kind}`");
                cx.error(Bad {
                    span,
                    message,
                    hint: None,
                });
            }
        }
    }
    c.finish(cx);
    let ok = !cx.failed;
    cx.failed |= failed;

    let check = match kind? {
        "path" => Check::Http {
            path: path?,
            host,
            headers,
            expect_status,
        },
        "tcp" => Check::Tcp,
        "exec" => Check::Exec { command: exec? },
        _ => Check::Notify,
    };
    ok.then_some(Probe {
        check,
        interval,
        timeout,
        initial_delay,
        success_threshold,
        failure_threshold,
    })
}

/// Refuses a network probe where a worker has no socket of its own.
fn reachable(span: &Span, key: &str, reach: &Reach) -> Result<(), Bad> {
    if reach.tcp {
        return Ok(());
    }
    let bad = |message: &str, hint: &str| Bad {
        span: span.clone(),
        message: message.to_owned(),
        hint: Some(hint.to_owned()),
    };
    let notify = if key == "liveness" {
        "`exec = [\"./check\"]`"
    } else {
        "`notify = true` or `exec = [\"./check\"]`"
    };
    Err(if reach.unix {
        bad(
            "a unix socket is shared by all workers, so a probe over it cannot tell one worker from another",
            &format!("use {notify}"),
        )
    } else {
        bad(
            "the app has no address to probe",
            &format!("add `listen`, for example `listen = 3001`, or use {notify}"),
        )
    })
}

fn path(value: &Value) -> Result<String, Bad> {
    let Some(text) = value.as_str() else {
        return Err(value.expected("a path").hint("write \"/ready\""));
    };
    if let Some((_, rest)) = text.split_once("://") {
        let path = rest.find('/').map_or("/", |i| &rest[i..]);
        return Err(value
            .bad("only the path: each worker is asked at its own address")
            .hint(format!("write \"{path}\"")));
    }
    if ["tcp", "notify"].contains(&text) {
        return Err(value
            .bad(format!("`{text}` is not a path"))
            .hint(format!("write {{ {text} = true }}")));
    }
    if !text.starts_with('/') {
        let bad = value.bad("a path begins with `/`");
        return Err(if text.is_empty() {
            bad
        } else {
            bad.hint(format!("write \"/{text}\""))
        });
    }
    match text.parse::<PathAndQuery>() {
        Ok(parsed) if parsed.as_str() == text => Ok(text.to_owned()),
        Ok(_) => Err(value.bad("a path without a `#`, please: it is never sent")),
        Err(_) => Err(value.bad("a character in it must be written as %XX")),
    }
}

fn host(value: &Value) -> Result<String, Bad> {
    let Some(text) = value.as_str() else {
        return Err(value.expected("a host name").hint("write \"example.com\""));
    };
    if text.is_empty() || text.contains(['/', ' ']) || HeaderValue::from_str(text).is_err() {
        return Err(value
            .bad("not a host name")
            .hint("write \"example.com\" or \"example.com:8080\""));
    }
    Ok(text.to_owned())
}

fn headers(cx: &mut Context, value: &Value) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    let Kind::Table(table) = &value.kind else {
        let bad = value
            .expected("a table")
            .hint("write `headers = { X-Probe = \"1\" }`");
        cx.error(Bad {
            message: format!("`headers`: {}", bad.message),
            ..bad
        });
        return headers;
    };
    for entry in &table.entries {
        let wrong = |message: String| Bad {
            span: entry.span.clone(),
            message,
            hint: None,
        };
        if HeaderName::from_bytes(entry.key.as_bytes()).is_err() {
            cx.error(wrong(format!(
                "`{}` cannot be the name of a header",
                entry.key
            )));
        } else if entry.key.eq_ignore_ascii_case("host") {
            cx.error(
                wrong("the Host header has a key of its own".to_owned())
                    .hint("write `host = \"example.com\"` beside `headers`"),
            );
        } else {
            let text = match &entry.value.kind {
                Kind::String(text) => text.clone(),
                Kind::Int(n) => n.to_string(),
                Kind::Bool(b) => b.to_string(),
                _ => {
                    cx.error(entry.value.expected("a string"));
                    continue;
                }
            };
            match HeaderValue::from_str(&text) {
                Ok(_) => drop(headers.insert(entry.key.clone(), text)),
                Err(_) => cx.error(entry.value.bad("a character in it cannot be in a header")),
            }
        }
    }
    headers
}

/// `200`, `"200-299"`, `"200,204"`, or a list of those.
fn expect_status(value: &Value) -> Result<Vec<RangeInclusive<u16>>, Bad> {
    const HINT: &str = "write 200, \"200-299\" or [200, 204]";
    let code = |n: i64| u16::try_from(n).ok().filter(|n| (100..=599).contains(n));
    let wrong =
        |what: &dyn std::fmt::Display| value.bad(format!("`{what}` is not a status")).hint(HINT);
    match &value.kind {
        Kind::Int(n) => code(*n).map(|n| vec![n..=n]).ok_or_else(|| wrong(n)),
        Kind::String(text) => text
            .split(',')
            .map(|part| {
                let (from, to) = part.split_once('-').unwrap_or((part, part));
                let number = |text: &str| {
                    text.trim()
                        .parse()
                        .ok()
                        .and_then(code)
                        .ok_or_else(|| wrong(&part.trim()))
                };
                let (from, to) = (number(from)?, number(to)?);
                if from > to {
                    Err(value.bad(format!("`{}` is empty", part.trim())).hint(HINT))
                } else {
                    Ok(from..=to)
                }
            })
            .collect(),
        Kind::Array(items) if !items.is_empty() => {
            let nested: Vec<_> = items
                .iter()
                .map(|item| match item.kind {
                    Kind::Array(_) => Err(item.expected("a status").hint(HINT)),
                    _ => expect_status(item),
                })
                .collect::<Result<_, _>>()?;
            Ok(nested.into_iter().flatten().collect())
        }
        Kind::Array(_) => Err(value.bad("an empty list").hint(HINT)),
        _ => Err(value.expected("a status").hint(HINT)),
    }
}
