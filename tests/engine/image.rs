//! The image of `examples/docker`, built from the Dockerfile as it stands, with the repository as its context.
//!
//! No registry can be reached, so the two images that it builds upon are made here, of this machine's programs with
//! the libraries that they need: instead of the one with a compiler, one whose `cargo` has the rsup that is tested,
//! or the file that `RSUP_TEST_STATIC` names; instead of the one with Node, one with this machine's Node.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::RSUP;
use crate::engine::Engine;

/// The image's name.
pub const NAME: &str = "example";

const DOCKERFILE: &str = "examples/docker/Dockerfile";

/// What it means by `cargo`. The sources have to be there, and nothing that was built from them.
const CARGO: &str = r#"#!/bin/sh
set -e
[ "$1" = rustc ] && [ -e Cargo.toml ] && [ -e Cargo.lock ] && [ -e src/main.rs ] && [ ! -e target ] && [ ! -e .git ]
mkdir -p target/release
cp /prebuilt/rsup target/release/rsup
"#;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
    node:x:1000:1000::/home/node:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnode:x:1000:\n";

pub fn build(engine: &Engine) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dockerfile =
        fs::read_to_string(root.join(DOCKERFILE)).map_err(|why| format!("{DOCKERFILE}: {why}"))?;
    let bases: Vec<&str> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next())
        .collect();
    let [compiler, node] = bases[..] else {
        return Err(format!(
            "{DOCKERFILE} has other stages than expected: {bases:?}"
        ));
    };

    let folder = engine.folder().join("compiler");
    tree(&folder, &["sh", "mkdir", "cp"])?;
    let rsup = folder.join("prebuilt/rsup");
    let program = std::env::var("RSUP_TEST_STATIC").unwrap_or_else(|_| RSUP.to_owned());
    fs::create_dir(folder.join("prebuilt"))
        .and_then(|()| fs::copy(program, &rsup))
        .map_err(text)?;
    // The debug information is most of it. Where there is no `strip`, it stays.
    let _ = Command::new("strip").arg(&rsup).status();
    write(&folder.join("usr/bin/cargo"), CARGO, 0o755)?;
    import(engine, &folder, compiler)?;

    let folder = engine.folder().join("node");
    let program = crate::common::apps::node().ok_or("no Node")?;
    tree(&folder, &["sh", "mkdir", "chown", program])?;
    write(&folder.join("etc/passwd"), PASSWD, 0o644)?;
    write(&folder.join("etc/group"), GROUP, 0o644)?;
    for name in [
        "var/lib",
        "var/www",
        "home/node",
        "root",
        "proc",
        "sys",
        "dev",
    ] {
        fs::create_dir_all(folder.join(name)).map_err(text)?;
    }
    write(&folder.join("tmp/.keep"), "", 0o644)?;
    fs::set_permissions(folder.join("tmp"), fs::Permissions::from_mode(0o1777)).map_err(text)?;
    import(engine, &folder, node)?;

    let words = ["build", "--network", "none", "--tag", NAME, "--file"];
    let path = root.join(DOCKERFILE);
    let paths = [path.to_str().ok_or("UTF-8")?, root.to_str().ok_or("UTF-8")?];
    let built = engine.docker(&[&words[..], &paths].concat())?;
    if built.code == 0 {
        Ok(())
    } else {
        Err(format!(
            "docker build: {}\n{}{}",
            built.code, built.out, built.err
        ))
    }
}

fn text(why: impl ToString) -> String {
    why.to_string()
}

/// A root with these programs in /usr/bin and the libraries that they name.
fn tree(folder: &Path, programs: &[&str]) -> Result<(), String> {
    fs::create_dir_all(folder.join("usr/bin")).map_err(text)?;
    symlink("usr/bin", folder.join("bin")).map_err(text)?;
    for program in programs {
        let path = find(program)?;
        let name = Path::new(program).file_name().ok_or("a name")?;
        fs::copy(&path, folder.join("usr/bin").join(name))
            .map_err(|why| format!("{}: {why}", path.display()))?;
        for library in libraries(&path)? {
            let to = folder.join(library.strip_prefix("/").map_err(text)?);
            if !to.exists() {
                fs::create_dir_all(to.parent().ok_or("a folder")?).map_err(text)?;
                fs::copy(&library, &to).map_err(|why| format!("{}: {why}", library.display()))?;
            }
        }
    }
    Ok(())
}

fn find(program: &str) -> Result<PathBuf, String> {
    let folders = ["", "/usr/bin", "/bin"].map(|folder| Path::new(folder).join(program));
    folders
        .into_iter()
        .find(|path| path.is_absolute() && path.exists())
        .ok_or_else(|| format!("there is no {program}"))
}

/// The paths in what ldd(1) says: after `=>`, or alone for the loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, String> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .map_err(|why| format!("ldd: {why}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // One that is linked statically has none, which ldd calls a failure.
    Ok(said
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    let made = fs::create_dir_all(path.parent().ok_or("a folder")?);
    made.and_then(|()| fs::write(path, text))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|why| format!("{}: {why}", path.display()))
}

fn import(engine: &Engine, folder: &Path, name: &str) -> Result<(), String> {
    let tarball = folder.with_extension("tar");
    let packed = Command::new("tar")
        .args(["--numeric-owner", "--owner=0", "--group=0", "-C"])
        .arg(folder)
        .arg("-cf")
        .arg(&tarball)
        .arg(".")
        .status();
    if !packed.is_ok_and(|status| status.success()) {
        return Err(format!("tar cannot pack {}", folder.display()));
    }
    let path = tarball.to_str().ok_or("UTF-8")?;
    let change = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let imported = engine.docker(&["import", "--change", change, path, name])?;
    if imported.code != 0 {
        return Err(format!("docker import: {}", imported.err));
    }
    let _ = fs::remove_file(&tarball);
    fs::remove_dir_all(folder).map_err(text)
}
