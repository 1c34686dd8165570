//! A dockerd of the tests' own, which all tests of this program share.
//!
//! dockerd, its containerd, the shims and all containers are in a pid namespace that dies with its first process and
//! in a mount namespace that dies with it. A guardian outside waits for the end of the tests, by whatever end it comes
//! (its stdin is closed then) and for so long at the most; it kills that first process, and removes the control
//! groups and the folder.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::common::apps::missing;
use crate::common::{PATIENCE, Run, is_alive, try_run};
use crate::image;

/// In the names of everything that tests could leave behind.
const PREFIX: &str = "rsup-test-engine-";
/// The exit code of a machine where the namespaces cannot be made.
const CANNOT: i32 = 77;
/// After so long everything is ended, whatever the tests do.
const AT_MOST: Duration = Duration::from_secs(900);

const GUARDIAN: &str = r#"
unshare --mount --pid --fork true || exit 77
setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc --propagation private sh -c "$INNER" </dev/null &
unshare=$!
echo $unshare > "$FOLDER/unshare"
timeout "$AT_MOST" cat > /dev/null
first=$(cat /proc/$unshare/task/$unshare/children)
kill -KILL $unshare
wait
# The first process of a pid namespace is gone once all others in it are.
for n in $(seq 500); do
  [ -n "$first" ] && [ -e /proc/${first% } ] || break
  sleep 0.02
done
for n in $(seq 500); do
  groups=$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$NAME")
  [ -n "$groups" ] || break
  find $groups -depth -type d -exec rmdir {} + 2>/dev/null
  sleep 0.02
done
rm -rf "$FOLDER"
[ -z "$groups" ] && [ ! -e "$FOLDER" ]
"#;

/// The shell stays the first process, and takes away shims that have ended.
const INNER: &str = r#"
dockerd --config-file "$FOLDER/dockerd.json" --data-root "$FOLDER/data" --exec-root "$FOLDER/exec" --pidfile "$FOLDER/pid" \
  --host "unix://$FOLDER/socket" --bridge none --iptables=false --ip6tables=false --storage-driver vfs \
  --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$NAME" > "$FOLDER/log" 2>&1 &
wait
"#;

pub struct Engine {
    folder: PathBuf,
    name: String,
    guardian: Mutex<Child>,
    /// The first process of the namespaces, seen from here.
    first: u32,
}

/// `None` once it was tried in vain.
static SHARED: Mutex<Option<Weak<Engine>>> = Mutex::new(Some(Weak::new()));

/// The engine with its images, started if it does not run; or says why the test is skipped.
pub fn engine() -> Option<Arc<Engine>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = shared.as_ref()?.upgrade() {
        return Some(engine);
    }
    // Poisoned or not, a start that fails is not tried again by every other test.
    *shared = None;
    match Engine::start().and_then(|engine| image::build(&engine).map(|()| engine)) {
        Ok(engine) => {
            let engine = Arc::new(engine);
            *shared = Some(Arc::downgrade(&engine));
            KEPT.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .replace(engine.clone());
            Some(engine)
        }
        Err(why) => {
            eprintln!("NOT TESTED: no container engine runs here");
            missing("a container engine", &why);
            None
        }
    }
}

/// Keeps it alive between tests.
static KEPT: Mutex<Option<Arc<Engine>>> = Mutex::new(None);

