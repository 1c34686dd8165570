//! `kill -9` of the keeper.

use nix::sys::signal::Signal;

use crate::common::load::Load;
use crate::common::{Home, is_alive, is_ready, signal, wait_until};
use crate::supervisors::Supervisors;
use crate::support::Life;

#[test]
fn the_daemon_makes_another_which_does_the_same() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let before = home.pids("web");
    let load = Load::start(port, "/");
    for _ in 0..3 {
        let daemon = home.daemon();
        let keeper = home.keeper();
        signal(keeper, Signal::SIGKILL);
        wait_until("its end", || !is_alive(keeper));
        wait_until("another keeper", || {
            home.processes()
                .iter()
                .any(|(pid, what)| *pid != keeper && what.trim_end().ends_with(" keeper"))
        });
        assert_eq!(home.daemon(), daemon);
        // It knows everything, as the death of the daemon shows.
        home.kill_daemon();
        load.more(100);
        let view = home.wait_view("web", "the same workers", is_ready);
        assert_eq!(crate::common::pids(&view), before);
    }
    home.ok(&["reload", "web"]);
    load.more(100);
    load.lossless();
    home.ok(&["kill"]);
    wait_until("the end of all", || home.processes().is_empty());
}

#[test]
fn a_keeper_that_stands_still_holds_up_nobody() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let load = Load::start(port, "/");
    let keeper = home.keeper();
    signal(keeper, Signal::SIGSTOP);
    for _ in 0..5 {
        home.ok(&["reload", "web"]);
    }
    home.ok(&["scale", "web", "8"]);
    signal(keeper, Signal::SIGCONT);
    home.kill_daemon();
    home.wait_view("web", "eight workers", is_ready);
    assert_eq!(home.pids("web").len(), 8);
    load.more(100);
    load.lossless();
}

#[test]
fn an_upgrade_past_a_keeper_that_stands_still() {
    let home = Home::new();
    let port = home.web("web", "instances = 2");
    home.ok(&["start"]);
    let (daemon, keeper, before) = (home.daemon(), home.keeper(), home.pids("web"));
    let load = Load::start(port, "/");
    signal(keeper, Signal::SIGSTOP);
    // The new program waits for its answer, and makes do without.
    home.ok(&["upgrade"]);
    assert_eq!((home.daemon(), home.pids("web")), (daemon, before.clone()));
    signal(keeper, Signal::SIGCONT);
    wait_until("the keeper makes room for another", || {
        let keepers = home
            .processes()
            .into_iter()
            .filter(|(_, what)| what.trim_end().ends_with(" keeper"));
        let keepers: Vec<u32> = keepers.map(|(pid, _)| pid).collect();
        keepers.len() == 1 && keepers[0] != keeper
    });
    home.kill_daemon();
    let view = home.wait_view("web", "the same workers", is_ready);
    assert_eq!(crate::common::pids(&view), before);
    load.more(100);
    load.lossless();
}

#[test]
fn a_keeper_that_did_not_hear_of_the_end_brings_nothing_back() {
    let home = Home::new();
    home.web("web", "instances = 8");
    home.ok(&["start"]);
    let keeper = home.keeper();
    signal(keeper, Signal::SIGSTOP);
    // More than its queue has room for.
    for _ in 0..6 {
        home.ok(&["reload", "web"]);
    }
    let daemon = home.daemon();
    signal(daemon, Signal::SIGTERM);
    wait_until("the end of the daemon", || !is_alive(daemon));
    signal(keeper, Signal::SIGCONT);
    wait_until("the end of all", || home.processes().is_empty());
    assert!(
        !home.daemon_log().contains("come back as they were"),
        "{}",
        home.daemon_log()
    );
}

#[test]
fn sigterm_to_the_keeper_stops_everything_gracefully() {
    let home = Home::new();
    home.web("web", "instances = 2");
    home.ok(&["start"]);
    signal(home.keeper(), Signal::SIGTERM);
    wait_until("the end of all", || home.processes().is_empty());
    assert!(
        home.daemon_log().contains("told to stop"),
        "{}",
        home.daemon_log()
    );
}

