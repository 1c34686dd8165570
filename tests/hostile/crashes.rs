//! Crashes by the hundred; the ten thousand are in the simulated world and in benches/flat.rs.

use crate::bystander::{Bystander, open_files, resident};
use crate::common::{Home, wait_for};
use crate::support::Life;

fn restarts(home: &Home) -> u64 {
    home.workers("storm")
        .iter()
        .filter_map(|w| w["restarts"].as_u64())
        .sum()
}

#[track_caller]
fn until(home: &Home, count: u64) {
    wait_for(&format!("{count} crashes"), || {
        let now = restarts(home);
        if now >= count { Ok(()) } else { Err(now) }
    });
}

#[test]
fn crash_after_crash_leaves_no_trace() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let files = open_files(calm.daemon());
    home.app(
        "storm",
        "command = [\"sh\", \"-c\", \"echo no; exit 1\"]\ninstances = 2\nrestart = { max_restarts = 100000, backoff = \"1ms\", backoff_max = \"1ms\" }",
    );
    home.run(&["start"]).code(1).says(&["storm", "code 1"]);
    // Buffers and caches have grown by then to what they need.
    until(&home, 300);
    let memory = resident(calm.daemon());
    until(&home, 900);
    let after = resident(calm.daemon());
    assert!(after <= memory + 1024, "{memory} KiB, then {after} KiB");
    home.ok(&["delete", "storm"]);
    crate::common::wait_until("as many descriptors as before", || {
        home.list();
        // Two more: the app's log files may be kept open for a moment.
        open_files(calm.daemon()) <= files + 2
    });
    calm.untouched(&home);
}