/// Ends the engine, once no other test needs it; `Err` says what it left behind.
pub fn end() -> Result<(), String> {
    let Some(kept) = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return Ok(());
    };
    let deadline = Instant::now() + 3 * PATIENCE;
    let mut engine = Some(kept);
    loop {
        let Some(mine) = engine.take() else {
            return Ok(());
        };
        match Arc::try_unwrap(mine) {
            Ok(engine) => return engine.end(),
            Err(_) if Instant::now() >= deadline => {
                return Err("a test still uses the engine".to_owned());
            }
            Err(shared) => engine = Some(shared),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Engine {
    fn start() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("that is for root".to_owned());
        }
        for (program, package) in [
            ("dockerd", "docker.io"),
            ("docker", "docker.io"),
            ("containerd", "containerd"),
            ("runc", "runc"),
            ("docker-init", "tini"),
            ("setpriv", "util-linux"),
        ] {
            let there = Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            there.map_err(|why| format!("{program}: {why}; apt-get install {package}"))?;
        }
        sweep();
        let name = format!("{PREFIX}{}", std::process::id());
        // The path of a control socket has 107 bytes at the most.
        let folder = Path::new("/tmp").join(&name);
        fs::create_dir(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
        fs::write(folder.join("dockerd.json"), "{}").map_err(|why| why.to_string())?;
        let mut guardian = Command::new("sh");
        guardian
            .args(["-c", GUARDIAN])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0);
        guardian
            .env("INNER", INNER)
            .env("FOLDER", &folder)
            .env("NAME", &name)
            .env("AT_MOST", AT_MOST.as_secs().to_string());
        let guardian = guardian.spawn().map_err(|why| why.to_string())?;
        let mut engine = Self {
            folder,
            name,
            guardian: Mutex::new(guardian),
            first: 0,
        };
        engine.wait_ready()?;
        Ok(engine)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let ended = self
                .guardian
                .lock()
                .expect("alone")
                .try_wait()
                .map_err(|why| why.to_string())?;
            if let Some(status) = ended {
                let why = if status.code() == Some(CANNOT) {
                    "namespaces cannot be made"
                } else {
                    "the guardian ended"
                };
                return Err(format!("{why}: {status}\n{}", self.log()));
            }
            if self.first == 0 {
                self.first = self.find_first().unwrap_or_default();
            } else if !is_alive(self.first) {
                return Err(format!("dockerd does not start\n{}", self.log()));
            } else if self.docker(&["version"]).is_ok_and(|run| run.code == 0) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("dockerd does not answer\n{}", self.log()));
            }
        }
    }

    fn find_first(&self) -> Option<u32> {
        let unshare = fs::read_to_string(self.folder.join("unshare")).ok()?;
        let unshare = unshare.trim();
        let children =
            fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// `/proc` as the engine sees it, with the pids that it names.
    pub fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/proc", self.first))
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(words).stdin(Stdio::null());
        command.env(
            "DOCKER_HOST",
            format!("unix://{}/socket", self.folder.display()),
        );
        // Nothing of the account's own: contexts, plugins.
        command
            .env("DOCKER_CONFIG", self.folder.join("client"))
            .env_remove("DOCKER_CONTEXT");
        // The builder that takes its base images from the engine, and needs no plugin.
        command.env("DOCKER_BUILDKIT", "0");
        command
    }

    pub fn docker(&self, words: &[&str]) -> Result<Run, String> {
        try_run(self.command(words))
    }

    /// It must succeed; what it says.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let run = self.docker(words).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(
            run.code, 0,
            "docker {words:?}\nstdout: {}\nstderr: {}",
            run.out, run.err
        );
        run.out
    }

    /// What the engine and its containers have to do with this machine: processes, mounts, control groups, files.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = groups(&self.name)
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        left.extend(
            self.folder
                .exists()
                .then(|| self.folder.display().to_string()),
        );
        for pid in crate::common::all_pids() {
            let belongs = |file: &str| {
                fs::read_to_string(format!("/proc/{pid}/{file}"))
                    .is_ok_and(|t| t.contains(&self.name))
            };
            if pid != std::process::id()
                && (belongs("cmdline") || belongs("cgroup") || belongs("mounts"))
            {
                left.push(format!(
                    "process {pid}: {}",
                    crate::common::command_line(pid)
                ));
            }
        }
        left
    }

    /// Ends everything, and looks whether it has.
    fn end(mut self) -> Result<(), String> {
        self.finish();
        let left = self.left();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left behind: {left:#?}"))
        }
    }

    fn finish(&mut self) {
        let guardian = self
            .guardian
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        drop(guardian.stdin.take());
        let _ = guardian.wait();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The control groups of this name, in every hierarchy.
fn groups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    hierarchies
        .chain([root.to_owned()])
        .map(|path| path.join(name))
        .filter(|path| path.exists())
        .collect()
}

/// The deepest first.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// What tests have left whose guardian was killed as well: folders, and control groups without processes.
fn sweep() {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for place in hierarchies.chain([PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/tmp")]) {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner: Option<u32> = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
            if owner.is_some_and(|pid| !is_alive(pid)) {
                if place == Path::new("/tmp") {
                    let _ = fs::remove_dir_all(entry.path());
                } else {
                    remove_group(&entry.path());
                }
            }
        }
    }
}
