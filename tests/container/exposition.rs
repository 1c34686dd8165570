//! A strict reader of what Prometheus reads (OpenMetrics text, of which the older format is a subset here).

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub struct Exposition {
    /// Type by the name of the family.
    pub types: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

pub type Labels = BTreeMap<String, String>;

impl Exposition {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        Self::try_parse(text).unwrap_or_else(|why| panic!("{why}\n{text}"))
    }

    fn try_parse(text: &str) -> Result<Self, String> {
        let mut this = Self {
            types: BTreeMap::new(),
            samples: BTreeMap::new(),
        };
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        let body = text
            .strip_suffix("# EOF\n")
            .ok_or("it does not end with # EOF")?;
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (kind, name, value) = (
                    words.next().unwrap_or_default(),
                    words.next().unwrap_or_default(),
                    words.next().unwrap_or_default(),
                );
                if !is_name(name) || value.is_empty() {
                    return Err(format!("a comment that says nothing: {line}"));
                }
                match kind {
                    "HELP" if helped.insert(name.to_owned()) => family = name.to_owned(),
                    "TYPE" if family == name && ["gauge", "counter"].contains(&value) => {
                        this.types.insert(name.to_owned(), value.to_owned());
                    }
                    "UNIT" if family == name && name.ends_with(&format!("_{value}")) => {}
                    _ => return Err(format!("out of place: {line}")),
                }
                continue;
            }
            let (name, labels, value) =
                sample(line).ok_or_else(|| format!("not a sample: {line}"))?;
            let suffix = if this
                .types
                .get(&family)
                .is_some_and(|kind| kind == "counter")
            {
                "_total"
            } else {
                ""
            };
            if name != format!("{family}{suffix}") {
                return Err(format!("{name} stands below {family}"));
            }
            if suffix == "_total" && (value.is_nan() || value < 0.0) {
                return Err(format!("a counter below 0: {line}"));
            }
            if this.samples.insert((name, labels), value).is_some() {
                return Err(format!("twice: {line}"));
            }
        }
        Ok(this)
    }

    /// The value of a sample.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// How many samples of this name there are.
    pub fn count(&self, name: &str) -> usize {
        self.samples.keys().filter(|(of, _)| of == name).count()
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    is_name(name).then(|| (name.to_owned(), labels, value))
}

/// Up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('"' | '\\') => c,
                _ => return None,
            }),
            '\n' => return None,
            c => value.push(c),
        }
    }
    None
}

#[test]
fn it_reads_what_is_right_and_nothing_else() {
    let right = "# HELP a_total_x Help.\n# TYPE a_total_x gauge\na_total_x 1\n# HELP b What\n# TYPE b counter\nb_total{x=\"q\\\"\\\\\",y=\"\"} 2.5\n# EOF\n";
    let read = Exposition::parse(right);
    assert_eq!(read.get("b_total", &[("x", "q\"\\"), ("y", "")]), Some(2.5));
    for wrong in [
        "",
        "a 1\n# EOF\n",
        "# HELP a h\n# TYPE a gauge\na_total 1\n# EOF\n",
        "# HELP a h\n# TYPE a counter\na 1\n# EOF\n",
        "# HELP a h\n# TYPE a gauge\na{x=\"1\"} 1\na{x=\"1\"} 2\n# EOF\n",
        "# HELP a h\n# TYPE a gauge\na{x=1} 1\n# EOF\n",
        "# HELP a h\n# TYPE a gauge\na one\n# EOF\n",
        "# HELP a h\n# TYPE a gauge\na 1\n",
    ] {
        assert!(Exposition::try_parse(wrong).is_err(), "{wrong}");
    }
}
