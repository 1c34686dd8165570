//! Memory that outlives the process, and takes bytes out of a pipe atomically: a mapped memfd, into
//! which the kernel moves what a pipe holds. Where a sandbox refuses memfds, a file without a name.
//!
//! `splice(2)` from a pipe into a file removes from the pipe what it wrote into the file, and
//! advances the file's position by as much. A process that is killed dies between system calls, or
//! at their end, but not within this one. So the position always shows how much was taken, even if
//! the process never learnt it. The position belongs to the *open file*: it survives in every
//! duplicate of the descriptor, but not in one that was opened anew through `/proc`.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::owner::refused;
use super::raw::{self, check_long, retry};

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// An empty file without a name, close-on-exec: in memory, or in `folder` where a sandbox refuses
/// `memfd_create(2)`.
///
/// # Errors
/// As `memfd_create(2)` and `open(2)`.
pub fn nameless(name: &CStr, folder: &Path) -> io::Result<File> {
    open_nameless(name, MFdFlags::MFD_CLOEXEC, folder)
}

fn open_nameless(name: &CStr, flags: MFdFlags, folder: &Path) -> io::Result<File> {
    let error = match memfd_create(name, flags) {
        Ok(fd) => return Ok(fd.into()),
        Err(error) => io::Error::from(error),
    };
    if !refused(&error) {
        return Err(error);
    }
    tempfile::tempfile_in(folder)
}

/// Whether `splice(2)` was refused.
static NO_SPLICE: AtomicBool = AtomicBool::new(false);

