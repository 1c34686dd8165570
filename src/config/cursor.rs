//! Reads a table key by key, records mistakes, and at the end reports unknown keys.

use std::path::PathBuf;
use std::sync::Arc;

use super::capacity::Capacity;
use super::error::{CliError, Source};
use super::keys::Section;
use super::raw::{Bad, Entry, Kind, Span, Table, Value};
use super::suggest;
use crate::sys::cgroup::{self, Controllers};
use crate::sys::needs::{self, V6};

/// What a check needs to know of the machine; an argument, so that tests can choose it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub cores: usize,
    pub ipv6: V6,
    /// Whether this process may start others as another user.
    pub privileged: bool,
    pub controllers: Controllers,
    /// The limits on the number of workers.
    pub capacity: Capacity,
}

impl Machine {
    pub fn here() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            ipv6: needs::ipv6(),
            privileged: nix::unistd::geteuid().is_root(),
            controllers: cgroup::controllers_of_machine(),
            capacity: Capacity::here(),
        }
    }
}

/// The text under check, and the problems found so far.
#[derive(Debug)]
pub(super) struct Context {
    pub source: Arc<Source>,
    /// The absolute folder of relative paths.
    pub base: PathBuf,
    pub machine: Machine,
    pub problems: Vec<CliError>,
    pub failed: bool,
}

impl Context {
    pub fn new(source: Arc<Source>, base: PathBuf, machine: Machine) -> Self {
        Self {
            source,
            base,
            machine,
            problems: Vec::new(),
            failed: false,
        }
    }

    pub fn push(&mut self, problem: CliError) {
        self.failed = true;
        self.problems.push(problem);
    }

    pub fn error(&mut self, bad: Bad) {
        let problem = self.problem(bad);
        self.push(problem);
    }

    pub fn warn(&mut self, bad: Bad) {
        let problem = self.problem(bad).into_warning();
        self.problems.push(problem);
    }

    pub fn problem(&self, bad: Bad) -> CliError {
        let problem = CliError::error(&self.source, bad.message).at(bad.span);
        match bad.hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

static NOTHING: Table = Table {
    entries: Vec::new(),
};

/// Returns the values of a table, and remembers which keys were asked for.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    table: &'a Table,
    section: &'static Section,
    /// The app that the table belongs to, if any.
    app: Option<&'a str>,
    asked: Vec<&'static str>,
}

impl<'a> Cursor<'a> {
    pub fn new(table: &'a Table, section: &'static Section, app: Option<&'a str>) -> Self {
        Self {
            table,
            section,
            app,
            asked: Vec::new(),
        }
    }

    pub fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        debug_assert!(
            self.section.keys.contains(&key),
            "{key} is missing from the keys of {}",
            self.section.header
        );
        self.asked.push(key);
        self.table.get(key)
    }

    pub fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The place of the key, if it is written.
    pub fn span_of(&self, key: &str) -> Option<Span> {
        self.table.get(key).map(|entry| entry.span.clone())
    }

    /// The value of a key, or its default if it is absent or wrong.
    pub fn get<T>(
        &mut self,
        cx: &mut Context,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value) -> Result<T, Bad>,
    ) -> T {
        self.maybe(cx, key, read).unwrap_or(default)
    }

    /// The value of a key without a default.
    pub fn maybe<T>(
        &mut self,
        cx: &mut Context,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, Bad>,
    ) -> Option<T> {
        match read(self.take(key)?) {
            Ok(value) => Some(value),
            Err(mut bad) => {
                if !bad.message.contains(key) {
                    bad.message = format!("`{key}`: {}", bad.message);
                }
                cx.error(bad);
                None
            }
        }
    }

    /// A table inside this one; empty if it is absent or not a table.
    pub fn sub(
        &mut self,
        cx: &mut Context,
        key: &'static str,
        section: &'static Section,
    ) -> Cursor<'a> {
        let table = match self.take(key) {
            None => &NOTHING,
            Some(Value {
                kind: Kind::Table(table),
                ..
            }) => table,
            Some(other) => {
                let example = section.keys.first().copied().unwrap_or_default();
                let bad = other
                    .expected("a table")
                    .hint(format!("write `{key} = {{ {example} = … }}`"));
                cx.error(Bad {
                    message: format!("`{key}`: {}", bad.message),
                    ..bad
                });
                &NOTHING
            }
        };
        Cursor::new(table, section, self.app)
    }

    /// A cursor for a table inside this one that the caller has found itself.
    pub fn inside<'b>(&self, table: &'b Table, section: &'static Section) -> Cursor<'b>
    where
        'a: 'b,
    {
        Cursor::new(table, section, self.app)
    }

    /// Reports every unknown key as an error, except those that begin with `x-`.
    pub fn finish(self, cx: &mut Context) {
        debug_assert!(
            self.section.keys.iter().all(|key| self.asked.contains(key)),
            "a key of {} is never read",
            self.section.header
        );
        for entry in &self.table.entries {
            if entry.key.starts_with("x-") || self.section.keys.contains(&entry.key.as_str()) {
                continue;
            }
            let bad = Bad {
                span: entry.span.clone(),
                message: format!("unknown key `{}`", entry.key),
                hint: None,
            };
            cx.error(match suggest::unknown_key(entry, self.section, self.app) {
                Some(hint) => bad.hint(hint),
                None => bad,
            });
        }
    }
}
