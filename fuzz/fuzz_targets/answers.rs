//! Any bytes from the daemon, cut anywhere, as the client takes them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsup::control::{self, Answer};

/// Everything that can be taken, and whether it ended in an error.
fn taken(bytes: &mut Vec<u8>) -> (Vec<Answer>, bool) {
    let mut answers = Vec::new();
    loop {
        match control::take::<Answer>(bytes) {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) => return (answers, false),
            Err(_) => return (answers, true),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((size, stream)) = data.split_first() else { return };
    let whole = taken(&mut stream.to_vec());
    let mut cut = (Vec::new(), false);
    let mut bytes = Vec::new();
    for piece in stream.chunks(usize::from(*size).max(1)) {
        bytes.extend_from_slice(piece);
        let (answers, broken) = taken(&mut bytes);
        cut.0.extend(answers);
        if broken {
            cut.1 = true;
            break;
        }
    }
    assert_eq!(cut, whole, "the same however it is cut");
    for answer in &whole.0 {
        let frame = control::encode(answer).expect("what was read can be written");
        assert_eq!(control::read::<Answer>(&frame[..]).expect("and read again").as_ref(), Some(answer));
    }
});
