//! rsup reads the memory of workers: the address of a trapped call, and the environment of what they leave behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::attackers::{answers_until, ends, evil, open_home};
use crate::bystander::Bystander;
use crate::common::apps::{missing, python_for_all, sources};
use crate::common::{Home, signal, wait_until};
use crate::support::Life;
use nix::sys::signal::Signal;

/// A folder with a file `memory` whose reads are never answered; they fail when this is dropped.
struct SilentDisk {
    server: Child,
    folder: PathBuf,
}

impl SilentDisk {
    fn mount(home: &Home) -> Option<Self> {
        let python = python_for_all()?;
        let folder = home.path("disk");
        fs::create_dir(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
        let mut server = Command::new(python)
            .arg(sources().join("silent_disk.py"))
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python");
        let mut line = String::new();
        let out = server.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        if line != "mounted\n" {
            let _ = server.wait();
            missing("FUSE", "a file system cannot be mounted here");
            return None;
        }
        Some(Self { server, folder })
    }
}

impl Drop for SilentDisk {
    fn drop(&mut self) {
        // Its end aborts what waits.
        drop(self.server.stdin.take());
        let _ = self.server.wait();
        let _ = nix::mount::umount2(&self.folder, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A process whose first thread is dead is still there as long as another one cannot die.
fn is_there(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// Whether a thread of the process reads memory of another (proc_pid_syscall(5)).
fn reads_memory(pid: u32) -> bool {
    let wanted = format!("{} ", nix::libc::SYS_process_vm_readv);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process");
    threads.flatten().any(|thread| {
        let call = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
        call.starts_with(&wanted)
    })
}

/// The address of its `bind` lies in a page that must be read from the silent disk.
const BINDS: &str = r#"
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
file = os.open(DISK + "/memory", os.O_RDONLY)
memory = libc.mmap(None, 4096, 1, 1, file, 0)
print("binds", flush=True)
libc.bind(socket.socket().fileno(), ctypes.c_void_p(memory), 16)
"#;

/// A bystander, and `evil`, whose call the daemon has begun to read.
fn scene() -> Option<(Home, Bystander, SilentDisk)> {
    let home = open_home()?;
    let calm = Bystander::start(&home);
    let disk = SilentDisk::mount(&home)?;
    let port = home.port();
    let program = format!("DISK = {:?}\n{BINDS}", disk.folder.display().to_string());
    let keys = format!("listen = \"127.0.0.1:{port}\"\nlisten_timeout = \"60s\"");
    if !evil(&home, &program, &keys) {
        return None;
    }
    home.ok(&["start", "--no-wait"]);
    home.wait_log("evil", "binds");
    wait_until("its call is read", || reads_memory(calm.daemon()));
    Some((home, calm, disk))
}

#[test]
fn a_bind_whose_address_cannot_be_read_holds_up_its_worker_alone() {
    let Some((home, calm, disk)) = scene() else {
        return;
    };
    let mut asked = 0;
    answers_until(&home, "a few answers", || {
        asked += 1;
        asked >= 20
    });
    ends(&home);
    calm.untouched(&home);
    let daemon = home.daemon();
    home.ok(&["kill"]);
    // The thread that reads ends with the disk.
    drop(disk);
    wait_until("the daemon is gone", || !is_there(daemon));
}

#[test]
fn a_daemon_that_cannot_die_is_replaced() {
    let Some((home, calm, disk)) = scene() else {
        return;
    };
    let stuck = calm.daemon();
    signal(stuck, Signal::SIGKILL);
    wait_until("another daemon answers", || {
        home.run(&["ping"]).code == 0 && home.daemon() != stuck
    });
    assert!(is_there(stuck), "its thread still waits");
    calm.same_workers(&home);
    ends(&home);
    home.ok(&["reload", "calm"]);
    calm.load_was_lossless();
    drop(disk);
    wait_until("the former daemon is gone", || !is_there(stuck));
}
