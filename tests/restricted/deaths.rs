//! `kill -9` of daemon and keeper, where the next daemon cannot have everything back.

use crate::common::load::Load;
use crate::common::{Home, is_ready, pids};
use crate::supervisors::Supervisors;
use crate::{OLD, TODAY, node};

/// Starts, kills, and asks; the workers before, and the app's load.
fn alone(home: &Home, command: &str) -> (std::collections::BTreeSet<u32>, Load) {
    let port = home.port();
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"0.0.0.0:{port}\"\ninstances = 2\n"
    ));
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    load.more(50);
    home.kill_keeper_and_daemon();
    load.more(50);
    home.list();
    (before, load)
}

/// Node's `::` makes the group one of IPv6 sockets, where the configuration names an IPv4 address.
#[test]
fn workers_whose_sockets_are_refused_are_replaced_and_it_is_said_why() {
    let Some(command) = node() else { return };
    for profile in [TODAY, OLD, &["pidfd_getfd", "no-sock-diag"]] {
        let Some(home) = Home::restricted(&[profile, &["no-ptrace"]].concat()) else {
            return;
        };
        let (before, load) = alone(&home, &command);
        home.wait_view("web", "replacements", |view| {
            is_ready(view) && pids(view).is_disjoint(&before)
        });
        load.more(50);
        home.ok(&["reload", "web"]);
        load.lossless();
        let log = home.daemon_log();
        assert_eq!(log.matches("cannot be taken back").count(), 1, "{log}");
        assert!(log.contains("--cap-add SYS_PTRACE"), "{log}");
        assert!(!log.contains("listens on its port too"), "{log}");
    }
}

/// A kernel without inet_diag: what listens is read from /proc/net, and the workers stay.
#[test]
fn without_sock_diag_the_workers_are_adopted() {
    let Some(command) = node() else { return };
    let Some(home) = Home::restricted(&["no-sock-diag"]) else {
        return;
    };
    let (before, load) = alone(&home, &command);
    let view = home.wait_view("web", "ready", is_ready);
    assert_eq!(pids(&view), before);
    for _ in 0..2 {
        home.ok(&["reload", "web"]);
    }
    load.lossless();
}

/// And who holds a port is named.
#[test]
fn without_sock_diag_a_port_in_use_has_a_name() {
    let Some(command) = node() else { return };
    let Some(home) = Home::restricted(&["no-sock-diag"]) else {
        return;
    };
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("an address").port();
    home.config(&format!(
        "[app.web]\n{command}\nlisten = \"127.0.0.1:{port}\"\n"
    ));
    home.run(&["start"])
        .code(1)
        .says(&[&format!("pid {}", std::process::id())]);
}
