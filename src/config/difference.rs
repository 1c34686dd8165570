//! The differences between two settings of an app, in the words of the file.

use std::collections::BTreeSet;

use serde_json::Value;

use super::AppSpec;

impl AppSpec {
    /// The keys that differ, with the names of variables but without values; empty if at most the
    /// path of the file differs.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (Some(Value::Object(ours)), Some(Value::Object(theirs))) = (
            serde_json::to_value(self).ok(),
            serde_json::to_value(other).ok(),
        ) else {
            return Vec::new();
        };
        let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let differ = keys
            .into_iter()
            .filter(|key| ours.get(*key) != theirs.get(*key));
        let words = differ.filter_map(|key| match key.as_str() {
            "name" | "source" | "source_resolved" | "folder" => None,
            "env" => Some(format!(
                "env ({})",
                self.variables_that_differ(other).join(", ")
            )),
            // The folder that a link leads to: named where the link itself is the same.
            "cwd" if self.cwd_resolved == other.cwd_resolved => None,
            "cwd_resolved" if self.cwd != other.cwd => None,
            "cwd_resolved" => Some(format!(
                "cwd ({} is {} now)",
                other.cwd.display(),
                other.cwd_resolved.display()
            )),
            "run_as" => Some("user".into()),
            key => Some(key.into()),
        });
        words.collect()
    }

    fn variables_that_differ<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let names: BTreeSet<&String> = self.env.keys().chain(other.env.keys()).collect();
        let differ = names
            .into_iter()
            .filter(|name| self.env.get(*name) != other.env.get(*name));
        differ.map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;

    #[test]
    fn keys_are_named_and_values_are_not() {
        let spec = |text: &str| {
            let text = format!("[app.web]\ncommand = [\"/bin/true\"]\ncwd = \"/\"\n{text}");
            parse(&text, Path::new("/x/supervisor.toml"))
                .unwrap()
                .config
                .apps
                .remove(0)
        };
        let old = spec("instances = 2\nenv = { A = \"1\", SECRET = \"x\" }");
        assert!(old.differences(&old).is_empty());
        let new = spec(
            "instances = 3\nenv = { A = \"1\", SECRET = \"y\", B = \"\" }\nmax_memory = \"1G\"",
        );
        assert_eq!(
            old.differences(&new),
            ["env (B, SECRET)", "instances", "max_memory"]
        );
        let mut moved = old.clone();
        moved.source = Some("/elsewhere".into());
        assert!(old.differences(&moved).is_empty());
        moved.cwd_resolved = "/releases/2".into();
        assert_eq!(old.differences(&moved), ["cwd (/ is /releases/2 now)"]);
    }
}
