//! The environment of an app: `env_file` first, `env` on top of it.

use std::collections::BTreeMap;

use super::cursor::{Context, Cursor};
use super::env_file;
use super::error::Source;
use super::raw::{Bad, Kind, Span, Value};
use super::suggest;

/// `env` and `env_file` combined.
#[derive(Debug, Default)]
pub(super) struct Env {
    pub vars: BTreeMap<String, String>,
    /// The place where PORT is set, to compare it with `listen`.
    pub port: Option<Span>,
}

/// Reads both keys of an app.
pub(super) fn read(cx: &mut Context, app: &mut Cursor<'_>) -> Env {
    let mut env = Env::default();
    let files = match app.take("env_file") {
        None => &[],
        Some(Value {
            kind: Kind::Array(items),
            ..
        }) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    for file in files {
        let mut vars = BTreeMap::new();
        if let Err(bad) = read_file(cx, file, &mut vars) {
            cx.error(Bad {
                message: format!("`env_file`: {}", bad.message),
                ..bad
            });
        }
        if vars.contains_key("PORT") {
            env.port = Some(file.span.clone());
        }
        env.vars.append(&mut vars);
    }
    match app.take("env") {
        None => {}
        Some(Value {
            kind: Kind::Table(table),
            ..
        }) => {
            // The lines around a mistake may hold secrets: only the name is shown.
            let names_only = Source::excerpt(&cx.source.path, &cx.source.text);
            let outer = std::mem::replace(&mut cx.source, names_only);
            for entry in &table.entries {
                if let Some((message, hint)) = name_problem(&entry.key) {
                    cx.error(Bad {
                        span: entry.span.clone(),
                        message,
                        hint,
                    });
                    continue;
                }
                if entry.key == "PORT" {
                    env.port = Some(entry.value.span.clone());
                }
                match text(&entry.value) {
                    Ok(text) => drop(env.vars.insert(entry.key.clone(), text)),
                    Err(bad) => {
                        cx.error(Bad {
                            span: entry.span.clone(),
                            message: format!("`{}`: {}", entry.key, bad.message),
                            ..bad
                        });
                    }
                }
            }
            cx.source = outer;
        }
        Some(other) => {
            let bad = other
                .expected("a table")
                .hint("write `env = { NODE_ENV = \"production\" }`");
            cx.error(Bad {
                message: format!("`env`: {}", bad.message),
                ..bad
            });
        }
    }
    env
}

fn text(value: &Value) -> Result<String, Bad> {
    match &value.kind {
        Kind::String(text) if text.contains('\0') => Err(value.bad("a value cannot contain a NUL")),
        Kind::String(text) => Ok(text.clone()),
        Kind::Int(n) => Ok(n.to_string()),
        Kind::Float(n) => Ok(n.to_string()),
        Kind::Bool(b) => Ok(b.to_string()),
        Kind::Datetime | Kind::Array(_) | Kind::Table(_) => Err(value
            .expected("a string")
            .hint("a variable is text; put it in quotes, as JSON for example")),
    }
}

/// The error for a wrong name of a variable, and a hint.
fn name_problem(name: &str) -> Option<(String, Option<String>)> {
    if name.is_empty() {
        return Some(("a variable without a name".to_owned(), None));
    }
    if name.starts_with("RSUP_")
        || [
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "LISTEN_PIDFDID",
        ]
        .contains(&name)
    {
        return Some((
            format!("rsup sets `{name}` itself, for each worker"),
            Some("choose another name".to_owned()),
        ));
    }
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Some((
            format!("`{name}`: the name of a variable does not begin with a digit"),
            None,
        ));
    }
    let bad = name
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"_.-".contains(*c))?;
    let hint = "letters, digits and `_` can".to_owned();
    Some((
        format!(
            "`{}` cannot be in the name of a variable",
            bad.escape_default()
        ),
        Some(hint),
    ))
}

fn read_file(
    cx: &mut Context,
    value: &Value,
    vars: &mut BTreeMap<String, String>,
) -> Result<(), Bad> {
    let Some(name) = value.as_str() else {
        return Err(value
            .expected("the path of a file")
            .hint("write `env_file = \".env\"`"));
    };
    suggest::plain_path(value, name)?;
    let path = cx.base.join(name);
    let text = super::read_text(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => value
            .bad(format!("no such file: {}", path.display()))
            .hint(format!(
                "relative paths are relative to {}",
                cx.base.display()
            )),
        _ => value.bad(format!("cannot read {}: {error}", path.display())),
    })?;
    let source = Source::excerpt(&path, &text);
    let (entries, mistakes) = env_file::parse(&text);
    let mut problems = mistakes;
    for entry in entries {
        match name_problem(&entry.name) {
            Some((message, hint)) => problems.push(Bad {
                span: entry.span,
                message,
                hint,
            }),
            None => drop(vars.insert(entry.name, entry.value)),
        }
    }
    problems.sort_by_key(|bad| bad.span.start);
    let outer = std::mem::replace(&mut cx.source, source);
    for bad in problems {
        let problem = cx.problem(bad).reached_from(value.span.start);
        cx.push(problem);
    }
    cx.source = outer;
    Ok(())
}
