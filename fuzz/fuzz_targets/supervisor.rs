#![no_main]

use rsup::core::Supervisor;

libfuzzer_sys::fuzz_target!(|story: &[u8]| rsup_fuzz::story::play(Supervisor::new(1), story));
