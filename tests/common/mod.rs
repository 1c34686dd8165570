//! What the tests of the whole program share: a daemon of their own, ports of their own, real apps,
//! load, and waiting on conditions instead of for some time.
#![allow(dead_code, reason = "no single test uses everything")]

pub mod apps;
pub mod http;
pub mod load;
pub mod net;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub const RSUP: &str = env!("CARGO_BIN_EXE_rsup");

/// Puts a program at `to` that everybody can execute at once.
///
/// install(1) writes it: a file that this process has open for writing is open in each child that another
/// test forks just then as well, until that child's execve(2), and cannot be executed meanwhile (ETXTBSY).
pub fn install(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let (from, to) = (from.as_ref(), to.as_ref());
    let status = Command::new("install")
        .args(["-m", "755", "--"])
        .args([from, to])
        .status();
    assert!(
        status.expect("install(1) runs").success(),
        "{} cannot be put at {}",
        from.display(),
        to.display()
    );
}

/// A word of a shell's, whatever is in it: the repository may lie anywhere.
pub fn quoted(word: &str) -> String {
    shlex::try_quote(word).expect("no NUL").into_owned()
}

/// Every wait ends here: much longer than anything takes, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// In the environment of everything that a test starts. (`RSUP_HOME` stays with the daemon.)
const MARK: &str = "TEST_HOME";

/// A daemon's folders. Dropping it ends the daemon and looks for what was left behind.
pub struct Home {
    folder: tempfile::TempDir,
    ports: RefCell<Vec<Flock<fs::File>>>,
    /// As whom commands run, if not as the test.
    uid: Option<u32>,
    /// What rsup is refused: see tests/apps/restricted.py.
    restricted: Vec<String>,
}

/// What became of a command.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Run {
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "unexpected exit code\nstdout: {}\nstderr: {}",
            self.out, self.err
        );
        self
    }

    /// The error names all of this.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.err.contains(word) || self.out.contains(word),
                "`{word}` is not in\nstdout: {}\nstderr: {}",
                self.out,
                self.err
            );
        }
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|why| panic!("{why}\nstdout: {}\nstderr: {}", self.out, self.err))
    }
}

impl Home {
    pub fn new() -> Self {
        // The control socket's path is limited to 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("rs")
            .tempdir_in("/tmp")
            .expect("a folder in /tmp");
        Self {
            folder,
            ports: RefCell::default(),
            uid: None,
            restricted: Vec::new(),
        }
    }

