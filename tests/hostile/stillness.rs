//! The daemon is stopped and goes on, as on a starved machine.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::bystander::Bystander;
use crate::common::{Home, signal};
use crate::support::Life;

#[test]
fn a_daemon_that_was_stopped_blames_nobody() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    // Ready after 1.5 s of its 2.5 s, and two of them in turn: the daemon sleeps through each deadline.
    home.web("slow", "instances = 2\nlisten_timeout = \"2500ms\"\nkill_timeout = \"2s\"\nreload = { deadline = \"9s\" }\nenv = { WARM_MS = \"1500\" }");
    home.ok(&["start"]);
    let before = home.pids("slow");
    let reload = home.background(&["reload", "slow"]);
    home.wait_view("slow", "a replacement starts", |v| {
        crate::common::pids(v).len() == 3
    });
    signal(calm.daemon(), Signal::SIGSTOP);
    // This is what it is about: time passes.
    std::thread::sleep(Duration::from_secs(4));
    signal(calm.daemon(), Signal::SIGCONT);
    reload.wait().ok();
    assert!(home.pids("slow").is_disjoint(&before));
    let events = home.events("slow");
    assert!(events.contains("stood still for"), "{events}");
    assert!(
        !events.contains("killed") && !events.contains("listen_timeout"),
        "{events}"
    );
    calm.untouched(&home);
}

/// The wall clock can be set to anything at any moment. All it is good for is to be shown.
#[test]
fn nothing_depends_on_the_wall_clock() {
    let clocks = [
        "SystemTime",
        "UNIX_EPOCH",
        "Timestamp::now",
        "Zoned::now",
        "CLOCK_REALTIME",
    ];
    // The times of log lines, events and the daemon's messages; the time of the start, in metrics.
    let shown = [
        "src/daemon/event_log.rs",
        "src/logs/format.rs",
        "src/daemon/messages.rs",
        "src/daemon/admin/metrics.rs",
    ];
    let mut folders = vec![std::path::PathBuf::from("src")];
    let mut found = Vec::new();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder))
                .unwrap()
                .flatten()
        {
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let name = path.display().to_string();
            let uses = text
                .lines()
                .filter(|line| clocks.iter().any(|clock| line.contains(clock)));
            found.extend(
                uses.filter(|_| !shown.contains(&name.as_str()))
                    .map(|line| format!("{name}: {}", line.trim())),
            );
        }
    }
    assert!(
        files > 100 && found.is_empty(),
        "a clock that jumps: {found:#?}"
    );
}
