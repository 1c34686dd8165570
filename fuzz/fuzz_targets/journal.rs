#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rsup_fuzz::journal(bytes));