    /// The same for an ordinary user, with a program that this one may execute. Only root can be
    /// somebody else: none otherwise.
    pub fn of_user(uid: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can run rsup as another user");
            return None;
        }
        let mut home = Self::new();
        home.uid = Some(uid);
        install(RSUP, home.path("rsup"));
        std::os::unix::fs::chown(home.folder(), Some(uid), Some(uid)).expect("chown");
        Some(home)
    }

    /// The same with rsup in a sandbox that refuses it something, in the words of tests/apps/restricted.py.
    pub fn restricted(words: &[&str]) -> Option<Self> {
        apps::python()?;
        let mut home = Self::new();
        home.restricted = words.iter().map(|word| (*word).to_owned()).collect();
        Some(home)
    }

    /// Not /tmp/rs…/daemon: files of the test lie there, the daemon's in `h` below it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub fn rsup_home(&self) -> PathBuf {
        self.path("h")
    }

    /// A TCP port that nobody else has, other tests included, for as long as this home lives.
    pub fn port(&self) -> u16 {
        let (port, lock) = net::reserve_port();
        self.ports.borrow_mut().push(lock);
        port
    }

    /// Writes a file in the test's folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("inside the folder")).expect("make a folder");
        fs::write(&path, text).expect("write a file");
        path
    }

    /// A script that can be executed at once.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let text = self.write(&format!("{name}.text"), text);
        let path = self.path(name);
        install(text, &path);
        path
    }

    /// Writes ./supervisor.toml.
    pub fn config(&self, text: &str) -> PathBuf {
        self.write("supervisor.toml", text)
    }

    /// Any command in the test's folder, marked as belonging to the test.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| {
                n.starts_with("RSUP_") || n.starts_with("LISTEN_") || n == "NOTIFY_SOCKET"
            }) {
                command.env_remove(&name);
            }
        }
        command
            .env("RSUP_HOME", self.rsup_home())
            .env(MARK, self.folder())
            .current_dir(self.folder())
            .stdin(Stdio::null());
        command
    }

    pub fn rsup(&self) -> Command {
        match self.uid {
            None if self.restricted.is_empty() => self.command(RSUP),
            None => {
                let mut command = self.command(apps::python().expect("python3"));
                let script = apps::sources().join("restricted.py");
                command
                    .arg(script)
                    .args(&self.restricted)
                    .args(["--", RSUP]);
                command
            }
            Some(uid) => {
                let mut command = self.command(self.path("rsup").to_str().expect("UTF-8"));
                command.uid(uid).gid(uid);
                command
            }
        }
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Run {
        let mut command = self.rsup();
        command.args(args);
        try_run(command).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Runs the program to its end, in the background.
    pub fn background(&self, args: &[&str]) -> Background {
        let mut command = self.rsup();
        command.args(args);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(try_run(command)));
        Background(receiver)
    }

    /// Runs the program; it must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> Run {
        self.run(args).ok()
    }

    pub fn list(&self) -> Value {
        self.ok(&["list", "--json"]).json()
    }

    /// The app's entry in `list --json`; null if there is none.
    pub fn view(&self, app: &str) -> Value {
        let list = self.list();
        list.as_array()
            .and_then(|apps| apps.iter().find(|a| a["name"] == app))
            .cloned()
            .unwrap_or(Value::Null)
    }

    pub fn describe(&self, app: &str) -> Value {
        self.ok(&["describe", app, "--json"]).json()[0].clone()
    }

    /// Of all live workers, sorted.
    pub fn pids(&self, app: &str) -> BTreeSet<u32> {
        pids(&self.view(app))
    }

    pub fn revision(&self, app: &str) -> u64 {
        self.view(app)["revision"].as_u64().expect("a revision")
    }

    /// Waits until the app's entry in `list --json` is as wanted.
    #[track_caller]
    pub fn wait_view(
        &self,
        app: &str,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        wait_for(what, || {
            let view = self.view(app);
            if wanted(&view) { Ok(view) } else { Err(view) }
        })
    }

    /// The app's lines on stdout and stderr so far.
    pub fn logs(&self, app: &str) -> String {
        let read = |kind| {
            fs::read_to_string(
                self.rsup_home()
                    .join(format!("state/logs/{app}-{kind}.log")),
            )
            .unwrap_or_default()
        };
        read("out") + &read("err")
    }

    #[track_caller]
    pub fn wait_log(&self, app: &str, words: &str) -> String {
        wait_for(&format!("`{words}` in the log of {app}"), || {
            let text = self.logs(app);
            if text.contains(words) {
                Ok(text)
            } else {
                Err(text)
            }
        })
    }

    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.rsup_home().join("state/daemon.log")).unwrap_or_default()
    }

    /// Live processes that belong to this test.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let me = std::process::id();
        let folder = self.folder();
        let marked = |pid: u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut entries = environ
                .split(|b| *b == 0)
                .filter_map(|e| std::str::from_utf8(e).ok());
            entries.any(|e| {
                e.split_once('=').is_some_and(|(name, value)| {
                    (name == MARK || name == "RSUP_HOME") && Path::new(value).starts_with(folder)
                })
            })
        };
        let stays_here = |pid: u32| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
        };
        let ours = all_pids()
            .into_iter()
            .filter(|pid| *pid != me && (marked(*pid) || stays_here(*pid)));
        ours.map(|pid| (pid, command_line(pid))).collect()
    }

    fn tell(&self) {
        let folder = self.rsup_home().join("state");
        let mut files = vec![folder.join("daemon.log")];
        files.extend(
            fs::read_dir(folder.join("logs"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
        for file in files {
            let text = fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(100);
            eprintln!(
                "---- {} (last {} lines)\n{}",
                file.display(),
                lines.len() - from,
                lines[from..].join("\n")
            );
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            self.tell();
        }
        let mut problem = String::new();
        if self.rsup_home().exists() {
            let mut command = self.rsup();
            command.arg("kill");
            let ended = try_run(command);
            match ended {
                Ok(run) if run.code == 0 || run.err.contains("no daemon") => {}
                other => problem = format!("rsup kill: {other:?}\n"),
            }
        }
        // The daemon answers just before it ends.
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut left = self.processes();
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            left = self.processes();
        }
        for (pid, what) in &left {
            problem += &format!("left behind: {pid} {what}\n");
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        if !problem.is_empty() {
            if failing {
                eprintln!("{problem}");
            } else {
                self.tell();
                panic!("{problem}");
            }
        }
    }
}

/// A command under way.
pub struct Background(mpsc::Receiver<Result<Run, String>>);

impl Background {
    #[track_caller]
    pub fn wait(self) -> Run {
        self.0
            .recv_timeout(2 * PATIENCE)
            .expect("the command ends")
            .expect("the command runs")
    }

    /// What became of it, if it has ended.
    pub fn ended(&self) -> Option<Run> {
        self.0.try_recv().ok().map(|r| r.expect("the command runs"))
    }
}

/// Runs a command to its end, or kills it when it takes too long.
pub fn try_run(mut command: Command) -> Result<Run, String> {
    let words = format!("{command:?}");
    let began = Instant::now();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|why| format!("{words}: {why}"))?;
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(output) => {
            let output = output.map_err(|why| format!("{words}: {why}"))?;
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            let code = output.status.code().unwrap_or(-1);
            Ok(Run {
                code,
                out: text(output.stdout),
                err: text(output.stderr),
                took: began.elapsed(),
            })
        }
        Err(_) => {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            Err(format!("{words} did not end within {PATIENCE:?}"))
        }
    }
}

/// The pids in an entry of `list --json`.
pub fn pids(view: &Value) -> BTreeSet<u32> {
    let workers = view["workers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    workers
        .iter()
        .filter_map(|w| w["pid"].as_u64())
        .map(|p| p as u32)
        .collect()
}

/// All wanted workers of an entry of `list --json` are ready, and there are no others.
pub fn is_ready(view: &Value) -> bool {
    let workers = view["workers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    view["phase"] == "ready"
        && Some(workers.len() as u64) == view["instances"].as_u64()
        && workers.iter().all(|w| w["phase"] == "ready")
}

/// Tries again until it is `Ok`. Panics with the last error when that takes too long.
#[track_caller]
pub fn wait_for<T, E: Display>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => panic!("never came: {what}\nlast: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Waits until it is true.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || if condition() { Ok(()) } else { Err("not yet") });
}

/// Removes a folder that a living process may be writing into: a file that appears meanwhile is removed as well.
pub fn remove_folder(path: impl AsRef<Path>) {
    let path = path.as_ref();
    let what = format!("{} is gone", path.display());
    wait_for(&what, || fs::remove_dir_all(path));
}

pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap_or_else(|why| panic!("signal to {pid}: {why}"));
}

/// The process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub fn all_pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
