//! `[app.NAME.limits]`: what a worker may use and do.

use super::cursor::{Context, Cursor};
use super::raw::{Bad, Kind, Value};
use super::types::{Capabilities, Limits};
use super::{keys, suggest, values};

/// Fewer descriptors than this leave no room for the sockets, the output and the first few files.
const LEAST_FILES: u32 = 16;

pub(super) fn read(cx: &mut Context, app: &mut Cursor<'_>, max_memory: Option<u64>) -> Limits {
    let mut c = app.sub(cx, "limits", &keys::LIMITS);
    let nofile = c.maybe(cx, "nofile", nofile);
    let nice = c.maybe(cx, "nice", nice);
    let no_new_privs = c.get(cx, "no_new_privs", false, values::boolean);
    let capabilities = c.maybe(cx, "capabilities", capabilities);
    let memory = c.maybe(cx, "memory", values::max_memory);
    let cpu = c.maybe(cx, "cpu", cpu);
    let tasks = c.maybe(cx, "tasks", |value| values::count(value, 1));
    if let (Some(hard), Some(soft), Some(value)) = (memory, max_memory, c.take("memory"))
        && soft >= hard
    {
        let bad = value.bad("`max_memory` comes too late: the kernel kills a worker that reaches `limits.memory` first");
        cx.warn(
            bad.hint("make `max_memory` the smaller one, so that the worker is replaced before"),
        );
    }
    let here = cx.machine.controllers;
    for (key, wanted, there, controller) in [
        ("memory", memory.is_some(), here.memory, "memory"),
        ("cpu", cpu.is_some(), here.cpu, "cpu"),
        ("tasks", tasks.is_some(), here.tasks, "pids"),
    ] {
        if let (true, false, Some(value)) = (wanted, there, c.take(key)) {
            let message = format!(
                "`{key}` will not be enforced: cgroup v2 has no `{controller}` controller on this machine"
            );
            cx.warn(value.bad(message));
        }
    }
    c.finish(cx);
    Limits {
        nofile,
        nice,
        no_new_privs,
        capabilities,
        memory,
        cpu,
        tasks,
    }
}

fn nofile(value: &Value) -> Result<u64, Bad> {
    let n = values::count(value, 0)?;
    if n < LEAST_FILES {
        return Err(value
            .bad(format!("with {n} open files no worker can run"))
            .hint("write 1024 or more"));
    }
    Ok(n.into())
}

fn nice(value: &Value) -> Result<i8, Bad> {
    const WHAT: &str = "a number from -20 (goes first) to 19 (waits for others)";
    let n = value.as_int().ok_or_else(|| value.expected(WHAT))?;
    i8::try_from(n)
        .ok()
        .filter(|n| (-20..=19).contains(n))
        .ok_or_else(|| value.bad(format!("{n} is not {WHAT}")))
}

/// Reads the capabilities to keep; every other is dropped for good.
fn capabilities(value: &Value) -> Result<Capabilities, Bad> {
    const HINT: &str = "write [] to keep none, or those to keep: [\"CAP_NET_BIND_SERVICE\"]";
    let Kind::Array(items) = &value.kind else {
        return Err(value.expected("a list of capabilities to keep").hint(HINT));
    };
    let one = |item: &Value| {
        let name = item
            .as_str()
            .ok_or_else(|| item.expected("the name of a capability").hint(HINT))?;
        Capabilities::number(name).ok_or_else(|| {
            let bad = item.bad(format!("`{name}` is not a capability"));
            match name.to_ascii_lowercase().as_str() {
                "all" => bad.hint("leave `capabilities` out to keep what the user has"),
                "none" => bad.hint("write [] to keep none"),
                lower => {
                    let full = if lower.starts_with("cap_") {
                        lower.to_owned()
                    } else {
                        format!("cap_{lower}")
                    };
                    let known: Vec<String> = Capabilities::names()
                        .iter()
                        .map(|name| name.to_ascii_lowercase())
                        .collect();
                    let known: Vec<&str> = known.iter().map(String::as_str).collect();
                    match suggest::nearest(&full, &known) {
                        Some(near) => {
                            bad.hint(format!("did you mean \"{}\"?", near.to_ascii_uppercase()))
                        }
                        None => bad.hint("capabilities(7) lists them"),
                    }
                }
            }
        })
    };
    items.iter().map(one).collect()
}

/// Reads a number of cores. The kernel's minimum is a hundredth of one (`cpu.max`, cgroup-v2.rst).
fn cpu(value: &Value) -> Result<f64, Bad> {
    const HINT: &str = "write a number of cores: 0.5, 2, 1.5";
    let cores = match &value.kind {
        Kind::Int(n) => *n as f64,
        Kind::Float(n) => *n,
        Kind::String(text) => match text
            .trim()
            .strip_suffix('%')
            .map(|share| share.trim().parse::<f64>())
        {
            Some(Ok(share)) if share.is_finite() => {
                return Err(value
                    .bad("a share of what?")
                    .hint(format!("write a number of cores: {}", share / 100.0)));
            }
            Some(_) => f64::NAN,
            None => text.trim().parse().unwrap_or(f64::NAN),
        },
        _ => return Err(value.expected("a number of cores").hint(HINT)),
    };
    if (0.01..=10_000.0).contains(&cores) {
        Ok(cores)
    } else {
        Err(value.bad("not a number of cores").hint(HINT))
    }
}
