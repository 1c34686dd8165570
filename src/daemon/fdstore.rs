//! Everything that has to outlive the daemon: duplicates of its descriptors, by name, here for the
//! next program of this process (`rsup upgrade`) and at the keeper for the next process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::systemd;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::config::{AppName, Listen};
use crate::exit::Exit;
use crate::keeper::link::{Heard, Link};
use crate::keeper::wire::{self, ToKeeper};
use crate::keeper::{PROGRAM, SOCKET};
use crate::logs::Stream;
use crate::sys::inherit;

/// Between two tries to make a keeper.
const AGAIN: Duration = Duration::from_secs(1);

/// Named duplicates, and who else holds them.
pub struct FdStore {
    held: BTreeMap<String, Arc<OwnedFd>>,
    backend: Backend,
    made: Option<u32>,
    made_at: Option<Instant>,
    /// What systemd had no room for at the time.
    unstored: BTreeSet<String>,
}

/// Who holds the descriptors when this process is gone.
pub enum Backend {
    /// None: rsup runs in the foreground, and its caller starts the next one.
    None,
    Keeper(Link),
    /// systemd, in its store of file descriptors.
    Systemd(Arc<systemd::Link>),
    /// It died; the next one is made then.
    NoKeeper {
        next: Instant,
    },
}

impl FdStore {
    /// `held` is what was taken back from the backend.
    pub fn new(backend: Backend, held: BTreeMap<String, OwnedFd>, made: Option<u32>) -> Self {
        Self {
            held: held
                .into_iter()
                .map(|(name, fd)| (name, Arc::new(fd)))
                .collect(),
            backend,
            made,
            made_at: None,
            unstored: BTreeSet::new(),
        }
    }

