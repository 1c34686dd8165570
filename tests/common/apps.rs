//! Real apps in other languages, from `tests/apps`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

/// True if a test should go on without what is missing here.
///
/// # Panics
/// With `RSUP_TEST_REQUIRE_ALL=1` nothing may be missing.
pub fn missing(what: &str, why: &str) {
    assert!(
        std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"),
        "{what} is needed: {why}"
    );
    eprintln!("SKIPPED: {what} is not there: {why}");
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|why| format!("{command:?}: {why}"))?;
    if !output.status.success() {
        return Err(format!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps")
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("apps")
}

/// One at a time, in other test programs too.
fn locked<T>(name: &str, act: impl FnOnce() -> T) -> T {
    fs::create_dir_all(cache()).expect("a folder below target");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(cache().join(format!("{name}.lock")));
    let lock = Flock::lock(file.expect("a lock file"), FlockArg::LockExclusive).expect("the lock");
    let result = act();
    drop(lock);
    result
}

fn hash(text: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The interpreter itself, past version managers' wrappers; or says why the test is skipped.
pub fn python() -> Option<&'static str> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        output(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]))
    });
    found
        .as_deref()
        .inspect_err(|why| missing("python3", why))
        .ok()
}

/// One that every user can execute, wherever a version manager keeps its own; or says why the test is skipped.
pub fn python_for_all() -> Option<&'static str> {
    let open = |path: &Path| {
        path.ancestors()
            .all(|part| fs::metadata(part).is_ok_and(|found| found.permissions().mode() & 1 != 0))
    };
    let real = |python: &str| fs::canonicalize(python).ok().filter(|path| open(path));
    let found = [python()?, "/usr/bin/python3"]
        .into_iter()
        .find(|python| real(python).is_some() && open(Path::new(python)));
    if found.is_none() {
        missing(
            "a python3 for all users",
            "none can be executed by all of them",
        );
    }
    found
}

pub fn node() -> Option<&'static str> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| output(Command::new("node").args(["-p", "process.execPath"])));
    found
        .as_deref()
        .inspect_err(|why| missing("node", why))
        .ok()
}

/// A folder with the Express app, installed.
pub fn express() -> Option<PathBuf> {
    node()?;
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let install = || {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/express-api");
        let read = |name: &str| fs::read(from.join(name)).map_err(|why| format!("{name}: {why}"));
        let (package, server) = (read("package.json")?, read("server.js")?);
        let folder = cache().join(format!(
            "express-{}",
            hash(&[package.as_slice(), &server].concat())
        ));
        if folder.join("installed").exists() {
            return Ok(folder);
        }
        let write = |name: &str, bytes: &[u8]| {
            fs::write(folder.join(name), bytes).map_err(|why| format!("{name}: {why}"))
        };
        fs::create_dir_all(&folder).map_err(|why| why.to_string())?;
        write("package.json", &package)?;
        write("server.js", &server)?;
        output(
            Command::new("npm")
                .args(["install", "--no-audit", "--no-fund", "--no-update-notifier"])
                .current_dir(&folder),
        )?;
        write("installed", b"")?;
        Ok(folder)
    };
    let found = FOUND.get_or_init(|| locked("express", install));
    found
        .clone()
        .inspect_err(|why| missing("express", why))
        .ok()
}

/// A folder with `serve`, installed: the server of single-page apps.
pub fn serve() -> Option<PathBuf> {
    node()?;
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let install = || {
        let package = "serve@14.2.7";
        installed(package, |folder| {
            let options = [
                "--no-audit",
                "--no-fund",
                "--no-update-notifier",
                "--prefix",
                ".",
            ];
            let mut command = Command::new("npm");
            command
                .arg("install")
                .args(options)
                .arg(package)
                .current_dir(folder);
            command
        })
    };
    let found = FOUND.get_or_init(|| locked("serve", install));
    found.clone().inspect_err(|why| missing("serve", why)).ok()
}

/// A folder of Python packages (for `PYTHONPATH`) with servers in it.
pub fn python_servers() -> Option<PathBuf> {
    let python = python()?;
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let install = || {
        let packages = ["robyn==0.88.0", "gunicorn==27.0.1", "uvicorn==0.54.0"];
        installed(&packages.join("-"), |folder| {
            let options = [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-input",
                "--target",
                ".",
            ];
            let mut command = Command::new(python);
            command.args(options).args(packages).current_dir(folder);
            command
        })
    };
    let found = FOUND.get_or_init(|| locked("python", install));
    found
        .clone()
        .inspect_err(|why| missing("python's servers", why))
        .ok()
}

/// uWSGI with its plugin for Python, as Debian has it (`uwsgi-core`, `uwsgi-plugin-python3`).
pub fn uwsgi() -> Option<&'static str> {
    const PROGRAM: &str = "uwsgi_python3";
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| output(Command::new(PROGRAM).arg("--version")));
    found
        .as_ref()
        .inspect_err(|why| missing("uwsgi", why))
        .ok()
        .map(|_| PROGRAM)
}

/// A folder in which a command has installed what `name` says: once, and never a half of it.
fn installed(name: &str, command: impl FnOnce(&Path) -> Command) -> Result<PathBuf, String> {
    let folder = cache().join(format!("installed-{}", hash(name.as_bytes())));
    if !folder.join("installed").exists() {
        fs::create_dir_all(&folder).map_err(|why| why.to_string())?;
        output(&mut command(&folder))?;
        fs::write(folder.join("installed"), name).map_err(|why| why.to_string())?;
    }
    Ok(folder)
}

/// The Go server, built.
pub fn go_server() -> Option<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let source = sources().join("server.go");
        let text = fs::read(&source).map_err(|why| format!("{}: {why}", source.display()))?;
        let program = cache().join(format!("server-go-{}", hash(&text)));
        if !program.exists() {
            let fresh = program.with_extension("new");
            // Go takes no folder with a quote in its name, in which the repository may lie.
            let folder = tempfile::tempdir().map_err(|why| why.to_string())?;
            fs::copy(&source, folder.path().join("server.go")).map_err(|why| why.to_string())?;
            output(
                Command::new("go")
                    .env("GO111MODULE", "off")
                    .env("GOFLAGS", "")
                    .args(["build", "-o", "server", "server.go"])
                    .current_dir(folder.path()),
            )?;
            super::install(folder.path().join("server"), &fresh);
            fs::rename(&fresh, &program).map_err(|why| why.to_string())?;
        }
        Ok(program)
    };
    let found = FOUND.get_or_init(|| locked("go", build));
    found.clone().inspect_err(|why| missing("go", why)).ok()
}

/// `command = [...]` of a configuration.
pub fn toml_command(words: &[&str]) -> String {
    let words: Vec<String> = words
        .iter()
        .map(|w| toml::Value::from(*w).to_string())
        .collect();
    format!("command = [{}]", words.join(", "))
}

/// The built-in sample app.
pub fn sample() -> String {
    toml_command(&[super::RSUP, "sample-app"])
}
