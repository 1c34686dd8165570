//! Writes the saved state in a thread of its own: a disk may take its time. What comes while it writes is
//! written, and brought to the disk, together.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::journal::{Journal, Lines};

/// What became of saves.
#[derive(Debug)]
pub enum Saved {
    Done,
    /// The file is not the one that this thread wrote, so it is written anew as a whole.
    OutOfPlace,
    /// Until the whole state comes, nothing is written.
    Failed(io::Error),
}

enum Order {
    Write(Lines),
    Finish(mpsc::Sender<()>),
}

pub struct Saver {
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// `told` hears after each write how it went.
    ///
    /// # Errors
    /// When there are no threads left.
    pub fn start(path: PathBuf, told: impl Fn(Saved) + Send + 'static) -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>();
        let mut journal = Journal::new(path, true);
        let write_all = move || {
            // What follows a save that failed does not fit to the file.
            let mut failed = false;
            while let Ok(first) = queue.recv() {
                let mut waiting = Vec::new();
                let mut batch: Option<Lines> = None;
                for order in std::iter::once(first).chain(queue.try_iter()) {
                    match (order, &mut batch) {
                        (Order::Finish(done), _) => waiting.push(done),
                        (
                            Order::Write(Lines::More(lines)),
                            Some(Lines::More(all) | Lines::Whole(all)),
                        ) => all.extend(lines),
                        (Order::Write(whole @ Lines::Whole(_)), _)
                        | (Order::Write(whole @ Lines::More(_)), None) => batch = Some(whole),
                    }
                }
                let saved = match batch {
                    Some(Lines::Whole(all)) => Some(journal.replace(&all).into()),
                    Some(Lines::More(_)) if failed => None,
                    Some(Lines::More(_)) if !journal.is_in_place() => Some(Saved::OutOfPlace),
                    Some(Lines::More(lines)) => Some(journal.append(&lines).into()),
                    None => None,
                };
                if let Some(saved) = saved {
                    failed = !matches!(saved, Saved::Done);
                    told(saved);
                }
                waiting
                    .into_iter()
                    .for_each(|done| done.send(()).unwrap_or_default());
            }
        };
        let thread = std::thread::Builder::new()
            .name("rsup-state".into())
            .spawn(write_all)?;
        Ok(Self {
            orders,
            thread: Some(thread),
        })
    }

    /// Fails only if the thread has died, which a panic alone could bring about.
    pub fn save(&self, lines: Lines) {
        let _ = self.orders.send(Order::Write(lines));
    }

    /// Waits until the latest state is written.
    pub fn finish(&self) {
        let (done, written) = mpsc::channel();
        if self.orders.send(Order::Finish(done)).is_ok() {
            let _ = written.recv();
        }
    }
}

impl From<io::Result<()>> for Saved {
    fn from(how: io::Result<()>) -> Self {
        how.map_or_else(Self::Failed, |()| Self::Done)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.finish();
        // Ends the thread.
        self.orders = mpsc::channel().0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn saver(path: PathBuf) -> (Saver, mpsc::Receiver<Saved>) {
        let (told, hears) = mpsc::channel();
        let saver = Saver::start(path, move |how| told.send(how).unwrap_or_default()).unwrap();
        (saver, hears)
    }

    #[test]
    fn all_lines_are_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let (saver, hears) = saver(path.clone());
        saver.save(Lines::Whole(b"old\n".to_vec()));
        saver.save(Lines::Whole(b"head\n".to_vec()));
        (0..50).for_each(|n| saver.save(Lines::More(format!("{n}\n").into_bytes())));
        saver.finish();
        let all: String = (0..50).map(|n| format!("{n}\n")).collect();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("head\n{all}"));
        assert!(hears.try_iter().all(|how| matches!(how, Saved::Done)));
        // Nothing is appended to another file, or to one that lacks a line.
        fs::remove_file(&path).unwrap();
        saver.save(Lines::More(b"lost\n".to_vec()));
        saver.finish();
        saver.save(Lines::More(b"lost too\n".to_vec()));
        saver.finish();
        assert!(!path.exists());
        let told: Vec<Saved> = hears.try_iter().collect();
        assert!(matches!(told[..], [Saved::OutOfPlace]), "{told:?}");
        saver.save(Lines::Whole(b"head\n".to_vec()));
        saver.save(Lines::More(b"more\n".to_vec()));
        drop(saver);
        assert_eq!(fs::read_to_string(&path).unwrap(), "head\nmore\n");
    }

    #[test]
    fn a_failure_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (saver, hears) = saver(folder.path().join("no/such/folder"));
        saver.save(Lines::Whole(Vec::new()));
        drop(saver);
        let told: Vec<Saved> = hears.iter().collect();
        assert!(matches!(told[..], [Saved::Failed(_)]), "{told:?}");
    }
}
