//! Any text as `supervisor.toml`.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use rsup::config;

fuzz_target!(|text: &str| {
    let path = Path::new("/nowhere/supervisor.toml");
    match config::parse(text, path) {
        Ok(loaded) => {
            let again = config::parse(text, path).expect("what was accepted once is accepted again");
            assert_eq!(loaded.config, again.config);
            rsup_fuzz::sayable(loaded.warnings.iter());
            for spec in &loaded.config.apps {
                rsup_fuzz::travels(spec);
            }
        }
        Err(errors) => {
            assert!(errors.len() > 0, "refused without a reason");
            rsup_fuzz::sayable(errors.iter());
            let (one, other) = (errors.render(true), errors.to_string());
            assert!(!one.is_empty() && !other.is_empty());
        }
    }
});
