//! Compresses rotated files, in a thread of the lowest priority.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flate2::{Compression, GzBuilder};
use nix::sys::stat::{FileStat, Mode};
use tokio::sync::mpsc::UnboundedSender;

use super::Event;
use super::place::{Checked, Place, identity, is_regular};
use super::rotate::{self, Names};

/// Logs shrink about tenfold at any level; a higher one costs time and saves little.
const LEVEL: u32 = 3;
const BLOCK: usize = 64 << 10;
/// The thread's nice value: it only uses idle time.
const NICE: i32 = 19;
/// A thread that has done nothing for this long waits for a disk that does not answer: the files of
/// other logs are left to a new one.
const STUCK: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 5 });
/// How long the end of the pump waits for the end of a compression.
const FAREWELL: Duration = Duration::from_secs(1);
/// Files compressed in one go; a folder that others change could go on for ever.
const MOST: usize = 100;

/// The compressing thread. It works on one file at a time, the oldest first.
#[derive(Debug)]
pub(super) struct Compressor {
    shared: Arc<Shared>,
    /// The progress that was seen last, and when it was other.
    seen: (u64, Instant),
}

/// The rotated files of one log.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub path: Arc<Path>,
    /// The user of its app.
    pub app: Option<u32>,
    pub names: Arc<Names>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Grows as long as the thread does something.
    progress: AtomicU64,
    stop: AtomicBool,
    events: UnboundedSender<Event>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    /// Logs that a thread works on: it may be stuck.
    busy: HashSet<Arc<Path>>,
    /// The thread that takes new jobs; the others end.
    thread: u64,
    /// What this thread works on.
    at_work: bool,
}

