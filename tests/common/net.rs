//! Ports.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::fcntl::{Flock, FlockArg};

/// Below the ports that the kernel hands out to clients, of which a load uses thousands.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on, and that no other test gets while the lock is held.
pub fn reserve_port() -> (u16, Flock<fs::File>) {
    let folder = Path::new("/tmp/rsup-test-ports");
    fs::create_dir_all(folder).expect("a folder for the locks of ports");
    let start = (std::process::id() as u16).wrapping_mul(251);
    for _ in 0..COUNT {
        let port = FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(port.to_string()));
        let Ok(lock) = Flock::lock(
            file.expect("the lock of a port"),
            FlockArg::LockExclusiveNonblock,
        ) else {
            continue;
        };
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
            && TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok();
        if free {
            return (port, lock);
        }
    }
    panic!("no port is free");
}
