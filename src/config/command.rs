//! Commands: `command` of an app, `exec` of a probe.

use std::path::Path;

use super::cursor::Context;
use super::raw::{Bad, Kind, Value};
use super::suggest;

pub(super) const HINT: &str =
    "write `command = [\"node\", \"server.js\"]` or `command = \"node server.js\"`";

/// A list of words, or one string that is split as a shell splits words.
pub(super) fn read(value: &Value) -> Result<Vec<String>, Bad> {
    let words: Vec<String> = match &value.kind {
        Kind::String(text) => {
            shlex::split(text).ok_or_else(|| value.bad("a quote in it is not closed"))?
        }
        Kind::Array(items) => items
            .iter()
            .map(|item| match &item.kind {
                Kind::String(text) => Ok(text.clone()),
                Kind::Int(n) => Ok(n.to_string()),
                _ => Err(item
                    .expected("a string")
                    .hint("each argument is a string of its own")),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(value.expected("a list of strings").hint(HINT)),
    };
    let Some(program) = words.first() else {
        return Err(value.bad("an empty command").hint(HINT));
    };
    if words.iter().any(|word| word.contains('\0')) {
        return Err(value.bad("an argument cannot contain a NUL"));
    }
    if program.is_empty() {
        return Err(value.bad("the program has no name").hint(HINT));
    }
    if program.starts_with("~/") {
        suggest::plain_path(value, program)?;
    }
    match &value.kind {
        Kind::String(text) => match words.iter().find(|word| is_operator(word)) {
            Some(operator) => Err(value
                .bad(format!(
                    "`{operator}` needs a shell, and commands are not given to one"
                ))
                .hint(with_shell(text))),
            None if is_assignment(program) => Err(value
                .bad(format!("`{program}` is not a program"))
                .hint("variables go into `env`")),
            None => Ok(words),
        },
        _ => Ok(words),
    }
}

fn with_shell(text: &str) -> String {
    format!("write [\"sh\", \"-c\", {text:?}]")
}

fn is_operator(word: &str) -> bool {
    [
        "&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1", "&>",
    ]
    .contains(&word)
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// Warns of `$PORT` in a command: the program gets it unexpanded, which is seldom meant.
pub(super) fn shell_habits(cx: &mut Context, value: &Value) {
    let Some(text) = value.as_str() else { return };
    let Some(words) = shlex::split(text) else {
        return;
    };
    let shell = words.first().is_some_and(|program| {
        program
            .rsplit('/')
            .next()
            .is_some_and(|name| name.ends_with("sh"))
    });
    let variable = words.iter().find(|word| {
        let after = word.split_once('$').map_or("", |(_, after)| after);
        after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '{' || c == '(')
    });
    if let (false, Some(word)) = (shell, variable) {
        let bad = value.bad(format!(
            "`command`: `{word}` reaches the program as it stands: no shell expands it"
        ));
        cx.warn(bad.hint(with_shell(&format!("exec {text}"))));
    }
}

/// A list of one string with blanks in it is a program of that name; where there is none, it was meant as a
/// command with its arguments.
pub(super) fn one_string(cx: &mut Context, value: &Value, words: &[String], cwd: &Path) {
    let (Kind::Array(_), [program]) = (&value.kind, words) else {
        return;
    };
    if !program.contains(' ') || is_there(program, cwd) {
        return;
    }
    let bad = value.bad(format!(
        "`command`: a list with one string is a program of that name, and there is no file `{program}`"
    ));
    cx.warn(
        bad.hint(
            "write each word as a string of its own, or the whole command without the brackets",
        ),
    );
}

/// Whether exec finds the program: in PATH, if its name has no slash (execvp(3)).
fn is_there(program: &str, cwd: &Path) -> bool {
    if program.contains('/') {
        return cwd.join(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}
