//! A configuration as it was written: values with their places, in the order of the text.
//!
//! A file becomes it through [`toml`]; the command line builds the same, so that one check serves
//! both.

use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::{CliError, Source};

pub(super) type Span = Range<usize>;

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: String,
    /// The place of the key.
    pub span: Span,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(super) struct Value {
    pub kind: Kind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    String(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Datetime,
    Array(Vec<Value>),
    Table(Table),
}

impl Kind {
    pub fn at(self, span: Span) -> Value {
        Value { kind: self, span }
    }
}

impl Table {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

impl Value {
    /// The kind of value, for "expected …, found …".
    pub fn describe(&self) -> &'static str {
        match self.kind {
            Kind::String(_) => "a string",
            Kind::Int(_) => "an integer",
            Kind::Float(_) => "a number with a fraction",
            Kind::Bool(_) => "a boolean",
            Kind::Datetime => "a date",
            Kind::Array(_) => "a list",
            Kind::Table(_) => "a table",
        }
    }

    pub fn bad(&self, message: impl Into<String>) -> Bad {
        Bad {
            span: self.span.clone(),
            message: message.into(),
            hint: None,
        }
    }

    pub fn expected(&self, what: &str) -> Bad {
        self.bad(format!("expected {what}, found {}", self.describe()))
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::String(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, also in quotes.
    pub fn as_int(&self) -> Option<i64> {
        match &self.kind {
            Kind::Int(n) => Some(*n),
            Kind::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

/// A value that cannot be used; it becomes a [`CliError`] once the reader of the table adds the
/// key.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub span: Span,
    pub message: String,
    pub hint: Option<String>,
}

impl Bad {
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Reads TOML; returns all syntax errors if there are any.
pub(super) fn parse(source: &Arc<Source>) -> Result<Table, Vec<CliError>> {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let mut problems: Vec<CliError> = errors
        .iter()
        .map(|error| {
            let problem = CliError::error(source, error.message());
            match error.span().map(|span| within_line(&source.text, span)) {
                Some(span) => match syntax_hint(&source.text, &span, error.message()) {
                    Some(hint) => problem.at(span).hint(hint),
                    None => problem.at(span),
                },
                None => problem,
            }
        })
        .collect();
    let table = convert_table(table.get_ref(), source, &mut problems);
    problems.sort_by_key(CliError::order);
    if problems.is_empty() {
        Ok(table)
    } else {
        Err(problems)
    }
}

/// Moves a mistake at the end of a line under its last character, away from the line break.
fn within_line(text: &str, span: Span) -> Span {
    let trimmed = text
        .get(span.clone())
        .map_or(0, |part| part.trim_end_matches(['\n', '\r']).len());
    let end = span.start + trimmed;
    let at_end = text
        .get(end..)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['\n', '\r']));
    let last = text
        .get(..end)
        .and_then(|before| before.chars().next_back())
        .filter(|c| !c.is_control());
    match last {
        Some(last) if trimmed == 0 && at_end => end - last.len_utf8()..end,
        _ => span.start..end,
    }
}

/// A hint for common mistakes in TOML.
fn syntax_hint(text: &str, span: &Span, message: &str) -> Option<String> {
    if text.trim_start().starts_with('{') {
        return Some(
            "this looks like JSON; write TOML: `[app.NAME]`, and below it `key = value`".to_owned(),
        );
    }
    if message.contains("duplicate key") {
        return Some("it is written once more above; keep one of them".to_owned());
    }
    let before = text.get(..span.start)?;
    let line = text
        .get(before.rfind('\n').map_or(0, |i| i + 1)..)?
        .lines()
        .next()?;
    if message.contains("string values must be quoted") {
        return Some(format!("write {:?}", text.get(span.clone())?));
    }
    let name = |text: &str| {
        !text.trim().is_empty()
            && text
                .trim()
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    match line.split_once(':') {
        Some((key, value)) if name(key) && !value.trim().is_empty() => {
            Some(format!("write `{} = {}`", key.trim(), value.trim()))
        }
        _ => None,
    }
}

fn convert_table(table: &DeTable<'_>, source: &Arc<Source>, problems: &mut Vec<CliError>) -> Table {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            span: key.span(),
            value: convert(value.get_ref(), value.span(), source, problems),
        })
        .collect();
    entries.sort_by_key(|entry| entry.span.start);
    Table { entries }
}

fn convert(
    value: &DeValue<'_>,
    span: Span,
    source: &Arc<Source>,
    problems: &mut Vec<CliError>,
) -> Value {
    let kind = match value {
        DeValue::String(text) => Kind::String(text.to_string()),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Kind::Int(n),
            Err(_) => {
                problems
                    .push(CliError::error(source, "this integer is too large").at(span.clone()));
                Kind::Int(0)
            }
        },
        DeValue::Float(n) => Kind::Float(n.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(b) => Kind::Bool(*b),
        DeValue::Datetime(_) => Kind::Datetime,
        DeValue::Array(items) => Kind::Array(
            items
                .iter()
                .map(|item| convert(item.get_ref(), item.span(), source, problems))
                .collect(),
        ),
        DeValue::Table(table) => Kind::Table(convert_table(table, source, problems)),
    };
    Value { kind, span }
}