#[test]
fn a_daemon_that_cannot_begin_is_reported_and_leaves_no_keeper() {
    let home = Home::new();
    home.app("web", "command = [\"sleep\", \"1000\"]");
    // The control socket's place is taken by a folder that cannot be removed as a file.
    std::fs::create_dir_all(home.rsup_home().join("run/control.sock/in/the/way")).unwrap();
    for folder in ["", "run", "state"] {
        use std::os::unix::fs::PermissionsExt;
        let path = home.rsup_home().join(folder);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    home.run(&["start"]).code(1).says(&["control.sock"]);
    wait_until("nobody is left", || home.processes().is_empty());
    std::fs::remove_dir_all(home.rsup_home()).unwrap();
}

#[test]
fn a_keeper_that_holds_nothing_of_a_worker_gives_up() {
    let home = Home::new();
    home.app("job", "command = [\"sleep\", \"1000\"]");
    home.ok(&["start"]);
    home.ok(&["delete", "job"]);
    let began = std::time::Instant::now();
    // Each daemon dies as soon as it is there, as one would that cannot begin.
    wait_until("the end of all", || {
        let processes = home.processes();
        for (pid, _) in processes
            .iter()
            .filter(|(_, what)| what.starts_with("rsup daemon"))
        {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        processes.is_empty()
    });
    eprintln!("it gave up after {:?}", began.elapsed());
    // The next command finds what there is to go on from.
    assert_eq!(home.list(), serde_json::json!([]));
}

/// What the keeper hears from its daemon, and answers: with this test in the daemon's place.
mod spoken {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Stdio};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use rsup::keeper::SOCKET;
    use rsup::keeper::wire::{self, FromKeeper, ToKeeper};
    use rsup::sys::{fdpass, inherit, procfs};

    use crate::common::{Home, wait_until};

    struct Talk {
        socket: OwnedFd,
        keeper: Child,
        home: Home,
    }

    impl Talk {
        fn begin() -> Self {
            let home = Home::new();
            let (ours, theirs) = socketpair(
                AddressFamily::Unix,
                SockType::SeqPacket,
                None,
                SockFlag::SOCK_CLOEXEC,
            )
            .unwrap();
            let number = inherit::leave_open(&theirs).unwrap();
            let mut command = home.rsup();
            let keeper = command
                .arg0("rsup")
                .arg("keeper")
                .env(SOCKET, number.to_string())
                .stderr(Stdio::null())
                .spawn();
            Self {
                socket: ours,
                keeper: keeper.unwrap(),
                home,
            }
        }

        fn raw(&self, packet: &[u8], fd: Option<&OwnedFd>) {
            fdpass::send_message(&self.socket, packet, fd.map(AsFd::as_fd)).unwrap();
        }

        fn say(&self, message: &ToKeeper, fd: Option<&OwnedFd>) {
            self.raw(&message.encode(), fd);
        }

        fn hear(&self) -> (FromKeeper, Option<OwnedFd>) {
            let mut packet = [0; 512];
            let (length, fd) = fdpass::receive(&self.socket, &mut packet).unwrap();
            (FromKeeper::parse(&packet[..length]).unwrap(), fd)
        }

        fn names(&self) -> Vec<String> {
            self.say(&ToKeeper::GiveBack, None);
            let mut names = Vec::new();
            loop {
                match self.hear() {
                    (FromKeeper::Kept(name), Some(_)) => names.push(name),
                    (FromKeeper::AllKept, None) => return names,
                    other => panic!("{other:?}"),
                }
            }
        }

        fn end(mut self) {
            self.say(&ToKeeper::Bye, None);
            drop(self.socket);
            assert!(self.keeper.wait().unwrap().success());
            wait_until("nobody is left", || self.home.processes().is_empty());
        }
    }

    fn some_file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn what_is_kept_comes_back_and_what_makes_no_sense_harms_nobody() {
        let talk = Talk::begin();
        talk.say(&ToKeeper::Hello(wire::VERSION), None);
        assert_eq!(talk.hear().0, FromKeeper::Hello(wire::VERSION));
        talk.say(&ToKeeper::Keep("one".into()), Some(&some_file()));
        let long = vec![b'K'; 100_000];
        let nameless = ToKeeper::Keep(String::new()).encode();
        let garbage: [&[u8]; 9] = [
            b"?",
            b"H",
            b"X",
            b"X123",
            b"Gx",
            b"\0\0\0\0",
            &long,
            &nameless,
            "Kn\u{e4}me".as_bytes(),
        ];
        for packet in garbage {
            talk.raw(packet, None);
            // Whatever comes with it is closed.
            talk.raw(packet, Some(&some_file()));
        }
        talk.say(&ToKeeper::Keep("without its descriptor".into()), None);
        talk.say(&ToKeeper::Drop("never kept".into()), None);
        talk.say(&ToKeeper::Keep("two".into()), Some(&some_file()));
        assert_eq!(talk.names(), ["one", "two"]);
        talk.say(&ToKeeper::HowEnded(1), None);
        assert_eq!(
            talk.hear().0,
            FromKeeper::Ended(1, rsup::exit::Exit::Unknown)
        );
        talk.say(&ToKeeper::Drop("one".into()), None);
        assert_eq!(talk.names(), ["two"]);
        let open = std::fs::read_dir(format!("/proc/{}/fd", talk.keeper.id()))
            .unwrap()
            .count();
        assert!(open < 12, "{open} descriptors are open");
        talk.end();
    }

    #[test]
    fn a_flood_is_bounded() {
        let talk = Talk::begin();
        let file = some_file();
        for round in 0..3 {
            for n in 0..20_000 {
                talk.say(&ToKeeper::Keep(format!("{round}/{n}")), Some(&file));
            }
        }
        let kept = talk.names().len();
        assert!((1000..=16_384).contains(&kept), "{kept} are kept");
        let memory = procfs::resident(talk.keeper.id()).unwrap();
        assert!(memory < 16 << 20, "{memory} bytes");
        talk.end();
    }

    #[test]
    fn one_that_is_slow_or_silent_holds_up_nothing() {
        let talk = Talk::begin();
        // Questions whose answers nobody takes: the keeper waits for room, and for nothing else.
        for n in 0..100 {
            talk.say(&ToKeeper::Keep(format!("{n}")), Some(&some_file()));
        }
        talk.say(&ToKeeper::GiveBack, None);
        talk.say(&ToKeeper::GiveBack, None);
        let mut answers = 0;
        while answers < 2 {
            answers += usize::from(talk.hear().0 == FromKeeper::AllKept);
        }
        talk.end();
    }
}
