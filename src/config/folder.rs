//! The folder that workers run in, as it was found at a start or reload.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::types::{AppSpec, FolderId};

/// Follows the symbolic links of `cwd`; returns the folder, its identity and the git commit checked
/// out in it.
///
/// # Errors
/// As realpath(3); `NotADirectory` for anything but a folder.
pub(super) fn resolve(cwd: &Path) -> io::Result<(PathBuf, FolderId)> {
    let resolved = cwd.canonicalize()?;
    let found = resolved.metadata()?;
    if !found.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!("{} is not a folder", cwd.display()),
        ));
    }
    let id = FolderId {
        dev: found.dev(),
        ino: found.ino(),
        commit: commit(&resolved),
    };
    Ok((resolved, id))
}

/// A note if `new` runs in the very folder of `old`, with the same commit in it; `None` if it does
/// not.
#[must_use]
pub fn same_folder(old: &AppSpec, new: &AppSpec) -> Option<String> {
    // A state of a version that did not record the folder has nothing to compare.
    let (before, now) = (old.folder.as_ref()?, new.folder.as_ref()?);
    if old.cwd_resolved != new.cwd_resolved || before != now {
        return None;
    }
    let commit = match &now.commit {
        Some(commit) => format!(", commit {}", short(commit)),
        None => String::new(),
    };
    Some(format!(
        "its folder is the same as before: {}{commit}",
        new.cwd_resolved.display()
    ))
}

/// The first 12 digits of a commit.
#[must_use]
pub fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

/// The commit of `HEAD` in the work tree that `folder` belongs to (gitrepository-layout(5)). git is
/// not run: it may not be installed, and it would read configuration that another user wrote.
fn commit(folder: &Path) -> Option<String> {
    let dot_git = folder
        .ancestors()
        .map(|above| above.join(".git"))
        .find(|path| path.exists())?;
    let git = if dot_git.is_dir() {
        dot_git
    } else {
        // A file: the work tree is a linked one, or a submodule.
        let text = small(&dot_git)?;
        dot_git.parent()?.join(text.strip_prefix("gitdir:")?.trim())
    };
    let head = small(&git.join("HEAD"))?;
    let Some(name) = head.strip_prefix("ref:").map(str::trim) else {
        return object(&head);
    };
    if !name.starts_with("refs/") || name.split('/').any(|part| part == "..") {
        return None;
    }
    // Branches are shared by all work trees.
    let common = match small(&git.join("commondir")) {
        Some(path) => git.join(path.trim()),
        None => git.clone(),
    };
    let loose = [&git, &common]
        .into_iter()
        .find_map(|at| small(&at.join(name)));
    if let Some(text) = loose {
        return object(&text);
    }
    small(&common.join("packed-refs"))?
        .lines()
        .find_map(|line| {
            let (id, of) = line.split_once(' ')?;
            (of == name).then(|| object(id))?
        })
}

/// The name of a git object: SHA-1 or SHA-256.
fn object(text: &str) -> Option<String> {
    let text = text.trim();
    let fits = matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| text.to_owned())
}

/// The text of a plain file of at most 4 MiB.
fn small(path: &Path) -> Option<String> {
    const MOST: u64 = 4 << 20;
    // Only a plain file is opened: opening a pipe waits for a writer.
    let found = fs::metadata(path).ok()?;
    if !found.is_file() || found.len() > MOST {
        return None;
    }
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(MOST)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    #[test]
    fn the_commit_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let inner = folder.path().join("app");
        fs::create_dir(&inner).unwrap();
        write(".git/HEAD", "ref: refs/heads/main\n");
        assert_eq!(commit(&inner), None);
        write(
            ".git/packed-refs",
            &format!("# pack-refs with: peeled\n{ONE} refs/heads/main\n^{TWO}\n"),
        );
        assert_eq!(commit(&inner).as_deref(), Some(ONE));
        write(".git/refs/heads/main", &format!("{TWO}\n"));
        assert_eq!(commit(&inner).as_deref(), Some(TWO));
        write(".git/HEAD", &format!("{ONE}\n"));
        assert_eq!(commit(&inner).as_deref(), Some(ONE));
        // Another work tree of the same repository.
        write(".git/worktrees/r2/HEAD", "ref: refs/heads/main\n");
        write(".git/worktrees/r2/commondir", "../..\n");
        write("r2/.git", "gitdir: ../.git/worktrees/r2\n");
        assert_eq!(commit(&folder.path().join("r2")).as_deref(), Some(TWO));
        for odd in ["ref: ../../x", "ref: refs/../../HEAD", "no commit"] {
            write(".git/HEAD", odd);
            assert_eq!(commit(&inner), None, "{odd}");
        }
    }
}
