//! A pid namespace with rsup as its first process.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::apps::{missing, sample};
use crate::common::http::{Answer, get, local};
use crate::common::{Home, RSUP, signal, wait_for, wait_until};

/// `unshare` with what it takes here. An ordinary user needs a user namespace for it, which some machines
/// forbid; root has no excuse.
fn namespace() -> Option<&'static [&'static str]> {
    static FOUND: OnceLock<Result<&'static [&'static str], String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let args: &[&str] = if nix::unistd::geteuid().is_root() {
            &["--pid", "--fork", "--kill-child", "--mount-proc"]
        } else {
            &[
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ]
        };
        let output = Command::new("unshare")
            .args(args)
            .arg("true")
            .output()
            .map_err(|why| format!("unshare: {why}"))?;
        if output.status.success() {
            Ok(args)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    match found {
        Ok(args) => Some(args),
        Err(why) => {
            assert!(
                !nix::unistd::geteuid().is_root(),
                "root can make a pid namespace with `unshare`, but: {why}"
            );
            missing("a pid namespace (try as root)", why);
            None
        }
    }
}

pub struct Container {
    unshare: Child,
    /// rsup's pid, seen from here; inside it is 1. `None` if it ended as soon as it was started.
    pid: Option<u32>,
}

impl Container {
    /// Runs `rsup start --foreground` with more arguments; `None` where there can be no namespace.
    pub fn start(home: &Home, args: &[&str]) -> Option<Self> {
        let file = |name: &str| Stdio::from(fs::File::create(home.path(name)).unwrap());
        Self::start_with(home, args, file("stdout"), file("stderr"))
    }

    pub fn start_with(home: &Home, args: &[&str], stdout: Stdio, stderr: Stdio) -> Option<Self> {
        let command = [&[RSUP, "start", "--foreground"], args].concat();
        Self::run(home, &[], &command, stdout, stderr)
    }

    /// Runs any command as the first process.
    pub fn run(
        home: &Home,
        namespaces: &[&str],
        words: &[&str],
        stdout: Stdio,
        stderr: Stdio,
    ) -> Option<Self> {
        let mut command = home.command("unshare");
        command
            .args(namespace()?)
            .args(namespaces)
            .arg("--")
            .args(words)
            .stdout(stdout)
            .stderr(stderr);
        let mut unshare = command.spawn().unwrap();
        let id = unshare.id();
        let pid = wait_for("the first process", || {
            if unshare.try_wait().map_err(|why| why.to_string())?.is_some() {
                return Ok(None); // it is over already
            }
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))
                .map_err(|why| why.to_string())?;
            children
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| format!("children: {children:?}"))
        });
        Some(Self { unshare, pid })
    }

    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.pid.expect("the first process lives")
    }

    #[track_caller]
    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    #[track_caller]
    pub fn end(mut self) -> ExitStatus {
        wait_for("the end of the first process", || {
            self.unshare
                .try_wait()
                .map_err(|e| e.to_string())?
                .ok_or_else(|| "still there".to_owned())
        })
    }

    #[track_caller]
    pub fn ends_with(self, home: &Home, code: i32) {
        let status = self.end();
        assert_eq!(status.code(), Some(code), "{status}\n{}", said(home));
    }

    pub fn has_ended(&mut self) -> bool {
        self.unshare.try_wait().unwrap().is_some()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Ok(None) = self.unshare.try_wait() {
            // Everything in the namespace dies with its first process.
            if let Some(pid) = self.pid {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            let _ = self.unshare.wait();
        }
    }
}

/// What rsup said on stdout and stderr.
pub fn said(home: &Home) -> String {
    ["stdout", "stderr"]
        .map(|name| fs::read_to_string(home.path(name)).unwrap_or_default())
        .concat()
}

#[track_caller]
pub fn wait_said(home: &Home, words: &str) {
    wait_for(&format!("rsup says `{words}`"), || {
        let text = said(home);
        if text.contains(words) {
            Ok(())
        } else {
            Err(text)
        }
    });
}

#[track_caller]
pub fn up(home: &Home, app: &str) -> Value {
    wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
    home.wait_view(app, "the app is ready", crate::common::is_ready)
}

/// Adds `[app.NAME]` to supervisor.toml.
pub fn app(home: &Home, name: &str, keys: &str) {
    let before = fs::read_to_string(home.path("supervisor.toml")).unwrap_or_default();
    home.config(&format!("{before}[app.{name}]\n{keys}\n"));
}

/// Adds the sample app; the port that it listens on.
pub fn web(home: &Home, name: &str, keys: &str) -> u16 {
    let port = home.port();
    app(
        home,
        name,
        &format!(
            "{}\nlisten = \"127.0.0.1:{port}\"\nreadiness = \"/readiness\"\n{keys}",
            sample()
        ),
    );
    port
}

/// Adds `[supervisor]` with an admin listener.
pub fn admin(home: &Home) -> SocketAddr {
    let port = home.port();
    let before = fs::read_to_string(home.path("supervisor.toml")).unwrap_or_default();
    home.config(&format!("[supervisor]\nadmin = {port}\n{before}"));
    local(port)
}

/// Replaces words in supervisor.toml.
pub fn edit(home: &Home, from: &str, to: &str) {
    let text = fs::read_to_string(home.path("supervisor.toml")).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    home.config(&text.replace(from, to));
}

#[track_caller]
pub fn page(address: SocketAddr, path: &str) -> Answer {
    get(address, path).unwrap_or_else(|why| panic!("{path}: {why}"))
}

#[track_caller]
pub fn wait_status(address: SocketAddr, path: &str, status: u16) -> Answer {
    wait_for(&format!("{status} of {path}"), || {
        match get(address, path) {
            Ok(answer) if answer.status == status => Ok(answer),
            other => Err(format!("{other:?}")),
        }
    })
}
