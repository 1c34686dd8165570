//! What happened, numbered and kept over restarts of the daemon within a bound.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::AppName;
use crate::core::{PastEvent, Time};
use crate::model::Event;

/// The file is put aside at this size, in bytes, and another one begun; the one before that goes.
const LARGEST: u64 = 4 << 20;

/// So many events wait for a disk with room; older ones are lost.
const MOST_UNWRITTEN: usize = 1000;

/// The latest events of each app are kept in memory, for `describe`.
const OF_AN_APP: usize = 50;

/// An event with its number and the time on the wall.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Counted over all apps, from 1; never used twice.
    pub seq: u64,
    pub time: jiff::Timestamp,
    #[serde(flatten)]
    pub event: Event,
}

/// A line before the events of a boot of the machine: times of [`Event::at`] are its own.
#[derive(Serialize, Deserialize)]
struct Boot {
    boot: String,
}

/// The events of one daemon, in memory and in a file.
pub struct EventLog {
    path: PathBuf,
    boot: String,
    /// Whether the file says which boot its last events are of.
    dated: bool,
    /// None while it cannot be written.
    file: Option<File>,
    size: u64,
    /// Whether the file does not end with a whole line.
    cut_off: bool,
    next: u64,
    latest: HashMap<AppName, VecDeque<Recorded>>,
    /// What the file has not taken yet.
    unwritten: VecDeque<Recorded>,
    trouble: Option<String>,
}

impl EventLog {
    /// Goes on with what an earlier daemon wrote.
    pub fn open(path: PathBuf, boot: String) -> Self {
        let mut log = Self {
            path,
            boot,
            dated: false,
            file: None,
            size: 0,
            cut_off: false,
            next: 1,
            latest: HashMap::new(),
            unwritten: VecDeque::new(),
            trouble: None,
        };
        for path in [before(&log.path), log.path.clone()] {
            for line in lines(&path).unwrap_or_default() {
                match line {
                    Line::Boot(Boot { boot }) => log.dated = boot == log.boot,
                    Line::Event(recorded) => {
                        log.next = log.next.max(recorded.seq.saturating_add(1));
                        if log.dated {
                            log.remember(*recorded);
                        }
                    }
                }
            }
        }
        log
    }

    /// Why it could not be written the last time.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub fn record(&mut self, event: Event) -> Recorded {
        let recorded = Recorded {
            seq: self.next,
            time: jiff::Timestamp::now(),
            event,
        };
        self.next += 1;
        self.remember(recorded.clone());
        if self.unwritten.len() >= MOST_UNWRITTEN {
            self.unwritten.pop_front();
        }
        self.unwritten.push_back(recorded.clone());
        self.write_all();
        recorded
    }

    /// From time to time: what a full disk did not take is written now, into a file that is still there.
    pub fn tend(&mut self) {
        if self.file.is_some() && !self.path.exists() {
            self.file = None;
            self.dated = false;
        }
        if !self.unwritten.is_empty() {
            self.write_all();
        }
    }

    fn write_all(&mut self) {
        self.trouble = None;
        while let Some(first) = self.unwritten.pop_front() {
            if let Err(why) = self.write(&first) {
                self.unwritten.push_front(first);
                self.trouble = Some(format!("cannot write {}: {why}", self.path.display()));
                return;
            }
        }
    }

    /// The latest events of an app since the machine was started, oldest first.
    pub fn of(&self, app: &AppName, now: Time) -> Vec<PastEvent> {
        let past = |recorded: &Recorded| PastEvent {
            age_ms: u64::try_from(now.since(recorded.event.at).as_millis()).unwrap_or(u64::MAX),
            text: recorded.event.line(),
        };
        self.latest
            .get(app)
            .map(|all| all.iter().map(past).collect())
            .unwrap_or_default()
    }

    /// A deleted app has no past; the file still has it.
    pub fn forget(&mut self, app: &AppName) {
        self.latest.remove(app);
    }

    fn remember(&mut self, recorded: Recorded) {
        let latest = self.latest.entry(recorded.event.app.clone()).or_default();
        while latest.len() >= OF_AN_APP {
            latest.pop_front();
        }
        latest.push_back(recorded);
    }

    fn write(&mut self, recorded: &Recorded) -> io::Result<()> {
        if self.size >= LARGEST {
            self.file = None;
            fs::rename(&self.path, before(&self.path))?;
            self.dated = false;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new()
                    .read(true)
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&self.path)?;
                self.size = file.metadata()?.len();
                // The last line may have been cut off by a full disk.
                let mut last = [b'\n'];
                if let Some(end) = self.size.checked_sub(1) {
                    file.read_exact_at(&mut last, end)?;
                }
                self.cut_off = last != [b'\n'];
                self.file.insert(file)
            }
        };
        let mut line = Vec::new();
        if std::mem::take(&mut self.cut_off) {
            line.push(b'\n');
        }
        if !self.dated {
            let boot = self.boot.clone();
            serde_json::to_writer(&mut line, &Boot { boot })?;
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, recorded)?;
        line.push(b'\n');
        // One write, so that a reader sees whole lines.
        let written = file.write_all(&line);
        if written.is_err() {
            self.file = None;
        }
        self.dated |= written.is_ok();
        self.size += line.len() as u64;
        written
    }
}

