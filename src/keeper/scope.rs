//! Moves rsup out of the systemd service that the first command is a part of, such as a webhook or
//! a CI runner: rsup would end with it. systemd is asked for a scope of rsup's own, which no unit
//! stops with itself (systemd.scope(5)).

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sys::detach::{self, Service};

/// How long systemd may take.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// Moves this process, which has no child yet, out of a service; returns a message about the
/// result.
pub fn leave_service() -> Option<String> {
    // In a container the name may be that of a service outside (sd_booted(3)).
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let service = detach::service_of_caller()?;
    let unit = &service.unit;
    match ask(&service).and_then(|()| wait(&service)) {
        Ok(()) => None,
        Err(why) => Some(format!(
            "rsup was started inside {unit} and ends with it, since it could not get a scope of its own: {why}; \
             `rsup startup` makes it a service of its own"
        )),
    }
}

/// Calls `StartTransientUnit` of org.freedesktop.systemd1(5).
fn ask(service: &Service) -> io::Result<()> {
    let pid = std::process::id().to_string();
    let manager = if service.of_user {
        "--user"
    } else if nix::unistd::geteuid().is_root() {
        "--system"
    } else {
        return Err(io::Error::other("that takes root"));
    };
    let mut command = Command::new("busctl");
    command.args([
        manager,
        "--quiet",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
    ]);
    command.args([&format!("rsup-{pid}.scope"), "fail", "4"]);
    command.args(["PIDs", "au", "1", &pid]);
    command.args(["Description", "s", "rsup and its apps"]);
    command.args(["Delegate", "b", "true"]);
    command.args(["CollectMode", "s", "inactive-or-failed"]);
    command.arg("0");
    if service.of_user && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        let uid = nix::unistd::geteuid();
        command.env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"));
    }
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("busctl: {}", said.trim())))
}

/// Waits for the job, which moves this process a moment later.
fn wait(service: &Service) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while detach::service_of_caller().as_ref() == Some(service) {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