    /// Everything that the next program of this process is to have, and the socket to the keeper.
    pub fn descriptors(&self) -> (Vec<(&str, BorrowedFd<'_>)>, Option<BorrowedFd<'_>>) {
        let keeper = match &self.backend {
            Backend::Keeper(link) => Some(link.socket()),
            Backend::None | Backend::Systemd(_) | Backend::NoKeeper { .. } => None,
        };
        (
            self.held
                .iter()
                .map(|(name, fd)| (name.as_str(), fd.as_fd()))
                .collect(),
            keeper,
        )
    }

    /// From now on daemons are started from the file of this very program.
    pub fn keep_program(&mut self) {
        if !matches!(self.backend, Backend::Keeper(_) | Backend::NoKeeper { .. }) {
            return;
        }
        match File::open("/proc/self/exe") {
            Ok(program) => self.keep(PROGRAM.to_owned(), program),
            Err(why) => {
                warn!("after its death rsup would be started from the keeper's program: {why}")
            }
        }
    }

    /// Takes up the conversation with the keeper that started us, if one did, and takes back what it
    /// holds.
    ///
    /// Where systemd is told of our state it is the one who holds them: `stored` is what it gave back.
    pub fn open(systemd: Option<Arc<systemd::Link>>, stored: BTreeMap<String, OwnedFd>) -> Self {
        let Some(socket) = inherit::take_named(SOCKET) else {
            return Self::new(
                systemd.map_or(Backend::None, Backend::Systemd),
                stored,
                None,
            );
        };
        let taken = socket.and_then(Link::resume);
        let (backend, held) = match taken {
            Ok((link, held)) => (Backend::Keeper(link), held),
            Err(why) => {
                warn!("the keeper cannot be used: {why}");
                (
                    Backend::NoKeeper {
                        next: Instant::now(),
                    },
                    BTreeMap::new(),
                )
            }
        };
        Self::new(backend, held, None)
    }

    /// Whether anybody holds for the next process what this one loses by its death.
    pub fn outlives_us(&self) -> bool {
        matches!(self.backend, Backend::Keeper(_) | Backend::Systemd(_))
    }

    /// systemd holds what outlives us, and is never killed together with us.
    pub fn is_at_systemd(&self) -> bool {
        matches!(self.backend, Backend::Systemd(_))
    }

    pub fn has_keeper(&self) -> bool {
        matches!(self.backend, Backend::Keeper(_))
    }

    /// The pid of a keeper that is our own child.
    pub fn made_keeper(&self) -> Option<u32> {
        self.made
    }

    /// Keeps a duplicate, in place of another one of that name.
    pub fn keep(&mut self, name: String, fd: impl AsFd) {
        match fd.as_fd().try_clone_to_owned() {
            Ok(copy) => self.keep_shared(name, Arc::new(copy)),
            Err(why) => warn!("{name} would not outlive rsup: {why}"),
        }
    }

    /// As [`Self::keep`], without a descriptor more.
    pub fn keep_shared(&mut self, name: String, copy: Arc<OwnedFd>) {
        match &mut self.backend {
            Backend::Keeper(link) => {
                link.send(&ToKeeper::Keep(name.clone()), Some((*copy).as_fd()))
            }
            Backend::Systemd(link) => {
                // It keeps any number of one name.
                let others = if self.held.contains_key(&name) {
                    link.remove(&name)
                } else {
                    Ok(())
                };
                match others.and_then(|()| link.store(&name, &copy)) {
                    Ok(()) => drop(self.unstored.remove(&name)),
                    Err(why) => {
                        warn!("{name} would not outlive rsup for the moment: {why}");
                        self.unstored.insert(name.clone());
                    }
                }
            }
            Backend::None | Backend::NoKeeper { .. } => {}
        }
        self.held.insert(name, copy);
    }

    pub fn forget(&mut self, name: &str) {
        if self.held.remove(name).is_none() {
            return;
        }
        match &mut self.backend {
            Backend::Keeper(link) => link.send(&ToKeeper::Drop(name.to_owned()), None),
            Backend::Systemd(link) => {
                if let Err(why) = link.remove(name) {
                    warn!("systemd still keeps {name}: {why}");
                }
            }
            Backend::None | Backend::NoKeeper { .. } => {}
        }
    }

    /// As [`Self::get`], where it matters little if it cannot be had.
    pub fn find(&self, name: &str) -> Option<OwnedFd> {
        self.held.get(name)?.try_clone().ok()
    }

    /// What is kept under the name, for who only reads from it.
    pub fn share(&self, name: &str) -> Option<Arc<OwnedFd>> {
        self.held.get(name).cloned()
    }

    /// A duplicate of what is kept under the name.
    pub fn get(&self, name: &str) -> Option<OwnedFd> {
        self.held
            .get(name)?
            .try_clone()
            .inspect_err(|why| warn!("{name} cannot be taken back: {why}"))
            .ok()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.held.keys().map(String::as_str)
    }

    /// Makes what is kept under names with this beginning the same as `wanted`.
    pub fn keep_exactly(&mut self, beginning: &str, wanted: Vec<(String, BorrowedFd<'_>)>) {
        let surplus: Vec<String> = self
            .held
            .range(beginning.to_owned()..)
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(beginning))
            .filter(|name| !wanted.iter().any(|(other, _)| other == *name))
            .cloned()
            .collect();
        surplus.iter().for_each(|name| self.forget(name));
        for (name, fd) in wanted {
            if !self.held.get(&name).is_some_and(|held| is_same(held, fd)) {
                self.keep(name, fd);
            }
        }
    }

    /// Forgets everything under names with one of these beginnings.
    pub fn forget_all(&mut self, beginnings: &[String]) {
        beginnings
            .iter()
            .for_each(|beginning| self.keep_exactly(beginning, Vec::new()));
    }

    /// Tries again what systemd did not take.
    pub fn store_again(&mut self) {
        for name in std::mem::take(&mut self.unstored) {
            if let Some(fd) = self.get(&name) {
                self.keep(name, fd);
            }
        }
    }

    /// Asks how a process ended that the keeper has inherited from an earlier daemon.
    pub fn how_ended(&mut self, pid: u32, answer: oneshot::Sender<Exit>) {
        match &mut self.backend {
            Backend::Keeper(link) => link.how_ended(pid, answer),
            Backend::None | Backend::Systemd(_) | Backend::NoKeeper { .. } => {
                _ = answer.send(Exit::Unknown);
            }
        }
    }

    /// As [`Self::how_ended`], for the time in which there is nothing else to do.
    pub fn how_ended_now(&mut self, pid: u32) -> Exit {
        match &mut self.backend {
            Backend::Keeper(link) => link.how_ended_now(pid),
            Backend::None | Backend::Systemd(_) | Backend::NoKeeper { .. } => Exit::Unknown,
        }
    }

    /// Looks after the keeper until something has happened. May be dropped at any time.
    pub async fn turn(&mut self) {
        match &mut self.backend {
            Backend::None | Backend::Systemd(_) => std::future::pending().await,
            Backend::Keeper(link) => {
                if link.turn().await == Heard::Gone {
                    warn!("the keeper is gone; making another");
                    // One that died as soon as it was made is not made again at once.
                    let early = self.made_at.is_some_and(|at| at.elapsed() < AGAIN);
                    let next = if early {
                        Instant::now() + AGAIN
                    } else {
                        Instant::now()
                    };
                    self.backend = Backend::NoKeeper { next };
                }
            }
            Backend::NoKeeper { next } => {
                tokio::time::sleep_until((*next).into()).await;
                self.make_keeper();
            }
        }
    }

    fn make_keeper(&mut self) {
        match Link::make(&crate::paths::program()) {
            Ok((mut link, pid)) => {
                for (name, fd) in &self.held {
                    link.send(&ToKeeper::Keep(name.clone()), Some(fd.as_fd()));
                }
                info!(pid, "made a keeper");
                self.made = Some(pid);
                self.made_at = Some(Instant::now());
                self.backend = Backend::Keeper(link);
            }
            Err(why) => {
                warn!("cannot make a keeper, so nothing would outlive rsup now: {why}");
                self.backend = Backend::NoKeeper {
                    next: Instant::now() + AGAIN,
                };
            }
        }
    }

    /// The daemon ends on purpose: nothing is kept.
    pub fn bye(&mut self) {
        match &mut self.backend {
            Backend::Keeper(link) => link.bye(),
            Backend::Systemd(_) => self.forget_all(&[String::new()]),
            Backend::None | Backend::NoKeeper { .. } => {}
        }
    }
}

/// Two descriptors of one file (sockets and pipes are files of their own file systems).
fn is_same(a: &OwnedFd, b: BorrowedFd<'_>) -> bool {
    let identity =
        |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    a.as_raw_fd() == b.as_raw_fd()
        || matches!((identity(a.as_fd()), identity(b)), (Ok(a), Ok(b)) if a == b)
}

/// The names of what is kept. A part of a name that may hold anything is escaped.
pub mod name {
    use super::*;

