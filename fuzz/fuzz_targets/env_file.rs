//! Any text as an `env_file`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (variables, mistakes) = rsup::config::read_env_file(text);
    for (name, value) in &variables {
        assert!(!name.is_empty() && !value.contains('\0'), "{name:?} cannot be in an environment");
    }
    // A file without mistakes says the same with its lines ended the other way.
    if mistakes == 0 && !text.contains(['\r', '"', '\'', '`']) {
        let (again, mistakes) = rsup::config::read_env_file(&text.replace('\n', "\r\n"));
        assert_eq!((again, mistakes), (variables, 0));
    }
});
