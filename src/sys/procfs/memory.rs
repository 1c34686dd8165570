//! Files of `/proc/PID` whose contents lie in the memory of the process: `environ` and `cmdline`
//! (proc_pid_environ(5), proc_pid_cmdline(5)).
//!
//! Their reading can take for ever: the process may have put a mapping there of a file whose server
//! never answers, and such a wait cannot be ended. So processes of other users are read in a thread
//! that is given up after a while, and then those of that user are not read at all for longer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::owner;

/// How long one reading may take.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long processes of a user are not read after one took longer.
const REST: Duration = Duration::from_secs(60);
/// The rest of longer contents is not read.
const MOST: u64 = 4 << 20;

/// The thread that reads, and users whose processes are not read until then.
struct Reader {
    jobs: Option<Sender<Job>>,
    rest: Option<HashMap<u32, Instant>>,
}

struct Job {
    file: File,
    answer: Sender<io::Result<Vec<u8>>>,
}

static READER: Mutex<Reader> = Mutex::new(Reader {
    jobs: None,
    rest: None,
});

/// The contents of a file of the process.
///
/// # Errors
/// When there is no such process, or it may not be inspected; `TimedOut` when its memory does not
/// come.
pub(in crate::sys) fn read(pid: u32, file: &str) -> io::Result<Vec<u8>> {
    let path = format!("/proc/{pid}/{file}");
    // The right to read is checked when the file is opened.
    let file = owner::with_access(pid, || File::open(&path))?;
    let user = owner::real_user(pid);
    // SAFETY: no arguments, no failure.
    if user == Some(unsafe { libc::geteuid() }) {
        return whole(file);
    }
    within(file, user.unwrap_or(u32::MAX), PATIENCE)
}

fn whole(file: File) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    file.take(MOST).read_to_end(&mut contents)?;
    Ok(contents)
}

fn within(file: File, user: u32, patience: Duration) -> io::Result<Vec<u8>> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "its memory does not come");
    let mut reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
    let rest = reader.rest.get_or_insert_default();
    rest.retain(|_, until| *until > Instant::now());
    if rest.contains_key(&user) {
        return Err(late());
    }
    let (answer, contents) = mpsc::channel();
    let mut job = Job { file, answer };
    let jobs = match reader.jobs.take() {
        Some(jobs) => match jobs.send(job) {
            Ok(()) => jobs,
            Err(mpsc::SendError(again)) => {
                job = again;
                let jobs = start()?;
                let _ = jobs.send(job);
                jobs
            }
        },
        None => {
            let jobs = start()?;
            let _ = jobs.send(job);
            jobs
        }
    };
    match contents.recv_timeout(patience) {
        Ok(contents) => {
            reader.jobs = Some(jobs);
            contents
        }
        // The thread is given up: should it ever come back, it finds no more jobs.
        Err(RecvTimeoutError::Timeout) => {
            let rest = reader.rest.get_or_insert_default();
            rest.insert(user, Instant::now() + REST);
            Err(late())
        }
        Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::Other.into()),
    }
}

fn start() -> io::Result<Sender<Job>> {
    let (jobs, queue) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("rsup-reads".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            for Job { file, answer } in queue {
                let _ = answer.send(whole(file));
            }
        })?;
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// A pipe that nothing is written to stands for memory that does not come.
    #[test]
    fn what_does_not_come_is_given_up_and_others_are_read() {
        const USER: u32 = 4_000_001;
        let patience = Duration::from_millis(20);
        let (silent, _writer) = std::io::pipe().unwrap();
        let silent = || File::from(OwnedFd::from(silent.try_clone().unwrap()));
        let why = within(silent(), USER, patience).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::TimedOut);
        // Not even tried again.
        let long = Duration::from_secs(3600);
        let why = within(silent(), USER, long).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::TimedOut);
        let own = || File::open("/proc/self/environ").unwrap();
        let read = within(own(), USER + 1, Duration::from_secs(20)).unwrap();
        assert_eq!(read, std::fs::read("/proc/self/environ").unwrap());
        assert_eq!(within(own(), USER + 2, long).unwrap(), read);
    }
}
