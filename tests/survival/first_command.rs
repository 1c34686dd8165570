//! The daemon and its workers have nothing of the command that happened to start the daemon.

use std::fs;

use nix::fcntl::{Flock, FlockArg};

use crate::common::apps::python;
use crate::common::{Home, try_run, wait_until};
use crate::supervisors::Supervisors;
use crate::support::Life;

/// All that a process can have of the one before, and then rsup in its place.
const BURDENED: &str = "
import os, signal, sys, ctypes
libc = ctypes.CDLL(None, use_errno=True)
lock = os.open('lock', os.O_RDWR | os.O_CREAT)
import fcntl; fcntl.flock(lock, fcntl.LOCK_EX)
os.dup2(lock, 9, inheritable=True)
os.dup2(1, 77, inheritable=True)
for ignored in (signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGRTMIN): signal.signal(ignored, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
os.umask(0o077)
os.nice(7)
open('/proc/self/oom_score_adj', 'w').write('300')
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
libc.syscall(251 if os.uname().machine == 'x86_64' else 30, 1, 0, 3 << 13)
os.environ.update(OLDPWD='/old', SHLVL='7', PWD='/stale', SECRET_OF_CI='x', _='/bin/x')
os.execv(sys.argv[1], sys.argv[1:])
";

fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
        .to_owned()
}

fn nice(pid: u32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let rest = text.rsplit_once(')').expect("a name").1;
    rest.split_whitespace()
        .nth(16)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

fn oom_score(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a process")
}

#[test]
fn nothing_of_the_first_command_stays() {
    let Some(python) = python() else { return };
    let home = Home::new();
    home.write("burdened.py", BURDENED);
    home.write("app", "env > env; exec sleep 1000\n");
    home.app("job", "command = [\"sh\", \"app\"]");
    let rsup = home.rsup();
    let mut command = home.command(python);
    command
        .arg("burdened.py")
        .arg(rsup.get_program())
        .arg("start");
    // Comes to its end only if nothing that stays has its pipes.
    try_run(command).expect("python runs").ok();
    let lock = fs::File::options()
        .write(true)
        .open(home.path("lock"))
        .expect("the lock");
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).expect("the lock is free again");
    let worker = home.pid("job");
    let (keeper, daemon) = (home.keeper(), home.daemon());
    let root = nix::unistd::geteuid().is_root();
    for (who, pid) in [("keeper", keeper), ("daemon", daemon), ("worker", worker)] {
        assert_eq!(status(pid, "Umask"), "0022", "{who}");
        // SIGPIPE, which Rust ignores, is no inheritance.
        let ignored = u64::from_str_radix(&status(pid, "SigIgn"), 16).expect("a set");
        assert_eq!(ignored & !(1 << 12), 0, "{who}: {ignored:x}");
        assert_eq!(
            status(pid, "Cpus_allowed_list"),
            status(1, "Cpus_allowed_list"),
            "{who}"
        );
        if root {
            assert_eq!(nice(pid), nice(1), "{who}");
            assert_eq!(oom_score(pid), oom_score(1), "{who}");
        }
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
        for fd in fds.flatten() {
            let to = fs::read_link(fd.path()).unwrap_or_default();
            assert_ne!(to, home.path("lock"), "{who}");
        }
        let environ = fs::read(format!("/proc/{pid}/environ")).expect("an environment");
        let environ = String::from_utf8_lossy(&environ).into_owned();
        assert_eq!(
            environ.contains("SECRET_OF_CI"),
            who == "worker",
            "{who}: {environ}"
        );
        for stale in ["/stale", "OLDPWD=/old", "SHLVL=7", "_=/bin/x"] {
            assert!(!environ.contains(stale), "{who}: {environ}");
        }
    }
    let blocked = u64::from_str_radix(&status(worker, "SigBlk"), 16).expect("a set");
    assert_eq!(blocked, 0, "{blocked:x}");
    let pwd = format!("PWD={}", home.folder().display());
    wait_until("the worker's PWD", || {
        fs::read_to_string(home.path("env")).is_ok_and(|env| env.lines().any(|line| line == pwd))
    });
    // A death of the worker is seen, though SIGCHLD was ignored.
    crate::common::signal(worker, nix::sys::signal::Signal::SIGKILL);
    home.wait_view("job", "the next worker", |view| {
        crate::common::is_ready(view) && !crate::common::pids(view).contains(&worker)
    });
}

/// Under pressure some scripts close what they think nobody needs.
#[test]
fn a_command_without_standard_streams_starts_a_daemon_all_the_same() {
    let home = Home::new();
    home.write("app", "exec sleep 1000\n");
    home.app("job", "command = [\"sh\", \"app\"]");
    let mut command = home.command("sh");
    let rsup = home.rsup();
    command
        .args(["-c", "exec \"$0\" start <&- >&- 2>&-"])
        .arg(rsup.get_program());
    try_run(command).expect("it runs").ok();
    let daemon = home.daemon();
    for fd in 0..3 {
        let to = fs::read_link(format!("/proc/{daemon}/fd/{fd}")).expect("a descriptor");
        let wanted = if fd == 2 {
            home.rsup_home().join("state/daemon.log")
        } else {
            "/dev/null".into()
        };
        assert_eq!(to, wanted, "{fd}");
    }
}