/// Where the events before those of the file are.
pub fn before(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Event(Box<Recorded>),
    Boot(Boot),
}

/// What was written whole; a line that a full disk cut off is left out.
fn lines(path: &Path) -> io::Result<Vec<Line>> {
    let mut all = Vec::new();
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        all.extend(serde_json::from_slice(&line?).ok());
    }
    Ok(all)
}

/// The events of a file, oldest first.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Recorded>> {
    let events = lines(path)?.into_iter().filter_map(|line| match line {
        Line::Event(recorded) => Some(*recorded),
        Line::Boot(_) => None,
    });
    Ok(events.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::What;

    fn event(app: &str) -> Event {
        Event {
            at: Time::default(),
            app: AppName::new(app),
            revision: Some(1),
            worker: None,
            what: What::Adopted { live: 1, of: 2 },
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not yet/events.jsonl");
        let mut log = EventLog::open(path.clone(), "this".into());
        log.record(event("a"));
        log.record(event("b"));
        assert!(log.trouble().is_some_and(|why| why.contains("not yet")));
        fs::create_dir(path.parent().unwrap()).unwrap();
        log.tend();
        assert_eq!(log.trouble(), None);
        let seqs: Vec<u64> = read(&path).unwrap().iter().map(|r| r.seq).collect();
        assert_eq!(seqs, [1, 2]);
        fs::remove_file(&path).unwrap();
        log.tend();
        log.record(event("a"));
        assert_eq!(read(&path).unwrap().len(), 1);
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut log = EventLog::open(path.clone(), "this".into());
        assert_eq!(log.record(event("a")).seq, 1);
        log.size = LARGEST;
        assert_eq!(log.record(event("b")).seq, 2);
        assert_eq!(
            (
                read(&before(&path)).unwrap().len(),
                read(&path).unwrap().len()
            ),
            (1, 1)
        );
        fs::write(
            &path,
            [fs::read(&path).unwrap(), b"{\"seq\":9,\"ti".to_vec()].concat(),
        )
        .unwrap();
        let of = |log: &EventLog, app: &str| log.of(&AppName::new(app), Time::default()).len();
        let mut log = EventLog::open(path.clone(), "this".into());
        assert_eq!(log.record(event("a")).seq, 3);
        assert_eq!((of(&log, "a"), of(&log, "b")), (2, 1));
        let mut log = EventLog::open(path, "the next".into());
        assert_eq!(
            (of(&log, "a"), of(&log, "b")),
            (0, 0),
            "times of another boot"
        );
        assert_eq!(log.record(event("a")).seq, 4);
    }
}
