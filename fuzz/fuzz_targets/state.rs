//! Any text as the state file: what is accepted also goes on, whatever is found and happens then.
//! Up to the first NUL the text, behind it what happens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsup::supervisor::Supervisor;

fuzz_target!(|data: &[u8]| {
    let (text, story) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let Ok(supervisor) = serde_json::from_slice::<Supervisor>(text) else { return };
    rsup_fuzz::story::goes_on(supervisor, story);
});