impl Compressor {
    pub fn start(events: UnboundedSender<Event>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            progress: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            events,
        });
        shared.clone().begin(0)?;
        Ok(Compressor {
            shared,
            seen: (0, Instant::now()),
        })
    }

    /// Looks for files to compress after a rotation. Returns at once.
    pub fn rotated(&mut self, job: Job) {
        let now = Instant::now();
        let progress = self.shared.progress.load(Ordering::Relaxed);
        if progress != self.seen.0 {
            self.seen = (progress, now);
        }
        let mut state = self.shared.state();
        if !state.queue.iter().any(|queued| queued.path == job.path) {
            state.queue.push_back(job);
        }
        if !state.at_work {
            self.seen.1 = now;
        } else if now.saturating_duration_since(self.seen.1) > STUCK
            && self.shared.clone().begin(state.thread + 1).is_ok()
        {
            state.thread += 1;
            state.at_work = false;
            self.seen.1 = now;
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Compressor {
    /// Aborts the compression under way; its plain file is still there.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let state = self.shared.state();
        self.shared.changed.notify_all();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, FAREWELL, |state| state.at_work);
        drop(waited);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.progress.fetch_add(1, Ordering::Relaxed);
        self.stop.load(Ordering::Relaxed)
    }

    fn begin(self: Arc<Self>, number: u64) -> io::Result<()> {
        thread::Builder::new()
            .name("rsup-gzip".into())
            .spawn(move || {
                // On Linux this sets the priority of the thread. A failure does no harm.
                let _ = rustix::process::setpriority_process(None, NICE);
                while let Some(job) = self.next(number) {
                    if let Err(error) = all(&job, &self) {
                        let error = format!("compressing a rotated file: {error}");
                        let path = job.path.to_path_buf();
                        let _ = self.events.send(Event::Untidy { path, error });
                    }
                    let mut state = self.state();
                    state.busy.remove(&job.path);
                    if state.thread == number {
                        state.at_work = false;
                    }
                    drop(state);
                    self.changed.notify_all();
                }
            })?;
        Ok(())
    }

    /// Waits for a job of the thread `number`. `None` once another one is in its place.
    fn next(&self, number: u64) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.thread > number || self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let place = state
                .queue
                .iter()
                .position(|job| !state.busy.contains(&job.path));
            // A new thread begins just before it gets its number.
            if state.thread == number
                && let Some(job) = place.and_then(|place| state.queue.remove(place))
            {
                state.busy.insert(job.path.clone());
                state.at_work = true;
                return Some(job);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Compresses all rotated files of a log but the newest.
fn all(job: &Job, shared: &Shared) -> io::Result<()> {
    let place = Place::find(&job.path, job.app, false)?;
    let mut passed = HashSet::new();
    for _ in 0..MOST {
        if shared.stopped() {
            break;
        }
        let segments = rotate::segments(&place)?;
        let oldest = segments
            .into_iter()
            .rfind(|s| !s.gzipped && s.number > 1 && !passed.contains(&s.name));
        let Some(segment) = oldest else { break };
        // What a worker put there may be anything, of any length: only what rsup wrote is packed.
        match place.read(&segment.name) {
            Ok(Some(plain)) if plain.own => {
                if !one(&place, plain, &job.names, shared)? {
                    passed.insert(segment.name);
                }
            }
            Ok(_) | Err(_) => {
                passed.insert(segment.name);
            }
        }
    }
    Ok(())
}

/// Compresses one file into a temporary one, and replaces it with that. The file may have got
/// another number since, or be deleted: it is found by its identity. False if it was not replaced.
fn one(place: &Place, plain: Checked, names: &Names, shared: &Shared) -> io::Result<bool> {
    let status = plain.status;
    let unfinished = rotate::unfinished(place.name());
    match place.remove(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mode = Mode::from_bits_truncate(status.st_mode & 0o777);
    let packed = place.create(&unfinished, mode)?;
    let done = pack(plain.file, packed, &status, shared).and_then(|packed| {
        let Some(packed) = packed else {
            return Ok(false);
        };
        let _guard = names.lock();
        let is = |name: &OsString, wanted: &FileStat| {
            let found = place.status(name).ok().flatten();
            found.is_some_and(|it| is_regular(&it) && identity(&it) == identity(wanted))
        };
        // Another process may have put something else in its place.
        if !is(&unfinished, &packed) {
            return Ok(false);
        }
        let found = rotate::segments(place)?
            .into_iter()
            .find(|s| !s.gzipped && is(&s.name, &status));
        match found {
            Some(segment) => {
                place.rename(&unfinished, &rotate::gzipped(place.name(), segment.number))?;
                place.remove(&segment.name)?;
                Ok(true)
            }
            None => Ok(false),
        }
    });
    if !matches!(done, Ok(true)) {
        let _ = place.remove(&unfinished);
    }
    done
}

/// Copies `plain` to `packed` through gzip, and syncs it. `None` if it was aborted.
fn pack(
    mut plain: File,
    packed: File,
    status: &FileStat,
    shared: &Shared,
) -> io::Result<Option<FileStat>> {
    let mtime = u32::try_from(status.st_mtime).unwrap_or(0);
    let mut encoder = GzBuilder::new()
        .mtime(mtime)
        .extra(origin(identity(status)))
        .write(packed, Compression::new(LEVEL));
    let mut block = vec![0; BLOCK];
    loop {
        if shared.stopped() {
            return Ok(None);
        }
        match plain.read(&mut block) {
            Ok(0) => break,
            Ok(n) => encoder.write_all(&block[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let packed = encoder.finish()?;
    packed.sync_all()?;
    Ok(Some(nix::sys::stat::fstat(&packed)?))
}

/// A field in the header of a compressed file (RFC 1952, 2.3.1.1) that names the file it was made
/// of: a follower that was reading that file recognises it.
fn origin((device, inode): (u64, u64)) -> Vec<u8> {
    [
        &b"rs\x10\0"[..],
        &device.to_le_bytes(),
        &inode.to_le_bytes(),
    ]
    .concat()
}

/// Whether a compressed file, by the extra field of its header, was made of this one.
pub(super) fn made_of(extra: Option<&[u8]>, identity: (u64, u64)) -> bool {
    extra.is_some_and(|extra| extra == origin(identity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::fs;

    struct Scene {
        dir: tempfile::TempDir,
        place: Place,
        job: Job,
        shared: Shared,
    }

    fn scene() -> Scene {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        Scene {
            place: Place::find(&path, None, false).expect("place"),
            job: Job {
                path: path.into(),
                app: None,
                names: Arc::default(),
            },
            shared: Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                progress: AtomicU64::new(0),
                stop: AtomicBool::new(false),
                events,
            },
            dir,
        }
    }

    impl Scene {
        fn path(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join(name)
        }

        fn unpacked(&self, name: &str) -> String {
            let mut text = String::new();
            GzDecoder::new(File::open(self.path(name)).expect("open"))
                .read_to_string(&mut text)
                .expect("gunzip");
            text
        }

        fn open(&self, name: &str) -> Checked {
            let opened = self.place.read(name.as_ref()).expect("open");
            opened.expect("a file")
        }
    }

    #[test]
    fn all_but_the_newest_are_compressed() {
        let s = scene();
        for number in 1..=3 {
            fs::write(
                s.path(&format!("out.log.{number}")),
                format!("{number}\n").repeat(50_000),
            )
            .expect("write");
        }
        fs::write(s.path("out.log.gz.tmp"), "left by a crash").expect("write");
        all(&s.job, &s.shared).expect("compress");
        assert!(s.path("out.log.1").exists() && !s.path("out.log.2").exists());
        for number in 2..=3 {
            assert_eq!(
                s.unpacked(&format!("out.log.{number}.gz")),
                format!("{number}\n").repeat(50_000)
            );
        }
        assert!(!s.path("out.log.gz.tmp").exists());
    }

    #[test]
    fn what_is_no_log_file_stays_as_it_is() {
        let s = scene();
        fs::write(s.path("out.log.2"), "two").expect("write");
        fs::write(s.path("secret"), "secret").expect("write");
        std::os::unix::fs::symlink(s.path("secret"), s.path("out.log.3")).expect("symlink");
        fs::create_dir(s.path("out.log.4")).expect("mkdir");
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&s.path("out.log.5"), mode).expect("mkfifo");
        all(&s.job, &s.shared).expect("compress");
        assert_eq!(s.unpacked("out.log.2.gz"), "two");
        for number in 3..=5 {
            assert!(!s.path(&format!("out.log.{number}.gz")).exists());
            assert!(fs::symlink_metadata(s.path(&format!("out.log.{number}"))).is_ok());
        }
    }

    #[test]
    fn a_file_that_moved_meanwhile_is_found() {
        let s = scene();
        fs::write(s.path("out.log.2"), "two").expect("write");
        let open = s.open("out.log.2");
        fs::rename(s.path("out.log.2"), s.path("out.log.3")).expect("rename");
        assert!(one(&s.place, open, &s.job.names, &s.shared).expect("compress"));
        assert_eq!(s.unpacked("out.log.3.gz"), "two");
        assert_eq!(fs::read_dir(s.dir.path()).expect("read_dir").count(), 1);
    }

    #[test]
    fn told_to_stop_it_leaves_the_plain_file_alone() {
        let s = scene();
        fs::write(s.path("out.log.2"), "two").expect("write");
        let open = s.open("out.log.2");
        s.shared.stop.store(true, Ordering::Relaxed);
        assert!(!one(&s.place, open, &s.job.names, &s.shared).expect("stop"));
        assert_eq!(fs::read_dir(s.dir.path()).expect("read_dir").count(), 1);
        assert!(s.path("out.log.2").exists());
    }

    /// The lock stands for a disk that does not answer.
    #[test]
    fn a_log_whose_disk_is_silent_holds_up_no_other() {
        let (stuck, other) = (scene(), scene());
        for s in [&stuck, &other] {
            fs::write(s.path("out.log.2"), "two").expect("write");
        }
        let (events, _told) = tokio::sync::mpsc::unbounded_channel();
        let guard = stuck.job.names.lock();
        let mut compressor = Compressor::start(events).expect("start");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !other.path("out.log.2.gz").exists() {
            assert!(Instant::now() < deadline, "it waits for the other one");
            compressor.rotated(stuck.job.clone());
            compressor.rotated(other.job.clone());
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!stuck.path("out.log.2.gz").exists());
        drop(guard);
    }
}
