//! Compresses rotated files, in a thread of the lowest priority.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use flate2::{Compression, GzBuilder};
use tokio::sync::mpsc::UnboundedSender;

use super::Event;
use super::rotate::{self, Names};

/// Logs shrink about tenfold at any level; a higher one costs time and saves little.
const LEVEL: u32 = 3;
const BLOCK: usize = 64 << 10;
/// The thread's nice value: it only uses idle time.
const NICE: i32 = 19;

/// The compressing thread. It works on one file at a time, the oldest first.
#[derive(Debug)]
pub(super) struct Compressor {
    jobs: Option<mpsc::Sender<PathBuf>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Compressor {
    pub fn start(names: Arc<Names>, events: UnboundedSender<Event>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<PathBuf>();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("rsup-gzip".into())
            .spawn(move || {
                // On Linux this sets the priority of the thread. A failure does no harm.
                let _ = rustix::process::setpriority_process(None, NICE);
                while let Ok(path) = queue.recv() {
                    if let Err(error) = all(&path, &names, &stopped) {
                        let error = format!("compressing a rotated file: {error}");
                        let _ = events.send(Event::Untidy { path, error });
                    }
                }
            })?;
        Ok(Compressor {
            jobs: Some(jobs),
            stop,
            thread: Some(thread),
        })
    }

    /// Looks for files to compress after a rotation. Returns at once.
    pub fn rotated(&self, path: &Path) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(path.to_owned());
        }
    }
}

impl Drop for Compressor {
    /// Aborts the compression under way; its plain file is still there.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Compresses all rotated files of `path` but the newest.
fn all(path: &Path, names: &Names, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let plain = {
            let _guard = names.lock();
            let oldest = rotate::segments(path)?
                .into_iter()
                .rfind(|s| !s.gzipped && s.number > 1);
            match oldest {
                Some(segment) => File::open(segment.path)?,
                None => return Ok(()),
            }
        };
        one(path, plain, names, stop)?;
    }
    Ok(())
}

/// Compresses one file into a temporary one, and replaces it with that. The file may have got
/// another number since, or be deleted: it is found by its identity.
fn one(path: &Path, plain: File, names: &Names, stop: &AtomicBool) -> io::Result<()> {
    let meta = plain.metadata()?;
    let unfinished = rotate::unfinished(path);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let packed = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(meta.mode() & 0o777)
        .open(&unfinished)?;
    let done = pack(plain, packed, &meta, stop).and_then(|done| {
        let _guard = names.lock();
        let place = rotate::segments(path)?.into_iter().find(|s| {
            !s.gzipped
                && fs::metadata(&s.path)
                    .is_ok_and(|m| rotate::identity(&m) == rotate::identity(&meta))
        });
        match place {
            Some(segment) if done => {
                fs::rename(&unfinished, rotate::gzipped(path, segment.number))?;
                fs::remove_file(&segment.path)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    });
    if !matches!(done, Ok(true)) {
        let _ = fs::remove_file(&unfinished);
    }
    done.map(|_| ())
}

/// Copies `plain` to `packed` through gzip, and syncs it. False if it was aborted.
fn pack(mut plain: File, packed: File, meta: &fs::Metadata, stop: &AtomicBool) -> io::Result<bool> {
    let mtime = u32::try_from(meta.mtime()).unwrap_or(0);
    let mut encoder = GzBuilder::new()
        .mtime(mtime)
        .extra(origin(rotate::identity(meta)))
        .write(packed, Compression::new(LEVEL));
    let mut block = vec![0; BLOCK];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match plain.read(&mut block) {
            Ok(0) => break,
            Ok(n) => encoder.write_all(&block[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    encoder.finish()?.sync_all()?;
    Ok(true)
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

    fn unpacked(path: &Path) -> String {
        let mut text = String::new();
        GzDecoder::new(File::open(path).expect("open"))
            .read_to_string(&mut text)
            .expect("gunzip");
        text
    }

    #[test]
    fn all_but_the_newest_are_compressed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        for number in 1..=3 {
            fs::write(
                rotate::plain(&path, number),
                format!("{number}\n").repeat(50_000),
            )
            .expect("write");
        }
        fs::write(rotate::unfinished(&path), "left by a crash").expect("write");
        all(&path, &Names::default(), &AtomicBool::new(false)).expect("compress");
        assert!(rotate::plain(&path, 1).exists() && !rotate::plain(&path, 2).exists());
        for number in 2..=3 {
            assert_eq!(
                unpacked(&rotate::gzipped(&path, number)),
                format!("{number}\n").repeat(50_000)
            );
        }
        assert!(!rotate::unfinished(&path).exists());
    }

    #[test]
    fn a_file_that_moved_meanwhile_is_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        fs::write(rotate::plain(&path, 2), "two").expect("write");
        let open = File::open(rotate::plain(&path, 2)).expect("open");
        fs::rename(rotate::plain(&path, 2), rotate::plain(&path, 3)).expect("rename");
        one(&path, open, &Names::default(), &AtomicBool::new(false)).expect("compress");
        assert_eq!(unpacked(&rotate::gzipped(&path, 3)), "two");
        assert_eq!(fs::read_dir(dir.path()).expect("read_dir").count(), 1);
    }

    #[test]
    fn told_to_stop_it_leaves_the_plain_file_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out.log");
        fs::write(rotate::plain(&path, 2), "two").expect("write");
        let open = File::open(rotate::plain(&path, 2)).expect("open");
        one(&path, open, &Names::default(), &AtomicBool::new(true)).expect("stop");
        assert_eq!(fs::read_dir(dir.path()).expect("read_dir").count(), 1);
        assert!(rotate::plain(&path, 2).exists());
    }
}
