//! The dotenv format, as Node's `dotenv` reads it: `NAME=value` on each line, `export ` allowed
//! before it, comments, three kinds of quotes, values over several lines within quotes.
//!
//! Nothing is expanded: a `$` is a `$`.

use super::raw::{Bad, Span};

/// One variable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub name: String,
    pub value: String,
    /// Where the name stands.
    pub span: Span,
}

/// All variables in order, and all mistakes.
pub(super) fn parse(text: &str) -> (Vec<Variable>, Vec<Bad>) {
    let mut variables = Vec::new();
    let mut mistakes = Vec::new();
    let mut at = if text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    while at < text.len() {
        let end = line_end(text, at);
        let line = &text[at..end];
        let start = at + (line.len() - line.trim_start().len());
        let content = line.trim();
        at = end + 1;
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        match variable(text, start, end) {
            Ok((variable, after)) => {
                variables.push(variable);
                at = after;
            }
            Err(bad) => mistakes.push(bad),
        }
    }
    (variables, mistakes)
}

fn line_end(text: &str, from: usize) -> usize {
    text[from..].find('\n').map_or(text.len(), |i| from + i)
}

fn bad(span: Span, message: impl Into<String>) -> Bad {
    Bad {
        span,
        message: message.into(),
        hint: None,
    }
}

/// Parses the line from `start` to `end`: one variable, and where the next line begins.
fn variable(text: &str, start: usize, end: usize) -> Result<(Variable, usize), Bad> {
    let line = &text[start..end];
    // Values are secrets: an error shows the first word of the line only.
    let shown = start..start + line.split_whitespace().next().map_or(0, str::len);
    let Some(equals) = line.find('=') else {
        return Err(
            bad(shown, "a line without `=`").hint("write NAME=value, or # before a comment")
        );
    };
    let before = &line[..equals];
    let exported = before
        .strip_prefix("export")
        .filter(|rest| rest.starts_with([' ', '\t']));
    let name = exported.unwrap_or(before);
    let name_start = start + equals - name.trim_start().len();
    let name = name.trim();
    if name.is_empty() {
        return Err(
            bad(start + equals..start + equals + 1, "a value without a name")
                .hint("write NAME=value"),
        );
    }
    let name_span = name_start..name_start + name.len();

    let rest = &text[start + equals + 1..end];
    let value_start = end - rest.trim_start_matches([' ', '\t']).len();
    let (value, after) = match text[value_start..].chars().next() {
        Some(quote @ ('"' | '\'' | '`')) if value_start < end => quoted(text, value_start, quote)?,
        _ => (unquoted(&text[value_start..end]), end + 1),
    };
    if value.contains('\0') {
        return Err(bad(name_span, "a value cannot contain a NUL"));
    }
    Ok((
        Variable {
            name: name.to_owned(),
            value,
            span: name_span,
        },
        after,
    ))
}

/// The value up to a `#` at its beginning or after a blank.
fn unquoted(rest: &str) -> String {
    let comment = rest
        .char_indices()
        .find(|(i, c)| *c == '#' && (*i == 0 || rest[..*i].ends_with([' ', '\t'])));
    let rest = comment.map_or(rest, |(i, _)| &rest[..i]);
    rest.trim().to_owned()
}

/// The value from the quote at `open` to the closing one, perhaps lines below; only `"` knows
/// escapes.
fn quoted(text: &str, open: usize, quote: char) -> Result<(String, usize), Bad> {
    let mut value = String::new();
    let mut chars = text[open + 1..].char_indices();
    let close = loop {
        match chars.next() {
            None => {
                return Err(bad(
                    open..open + 1,
                    format!("the closing {quote} is missing"),
                ));
            }
            Some((i, c)) if c == quote => break open + 1 + i,
            Some((_, '\\')) if quote == '"' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('"' | '\\' | '$'))) => value.push(c),
                Some((_, c)) => value.extend(['\\', c]),
                None => {}
            },
            Some((_, c)) => value.push(c),
        }
    };
    let end = line_end(text, close);
    let tail = text[close + 1..end].trim();
    if !tail.is_empty() && !tail.starts_with('#') {
        let message = format!("text after the closing {quote}");
        return Err(
            bad(close..close + 1, message).hint("put all of the value in quotes, or none of it")
        );
    }
    Ok((value.replace("\r\n", "\n"), end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let (variables, mistakes) = parse(text);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        variables.into_iter().map(|v| (v.name, v.value)).collect()
    }

    fn one(text: &str) -> String {
        let pairs = pairs(text);
        assert_eq!(pairs.len(), 1, "{pairs:?}");
        pairs[0].1.clone()
    }

    #[test]
    fn reads_what_people_write() {
        assert_eq!(one("A=b"), "b");
        assert_eq!(one("export A=b\r\n"), "b");
        assert_eq!(one("  A = b c  # comment"), "b c");
        assert_eq!(one("A=b#c"), "b#c");
        assert_eq!(one("A="), "");
        assert_eq!(one("A= # nothing"), "");
        assert_eq!(one("A=\"\" # nothing"), "");
        assert_eq!(one("A='it is $HOME \\n' # c"), "it is $HOME \\n");
        assert_eq!(one(r#"A="say \"hi\"\n\\ \d""#), "say \"hi\"\n\\ \\d");
        assert_eq!(one("A=`it's \"so\"`"), "it's \"so\"");
        assert_eq!(
            one("A=\"-----BEGIN\nline = # 2\n-----END\"\n# done"),
            "-----BEGIN\nline = # 2\n-----END"
        );
        assert_eq!(
            one("URL=postgres://u:p@h/db?x=1&y='2'"),
            "postgres://u:p@h/db?x=1&y='2'"
        );
        assert_eq!(one("\u{feff}A=ä"), "ä");
    }

    #[test]
    fn goes_on_after_a_mistake() {
        let (variables, mistakes) = parse("A=1\nnonsense\n=x\nB='open\nC=\"x\" y\nD=4");
        let names: Vec<_> = variables.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["A", "D"]);
        let messages: Vec<_> = mistakes
            .iter()
            .map(|bad| (bad.span.clone(), bad.message.as_str()))
            .collect();
        assert_eq!(
            messages,
            [
                (4..12, "a line without `=`"),
                (13..14, "a value without a name"),
                (18..19, "the closing ' is missing"),
                (28..29, "text after the closing \""),
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "([A-Z=#'\"`\\\\ \n\r\té]|export ){0,60}") {
            let (variables, mistakes) = parse(&text);
            for span in variables.iter().map(|v| &v.span).chain(mistakes.iter().map(|bad| &bad.span)) {
                assert!(text.get(span.clone()).is_some(), "{span:?}");
            }
        }
    }
}
