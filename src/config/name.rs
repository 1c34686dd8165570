//! Names for apps that were given none: from a script or a folder.

use super::types::AppName;

/// A valid name as near to this text as there is one, in ASCII; `None` if nothing of the text can be in a name.
pub fn derived(text: &str) -> Option<AppName> {
    let mut name = String::new();
    for c in deunicode::deunicode(text).chars() {
        if c.is_ascii_alphanumeric() || "_.".contains(c) {
            name.push(c);
        } else if !name.ends_with('-') {
            // One for a whole stretch of what cannot be in a name.
            name.push('-');
        }
    }
    let name = name.trim_start_matches(['-', '.']);
    let name = name.get(..AppName::LONGEST).unwrap_or(name);
    AppName::parse(name.trim_end_matches('-')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_near() {
        let name = |text: &str| derived(text).map(|name| name.to_string());
        for (text, expected) in [
            ("server", "server"),
            ("api.v2_x-1", "api.v2_x-1"),
            ("my server", "my-server"),
            ("Grüße an  (alle)", "Grusse-an-alle"),
            (".hidden", "hidden"),
            ("-n", "n"),
            ("it's a clöne", "it-s-a-clone"),
            ("données 數據", "donnees-Shu-Ju"),
        ] {
            assert_eq!(name(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(name(&"x y".repeat(50)).map(|name| name.len()), Some(64));
        for nothing in ["", "all", "--", "..."] {
            assert_eq!(name(nothing), None, "{nothing}");
        }
    }
}
