//! The disk is full, or read-only, or the folder is not there any more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bystander::Bystander;
use crate::common::{Home, remove_folder, wait_for, wait_until};
use crate::support::Life;

/// Something mounted, which goes with it.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` without the right to mount.
    fn new(place: &Path, args: &[&str]) -> Option<Self> {
        fs::create_dir_all(place).unwrap();
        let run = Command::new("mount")
            .args(args)
            .arg(place)
            .output()
            .unwrap();
        if !run.status.success() {
            assert!(
                std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"),
                "cannot mount: {run:?}"
            );
            eprintln!("SKIPPED: cannot mount: {run:?}");
            return None;
        }
        Some(Self(place.to_owned()))
    }

    fn again(&self, options: &str) {
        let run = Command::new("mount")
            .args(["-o", options])
            .arg(&self.0)
            .output()
            .unwrap();
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
    let mut file = fs::File::options()
        .append(true)
        .open(home.path("say"))
        .unwrap();
    writeln!(file, "{words}").unwrap();
}

/// Until `describe` and `list` tell that the log is in trouble.
#[track_caller]
fn until_it_is_said(home: &Home, reason: &str) {
    wait_for("describe tells it", || {
        say(home, "one more");
        let notes = home.describe("jot")["notes"].to_string();
        if notes.contains("cannot be written") && notes.contains(reason) {
            Ok(())
        } else {
            Err(notes)
        }
    });
    let listed = home.view("jot");
    assert!(
        listed["reason"]
            .as_str()
            .unwrap_or_default()
            .contains(reason),
        "{listed:#}"
    );
}

#[track_caller]
fn until_it_is_over(home: &Home) {
    wait_for("the note is gone", || {
        let notes = home.describe("jot")["notes"].to_string();
        if notes.contains("cannot be written") {
            Err(notes)
        } else {
            Ok(())
        }
    });
    say(home, "as before");
    home.wait_log("jot", "as before");
}

#[test]
fn a_full_disk_under_logs_and_state() {
    let home = Home::new();
    let state = home.rsup_home().join("state");
    let Some(_disk) = Mounted::new(&state, &["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"])
    else {
        return;
    };
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
    assert!(
        saved.contains("\"last_revision\":3"),
        "what could not be saved is saved now: {saved}"
    );
    let text = home.logs("jot");
    assert!(
        text.contains("lines were lost here: No space left"),
        "{text}"
    );
    wait_for("the daemon says so too", || {
        let log = home.daemon_log();
        if log.contains("can be written again") {
            Ok(())
        } else {
            Err(log)
        }
    });
    calm.untouched(&home);
}

