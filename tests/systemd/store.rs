//! The file descriptor store, as a service of a real systemd: `scenario` runs this program again as
//! one. The first run stores descriptors and dies, the second one finds them.

use std::fs;
use std::io::{Read, Write};

use rsup::daemon::systemd;

/// Where the second run writes what it found. Without it this is no service, and nothing is done.
pub const VARIABLE: &str = "RSUP_TEST_STORE";
/// The pipe by its name and with what was in it, though its writing end is closed since; not what was
/// taken out of the store again.
pub const EXPECTED: &str = "log [::]:80/0: last words\n";

#[test]
fn as_a_service() {
    let Some(file) = std::env::var_os(VARIABLE) else {
        return;
    };
    let received = systemd::receive();
    let link = received.notifier.link().expect("NOTIFY_SOCKET");
    if received.stored.is_empty() {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(b"last words").unwrap();
        link.store("log [::]:80/0", &read).unwrap();
        link.store("gone", &std::io::pipe().unwrap().0).unwrap();
        link.remove("gone").unwrap();
        link.send("READY=1").unwrap();
        std::process::abort();
    }
    let mut found = String::new();
    for (name, fd) in received.stored {
        let mut text = String::new();
        fs::File::from(fd).read_to_string(&mut text).unwrap();
        found += &format!("{name}: {text}\n");
    }
    fs::write(file, found).unwrap();
    link.send("READY=1").unwrap();
    loop {
        std::thread::park();
    }
}