/// Durable memory: first words, each of which is stored whole or not at all, then bytes.
#[derive(Debug)]
pub struct Durable {
    file: File,
    start: NonNull<u8>,
    words: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and is tied to no thread.
unsafe impl Send for Durable {}

impl Durable {
    /// A memfd for this many words and bytes, all zero, with memory allocated on use.
    /// Close-on-exec, and of fixed size. Its position is where the bytes begin. Where memfds are
    /// refused, a file without a name in `folder`, which only its holders can shorten.
    ///
    /// # Errors
    /// When there are no descriptors left, or files can't be that large (`RLIMIT_FSIZE`).
    pub fn create(name: &CStr, folder: &Path, words: usize, bytes: usize) -> io::Result<OwnedFd> {
        let mut file = open_nameless(
            name,
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
            folder,
        )?;
        ftruncate(
            &file,
            i64::try_from(words * 8 + bytes).map_err(io::Error::other)?,
        )?;
        // An ordinary file has no seals.
        if let Err(error) = fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))
            && file.metadata().is_ok_and(|found| found.nlink() != 0)
        {
            return Err(error.into());
        }
        file.seek(SeekFrom::Start(words as u64 * 8))?;
        Ok(file.into())
    }

    /// Maps what [`create`](Self::create) made. Only one living process may do so at a time.
    ///
    /// # Errors
    /// `InvalidInput` if it is something else, or a descriptor that was opened anew.
    pub fn map(fd: OwnedFd, words: usize, bytes: usize) -> io::Result<Durable> {
        let file = File::from(fd);
        let len = words * 8 + bytes;
        let sealed = fcntl(&file, FcntlArg::F_GET_SEALS)
            .is_ok_and(|seals| seals & SEALS.bits() == SEALS.bits());
        // A file without a name: see `create`.
        let ours = sealed
            || file
                .metadata()
                .is_ok_and(|found| found.is_file() && found.nlink() == 0);
        if !ours
            || file.metadata()?.len() != len as u64
            || (&file).stream_position()? < words as u64 * 8
        {
            return Err(ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(ErrorKind::Other)?;
        Ok(Durable {
            file,
            start,
            words,
            bytes,
        })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped as long as `self`, page-aligned, sealed against getting shorter; any bits are a
        // number, and `bytes` begins behind them.
        unsafe { slice::from_raw_parts(self.start.cast().as_ptr(), self.words) }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as `self` and sealed against getting shorter. They change through
        // methods that take `&mut self` only.
        unsafe { slice::from_raw_parts(self.start.as_ptr().add(self.words * 8), self.bytes) }
    }

    /// The bytes, for changes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed for this alone.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().add(self.words * 8), self.bytes) }
    }

    /// The index in the bytes at which the next ones from a pipe are stored.
    ///
    /// # Errors
    /// None is known.
    pub fn position(&self) -> io::Result<usize> {
        let at = (&self.file).stream_position()?;
        usize::try_from(at)
            .ok()
            .and_then(|at| at.checked_sub(self.words * 8))
            .ok_or(ErrorKind::InvalidData.into())
    }

    /// Sets the index in the bytes at which the next ones from a pipe are stored.
    ///
    /// # Errors
    /// None is known.
    pub fn seek(&mut self, to: usize) -> io::Result<()> {
        self.file
            .seek(SeekFrom::Start((self.words * 8 + to) as u64))?;
        Ok(())
    }

    /// Moves at most `limit` bytes from a pipe to the position, and the position behind them. 0
    /// when the pipe has ended.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing in the pipe, `InvalidInput` if it is none, and as `splice(2)`.
    pub fn take(&mut self, pipe: impl AsFd, limit: usize) -> io::Result<usize> {
        if NO_SPLICE.load(Ordering::Relaxed) {
            return self.copy(pipe, limit);
        }
        let (from, to) = (pipe.as_fd().as_raw_fd(), self.file.as_raw_fd());
        let moved = retry(|| {
            // SAFETY: no pointers but null; both descriptors are borrowed for the call. The file's
            // bytes are what `self` is borrowed for; its size is sealed.
            check_long(unsafe {
                libc::splice(
                    from,
                    ptr::null_mut(),
                    to,
                    ptr::null_mut(),
                    limit,
                    libc::SPLICE_F_NONBLOCK,
                )
            } as libc::c_long)
        });
        match moved {
            Err(error) if refused(&error) => {
                NO_SPLICE.store(true, Ordering::Relaxed);
                self.copy(pipe, limit)
            }
            result => usize::try_from(result?).map_err(io::Error::other),
        }
    }

    /// As [`take`](Self::take), where a sandbox refuses `splice(2)`: if the process is killed in
    /// between, the bytes that it had just read are lost.
    fn copy(&mut self, pipe: impl AsFd, limit: usize) -> io::Result<usize> {
        if raw::poll(&pipe, libc::POLLIN, Duration::ZERO)? == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut bytes = vec![0; limit.min(64 << 10)];
        let length = retry(|| Ok(nix::unistd::read(&pipe, &mut bytes)?))?;
        (&self.file).write_all(bytes.get(..length).unwrap_or_default())?;
        Ok(length)
    }

    /// Releases the memory of these bytes; they are 0 from now on.
    pub fn discard(&mut self, range: Range<usize>) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, len) = ((self.words * 8 + range.start) as i64, range.len() as i64);
        // A failure only costs memory.
        let _ = fallocate(&self.file, flags, start, len);
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        // SAFETY: our own mapping, with the length it was made with; borrows of it have ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8 + self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_and_stored_is_there_for_the_next() {
        let fd = Durable::create(c"test", Path::new("/tmp"), 512, 8192).expect("create");
        let other = fd.try_clone().expect("dup");
        let anew = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .expect("open");
        let mut memory = Durable::map(fd, 512, 8192).expect("map");
        let (read, mut write) = io::pipe().expect("pipe");
        assert_eq!(
            memory.take(&read, 10).expect_err("empty").kind(),
            ErrorKind::WouldBlock
        );
        write.write_all(b"hello, world").expect("write");
        assert_eq!(memory.take(&read, 5).expect("take"), 5);
        memory.words()[3].store(7, Ordering::Relaxed);
        drop(memory);
        let mut memory = Durable::map(other, 512, 8192).expect("map");
        assert_eq!(
            (memory.position().expect("position"), &memory.bytes()[..5]),
            (5, &b"hello"[..])
        );
        assert_eq!(memory.words()[3].load(Ordering::Relaxed), 7);
        drop(write);
        assert_eq!(memory.take(&read, 100).expect("take"), 7);
        assert_eq!(memory.take(&read, 100).expect("take"), 0);
        assert_eq!(&memory.bytes()[..13], b"hello, world\0");
        memory.bytes_mut()[0] = b'j';
        memory.seek(1).expect("seek");
        assert_eq!(
            (memory.position().expect("position"), memory.bytes()[0]),
            (1, b'j')
        );
        memory.discard(0..4096);
        assert_eq!(memory.bytes()[0], 0);
        assert!(
            memory
                .take(File::open("/dev/null").expect("open"), 1)
                .is_err()
        );
        assert_eq!(
            Durable::map(anew.into(), 512, 8192)
                .expect_err("opened anew")
                .kind(),
            ErrorKind::InvalidInput
        );
    }
}
