//! A machine with a systemd of its own: systemd-nspawn boots an overlay of this system's `/`, whose
//! upper layer is in memory. It shares the network with the test, which puts load on its apps.
//!
//! Everything is in a pid namespace that dies with its first process, a mount namespace that dies
//! with it, and a control group that is removed at the end; and the kernel kills that first process
//! when the test dies, by whatever end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::apps::missing;
use crate::common::{self, RSUP, Run, is_alive, wait_for};

/// Where rsup is inside.
pub const PROGRAM: &str = "/usr/local/bin/rsup";
/// Where this very test program is inside.
pub const TESTS: &str = "/usr/local/bin/rsup-tests";
/// The exit code of a machine that cannot be built here.
const CANNOT: i32 = 77;
/// In the names of everything that could be left by a test that was killed.
const PREFIX: &str = "rsup-test-systemd-";

/// In the test's namespaces: enter the control groups, then make namespaces.
const OUTER: &str = r#"
for group in $GROUPS_OF_TEST; do echo $$ > "$group/cgroup.procs" || exit 77; done
unshare --mount --pid --fork true || exit 77
exec unshare --mount --pid --fork --kill-child --mount-proc --propagation private sh -c "$INNER"
"#;

/// In the new ones: the overlay, without the services of this machine and what a rsup of its own has left, and boots of it until one is
/// no reboot (133: see systemd-nspawn(1), --keep-unit). pidfd_getfd(2), which takeover needs, is not
/// among the system calls that systemd-nspawn allows by itself.
const INNER: &str = r#"
mount -t tmpfs -o mode=0755 tmpfs "$FOLDER" || exit 77
mkdir "$FOLDER/upper" "$FOLDER/work" "$FOLDER/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$FOLDER/root" || exit 77
mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd || exit 77
rm -rf "$FOLDER"/root/etc/systemd/system/*.wants/* "$FOLDER"/root/etc/systemd/system/rsup* "$FOLDER/root/var/lib/rsup"
mkdir -p "$FOLDER/root/usr/local/bin"
cp "$PROGRAM" "$FOLDER/root/usr/local/bin/rsup"
cp "$TESTS" "$FOLDER/root/usr/local/bin/rsup-tests"
while :; do
  systemd-nspawn --quiet --directory="$FOLDER/root" --boot --register=no --keep-unit --machine="$NAME" \
    --link-journal=no --console=pipe --system-call-filter=pidfd_getfd
  code=$?
  [ $code = 133 ] || exit $code
  echo "---- reboot"
done
"#;

pub struct Machine {
    folder: tempfile::TempDir,
    groups: Vec<PathBuf>,
    first: Child,
}

/// Says why not, and that nothing was tested.
fn impossible(why: &str) -> Option<Machine> {
    missing("a systemd that can be booted", why);
    None
}

impl Machine {
    pub fn boot() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return impossible("that is for root");
        }
        if !fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\toverlay\n")) {
            return impossible("this kernel has no overlayfs");
        }
        for (program, package) in [
            ("systemd-nspawn", "systemd-container"),
            ("/lib/systemd/systemd", "systemd"),
            ("nsenter", "util-linux"),
            ("setpriv", "util-linux"),
        ] {
            let there = Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if there.is_err() {
                return impossible(&format!("there is no {program}: apt-get install {package}"));
            }
        }
        sweep();
        // Tests of this program boot theirs beside each other.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let folder = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in("/tmp")
            .unwrap();
        let mut groups = Vec::new();
        for root in hierarchies() {
            let group = root.join(&name);
            if let Err(why) = fs::create_dir(&group) {
                groups.iter().for_each(remove_group);
                return impossible(&format!("{}: {why}", group.display()));
            }
            groups.push(group);
        }
        let log = fs::File::create(folder.path().with_extension("log")).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "sh", "-c", OUTER])
            .stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let groups_text: Vec<String> = groups
            .iter()
            .map(|group| group.display().to_string())
            .collect();
        command
            .env("GROUPS_OF_TEST", groups_text.join(" "))
            .env("INNER", INNER);
        command
            .env("FOLDER", folder.path())
            .env("NAME", &name)
            .env("PROGRAM", RSUP);
        command.env("TESTS", std::env::current_exe().unwrap());
        let first = command.spawn().unwrap();
        let mut machine = Self {
            folder,
            groups,
            first,
        };
        if machine.wait_boot() {
            Some(machine)
        } else {
            impossible(&machine.log())
        }
    }

    /// False if this machine cannot do it.
    fn wait_boot(&mut self) -> bool {
        let deadline = Instant::now() + common::PATIENCE;
        loop {
            if let Some(status) = self.first.try_wait().unwrap() {
                assert_eq!(
                    status.code(),
                    Some(CANNOT),
                    "the machine ended: {status}\n{}",
                    self.log()
                );
                return false;
            }
            if self
                .try_run(&["systemctl", "is-system-running", "--wait"])
                .is_some_and(|run| run.out.trim() == "running")
            {
                return true;
            }
            assert!(
                Instant::now() < deadline,
                "the machine does not boot\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Boots anew; what is in memory files is gone, what is on disk stays.
    pub fn reboot(&mut self) {
        let before = self.init().expect("it runs");
        let _ = self.try_run(&["systemctl", "reboot"]);
        common::wait_until("the end of the first boot", || !is_alive(before));
        assert!(self.wait_boot());
    }

    /// The machine's pid 1.
    fn init(&self) -> Option<u32> {
        let mut pid = self.first.id();
        // setpriv became unshare; below it the shell, nspawn, systemd.
        for _ in 0..3 {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            pid = children.split_whitespace().next()?.parse().ok()?;
        }
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "systemd").then_some(pid)
    }

    /// A command inside.
    fn command(&self, words: &[&str]) -> Option<Command> {
        let init = self.init()?.to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &init, "-m", "-u", "-i", "-p", "--"])
            .args(words);
        command.env_clear().env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command
            .env("HOME", "/root")
            .env("SYSTEMD_PAGER", "")
            .current_dir("/")
            .stdin(Stdio::null());
        Some(command)
    }

    pub fn try_run(&self, words: &[&str]) -> Option<Run> {
        common::try_run(self.command(words)?).ok()
    }

    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Run {
        common::try_run(self.command(words).expect("the machine runs"))
            .unwrap_or_else(|why| panic!("{why}"))
    }

    /// It must succeed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> Run {
        let run = self.run(words);
        assert_eq!(
            run.code, 0,
            "{words:?}\nstdout: {}\nstderr: {}",
            run.out, run.err
        );
        run
    }

    /// Runs on in the background; dropped, it is waited for.
    pub fn background(&self, words: &[&str]) -> Child {
        let mut command = self.command(words).expect("the machine runs");
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub fn write(&self, path: &str, text: &str) {
        let init = self.init().expect("the machine runs");
        let path = PathBuf::from(format!("/proc/{init}/root{path}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        let init = self.init().expect("the machine runs");
        fs::read_to_string(format!("/proc/{init}/root{path}")).unwrap_or_default()
    }

    /// A property of a unit.
    #[track_caller]
    pub fn show(&self, unit: &str, property: &str) -> String {
        self.ok(&["systemctl", "show", "--value", "-p", property, unit])
            .out
            .trim()
            .to_owned()
    }

    #[track_caller]
    pub fn wait_show(&self, unit: &str, property: &str, wanted: &str) {
        wait_for(&format!("{property}={wanted} of {unit}"), || {
            let now = self.show(unit, property);
            if now == wanted { Ok(()) } else { Err(now) }
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for words in [
                &["systemctl", "status", "rsup.service"][..],
                &["journalctl", "-b", "--no-pager", "-n", "60"],
            ] {
                if let Some(run) = self.try_run(words) {
                    eprintln!("---- {words:?}\n{}{}", run.out, run.err);
                }
            }
            eprintln!("---- the machine\n{}", self.log());
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
        let deadline = Instant::now() + Duration::from_secs(10);
        for group in &self.groups {
            while group.exists() && Instant::now() < deadline {
                remove_group(group);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = fs::remove_file(self.folder.path().with_extension("log"));
        let left: Vec<_> = self.groups.iter().filter(|group| group.exists()).collect();
        if !left.is_empty() && !std::thread::panicking() {
            panic!("left behind: {left:?}");
        }
    }
}

/// Where systemd keeps its groups: one unified hierarchy, or its own beside those of old.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.procs").exists() {
        return vec![root.to_owned()];
    }
    ["systemd", "unified"]
        .iter()
        .map(|name| root.join(name))
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

/// The deepest first.
fn remove_group(group: &PathBuf) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// What tests that were killed have left: empty groups and folders.
fn sweep() {
    for root in hierarchies().into_iter().chain([PathBuf::from("/tmp")]) {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| {
                name.strip_prefix(PREFIX)?
                    .split(['-', '.'])
                    .next()?
                    .parse()
                    .ok()
            });
            if owner.is_some_and(|pid| !is_alive(pid)) {
                remove_group(&entry.path());
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
