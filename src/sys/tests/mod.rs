//! Tests against the running kernel, with processes of other languages where that matters.

mod given;
mod listen;
mod procfs;
mod spawn;
mod steer;
mod takeover;

use std::ffi::CString;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::exit::Exit;
use crate::sys::process;
use crate::sys::spawn::{Child, ExecReport, Plan, SpawnError, Started};
use crate::sys::{procfs as sys_procfs, raw};

/// Far longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` returns a value.
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The path of a program, or `None` where it may be missing.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none(),
            "{name} is required"
        );
        eprintln!("skipped: no {name}");
    }
    found
}

fn strings(of: &[&str]) -> Vec<CString> {
    of.iter().map(|&text| CString::new(text).unwrap()).collect()
}

/// A plan whose output can be read from the file returned.
fn plan(argv: &[&str]) -> (Plan, std::fs::File) {
    let (read, write) = std::io::pipe().unwrap();
    let stderr = write.try_clone().unwrap();
    let mut plan = Plan::new(strings(argv), "/".into(), write.into(), stderr.into());
    let path = std::env::var("PATH").unwrap();
    plan.env = strings(&[&format!("PATH={path}"), "HOME=/tmp", "LC_ALL=C"]);
    (plan, OwnedFd::from(read).into())
}

fn report(exec: &mut ExecReport) -> Result<Started, SpawnError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = exec.read().unwrap() {
            return result;
        }
        assert!(Instant::now() < deadline);
        raw::poll(&*exec, libc::POLLIN, PATIENCE).unwrap();
    }
}

fn ended(child: &Child) -> Exit {
    raw::poll(&child.pidfd, libc::POLLIN, PATIENCE).unwrap();
    process::wait(&child.pidfd).unwrap().expect("has not ended")
}

/// Kills a child's group when dropped, and waits for the child.
struct Guard(Child);
impl Drop for Guard {
    fn drop(&mut self) {
        let below = sys_procfs::descendants(self.0.pid);
        let _ = process::signal_group(self.0.pid, libc::SIGKILL);
        let _ = process::signal(&self.0.pidfd, libc::SIGKILL);
        for (pid, started) in below {
            if sys_procfs::start_time(pid).is_ok_and(|now| now == started)
                && let Ok(pidfd) = process::pidfd_open(pid)
            {
                let _ = process::signal(&pidfd, libc::SIGKILL);
            }
        }
        let _ = raw::poll(&self.0.pidfd, libc::POLLIN, PATIENCE);
        let _ = process::wait(&self.0.pidfd);
    }
}

fn text(mut file: std::fs::File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// One HTTP request over a connected socket; the whole answer.
fn http(mut stream: std::net::TcpStream) -> String {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
