#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| rsup_fuzz::configuration(text));
