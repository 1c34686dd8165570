//! A daemon of its own with two apps: one that serves, one that counts.

use std::error::Error;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// In the environment of everything that is started here.
const MARK: &str = "CHAOS_HOME";

/// Every wait ends here: much longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub type Result<T> = std::result::Result<T, String>;

pub struct World {
    pub rsup: PathBuf,
    home: tempfile::TempDir,
    pub port: u16,
    pub instances: u16,
    /// Of the release that is in use.
    pub version: u32,
    small_disk: std::result::Result<PathBuf, String>,
}

impl World {
    pub fn start(rsup: Option<PathBuf>) -> std::result::Result<Self, Box<dyn Error>> {
        let beside = || {
            Some(
                std::env::current_exe()
                    .ok()?
                    .parent()?
                    .parent()?
                    .join("rsup"),
            )
        };
        let rsup = rsup
            .or_else(beside)
            .filter(|path| path.is_file())
            .ok_or("there is no rsup beside this example: cargo build, or --rsup PATH")?
            .canonicalize()?;
        let home = tempfile::Builder::new().prefix("rsup").tempdir_in("/tmp")?;
        let small_disk = small_disk(&home.path().join("disk"));
        let mut world = Self {
            rsup,
            home,
            port: free_port()?,
            instances: 3,
            version: 1,
            small_disk,
        };
        world.configure("")?;
        let output = world.rsup(&["start"])?;
        if !output.status.success() {
            return Err(format!(
                "rsup start failed: {}",
                String::from_utf8_lossy(&output.stderr)
            )
            .into());
        }
        Ok(world)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Why there is no disk to fill up.
    pub fn no_small_disk(&self) -> Option<&str> {
        self.small_disk.as_ref().err().map(String::as_str)
    }

    pub fn disk(&self) -> Option<&Path> {
        self.small_disk.as_deref().ok()
    }

    /// Writes supervisor.toml; `env`: of the release.
    pub fn configure(&mut self, env: &str) -> Result<()> {
        let rsup = toml::Value::from(self.rsup.to_string_lossy().into_owned());
        let logs = self
            .disk()
            .map(|disk| format!("log.out = {:?}\n", disk.join("web.log")))
            .unwrap_or_default();
        let count =
            "i=0; trap 'exit 0' TERM; while :; do i=$((i+1)); echo line $$ $i; sleep 0.02; done";
        let text = format!(
            "[app.web]\ncommand = [{rsup}, \"sample-app\"]\ninstances = {}\nlisten = \"127.0.0.1:{}\"\nreadiness = \"/readiness\"\n\
             liveness = {{ path = \"/liveness\", interval = \"1s\", timeout = \"2s\" }}\nlisten_timeout = \"3s\"\n\
             restart = {{ max_restarts = 1000000, backoff_max = \"500ms\" }}\n\
             env = {{ APP_VERSION = \"v{}\", WARM_MS = \"100\"{env} }}\n{logs}\
             [app.count]\ncommand = ['sh', '-c', {count:?}]\nlog = {{ timestamps = false, max_size = 0 }}\n",
            self.instances, self.port, self.version
        );
        fs::write(self.path("supervisor.toml"), text).map_err(|why| why.to_string())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.rsup);
        command
            .args(args)
            .env("RSUP_HOME", self.path("h"))
            .env(MARK, self.home.path())
            .current_dir(self.home.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn rsup(&self, args: &[&str]) -> Result<Output> {
        self.command(args)
            .output()
            .map_err(|why| format!("rsup {args:?}: {why}"))
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.rsup(args)?;
        let said = || {
            format!(
                "rsup {args:?}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        };
        if !output.status.success() {
            return Err(said());
        }
        serde_json::from_slice(&output.stdout).map_err(|_| said())
    }

    /// Runs it; it must end with this code.
    pub fn expect(&self, args: &[&str], code: i32) -> Result<()> {
        self.expect_of(self.rsup(args)?, args, code)
    }

    pub fn expect_of(&self, output: Output, args: &[&str], code: i32) -> Result<()> {
        if output.status.code() == Some(code) {
            return Ok(());
        }
        Err(format!(
            "rsup {args:?} ended with {:?}: {}",
            output.status.code(),
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    pub fn view(&self, app: &str) -> Result<Value> {
        let list = self.json(&["list", "--json"])?;
        list.as_array()
            .and_then(|apps| apps.iter().find(|a| a["name"] == app))
            .cloned()
            .ok_or_else(|| format!("no {app} in {list}"))
    }

    pub fn pids(&self, app: &str) -> Result<Vec<u32>> {
        Ok(workers(&self.view(app)?)
            .iter()
            .filter_map(|w| w["pid"].as_u64())
            .map(|p| p as u32)
            .collect())
    }

    pub fn daemon(&self) -> Result<u32> {
        self.json(&["ping", "--json"])?["pid"]
            .as_u64()
            .map(|pid| pid as u32)
            .ok_or_else(|| "no pid".into())
    }

    pub fn keeper(&self) -> Result<u32> {
        wait_for("a keeper", || {
            let all = self.processes();
            let keeper = all
                .iter()
                .find(|(_, what)| what.trim_end().ends_with(" keeper"));
            keeper
                .map(|(pid, _)| *pid)
                .ok_or_else(|| format!("{all:?}"))
        })
    }

    pub fn daemon_memory(&self) -> u64 {
        let memory = || self.json(&["ping", "--json"]).ok()?["memory"].as_u64();
        memory().unwrap_or(0)
    }

    /// Live processes that belong to this world.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let me = std::process::id();
        let folder = self.home.path().to_string_lossy().into_owned();
        let marked = |pid: u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environ).split('\0').any(|e| {
                e.split_once('=')
                    .is_some_and(|(_, v)| v.starts_with(&folder))
            })
        };
        let here = |pid: u32| {
            fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(self.home.path()))
        };
        let all = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let ours = all.filter(|pid| *pid != me && is_alive(*pid) && (marked(*pid) || here(*pid)));
        ours.map(|pid| {
            (
                pid,
                String::from_utf8_lossy(
                    &fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
                )
                .replace('\0', " "),
            )
        })
        .collect()
    }

    /// Waits until every app is as it should be, and nothing is under way.
    pub fn settle(&self) -> Result<()> {
        wait_for("all is well", || {
            for (app, instances) in [("web", self.instances), ("count", 1)] {
                let view = self.view(app)?;
                let workers = workers(&view);
                let ready = workers.len() == usize::from(instances)
                    && workers.iter().all(|w| w["phase"] == "ready");
                if !ready || !view["operation"].is_null() || view["phase"] != "ready" {
                    return Err(view.to_string());
                }
            }
            Ok(())
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.rsup(&["kill"]);
        let left = wait_for("the end", || {
            if self.processes().is_empty() {
                Ok(())
            } else {
                Err("some are left".into())
            }
        });
        if left.is_err() {
            for (pid, what) in self.processes() {
                eprintln!("left behind: {pid} {what}");
                signal(pid, Signal::SIGKILL);
            }
        }
        if let Ok(disk) = &self.small_disk {
            let _ = umount2(disk, MntFlags::MNT_DETACH);
        }
    }
}

/// A disk of its own for the logs, which can be filled up.
fn small_disk(folder: &Path) -> std::result::Result<PathBuf, String> {
    fs::create_dir(folder).map_err(|why| why.to_string())?;
    let options = Some("size=4m,mode=0755");
    mount(
        Some("rsup-chaos"),
        folder,
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .map_err(|why| format!("no tmpfs can be mounted: {why}"))?;
    Ok(folder.to_owned())
}

/// Below the ports that clients get.
fn free_port() -> std::result::Result<u16, Box<dyn Error>> {
    let from = 10_000 + (std::process::id() % 10_000) as u16;
    (from..30_000)
        .find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .ok_or_else(|| "no port is free".into())
}

fn workers(view: &Value) -> Vec<Value> {
    view["workers"].as_array().cloned().unwrap_or_default()
}

/// No error if it is gone already.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(format!("{what}: never came; last: {last}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
