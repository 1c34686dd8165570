//! Names for apps that were given none: from a script or a folder.

use super::types::AppName;

/// The longest name of an app.
const LONGEST: usize = 64;

/// A valid name as near to this text as there is one; `None` if nothing of the text can be in a name.
pub fn derived(text: &str) -> Option<AppName> {
    let mut name = String::new();
    for c in text.chars() {
        match in_ascii(c) {
            Some(letters) => name.push_str(letters),
            None if c.is_ascii_alphanumeric() || "_.".contains(c) => name.push(c),
            // One for a whole stretch of what cannot be in a name.
            None if !name.ends_with('-') => name.push('-'),
            None => {}
        }
    }
    let name = name.trim_start_matches(['-', '.']);
    let name = name.get(..LONGEST).unwrap_or(name).trim_end_matches('-');
    AppName::parse(name).ok()
}

/// Letters of western European languages without their marks, as file names are made of titles.
fn in_ascii(c: char) -> Option<&'static str> {
    Some(match c {
        'ä' | 'æ' => "ae",
        'Ä' | 'Æ' => "Ae",
        'ö' | 'œ' | 'ø' => "oe",
        'Ö' | 'Œ' | 'Ø' => "Oe",
        'ü' => "ue",
        'Ü' => "Ue",
        'ß' => "ss",
        'à' | 'á' | 'â' | 'ã' | 'å' => "a",
        'À' | 'Á' | 'Â' | 'Ã' | 'Å' => "A",
        'ç' => "c",
        'Ç' => "C",
        'è' | 'é' | 'ê' | 'ë' => "e",
        'È' | 'É' | 'Ê' | 'Ë' => "E",
        'ì' | 'í' | 'î' | 'ï' => "i",
        'Ì' | 'Í' | 'Î' | 'Ï' => "I",
        'ñ' => "n",
        'Ñ' => "N",
        'ò' | 'ó' | 'ô' | 'õ' => "o",
        'Ò' | 'Ó' | 'Ô' | 'Õ' => "O",
        'ù' | 'ú' | 'û' => "u",
        'Ù' | 'Ú' | 'Û' => "U",
        'ý' | 'ÿ' => "y",
        'Ý' => "Y",
        _ => return None,
    })
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
            ("Grüße an  (alle)", "Gruesse-an-alle"),
            (".hidden", "hidden"),
            ("-n", "n"),
            ("it's a clöne", "it-s-a-cloene"),
            ("données 數據", "donnees"),
        ] {
            assert_eq!(name(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(name(&"x y".repeat(50)).map(|name| name.len()), Some(64));
        for nothing in ["", "數據", "all", "--", "..."] {
            assert_eq!(name(nothing), None, "{nothing}");
        }
    }
}
