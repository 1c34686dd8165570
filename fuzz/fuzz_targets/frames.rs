//! Any bytes on the control socket, as the daemon reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsup::control::{self, Call, MAX_FRAME};

fuzz_target!(|bytes: &[u8]| {
    // As the daemon does: the head, then the body by itself.
    if let Some((head, body)) = bytes.split_first_chunk::<4>() {
        match control::length(*head) {
            Ok(length) => assert!(length <= MAX_FRAME),
            Err(why) => assert!(why.to_string().contains("larger than")),
        }
        match Call::decode(body) {
            Ok(call) => {
                let frame = control::encode(&call).expect("what was read can be written");
                let again: Call = control::read(&frame[..]).expect("and read again").expect("all of it");
                assert_eq!(again, call);
                assert_eq!(Call::decode(&frame[4..]).as_ref(), Ok(&call));
            }
            Err(why) => assert!(!why.is_empty()),
        }
    }
    // As a blocking reader does.
    let mut from = bytes;
    while let Ok(Some(_)) = control::read::<Call>(&mut from) {}
});
