//! What ARCHITECTURE.md promises as absences, and no lint can see.

use std::fs;
use std::path::{Path, PathBuf};

/// Which folders each folder of the pure part may know.
const KNOWS: [(&str, &[&str]); 3] = [
    ("src/model", &["config", "exit", "human", "model"]),
    ("src/core", &["config", "core", "exit", "human", "model"]),
    (
        "src/control",
        &["config", "control", "core", "exit", "human", "model"],
    ),
];

/// What has no place in a pure function.
const IMPURE: [&str; 12] = [
    "std::fs",
    "std::net::Tcp",
    "std::os",
    "std::process",
    "std::thread",
    "Instant",
    "SystemTime",
    "Timestamp",
    "libc",
    "nix::",
    "tokio",
    "tracing",
];

fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "{folder} is empty");
    found
}

/// The lines of a file that are part of the program: without comments and tests.
fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a file");
    let program = text
        .split("\n#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default();
    program
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(str::to_owned)
        .collect()
}

fn is_test(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/tests/") || text.contains("/sim/") || text.ends_with("tests.rs")
}

fn found(folder: &str, wrong: impl Fn(&Path, &str) -> bool) -> Vec<String> {
    let mut all = Vec::new();
    for path in files(folder).iter().filter(|path| !is_test(path)) {
        let lines = lines(path);
        let wrong = lines.iter().filter(|line| wrong(path, line));
        all.extend(wrong.map(|line| format!("{}: {}", path.display(), line.trim())));
    }
    all
}

#[test]
fn the_pure_part_knows_nothing_above_or_beside_it() {
    for (folder, known) in KNOWS {
        let strange = found(folder, |_, line| {
            line.match_indices("crate::").any(|(at, _)| {
                let rest = &line[at + "crate::".len()..];
                let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_');
                let name = name.into_iter().next().unwrap_or_default();
                !name.is_empty() && !known.contains(&name)
            })
        });
        assert!(strange.is_empty(), "{folder} knows too much: {strange:#?}");
    }
}

#[test]
fn the_core_has_no_clock_no_socket_no_file_and_no_process() {
    for folder in ["src/model", "src/core"] {
        let impure = found(folder, |_, line| {
            IMPURE.iter().any(|word| line.contains(word))
        });
        assert!(impure.is_empty(), "{folder}: {impure:#?}");
    }
}

/// Clients do that, with the rights and the environment of whoever calls them.
#[test]
fn the_daemon_reads_no_configuration_and_looks_up_no_names() {
    const NAMES: [&str; 5] = [
        "config::load",
        "resolve_user",
        "resolve_cwd",
        "User::from",
        "Group::from",
    ];
    for folder in ["src/core", "src/daemon", "src/keeper"] {
        let found = found(folder, |_, line| {
            NAMES.iter().any(|name| line.contains(name))
        });
        assert!(found.is_empty(), "{folder}: {found:#?}");
    }
}

/// The loop, `effects.rs` and `events.rs` bring the parts of the daemon together; a part takes what it needs as
/// arguments, and returns what the core has to hear.
#[test]
fn a_part_of_the_daemon_does_not_know_the_daemon() {
    const PARTS: [&str; 8] = [
        "fleet/",
        "network/",
        "store/",
        "output.rs",
        "log_health.rs",
        "fdstore.rs",
        "event_log.rs",
        "probe.rs",
    ];
    let knowing = found("src/daemon", |path, line| {
        let text = path.to_string_lossy();
        let is_part = PARTS
            .iter()
            .any(|part| text.contains(&format!("/src/daemon/{part}")));
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        is_part && words.any(|word| word == "Daemon")
    });
    assert!(knowing.is_empty(), "{knowing:#?}");
}

/// Its words are those of `model/words.rs`; hints of the command line are no decision.
#[test]
fn the_core_writes_no_command_lines() {
    let hints = found("src/core", |path, line| {
        // The sentences of an earlier version are understood there, and not written.
        let old = path.ends_with("saved/old.rs");
        !old && (line.contains("\"rsup ") || line.contains("`rsup "))
    });
    assert!(hints.is_empty(), "{hints:#?}");
}

#[test]
fn only_the_renderers_write_to_stdout_and_only_main_exits() {
    let loud = found("src", |path, line| {
        let text = path.to_string_lossy();
        let print = line.contains("print!(") || line.contains("println!(");
        let sample = text.ends_with("load/sample.rs");
        (print && !text.contains("/cli/render/") && !sample)
            || (line.contains("process::exit") && !sample && !text.ends_with("src/main.rs"))
    });
    assert!(loud.is_empty(), "{loud:#?}");
}

#[test]
fn unsafe_is_in_sys_alone_and_says_why_it_is_safe() {
    let outside = found("src", |path, line| {
        let sys = path.to_string_lossy().contains("/src/sys/");
        !sys && (line.contains("unsafe {")
            || line.contains("unsafe fn")
            || line.contains("unsafe impl"))
    });
    assert!(outside.is_empty(), "{outside:#?}");
    let mut silent = Vec::new();
    for path in files("src/sys") {
        let text = fs::read_to_string(&path).expect("a file");
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let block = line.contains("unsafe {") || line.contains("unsafe impl");
            let near = &lines[at.saturating_sub(8)..=at];
            if block && !near.iter().any(|line| line.contains("SAFETY:")) {
                silent.push(format!("{}:{}", path.display(), at + 1));
            }
        }
    }
    assert!(silent.is_empty(), "no SAFETY: line: {silent:#?}");
}
