//! Any inputs into the pure supervisor: late, false and contradictory ones too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsup::supervisor::Supervisor;

fuzz_target!(|story: &[u8]| rsup_fuzz::story::play(Supervisor::new(1), story));
