//! The properties of the fuzz targets, on the seeds and on random changes of them, for a moment:
//! `cargo fuzz` (fuzz/README.md) looks for longer and with more cunning.

use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, reason = "shared with the fuzz targets")]
mod fuzzing;

use rsup::control::{self, Answer, Call};
use rsup::core::Supervisor;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let files =
        std::fs::read_dir(&folder).unwrap_or_else(|why| panic!("{}: {why}", folder.display()));
    files
        .map(|file| file.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect()
}

/// Each seed as it is, and so many times with a few bytes changed, doubled, moved or cut off.
fn each(target: &str, times: usize, check: impl Fn(&[u8])) {
    let mut random = fastrand::Rng::with_seed(11);
    for (_, seed) in seeds(target) {
        check(&seed);
        for _ in 0..times {
            let mut bytes = seed.clone();
            for _ in 0..random.usize(1..6) {
                if bytes.is_empty() {
                    break;
                }
                let (at, to) = (random.usize(..bytes.len()), random.usize(..bytes.len()));
                let (from, until) = (at.min(to), at.max(to));
                match random.u8(..6) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes[at] = random.choice(*b"\"'[]{}=.,:-09aZ\n\\ ").unwrap(),
                    2 => drop(bytes.drain(from..until.min(from + 20))),
                    3 => bytes.insert(at, random.u8(..)),
                    4 => {
                        let piece: Vec<u8> = bytes[from..until.min(from + 40)].to_vec();
                        bytes.splice(to..to, piece);
                    }
                    _ => bytes.truncate(at),
                }
            }
            check(&bytes);
        }
    }
}

#[test]
fn configurations() {
    each("config", 150, |bytes| {
        fuzzing::configuration(&String::from_utf8_lossy(bytes))
    });
}

#[test]
fn env_files() {
    each("env_file", 1000, |bytes| {
        fuzzing::env_file(&String::from_utf8_lossy(bytes))
    });
}

#[test]
fn frames() {
    each("frames", 500, fuzzing::frame);
}

#[test]
fn packets_of_the_keeper() {
    each("keeper", 2000, fuzzing::keeper);
}

#[test]
fn answers() {
    each("answers", 500, fuzzing::answers);
}

#[test]
fn states() {
    each("state", 150, fuzzing::state);
}

#[test]
fn journals() {
    each("journal", 150, fuzzing::journal);
}

#[test]
fn stories() {
    let mut random = fastrand::Rng::with_seed(12);
    for _ in 0..300 {
        let story: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(300).collect();
        fuzzing::story::play(Supervisor::new(1), &story);
    }
}

#[test]
fn the_seeds_are_what_they_are_meant_to_be() {
    let accepted = |target: &str, check: &dyn Fn(&[u8]) -> bool| {
        seeds(target).iter().filter(|(_, seed)| check(seed)).count()
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let path = Path::new("/nowhere/supervisor.toml");
    assert!(
        accepted("config", &|bytes| rsup::config::parse(&text(bytes), path)
            .is_ok())
            >= 1
    );
    assert!(accepted("frames", &|bytes| Call::decode(&bytes[4..]).is_ok()) >= 5);
    assert!(
        accepted("answers", &|bytes| control::read::<Answer>(&bytes[1..])
            .is_ok_and(|a| a.is_some()))
            >= 2
    );
    let state = |bytes: &[u8]| {
        serde_json::from_slice::<Supervisor>(bytes.split(|b| *b == 0).next().unwrap()).is_ok()
    };
    assert_eq!(accepted("state", &state), seeds("state").len());
    let journal =
        |bytes: &[u8]| rsup::daemon::decode_state(bytes.split(|b| *b == 0).next().unwrap()).is_ok();
    assert_eq!(accepted("journal", &journal), seeds("journal").len());
}