/// Whether `describe` says that the state cannot be saved, with this consequence.
#[track_caller]
fn until_the_state_is(home: &Home, consequence: &str, in_trouble: bool) {
    wait_for("it is said of the state", || {
        let notes = home.describe("jot")["notes"].to_string();
        if notes.contains(consequence) == in_trouble {
            Ok(())
        } else {
            Err(notes)
        }
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
    let Some(_disk) = Mounted::new(
        &folder,
        &["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"],
    ) else {
        return;
    };
    let calm = Bystander::start(&home);
    jot(&home, "");
    home.ok(&["start"]);
    fill(&folder.join("ballast"));
    home.ok(&["reload", "jot"]);
    home.ok(&["scale", "jot", "2"]);
    until_the_state_is(
        &home,
        "rsup could not go on if its keeper were killed too",
        true,
    );
    assert!(
        home.daemon_log().contains("No space left"),
        "{}",
        home.daemon_log()
    );
    // The keeper has the state that the disk does not take: no worker is forgotten.
    for _ in 0..2 {
        let (before, daemon) = (home.pids("jot"), home.daemon());
        crate::common::signal(daemon, nix::sys::signal::Signal::SIGKILL);
        wait_until("the next daemon", || home.daemon() != daemon);
        assert_eq!(home.pids("jot"), before);
        home.ok(&["reload", "jot"]);
    }
    fs::remove_file(folder.join("ballast")).unwrap();
    home.ok(&["scale", "jot", "3"]);
    until_the_state_is(&home, "rsup could not go on", false);
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
    let mut daemon = command
        .args(["start", "--foreground"])
        .stdout(Stdio::null())
        .stderr(full)
        .spawn()
        .unwrap();
    wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
    home.wait_view("job", "it runs", |v| v["phase"] == "ready");
    home.ok(&["reload", "job"]);
    home.ok(&["kill"]);
    assert!(daemon.wait().unwrap().success());
}

/// What `ping` tells of the daemon itself.
fn troubles(home: &Home) -> String {
    home.ok(&["ping", "--json"]).json()["troubles"].to_string()
}

/// Everything goes on while nobody takes the messages of the daemon: actions, and the replacement of a worker.
#[track_caller]
fn all_goes_on(home: &Home) {
    for _ in 0..3 {
        home.ok(&["reload", "job"]);
    }
    home.ok(&["scale", "job", "2"]);
    home.ok(&["scale", "job", "1"]);
    let before = home.pid("job");
    crate::common::signal(before, nix::sys::signal::Signal::SIGKILL);
    home.wait_view("job", "it is replaced", |v| {
        crate::common::is_ready(v) && !crate::common::pids(v).contains(&before)
    });
}

/// Until the log had no room for a message of the daemon, and that is told.
#[track_caller]
fn until_messages_are_lost(home: &Home, why: &str) {
    wait_for("it is told that messages are lost", || {
        home.ok(&["reload", "job"]);
        let said = troubles(home);
        if said.contains("rsup's own messages are being lost") && said.contains(why) {
            Ok(())
        } else {
            Err(said)
        }
    });
    home.ok(&["list"])
        .says(&["warning: rsup's own messages are being lost", why]);
}

/// The log of the daemon and of its keeper, the state and everything else on one disk that is full to the last byte.
#[test]
fn a_full_disk_under_everything() {
    let home = Home::new();
    let folder = home.rsup_home();
    let Some(_disk) = Mounted::new(
        &folder,
        &["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"],
    ) else {
        return;
    };
    home.app(
        "job",
        "command = [\"sleep\", \"1000\"]\nrestart = { min_uptime = \"50ms\" }",
    );
    home.ok(&["start"]);
    let daemon = home.daemon();
    fill(&folder.join("ballast"));
    until_messages_are_lost(&home, "No space left");
    all_goes_on(&home);
    assert_eq!(home.daemon(), daemon, "it lives");
    fs::remove_file(folder.join("ballast")).unwrap();
    wait_for("nothing is lost any more", || {
        let said = troubles(&home);
        if said == "[]" { Ok(()) } else { Err(said) }
    });
    let revision = home.revision("job");
    let log = home.daemon_log();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("were lost here: No space left on device"))
        .collect();
    assert!(
        !told.is_empty() && told.iter().all(|line| line.starts_with("20")),
        "whole lines: {log}"
    );
    wait_for("the state is saved", || {
        let saved = fs::read_to_string(folder.join("state/state.json")).unwrap_or_default();
        if saved.contains(&format!("\"last_revision\":{revision}")) {
            Ok(())
        } else {
            Err(saved)
        }
    });
    assert_eq!(home.daemon(), daemon, "it lived all the time");
    home.ok(&["kill"]);
    wait_until("everybody has ended", || home.processes().is_empty());
}

#[test]
fn an_app_that_is_new_on_a_full_disk() {
    let home = Home::new();
    let folder = home.rsup_home();
    let Some(_disk) = Mounted::new(
        &folder,
        &["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"],
    ) else {
        return;
    };
    home.app("first", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    fill(&folder.join("ballast"));
    home.app(
        "job",
        "command = [\"sleep\", \"1000\"]\nrestart = { min_uptime = \"50ms\" }",
    );
    home.ok(&["start"]);
    until_messages_are_lost(&home, "No space left");
    all_goes_on(&home);
    // It was never written down, and goes on all the same.
    let (before, daemon) = (home.pid("job"), home.daemon());
    crate::common::signal(daemon, nix::sys::signal::Signal::SIGKILL);
    wait_until("the next daemon", || home.daemon() != daemon);
    assert_eq!(home.pid("job"), before);
    home.ok(&["kill"]);
    wait_until("everybody has ended", || home.processes().is_empty());
}

/// A limit of the size of files, whose signal ends a process that does not know it.
#[test]
fn a_limit_of_the_size_of_files() {
    let home = Home::new();
    home.app("job", "command = [\"sh\", \"-c\", \"ulimit -f; exec sleep 1000\"]\nrestart = { min_uptime = \"50ms\" }");
    home.ok(&["start"]);
    // As a log of many days; and the limit, with which nothing of the kind could begin.
    fs::File::options()
        .write(true)
        .open(home.rsup_home().join("state/daemon.log"))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let daemon = home.daemon();
    let limit = Command::new("prlimit")
        .args(["--fsize=4194304:", "--pid", &daemon.to_string()])
        .status()
        .unwrap();
    assert!(limit.success());
    until_messages_are_lost(&home, "File too large");
    all_goes_on(&home);
    assert_eq!(home.daemon(), daemon, "it lives");
    let dispositions = fs::read_to_string(format!("/proc/{}/status", home.pid("job"))).unwrap();
    let ignored = dispositions
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(
        ignored & (1 << (nix::libc::SIGXFSZ - 1)),
        0,
        "an app finds the signal as it always is"
    );
}

/// `rsup daemon --service` with this as stderr; it ends well.
fn service(home: &Home, stderr: Stdio) -> std::process::Child {
    let mut command = home.rsup();
    let child = command
        .args(["daemon", "--service"])
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
    home.app(
        "job",
        "command = [\"sleep\", \"1000\"]\nrestart = { min_uptime = \"50ms\" }",
    );
    home.ok(&["start"]);
    child
}

#[track_caller]
fn ends_well(home: &Home, mut daemon: std::process::Child) {
    home.ok(&["kill"]);
    let status = wait_for("its end", || {
        daemon
            .try_wait()
            .map_err(|e| e.to_string())?
            .ok_or_else(|| "it lives".to_owned())
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_reader_of_stderr_that_is_dead() {
    let home = Home::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let daemon = service(&home, writer.into());
    drop(reader);
    until_messages_are_lost(&home, "Broken pipe");
    all_goes_on(&home);
    ends_well(&home, daemon);
}

/// The pipe is full to the last byte, so that any write to it waits.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::io::Write;
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

#[test]
fn a_reader_of_stderr_that_reads_nothing() {
    let home = Home::new();
    let (reader, writer) = full_pipe();
    let daemon = service(&home, writer.into());
    all_goes_on(&home);
    ends_well(&home, daemon);
    drop(reader);
}

/// It says something at each death of the daemon, and keeps what is there all the same.
#[test]
fn a_keeper_whose_words_nobody_takes() {
    for stuck in [true, false] {
        let home = Home::new();
        let (reader, writer) = if stuck {
            full_pipe()
        } else {
            std::io::pipe().unwrap()
        };
        let reader = Some(reader).filter(|_| stuck);
        let mut command = home.rsup();
        let keeper = command
            .arg("keeper")
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .unwrap();
        drop(command);
        wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
        home.app(
            "job",
            "command = [\"sleep\", \"1000\"]\nrestart = { min_uptime = \"50ms\" }",
        );
        home.ok(&["start"]);
        for _ in 0..3 {
            let (daemon, worker) = (home.daemon(), home.pid("job"));
            crate::common::signal(daemon, nix::sys::signal::Signal::SIGKILL);
            wait_until("the next daemon", || home.daemon() != daemon);
            assert_eq!(home.pid("job"), worker);
        }
        all_goes_on(&home);
        if !stuck {
            until_messages_are_lost(&home, "Broken pipe");
        }
        ends_well(&home, keeper);
        drop(reader);
    }
}

#[test]
fn in_the_foreground_neither_stdout_nor_stderr_is_waited_for() {
    let home = Home::new();
    home.app(
        "job",
        "command = [\"sleep\", \"1000\"]\nrestart = { min_uptime = \"50ms\" }",
    );
    let ((reader, writer), (dead, broken)) = (full_pipe(), std::io::pipe().unwrap());
    drop(dead);
    // What stdout does not take is told on stderr, which takes nothing.
    let mut command = home.rsup();
    command
        .args(["start", "--foreground"])
        .stdout(broken)
        .stderr(writer);
    let daemon = command.spawn().unwrap();
    wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
    home.wait_view("job", "it runs", |v| v["phase"] == "ready");
    all_goes_on(&home);
    wait_for("it is told", || {
        home.ok(&["reload", "job"]);
        let said = troubles(&home);
        if said.contains("lines for stdout are being lost") && said.contains("Broken pipe") {
            Ok(())
        } else {
            Err(said)
        }
    });
    ends_well(&home, daemon);
    drop(reader);
}

/// As the first: what it has to say when it cannot begin holds it up for a moment only.
#[test]
fn an_error_that_nobody_reads_ends_the_foreground_all_the_same() {
    let home = Home::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    home.app(
        "job",
        &format!("command = [\"sleep\", \"1000\"]\nlisten = \"127.0.0.1:{port}\""),
    );
    let ((out, stdout), (err, stderr)) = (full_pipe(), full_pipe());
    let mut command = home.rsup();
    let mut daemon = command
        .args(["start", "--foreground"])
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap();
    let status = wait_for("its end", || {
        daemon
            .try_wait()
            .map_err(|e| e.to_string())?
            .ok_or_else(|| "it lives".to_owned())
    });
    assert_eq!(status.code(), Some(1));
    drop((out, err));
}

#[test]
fn stderr_that_is_closed() {
    let home = Home::new();
    home.app(
        "job",
        "command = [\"sleep\", \"1000\"]\nrestart = { min_uptime = \"50ms\" }",
    );
    let mut command = home.command("sh");
    command.args([
        "-c",
        "exec \"$0\" daemon --service 2>&-",
        crate::common::RSUP,
    ]);
    let daemon = command.stdout(Stdio::null()).spawn().unwrap();
    wait_until("the daemon answers", || home.run(&["ping"]).code == 0);
    home.ok(&["start"]);
    all_goes_on(&home);
    ends_well(&home, daemon);
}

/// The words of a daemon that cannot begin reach whoever started it, though its log takes none of them.
#[test]
fn the_last_words_of_a_daemon_whose_log_is_full() {
    let home = Home::new();
    let state = home.rsup_home().join("state");
    let Some(_disk) = Mounted::new(
        &state,
        &["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"],
    ) else {
        return;
    };
    fill(&state.join("ballast"));
    // Nobody can listen there.
    fs::create_dir_all(home.rsup_home().join("run/control.sock")).unwrap();
    fs::set_permissions(
        home.rsup_home().join("run"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    // As if a daemon had died here: one that is to go on begins on a full disk too.
    fs::write(home.rsup_home().join("run/state.json"), "{}").unwrap();
    home.app("job", "command = [\"sleep\", \"1000\"]");
    let said = home.run(&["start"]).code(1);
    assert!(said.err.contains("cannot listen on"), "{}", said.err);
    assert_eq!(
        fs::metadata(state.join("daemon.log")).unwrap().len(),
        0,
        "its log took nothing"
    );
    wait_until("no keeper is left", || home.processes().is_empty());
    fs::remove_dir(home.rsup_home().join("run/control.sock")).unwrap();
}

#[test]
fn a_start_on_a_full_disk_fails_at_once_and_says_where() {
    for options in ["size=256k,mode=0700", "size=1m,nr_inodes=64,mode=0700"] {
        let home = Home::new();
        home.app("job", "command = [\"sleep\", \"1000\"]");
        let place = home.rsup_home();
        let Some(_disk) = Mounted::new(&place, &["-t", "tmpfs", "-o", options, "tmpfs"]) else {
            return;
        };
        // Folders are there, so that all that is missing is room.
        for folder in ["run", "state", "state/logs"] {
            fs::create_dir_all(place.join(folder)).unwrap();
            let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(place.join(folder), closed).unwrap();
        }
        if options.contains("nr_inodes") {
            // The root, three folders, and these.
            (0..64).for_each(|n| drop(fs::write(place.join(format!("ballast{n}")), "")));
        } else {
            fill(&place.join("ballast"));
        }
        let run = home.run(&["start"]).code(1);
        let state = place.join("state").display().to_string();
        let run = run.says(&[
            "no room for rsup's files in",
            &state,
            " KiB free",
            " more files",
            "RSUP_HOME",
        ]);
        assert!(run.took.as_secs() < 5, "{run:?}");
        assert_eq!(home.processes(), Vec::new(), "nobody goes on with it");
        let list = home.run(&["list"]);
        assert!(
            list.took.as_secs() < 4 && list.err.contains("no daemon runs"),
            "{list:?}"
        );
        for n in 0..64 {
            let _ = fs::remove_file(place.join(format!("ballast{n}")));
        }
        let _ = fs::remove_file(place.join("ballast"));
        home.ok(&["start"]);
        home.ok(&["kill"]);
        wait_until("the end of all", || home.processes().is_empty());
    }
}

#[test]
fn a_read_only_state_folder() {
    let home = Home::new();
    let state = home.rsup_home().join("state");
    let calm = Bystander::start(&home);
    let source = state.to_str().unwrap().to_owned();
    let Some(disk) = Mounted::new(&state, &["--bind", &source]) else {
        return;
    };
    disk.again("remount,bind,ro");
    jot(&home, "");
    home.ok(&["start"]);
    until_it_is_said(&home, "Read-only file system");
    home.ok(&["reload", "jot"]);
    home.ok(&["reload", "calm"]);
    disk.again("remount,bind,rw");
    until_it_is_over(&home);
    let log = home.daemon_log();
    assert!(
        log.contains("cannot be written: Read-only file system"),
        "{log}"
    );
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
            if read().contains(words) {
                Ok(())
            } else {
                Err(read())
            }
        });
    };
    until("the first");
    // Deleted: it is made again.
    remove_folder(&folder);
    until("the second");
    // Something else is in its place.
    wait_for("a file is in its place", || {
        remove_folder(&folder);
        fs::write(&folder, "not a folder")
    });
    until_it_is_said(&home, "Not a directory");
    home.ok(&["reload", "jot"]);
    fs::remove_file(&folder).unwrap();
    until("the third");
    assert!(read().contains("lines were lost here"), "{}", read());
    calm.untouched(&home);
}
