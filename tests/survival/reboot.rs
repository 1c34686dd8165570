//! What a machine that was started anew finds. (A real one is booted in tests/systemd.)

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use rsup::config::AppName;
use rsup::daemon::decode_state;

use crate::common::{Home, is_ready, signal, wait_for, wait_until};
use crate::support::Life;

fn saved(home: &Home) -> std::path::PathBuf {
    home.rsup_home().join("state/state.json")
}

/// As if the power had failed: every process is gone, and so is the runtime folder.
fn power_cut(home: &Home) {
    // Again and again: keeper and daemon bring each other back.
    wait_until("nobody is left", || {
        let left = home.processes();
        for (pid, _) in &left {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        left.is_empty()
    });
    fs::remove_dir_all(home.rsup_home().join("run")).unwrap();
    let text = fs::read_to_string(saved(home)).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()));
    fs::write(saved(home), text.replace(boot.trim(), "another-boot")).unwrap();
}

#[test]
fn apps_come_back_as_they_were() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.app("stopped", "command = [\"sleep\", \"1000\"]");
    home.app("deleted", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    home.ok(&["stop", "stopped"]);
    home.ok(&["delete", "deleted"]);
    home.ok(&["scale", "web", "3"]);
    home.ok(&["reload", "web"]);
    // Written, and for nobody else to read: it has the environment of every app.
    wait_until("the state is saved", || {
        let bytes = fs::read(saved(&home)).unwrap_or_default();
        decode_state(&bytes).is_ok_and(|state| {
            let web = state.supervisor.revision(&AppName::new("web"));
            web.is_some_and(|web| web.number == 2) && state.supervisor.under_way().next().is_none()
        })
    });
    assert_eq!(
        fs::metadata(saved(&home)).unwrap().permissions().mode() & 0o777,
        0o600
    );
    power_cut(&home);
    home.app("new", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start", "supervisor.toml", "--only", "new"]);
    let view = home.wait_view("web", "ready", is_ready);
    assert_eq!(
        (view["revision"].as_u64(), view["instances"].as_u64()),
        (Some(2), Some(2)),
        "{view:#}"
    );
    assert_eq!(home.view("stopped")["phase"], "stopped");
    assert!(home.view("deleted").is_null());
    assert!(is_ready(&home.view("new")));
}

#[test]
fn after_rsup_kill_apps_are_known_and_stay_down() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.app("other", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    home.ok(&["kill"]);
    // It answers just before it ends.
    wait_until("the daemon's end", || {
        !home.rsup_home().join("run/state.json").exists()
    });
    home.run(&["ping"]).code(1).says(&["no daemon runs"]);
    home.ok(&["start", "supervisor.toml", "--only", "other"]);
    assert_eq!(home.view("web")["phase"], "stopped");
    home.ok(&["start", "web"]);
    assert!(is_ready(&home.view("web")));
}

#[test]
fn after_a_signal_they_come_back() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.ok(&["start"]);
    signal(home.daemon(), Signal::SIGTERM);
    wait_until("the end of all", || home.processes().is_empty());
    home.app("other", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start", "supervisor.toml", "--only", "other"]);
    home.wait_view("web", "ready", is_ready);
}

#[test]
fn a_state_that_cannot_be_read_is_put_aside_and_said() {
    let home = Home::new();
    home.app("web", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    home.ok(&["kill"]);
    for (text, words) in [
        ("{ not json", "cannot be understood"),
        ("{\"version\": 99, \"rsup\": \"9.1.0\"}", "rsup 9.1.0"),
    ] {
        fs::write(saved(&home), text).unwrap();
        home.ok(&["start"]);
        assert!(home.daemon_log().contains(words), "{}", home.daemon_log());
        assert!(
            home.daemon_log().contains("put aside"),
            "{}",
            home.daemon_log()
        );
        home.ok(&["kill"]);
    }
    let aside = fs::read_to_string(home.rsup_home().join("state/state.json.unread0")).unwrap();
    assert_eq!(aside, "{ not json", "nothing was lost");
}

/// A network of its own, without any address at first; ends with the process that holds it.
struct Network(std::process::Child);

impl Network {
    fn new(home: &Home) -> Self {
        let mut command = home.command("unshare");
        let child = command.args(["--net", "sleep", "1000"]).spawn().unwrap();
        let network = Self(child);
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        wait_for("the network", || {
            match fs::read_link(format!("/proc/{}/ns/net", network.0.id())) {
                Ok(theirs) if theirs != ours => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        network.run(home, &["ip", "link", "set", "lo", "up"]);
        network
    }

    fn command(&self, home: &Home, words: &[&str]) -> std::process::Command {
        let mut command = home.command("nsenter");
        command
            .args([&format!("--net=/proc/{}/ns/net", self.0.id()), "--"])
            .args(words);
        command
    }

    fn run(&self, home: &Home, words: &[&str]) {
        crate::common::try_run(self.command(home, words))
            .unwrap()
            .ok();
    }

    fn service(&self, home: &Home) -> std::process::Child {
        let mut command = self.command(home, &[crate::common::RSUP, "daemon", "--service"]);
        let null = std::process::Stdio::null;
        let child = command.stdout(null()).stderr(null()).spawn().unwrap();
        wait_until("the service answers", || home.run(&["ping"]).code == 0);
        child
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// DHCP, or a floating address: what `list` says of it ends with it; the admin listener comes too.
#[test]
fn an_address_that_comes_later() {
    if !nix::unistd::geteuid().is_root() {
        return crate::common::apps::missing("a network namespace", "not root");
    }
    let home = Home::new();
    let network = Network::new(&home);
    let address = ["10.99.0.1/32", "dev", "lo"];
    let ip = |verb: &str| network.run(&home, &[&["ip", "addr", verb], &address[..]].concat());
    ip("add");
    let keys = "listen = \"10.99.0.1:4321\"\nreadiness = \"/readiness\"\ninstances = 2";
    home.config(&format!(
        "[supervisor]\nadmin = \"10.99.0.1:4322\"\nadmin_public = true\n[app.web]\n{}\n{keys}\n",
        crate::common::apps::sample()
    ));
    let mut first = network.service(&home);
    home.ok(&["start"]);
    signal(home.daemon(), Signal::SIGTERM);
    assert!(first.wait().unwrap().success());
    ip("del");
    let mut second = network.service(&home);
    let reason = |view: &serde_json::Value| view["reason"].as_str().unwrap_or_default().to_owned();
    home.wait_view("web", "it is told why there is no worker", |v| {
        reason(v).contains("10.99.0.1:4321")
    });
    let admin = || home.ok(&["ping", "--json"]).json()["admin"]["problem"].clone();
    assert!(
        admin().to_string().contains("goes on trying"),
        "{}",
        admin()
    );
    ip("add");
    let view = home.wait_view("web", "ready", is_ready);
    assert_eq!(reason(&view), "", "{view:#}");
    wait_for("the admin listener", || {
        if admin().is_null() {
            Ok(())
        } else {
            Err(admin())
        }
    });
    home.ok(&["kill"]);
    second.wait().unwrap();
}