    /// The live state, where its file cannot be written.
    pub const STATE: &str = crate::keeper::STATE;

    /// The pump's own memory.
    pub const JOURNAL: &str = crate::keeper::JOURNAL;

    /// All listening sockets of an app.
    pub fn sockets(app: &AppName) -> String {
        format!("listen/{app}/")
    }

    /// One of them: by its place in the group, the lobby's being 0.
    pub fn socket(app: &AppName, address: &Listen, place: usize) -> String {
        format!("listen/{app}/{}/{place}", escape(&address.to_string()))
    }

    /// The pipe of a worker's output. It tells whose it is even when no state knows the worker any more.
    pub fn output(generation: u64, stream: Stream, app: &str, instance: u32) -> String {
        format!("{}/{generation}/{app}/{instance}", stream.name())
    }

    /// The reverse of [`output`].
    pub fn parse_output(name: &str) -> Option<(u64, Stream, &str, u32)> {
        let mut parts = name.split('/');
        let stream = match parts.next()? {
            "out" => Stream::Out,
            "err" => Stream::Err,
            _ => return None,
        };
        let parsed = (
            parts.next()?.parse().ok()?,
            stream,
            parts.next()?,
            parts.next()?.parse().ok()?,
        );
        parts.next().is_none().then_some(parsed)
    }

    /// Where a worker's trapped calls arrive.
    pub fn binds(generation: u64) -> String {
        format!("bind/{generation}")
    }

    /// Where a worker says that it is ready: sd_notify(3).
    pub fn notify(generation: u64) -> String {
        format!("notify/{generation}")
    }

    /// The same over Node's channel.
    pub fn node(generation: u64) -> String {
        format!("node/{generation}")
    }

    /// Room for the rest of a name.
    const LONGEST_PART: usize = wire::LONGEST_NAME - 100;

    /// What no store's name may have (`:`, and what is not printable) as `%` and two digits. What
    /// gets too long ends in a hash of the whole.
    fn escape(text: &str) -> String {
        let mut escaped = String::new();
        for byte in text.bytes() {
            match byte {
                b'!'..=b'~' if !b"%/:".contains(&byte) => escaped.push(char::from(byte)),
                _ => escaped += &format!("%{byte:02x}"),
            }
        }
        if escaped.len() > LONGEST_PART {
            escaped.truncate(LONGEST_PART - 17);
            escaped += &format!("~{:016x}", fnv(text.as_bytes()));
        }
        escaped
    }

    /// FNV-1a, 64 bits: the same in every version of rsup, which the standard library's is not.
    fn fnv(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_name_can_be_stored() {
            let app = AppName::new("x".repeat(64));
            let tcp = Listen::Tcp {
                addr: "[::1]:3001".parse().unwrap(),
                v6only: true,
            };
            assert_eq!(
                socket(&AppName::new("web"), &tcp, 3),
                "listen/web/[%3a%3a1]%3a3001/3"
            );
            let long = ["/ä:".repeat(30), "/ä:".repeat(29) + "/ä;"]
                .map(|path| socket(&app, &Listen::Unix(path.into()), 0));
            assert!(long.iter().all(|name| wire::is_name(name)), "{long:?}");
            assert_ne!(long[0], long[1]);
            assert!(wire::is_name(&output(
                u64::MAX,
                Stream::Err,
                app.as_str(),
                u32::MAX
            )));
        }

        #[test]
        fn a_pipe_tells_whose_it_is() {
            assert_eq!(
                parse_output(&output(7, Stream::Err, "a.b-c", 2)),
                Some((7, Stream::Err, "a.b-c", 2))
            );
            for other in [
                "journal",
                "out/7",
                "out/7/a/2/3",
                "out/x/a/2",
                "listen/a/b/0",
            ] {
                assert_eq!(parse_output(other), None, "{other}");
            }
        }
    }
}
