//! The current folder as the shell sees it, with symbolic links kept.
//!
//! getcwd(2) answers with links followed, so a path made from it keeps naming the folder of *now*:
//! after `cd /srv/api/current`, no later deployment that switches the link would be seen.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// `$PWD` where that is the current folder, as `pwd -L` has it (POSIX, pwd); otherwise what getcwd(2) says.
///
/// # Errors
/// As getcwd(2): `NotFound` where the folder has been deleted.
pub fn logical() -> io::Result<PathBuf> {
    let of_shell = std::env::var_os("PWD").map(PathBuf::from);
    match of_shell {
        Some(path) if is_plain(&path) && is_here(&path) => Ok(path),
        _ => std::env::current_dir(),
    }
}

/// Absolute, with symbolic links kept, those of the current folder too; the path need not exist.
///
/// # Errors
/// As [`logical`]; `InvalidInput` for an empty path.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    if path.is_absolute() || path.as_os_str().is_empty() {
        std::path::absolute(path)
    } else {
        std::path::absolute(logical()?.join(path))
    }
}

/// Without `.` and `..`, which may mean another folder once a link has changed.
fn is_plain(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    path.is_absolute()
        && path.components().all(|part| part != Component::ParentDir)
        && !text.split(|b| *b == b'/').any(|part| part == b".")
}

fn is_here(path: &Path) -> bool {
    let id = |path: &Path| path.metadata().map(|of| (of.dev(), of.ino())).ok();
    id(path).is_some_and(|there| Some(there) == id(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_path_is_believed() {
        for (path, plain) in [
            ("/srv/current", true),
            ("/", true),
            ("srv/current", false),
            ("/srv/../srv", false),
            ("/srv/./x", false),
            ("", false),
        ] {
            assert_eq!(is_plain(Path::new(path)), plain, "{path}");
        }
    }

    #[test]
    fn absolute_paths_stay() {
        assert_eq!(absolute("/a/b".as_ref()).unwrap(), Path::new("/a/b"));
        assert!(absolute("b".as_ref()).unwrap().ends_with("b"));
        assert!(absolute("".as_ref()).is_err());
    }
}
