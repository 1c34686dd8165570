//! The text that `rsup init` writes: a short file, filled in from what the folder holds.

use std::fmt::Write;
use std::path::Path;

use super::name;

/// A guess at the app in a folder.
struct Guess {
    /// A TOML value.
    command: String,
    /// The file that the guess is based on.
    from: &'static str,
    /// Variables as TOML, without braces.
    env: &'static str,
}

/// A short commented `supervisor.toml` for the project in `folder`; always valid.
pub fn sample(folder: &Path) -> String {
    let name = app_name(folder);
    let guess = guess(folder);
    let mut out = String::from(
        "# rsup start: starts it; rsup reload: a new version, without a failed request.\n\n",
    );
    let _ = writeln!(out, "[app.{name}]");
    match &guess {
        Some(guess) => {
            let _ = writeln!(out, "command   = {}   # from {}", guess.command, guess.from);
        }
        None => out.push_str("command   = [\"node\", \"server.js\"]   # program and arguments; never given to a shell\n"),
    }
    out.push_str("instances = 2                # or \"max\", one for each core\n");
    out.push_str(
        "listen    = 3000             # all instances share it; the app finds the port in PORT\n",
    );
    match guess
        .as_ref()
        .map_or("NODE_ENV = \"production\"", |guess| guess.env)
    {
        "" => out.push_str("# env     = { NAME = \"value\" }\n"),
        env => {
            let _ = writeln!(out, "env       = {{ {env} }}");
        }
    }
    let comment = if folder.join(".env").is_file() {
        ""
    } else {
        "# "
    };
    let _ = writeln!(out, "{comment}env_file = \".env\"");
    out.push_str("# readiness = \"/ready\"       # a worker takes traffic once this answers 2xx; absent: once it accepts\n");
    out.push_str("# max_memory = \"500M\"        # a larger worker is replaced\n");
    // Files of the folder decide parts of the text: a bare file is better than one that does not
    // load.
    match super::parse(&out, &folder.join("supervisor.toml")) {
        Ok(_) => out,
        Err(_) => "[app.web]\ncommand = [\"node\", \"server.js\"]\nlisten  = 3000\n".to_owned(),
    }
}

fn app_name(folder: &Path) -> String {
    let folder = super::absolute(folder);
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    // A dot would make two keys of it.
    let name = name::derived(&name.to_lowercase().replace('.', "-"));
    name.map_or_else(|| "web".to_owned(), |name| name.to_string())
}

fn guess(folder: &Path) -> Option<Guess> {
    let has = |name: &str| folder.join(name).is_file();
    if has("package.json") {
        return node(folder);
    }
    if has("manage.py") {
        let command = format!("[\"gunicorn\", \"{}.wsgi\"]", django_project(folder)?);
        return Some(Guess {
            command,
            from: "manage.py",
            env: "",
        });
    }
    for (file, label) in [
        ("pyproject.toml", "pyproject.toml"),
        ("requirements.txt", "requirements.txt"),
    ] {
        if has(file) {
            return Some(python(
                folder,
                &super::read_text(&folder.join(file)).unwrap_or_default(),
                label,
            ));
        }
    }
    if has("go.mod") {
        let text = super::read_text(&folder.join("go.mod")).ok()?;
        let module = text
            .lines()
            .find_map(|line| line.strip_prefix("module "))?
            .trim();
        let binary = module.rsplit('/').find(|part| !is_version(part))?;
        return Some(Guess {
            command: program(binary)?,
            from: "go.mod (go build)",
            env: "",
        });
    }
    if has("Cargo.toml") {
        let text = super::read_text(&folder.join("Cargo.toml")).ok()?;
        let table: toml::Table = text.parse().ok()?;
        let name = table.get("package")?.get("name")?.as_str()?;
        return Some(Guess {
            command: program(&format!("target/release/{name}"))?,
            from: "Cargo.toml (cargo build --release)",
            env: "",
        });
    }
    None
}

/// Whether a part of a module's path is a version (`v2`), which is no name.
fn is_version(part: &str) -> bool {
    part.strip_prefix('v')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn program(path: &str) -> Option<String> {
    list(&[format!("./{path}")])
}

fn list(words: &[String]) -> Option<String> {
    // JSON's strings without control characters are TOML's as well.
    if words.iter().any(|word| word.chars().any(char::is_control)) {
        return None;
    }
    let quoted: Vec<String> = words
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()
        .ok()?;
    Some(format!("[{}]", quoted.join(", ")))
}

/// `scripts.start` if it is a plain command, else `npm start`; without it, `main`.
fn node(folder: &Path) -> Option<Guess> {
    const ENV: &str = "NODE_ENV = \"production\"";
    let package: serde_json::Value =
        serde_json::from_str(&super::read_text(&folder.join("package.json")).ok()?).ok()?;
    let start = package
        .get("scripts")
        .and_then(|scripts| scripts.get("start"))
        .and_then(|start| start.as_str());
    if let Some(start) = start {
        let words = shlex::split(start).unwrap_or_default();
        // Without npm in between, signals reach the app itself; but npm is needed for its PATH and
        // its shell.
        let plain = words.first().is_some_and(|program| program == "node")
            && !start.contains(['&', '|', ';', '$', '>', '<', '`', '*']);
        let words = if plain {
            words
        } else {
            vec!["npm".to_owned(), "start".to_owned()]
        };
        return Some(Guess {
            command: list(&words)?,
            from: "scripts.start of package.json",
            env: ENV,
        });
    }
    let main = package
        .get("main")
        .and_then(|main| main.as_str())
        .map(str::to_owned);
    let found = ["server.js", "index.js", "app.js", "server.mjs", "index.mjs"]
        .iter()
        .find(|name| folder.join(name).is_file());
    let main = main.or_else(|| found.map(|name| (*name).to_owned()))?;
    Some(Guess {
        command: list(&["node".to_owned(), main])?,
        from: "package.json",
        env: ENV,
    })
}

fn python(folder: &Path, needs: &str, from: &'static str) -> Guess {
    let found = ["main.py", "app.py", "server.py"]
        .iter()
        .find(|name| folder.join(name).is_file());
    let file = found.copied().unwrap_or("main.py");
    let module = file.trim_end_matches(".py");
    let needs = needs.to_lowercase();
    let command = if needs.contains("uvicorn") || needs.contains("fastapi") {
        format!("[\"uvicorn\", \"{module}:app\", \"--port\", \"3000\"]")
    } else if needs.contains("gunicorn") || needs.contains("flask") {
        format!("[\"gunicorn\", \"-b\", \"0.0.0.0:3000\", \"{module}:app\"]")
    } else {
        format!("[\"python3\", \"{file}\"]")
    };
    Guess {
        command,
        from,
        env: "PYTHONUNBUFFERED = 1",
    }
}

/// The folder with `wsgi.py` beside `manage.py`.
fn django_project(folder: &Path) -> Option<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("wsgi.py").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect();
    names.sort();
    names.into_iter().next()
}
