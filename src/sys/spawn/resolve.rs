//! Finds the file of a command: by the rules of execvp(3), with the *child's* `PATH` and directory.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{SpawnError, value_of};

/// What `execvp(3)` uses without a `PATH`.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// The path for `execve(2)`; relative to `cwd` if the command is.
pub(super) fn program(
    argv: &[CString],
    env: &[CString],
    cwd: &Path,
) -> Result<PathBuf, SpawnError> {
    let name = argv.first().map(|name| name.to_bytes()).unwrap_or_default();
    if name.is_empty() {
        return Err(SpawnError::Empty);
    }
    match fs::metadata(cwd) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(SpawnError::directory(cwd, libc::ENOTDIR)),
        // The child may be a user who can look into it.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
        Err(error) => {
            return Err(SpawnError::directory(
                cwd,
                error.raw_os_error().unwrap_or(libc::EIO),
            ));
        }
    }
    let program = Path::new(OsStr::from_bytes(name));
    if name.contains(&b'/') {
        return match look(&super::from(cwd, program)) {
            Found::Missing => {
                let hint = if program.is_absolute() {
                    String::new()
                } else {
                    format!(" in {}", cwd.display())
                };
                Err(SpawnError::NotFound {
                    program: program.to_owned(),
                    hint,
                })
            }
            Found::Directory => Err(SpawnError::IsDirectory {
                program: program.to_owned(),
            }),
            Found::Plain => Err(SpawnError::NotExecutable {
                program: program.to_owned(),
            }),
            Found::Program | Found::Unknown => Ok(program.to_owned()),
        };
    }
    search(program, env, cwd)
}

fn search(program: &Path, env: &[CString], cwd: &Path) -> Result<PathBuf, SpawnError> {
    let path = env
        .iter()
        .find_map(|entry| value_of(entry.to_bytes(), b"PATH"));
    let mut plain = None;
    for directory in path.unwrap_or(DEFAULT_PATH).split(|&byte| byte == b':') {
        // An empty entry means the working directory.
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(program);
        match look(&super::from(cwd, &candidate)) {
            Found::Program => return Ok(candidate),
            Found::Plain => {
                plain.get_or_insert(candidate);
            }
            Found::Missing | Found::Directory | Found::Unknown => {}
        }
    }
    if let Some(program) = plain {
        return Err(SpawnError::NotExecutable { program });
    }
    let name = program.display();
    let hint = match look(&super::from(cwd, program)) {
        Found::Program => format!(" on the PATH; there is one in {}: ./{name}", cwd.display()),
        Found::Plain => format!(
            " on the PATH; there is a file of that name in {}, not executable: chmod +x {name}, \
             then ./{name}",
            cwd.display()
        ),
        _ if path.is_none() => " (PATH is not set)".to_owned(),
        _ => " on the PATH".to_owned(),
    };
    Err(SpawnError::NotFound {
        program: program.to_owned(),
        hint,
    })
}

enum Found {
    Missing,
    Directory,
    /// A file without any execute permission.
    Plain,
    Program,
    /// This process may not look; the child may be another user.
    Unknown,
}

fn look(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Found::Directory,
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Found::Plain,
        Ok(_) => Found::Program,
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Found::Unknown,
        Err(_) => Found::Missing,
    }
}
