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
    home.wait_view("slow", "a replacement starts", |v| crate::common::pids(v).len() == 3);
    signal(calm.daemon(), Signal::SIGSTOP);
    // This is what it is about: time passes.
    std::thread::sleep(Duration::from_secs(4));
    signal(calm.daemon(), Signal::SIGCONT);
    reload.wait().ok();
    assert!(home.pids("slow").is_disjoint(&before));
    let events = home.events("slow");
    assert!(events.contains("stood still for"), "{events}");
    assert!(!events.contains("killed") && !events.contains("listen_timeout"), "{events}");
    calm.untouched(&home);
}
