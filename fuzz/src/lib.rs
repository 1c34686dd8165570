//! The properties that the targets look for the breach of. Also part of `tests/fuzzed.rs`.

pub mod story;

use std::path::Path;

use rsup::config::{self, AppSpec, CliError, Script};
use rsup::control::{self, Answer, Call, MAX_FRAME};
use rsup::core::Supervisor;
use rsup::daemon::decode_state;
use rsup::keeper::wire::{self, FromKeeper, ToKeeper};

/// Any text as `supervisor.toml`.
pub fn configuration(text: &str) {
    let path = Path::new("/nowhere/supervisor.toml");
    match config::parse(text, path) {
        Ok(loaded) => {
            let again =
                config::parse(text, path).expect("what was accepted once is accepted again");
            assert_eq!(loaded.config, again.config);
            sayable(loaded.warnings.iter());
            loaded.config.apps.iter().for_each(travels);
        }
        Err(errors) => {
            assert!(errors.len() > 0, "refused without a reason");
            sayable(errors.iter());
            let (one, other) = (errors.render(true), errors.to_string());
            assert!(!one.is_empty() && !other.is_empty());
        }
    }
}

/// Any packet between the daemon and its keeper: what is understood was said so, and can be kept by
/// systemd as well.
pub fn keeper(packet: &[u8]) {
    if let Some(message) = ToKeeper::parse(packet) {
        assert_eq!(message.encode(), packet);
        assert!(packet.len() <= wire::LONGEST);
        if let ToKeeper::Keep(name) | ToKeeper::Drop(name) = message {
            assert!(wire::is_name(&name));
        }
    }
    if let Some(message) = FromKeeper::parse(packet) {
        assert_eq!(message.encode(), packet);
        assert!(packet.len() <= wire::LONGEST);
    }
}

/// Any words of a command line.
pub fn command_line(script: &Script) {
    match config::from_script(script) {
        Ok(spec) => {
            assert_eq!(
                config::from_script(script).expect("accepted once, accepted again"),
                spec
            );
            travels(&spec);
        }
        Err(errors) => {
            assert!(errors.len() > 0, "refused without a reason");
            sayable(errors.iter());
            assert!(!errors.render(true).is_empty());
        }
    }
}

/// Any text as an `env_file`.
pub fn env_file(text: &str) {
    let (variables, mistakes) = config::read_env_file(text);
    for (name, value) in &variables {
        assert!(
            !name.is_empty() && !value.contains('\0'),
            "{name:?} cannot be in an environment"
        );
    }
    // A file without mistakes says the same with its lines ended the other way.
    if mistakes == 0 && !text.contains(['\r', '"', '\'', '`']) {
        let (again, mistakes) = config::read_env_file(&text.replace('\n', "\r\n"));
        assert_eq!((again, mistakes), (variables, 0));
    }
}

/// Any bytes on the control socket, as the daemon reads them.
pub fn frame(bytes: &[u8]) {
    // The head, then the body by itself.
    if let Some((head, body)) = bytes.split_first_chunk::<4>() {
        match control::length(*head) {
            Ok(length) => assert!(length <= MAX_FRAME),
            Err(why) => assert!(why.to_string().contains("larger than")),
        }
        match Call::decode(body) {
            Ok(call) => {
                let frame = control::encode(&call).expect("what was read can be written");
                let again: Call = control::read(&frame[..])
                    .expect("and read again")
                    .expect("all of it");
                assert_eq!(again, call);
                assert_eq!(Call::decode(&frame[4..]).as_ref(), Ok(&call));
            }
            Err(why) => assert!(!why.is_empty()),
        }
    }
    // As a blocking reader does.
    let mut from = bytes;
    while let Ok(Some(_)) = control::read::<Call>(&mut from) {}
}

/// Any bytes from the daemon behind the first, which says how they are cut, as the client takes them.
pub fn answers(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else {
        return;
    };
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
        assert_eq!(
            control::read::<Answer>(&frame[..])
                .expect("and read again")
                .as_ref(),
            Some(answer)
        );
    }
}

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

/// Any text as the state file: what is accepted also goes on. Up to the first NUL the text, behind
/// it what happens then.
pub fn state(data: &[u8]) {
    let (text, story) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let Ok(supervisor) = serde_json::from_slice::<Supervisor>(text) else {
        return;
    };
    story::goes_on(supervisor, story);
}

/// Any bytes as the journal that a state file is, up to the first NUL, as for [`state`]: what is accepted
/// goes on, and whatever a kill leaves of another line counts for nothing.
pub fn journal(data: &[u8]) {
    let (text, story) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let Ok(state) = decode_state(text) else {
        return;
    };
    if text.ends_with(b"\n") && text.starts_with(b"{\"version\":3,") {
        let torn = [text, b"{\"supervisor\":{\"apps\":{"].concat();
        let again = decode_state(&torn).expect("the last line is ignored");
        assert_eq!(again.daemon, state.daemon);
        assert_eq!(
            story::put_down(&again.supervisor),
            story::put_down(&state.supervisor)
        );
    }
    story::goes_on(state.supervisor, story);
}

/// Every problem can be shown, and points into its own text.
fn sayable<'a>(problems: impl Iterator<Item = &'a CliError>) {
    for problem in problems {
        assert!(
            problem.fits(),
            "{:?} points outside its text",
            problem.message()
        );
        assert!(!problem.message().is_empty());
        let finding = problem.finding();
        assert!(finding.line != Some(0) && finding.column != Some(0));
        assert!(!problem.render(false).is_empty());
    }
}

/// The rest of the program can rely on it, and it comes out of the control socket and the state file
/// as it went in.
fn travels(spec: &AppSpec) {
    spec.validate()
        .unwrap_or_else(|why| panic!("accepted, and yet: {why}"));
    let text = serde_json::to_string(spec).expect("a spec can be written");
    assert_eq!(
        &serde_json::from_str::<AppSpec>(&text).expect("and read"),
        spec
    );
}
