//! `supervisor.toml`: from text to a checked [`Config`], with all mistakes at once.
//!
//! The text becomes a tree of values with their places (`raw`), which `check` reads key by key with
//! a `cursor`. The command line of `rsup start server.js` builds the same tree.

pub(crate) mod accounts;
mod admin;
mod capabilities;
mod capacity;
mod check;
mod command;
mod cursor;
mod difference;
mod env;
mod env_file;
mod error;
mod folder;
mod init;
mod keys;
mod limits;
mod listen;
mod name;
mod policy;
mod probe;
mod raw;
mod script;
mod socket;
mod suggest;
mod types;
mod units;
mod user;
mod validate;
mod values;

#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use accounts::User;
pub use capacity::{too_many_files, too_many_slots};
pub use check::MOST_INSTANCES;
pub use error::{CliError, ConfigErrors, Finding};
pub use folder::{same_folder, short as short_commit};
pub use init::sample;
pub use script::{SCRIPTS, Script, from_script};
pub use types::*;

use cursor::{Context, Machine};
use error::Source;

/// What a relative path means nothing for.
pub const NO_FOLDER: &str = "the current folder has been deleted";
pub const NO_FOLDER_HINT: &str = "`cd` to the folder that is there now, perhaps of the same name";

/// Bytes. Far more than any configuration needs; a wrong path cannot fill the memory.
const MAX_FILE: u64 = 4 << 20;

/// A configuration, and the warnings on it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<CliError>,
}

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    match read_text(path) {
        Ok(text) => parse(&text, path),
        Err(error) => Err(ConfigErrors::new(vec![unreadable(path, &error)])),
    }
}

/// Checks the text of a file; relative paths in it are relative to the folder of `path`.
pub fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigErrors> {
    parse_on(Machine::here(), text, path)
}

/// Reads the text of an `env_file`: its variables, and the number of mistakes. For fuzzing.
///
/// # Panics
/// If a variable or a mistake lies outside the text.
#[doc(hidden)]
pub fn read_env_file(text: &str) -> (Vec<(String, String)>, usize) {
    let (variables, mistakes) = env_file::parse(text);
    for span in variables
        .iter()
        .map(|v| &v.span)
        .chain(mistakes.iter().map(|bad| &bad.span))
    {
        assert!(
            text.get(span.clone()).is_some(),
            "{span:?} is not in the text"
        );
    }
    (
        variables.into_iter().map(|v| (v.name, v.value)).collect(),
        mistakes.len(),
    )
}

/// An app with the defaults of every key but `command`, for tests.
#[cfg(test)]
pub(crate) fn minimal(name: &str, command: &[&str]) -> AppSpec {
    let text = format!("[app.{name}]\ncommand = {command:?}");
    let loaded = parse(&text, Path::new("/supervisor.toml"));
    let mut spec = loaded.expect("the text is valid").config.apps.remove(0);
    // Not those of this machine.
    (spec.source, spec.source_resolved, spec.folder) = (None, None, None);
    spec
}

fn parse_on(machine: Machine, text: &str, path: &Path) -> Result<Loaded, ConfigErrors> {
    let source = Source::new(path, text);
    let table = raw::parse(&source).map_err(ConfigErrors::new)?;
    let absolute = absolute(path);
    let base = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    let mut cx = Context::new(source, base, machine);
    let config = check::config(&mut cx, &table, &absolute);
    cx.problems.sort_by_key(CliError::order);
    if cx.failed {
        Err(ConfigErrors::new(cx.problems))
    } else {
        Ok(Loaded {
            config,
            warnings: cx.problems,
        })
    }
}

/// Follows the symbolic links of the working directory again, as a reload does: `current` may point
/// to another release than before.
pub fn resolve_cwd(spec: &mut AppSpec) -> io::Result<()> {
    let (resolved, id) = folder::resolve(&spec.cwd)?;
    (spec.cwd_resolved, spec.folder) = (resolved, Some(id));
    Ok(())
}

/// Looks the user of an app up again, with its present groups.
pub fn resolve_user(spec: &mut AppSpec) -> Result<(), String> {
    user::again(spec)
}

/// Makes a path absolute, with symbolic links kept.
fn absolute(path: &Path) -> PathBuf {
    crate::cwd::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than 4 MiB",
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error
            .as_bytes()
            .iter()
            .take(at)
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not valid UTF-8, first on line {line}"),
        )
    })
}

/// The error for a file that does not exist; where its folder does not exist either, an example is
/// no help.
fn missing(path: &Path, source: &Arc<Source>) -> CliError {
    let folder = match crate::cwd::absolute(path) {
        Ok(absolute) => absolute.parent().map(Path::to_owned),
        Err(_) => None,
    };
    match folder {
        None => CliError::error(source, format!("no such file: {NO_FOLDER}")).hint(NO_FOLDER_HINT),
        Some(folder) if !folder.exists() => CliError::error(
            source,
            format!(
                "no such file: the folder {} does not exist",
                folder.display()
            ),
        ),
        Some(_) => CliError::error(source, "no such file").hint("`rsup init` writes one"),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    let source = Source::new(path, "");
    match error.kind() {
        io::ErrorKind::NotFound => missing(path, &source),
        io::ErrorKind::IsADirectory => {
            let hint = format!(
                "name the file in it: {}",
                path.join("supervisor.toml").display()
            );
            CliError::error(&source, "this is a folder").hint(hint)
        }
        io::ErrorKind::PermissionDenied => CliError::error(&source, "no permission to read it"),
        io::ErrorKind::InvalidData => {
            CliError::error(&source, error.to_string()).hint("save it as UTF-8")
        }
        _ => CliError::error(&source, format!("cannot be read: {error}")),
    }
}
