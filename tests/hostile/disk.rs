//! The disk is full, or read-only, or the folder is not there any more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bystander::Bystander;
use crate::common::{Home, wait_for, wait_until};
use crate::support::Life;

/// Something mounted, which goes with it.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` without the right to mount.
    fn new(place: &Path, args: &[&str]) -> Option<Self> {
        fs::create_dir_all(place).unwrap();
        let run = Command::new("mount").args(args).arg(place).output().unwrap();
        if !run.status.success() {
            assert!(std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "cannot mount: {run:?}");
            eprintln!("SKIPPED: cannot mount: {run:?}");
            return None;
        }
        Some(Self(place.to_owned()))
    }

    fn again(&self, options: &str) {
        let run = Command::new("mount").args(["-o", options]).arg(&self.0).output().unwrap();
        assert!(run.status.success(), "{run:?}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// `jot` writes a line whenever its file `say` gets one more.
fn jot(home: &Home, keys: &str) {
    home.write("say", "");
    home.write("jot", "exec tail -n +1 -s 0.05 -f say\n");
    home.app("jot", &format!("command = [\"sh\", \"jot\"]\n{keys}"));
}

fn say(home: &Home, words: &str) {
    use std::io::Write;
    let mut file = fs::File::options().append(true).open(home.path("say")).unwrap();
    writeln!(file, "{words}").unwrap();
}

/// Until `describe` and `list` tell that the log is in trouble.
#[track_caller]
fn until_it_is_said(home: &Home, reason: &str) {
    wait_for("describe tells it", || {
        say(home, "one more");
        let notes = home.describe("jot")["notes"].to_string();
        if notes.contains("cannot be written") && notes.contains(reason) { Ok(()) } else { Err(notes) }
    });
    let listed = home.view("jot");
    assert!(listed["reason"].as_str().unwrap_or_default().contains(reason), "{listed:#}");
}

#[track_caller]
fn until_it_is_over(home: &Home) {
    wait_for("the note is gone", || {
        let notes = home.describe("jot")["notes"].to_string();
        if notes.contains("cannot be written") { Err(notes) } else { Ok(()) }
    });
    say(home, "as before");
    home.wait_log("jot", "as before");
}

#[test]
fn a_full_disk_under_logs_and_state() {
    let home = Home::new();
    let state = home.rsup_home().join("state");
    let Some(_disk) = Mounted::new(&state, &["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"]) else { return };
    let calm = Bystander::start(&home);
    jot(&home, "");
    home.ok(&["start"]);
    say(&home, "the first");
    home.wait_log("jot", "the first");
    // Filled to the last byte, the rest of the last pages of the logs too.
    fill(&state.join("ballast"));
    until_it_is_said(&home, "No space left");
    // Its daemon cannot write its own log either, and goes on: everything works.
    home.ok(&["reload", "jot"]);
    home.ok(&["scale", "jot", "2"]);
    home.ok(&["restart", "jot"]);
    until_it_is_said(&home, "No space left");
    until_the_state_is(&home, "a reboot would forget changes", true);
    fs::remove_file(state.join("ballast")).unwrap();
    until_it_is_over(&home);
    until_the_state_is(&home, "a reboot would forget changes", false);
    let saved = fs::read_to_string(state.join("state.json")).unwrap();
    assert!(saved.contains("\"last_revision\":3"), "what could not be saved is saved now: {saved}");
    let text = home.logs("jot");
    assert!(text.contains("lines were lost here: No space left"), "{text}");
    wait_for("the daemon says so too", || {
        let log = home.daemon_log();
        if log.contains("can be written again") { Ok(()) } else { Err(log) }
    });
    calm.untouched(&home);
}

/// Whether `describe` says that the state cannot be saved, with this consequence.
#[track_caller]
fn until_the_state_is(home: &Home, consequence: &str, in_trouble: bool) {
    wait_for("it is said of the state", || {
        let notes = home.describe("jot")["notes"].to_string();
        if notes.contains(consequence) == in_trouble { Ok(()) } else { Err(notes) }
    });
}

/// Nothing can be written down for the next daemon: that is said, all goes on, and once there is room
/// again the next daemon knows everything.
#[test]
fn a_full_disk_under_the_live_state() {
    let home = Home::new();
    let folder = home.rsup_home().join("run");
    // Under the disk, when that is gone, as rsup itself makes it.
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let Some(_disk) = Mounted::new(&folder, &["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"]) else { return };
    let calm = Bystander::start(&home);
    jot(&home, "");
    home.ok(&["start"]);
    fill(&folder.join("ballast"));
    home.ok(&["reload", "jot"]);
    home.ok(&["scale", "jot", "2"]);
    until_the_state_is(&home, "a killed rsup could not go on", true);
    assert!(home.daemon_log().contains("No space left"), "{}", home.daemon_log());
    fs::remove_file(folder.join("ballast")).unwrap();
    home.ok(&["scale", "jot", "3"]);
    until_the_state_is(&home, "a killed rsup could not go on", false);
    let (before, daemon) = (home.pids("jot"), home.daemon());
    crate::common::signal(daemon, nix::sys::signal::Signal::SIGKILL);
    wait_until("the next daemon", || home.daemon() != daemon);
    assert_eq!(home.pids("jot"), before);
    calm.load_was_lossless();
    home.ok(&["kill"]);
}

fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    while file.write(&[0; 4096]).is_ok() {}
}

/// The daemon's own messages too may meet a full disk, or a pipe whose reader is gone.
#[test]
fn messages_that_nobody_takes() {
    let home = Home::new();
    home.app("job", "command = [\"sleep\", \"1000\"]");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = home.rsup();
    let mut daemon = command.args(["start", "--foreground"]).stdout(Stdio::null()).stderr(full).spawn().unwrap();
    wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
    home.wait_view("job", "it runs", |v| v["phase"] == "ready");
    home.ok(&["reload", "job"]);
    home.ok(&["kill"]);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_read_only_state_folder() {
    let home = Home::new();
    let state = home.rsup_home().join("state");
    let calm = Bystander::start(&home);
    let source = state.to_str().unwrap().to_owned();
    let Some(disk) = Mounted::new(&state, &["--bind", &source]) else { return };
    disk.again("remount,bind,ro");
    jot(&home, "");
    home.ok(&["start"]);
    until_it_is_said(&home, "Read-only file system");
    home.ok(&["reload", "jot"]);
    home.ok(&["reload", "calm"]);
    disk.again("remount,bind,rw");
    until_it_is_over(&home);
    let log = home.daemon_log();
    assert!(log.contains("cannot be written: Read-only file system"), "{log}");
    calm.load_was_lossless();
}

#[test]
fn a_log_folder_that_is_gone() {
    let home = Home::new();
    let calm = Bystander::start(&home);
    let folder = home.path("logs");
    let out = folder.join("jot.log");
    jot(&home, &format!("log = {{ out = {out:?} }}"));
    home.ok(&["start"]);
    say(&home, "the first");
    let read = || fs::read_to_string(&out).unwrap_or_default();
    let until = |words: &str| {
        wait_for(words, || {
            say(&home, words);
            if read().contains(words) { Ok(()) } else { Err(read()) }
        });
    };
    until("the first");
    // Somebody may be about to write there.
    let remove = || wait_for("the folder is gone", || fs::remove_dir_all(&folder));
    // Deleted: it is made again.
    remove();
    until("the second");
    // Something else is in its place.
    wait_for("a file is in its place", || {
        remove();
        fs::write(&folder, "not a folder")
    });
    until_it_is_said(&home, "Not a directory");
    home.ok(&["reload", "jot"]);
    fs::remove_file(&folder).unwrap();
    until("the third");
    assert!(read().contains("lines were lost here"), "{}", read());
    calm.untouched(&home);
}
