//! An app whose user owns the folder of its logs does with it what it likes, or the folder is on a disk that
//! does not answer. Whatever that is, it reaches nothing of root's, and the lines of another app keep coming.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::common::apps::missing;
use crate::common::{Home, wait_for, wait_until};
use crate::support::Life;

/// `nobody` on Debian and its like.
const NOBODY: u32 = 65534;
const SECRET: &str = "hunter2";

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        missing("root", "only root can run workers as another user");
    }
    root
}

/// A daemon with `ticker`, whose lines must keep coming, and the folder `theirs` of another user.
struct Scene {
    /// Unmounted before the folders are removed.
    silent: Option<Silent>,
    home: Home,
    theirs: PathBuf,
    /// Nobody but root can look into it.
    closed: PathBuf,
}

impl Scene {
    fn new() -> Option<Scene> {
        if !root() {
            return None;
        }
        let home = Home::new();
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(home.folder(), 0o711);
        let (theirs, closed) = (home.path("theirs"), home.path("closed"));
        for folder in [&theirs, &closed] {
            fs::create_dir(folder).unwrap();
        }
        open(&theirs, 0o755);
        open(&closed, 0o700);
        chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
        home.app(
            "ticker",
            "command = [\"sh\", \"-c\", \"while :; do echo tick; sleep 0.02; done\"]",
        );
        Some(Scene {
            silent: None,
            home,
            theirs,
            closed,
        })
    }

    /// Starts both apps. The one of the other user does `first` in its folder, then prints 400 lines every now and
    /// then, with `each` in between. Its log is below its folder.
    fn start(&self, log: &str, first: &str, each: &str) {
        let script = format!(
            "cd {}\n{first}\nwhile :; do seq -f 'a line of the app %g' 400; {each}\nsleep 0.05; done\n",
            self.theirs.display()
        );
        let script = self.home.write("script", &script);
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
        let log = self.theirs.join(log);
        self.home.app(
            "theirs",
            &format!(
                "command = [\"sh\", {script:?}]\nuser = {NOBODY}\ngroup = {NOBODY}\ncwd = \"/\"\n\
                 log = {{ out = {log:?}, max_size = \"8kB\", keep = 3 }}"
            ),
        );
        self.home.ok(&["start"]);
    }

    /// The other app's lines keep coming, and rsup answers.
    #[track_caller]
    fn others_go_on(&self) {
        let ticks = || self.home.log("ticker-out").lines().count();
        let before = ticks();
        wait_until("the lines of the other app", || ticks() > before + 20);
        self.home.ok(&["list"]);
    }

    /// Everything ends, and soon.
    #[track_caller]
    fn ends(self) {
        let run = self.home.ok(&["kill"]);
        assert!(run.took < Duration::from_secs(20), "{run:?}");
        wait_until("the end of all", || self.home.processes().is_empty());
    }

    #[track_caller]
    fn until_it_is_said(&self, words: &str) {
        wait_for(words, || {
            let log = self.home.daemon_log();
            if log.contains(words) {
                Ok(())
            } else {
                Err(log)
            }
        });
    }

    /// The log was rotated so many times more.
    #[track_caller]
    fn rotates(&self, times: usize) {
        let current = || fs::metadata(self.theirs.join("out.log")).map_or(0, |meta| meta.ino());
        for _ in 0..times {
            let before = current();
            wait_until("another current file", || ![0, before].contains(&current()));
        }
    }

    /// All that is in the folder of the other user and can be read by it, unpacked.
    fn in_the_open(&self) -> Vec<(PathBuf, String)> {
        let entries = fs::read_dir(&self.theirs).unwrap().flatten();
        let files = entries.filter(|e| {
            e.metadata()
                .is_ok_and(|m| m.is_file() && m.mode() & 0o4 > 0)
        });
        files
            .map(|entry| {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                let mut text = String::new();
                if flate2::read::MultiGzDecoder::new(&bytes[..])
                    .read_to_string(&mut text)
                    .is_err()
                {
                    text = String::from_utf8_lossy(&bytes).into_owned();
                }
                (entry.path(), text)
            })
            .collect()
    }
}

#[test]
fn fifos_named_like_rotated_files() {
    let Some(s) = Scene::new() else { return };
    let first = "for n in 2 3 5; do mkfifo out.log.$n; done; mkfifo out.log.7.gz out.log.gz.tmp";
    s.start("out.log", first, "mkfifo out.log.4 2>&-");
    s.rotates(8);
    s.others_go_on();
    // The rotated files are beside them, and packed.
    wait_until("a packed file", || {
        s.in_the_open().is_empty() && s.theirs.join("out.log.6.gz").exists()
            || fs::read_dir(&s.theirs).unwrap().flatten().any(|e| {
                e.file_name().to_string_lossy().ends_with(".gz")
                    && e.metadata().is_ok_and(|m| m.is_file())
            })
    });
    s.rotates(2);
    s.home.ok(&["logs", "theirs", "--lines", "2000"]);
    s.ends();
}

#[test]
fn links_named_like_rotated_files() {
    let Some(s) = Scene::new() else { return };
    let secret = s.closed.join("secret");
    fs::write(&secret, SECRET.repeat(1000)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    // Where fs.protected_hardlinks is off, any user can make this one.
    fs::hard_link(&secret, s.theirs.join("out.log.3")).unwrap();
    let link = format!("ln -s {} out.log.2; ln -s {0} out.log.4", secret.display());
    let again = format!(
        "ln -s {} out.log.2 2>&-; ln -s {0} out.log.5 2>&-",
        secret.display()
    );
    s.start("out.log", &link, &again);
    s.rotates(8);
    s.others_go_on();
    let open = s.in_the_open();
    // The hard link itself is of a file that everybody may read.
    let packed = |path: &Path| path.extension().is_some_and(|end| end == "gz");
    for (path, text) in open.iter().filter(|(path, _)| packed(path)) {
        assert!(!text.contains(SECRET), "{}", path.display());
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET.repeat(1000));
    s.ends();
}

#[test]
fn what_is_no_log_file_in_place_of_the_file() {
    let Some(s) = Scene::new() else { return };
    let victim = s.closed.join("victim");
    fs::write(&victim, "untouched\n").unwrap();
    let out = s.theirs.join("out.log");
    s.start("out.log", "", "");
    s.rotates(1);
    // Where fs.protected_hardlinks is off, any user can make the hard link; a user with a disk of its own has
    // devices too.
    type Put<'a> = Box<dyn Fn() -> io::Result<()> + 'a>;
    let things: [(&str, Put<'_>); 6] = [
        (
            "has 2 names (hard links)",
            Box::new(|| fs::hard_link(&victim, &out)),
        ),
        (
            "is a socket",
            Box::new(|| UnixListener::bind(&out).map(drop)),
        ),
        (
            "is a device",
            Box::new(|| {
                let mode = Mode::S_IRWXU;
                Ok(mknod(&out, SFlag::S_IFCHR, mode, makedev(1, 3))?)
            }),
        ),
        (
            "is a FIFO",
            Box::new(|| Ok(nix::unistd::mkfifo(&out, Mode::S_IRWXU)?)),
        ),
        (
            "is a link that another user can change",
            Box::new(|| symlink(&victim, &out).map(|()| chown_link(&out))),
        ),
        ("Is a directory", Box::new(|| fs::create_dir(&out))),
    ];
    for (number, (words, put)) in things.iter().enumerate() {
        // The app goes on writing: its log may be there again at once, or what is put there is rotated away.
        wait_for(words, || {
            let log = s.home.daemon_log();
            if log.contains(words) {
                return Ok(());
            }
            let is_log = |meta: fs::Metadata| meta.is_file() && meta.nlink() == 1;
            if fs::symlink_metadata(&out).map_or(true, is_log) {
                let _ = fs::rename(&out, s.theirs.join(format!("aside{number}")));
                let _ = put();
            }
            Err(log)
        });
        s.others_go_on();
        let again = || s.home.daemon_log().matches("can be written again").count();
        let before = again();
        let _ = fs::rename(&out, s.theirs.join(format!("was{number}")));
        wait_until("the log", || again() > before);
        assert_eq!(
            fs::read_to_string(&victim).unwrap(),
            "untouched\n",
            "{words}"
        );
    }
    s.ends();
}

fn chown_link(path: &Path) {
    std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// A folder of root with files named like a log and its rotated ones.
fn victims(s: &Scene) -> Vec<(PathBuf, String)> {
    let names = [
        "out.log",
        "out.log.1",
        "out.log.2",
        "out.log.3.gz",
        "out.log.9",
    ];
    let files = names.map(|name| {
        (
            s.closed.join(name),
            format!("{name} of root\n").repeat(2000),
        )
    });
    for (path, text) in &files {
        fs::write(path, text).unwrap();
    }
    files.into()
}

#[track_caller]
fn are_untouched(s: &Scene, victims: &[(PathBuf, String)]) {
    for (path, text) in victims {
        assert!(
            fs::read_to_string(path).unwrap() == *text,
            "{}",
            path.display()
        );
    }
    let there = fs::read_dir(&s.closed).unwrap().count();
    assert_eq!(there, victims.len(), "nothing is added");
}

#[test]
fn a_link_in_place_of_a_folder() {
    let Some(s) = Scene::new() else { return };
    let victims = victims(&s);
    let link = format!(
        "ln -s {} logs; mkdir real; ln -s real mine",
        s.closed.display()
    );
    s.start("logs/out.log", &link, "");
    s.until_it_is_said("rsup does not follow it");
    s.others_go_on();
    are_untouched(&s, &victims);
    let run = s.home.run(&["logs", "theirs"]).code(1);
    let run = run.says(&["rsup does not follow it", "logs"]);
    assert!(!run.out.contains("of root"), "{run:?}");
    let all = s.home.run(&["logs", "--lines", "3"]).code(1);
    assert!(all.out.contains("tick"), "the other log is shown: {all:?}");
    s.ends();
}

/// Exchanges a folder and a link to one of root's, again and again.
const SWAP: &str = "
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
for n in range(1, 1 << 30):
    if libc.renameat2(-100, b'logs', -100, b'evil', 2) != 0:
        sys.exit(f'renameat2: {ctypes.get_errno()}')
    time.sleep(0.0005)
    if n % 100 == 0:
        open('rounds', 'w').write(str(n))
";

/// The folder is another one at every moment: a rotation begins in one and ends in the other.
#[test]
fn a_folder_that_is_swapped_all_the_time() {
    let Some(python) = crate::common::apps::python_for_all() else {
        return;
    };
    let Some(s) = Scene::new() else { return };
    let victims = victims(&s);
    let script = s.home.write("swap.py", SWAP);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    let swaps = format!(
        "mkdir logs; ln -s {} evil; {python} {} &",
        s.closed.display(),
        script.display()
    );
    s.start("logs/out.log", &swaps, "");
    wait_for("many swaps", || {
        let rounds = fs::read_to_string(s.theirs.join("rounds")).unwrap_or_default();
        let enough = rounds.trim().parse::<u32>().is_ok_and(|n| n >= 5000);
        if enough { Ok(()) } else { Err(rounds) }
    });
    s.others_go_on();
    are_untouched(&s, &victims);
    s.ends();
}

#[test]
fn folders_named_like_rotated_files() {
    let Some(s) = Scene::new() else { return };
    s.start(
        "out.log",
        "mkdir -p out.log.1/full out.log.2/full out.log.4.gz",
        "",
    );
    s.rotates(6);
    wait_until("files beside the folders", || {
        let there = |name: &str| s.theirs.join(name).is_file();
        there("out.log.3") && (there("out.log.5") || there("out.log.5.gz"))
    });
    // What is read at once is written at once: it may be more for a moment.
    wait_until("the log is rotated at its size", || {
        fs::metadata(s.theirs.join("out.log")).map_or(0, |meta| meta.len()) <= 8000
    });
    s.others_go_on();
    s.ends();
}

/// A file system whose server never answers, as a network disk whose server is gone.
struct Silent {
    place: PathBuf,
    _server: fs::File,
}

fn with_silent_disk() -> Option<(Scene, PathBuf)> {
    let mut s = Scene::new()?;
    let disk = s.theirs.join("disk");
    fs::create_dir(&disk).unwrap();
    s.silent = Some(Silent::at(&disk)?);
    Some((s, disk))
}

impl Silent {
    fn at(place: &Path) -> Option<Silent> {
        use std::os::fd::AsRawFd;
        let server = fs::File::options().read(true).write(true).open("/dev/fuse");
        let server = match server {
            Ok(server) => server,
            Err(why) => {
                missing("FUSE", &why.to_string());
                return None;
            }
        };
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            server.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mounted = mount(Some("silent"), place, Some("fuse"), flags, Some(&*options));
        if let Err(why) = mounted {
            missing("FUSE", &format!("cannot mount: {why}"));
            return None;
        }
        Some(Silent {
            place: place.to_owned(),
            _server: server,
        })
    }
}

/// Every call that waits for it fails.
impl Drop for Silent {
    fn drop(&mut self) {
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_does_not_answer_holds_up_its_own_log_alone() {
    let Some((mut s, disk)) = with_silent_disk() else {
        return;
    };
    s.start("disk/out.log", "", "");
    s.until_it_is_said("its disk or folder does not answer");
    s.others_go_on();
    // New workers of both, whose pipes are emptied.
    s.home.ok(&["restart", "ticker"]);
    s.home.ok(&["restart", "theirs"]);
    s.others_go_on();
    let threads = fs::read_dir(format!("/proc/{}/task", s.home.daemon()))
        .unwrap()
        .count();
    for _ in 0..3 {
        s.home.ok(&["restart", "theirs"]);
    }
    let now = fs::read_dir(format!("/proc/{}/task", s.home.daemon()))
        .unwrap()
        .count();
    assert!(
        now <= threads + 2,
        "threads are left behind: {threads}, {now}"
    );
    // Other logs are shown, and why this one is not.
    let all = s.home.run(&["logs", "--lines", "3"]).code(1);
    all.says(&["tick", "disk/out.log: no answer within"]);
    // It is there again, though not the same.
    s.silent = None;
    s.until_it_is_said("can be written again");
    wait_until("the log", || {
        fs::read_to_string(disk.join("out.log"))
            .is_ok_and(|text| text.contains("a line of the app"))
    });
    s.ends();
}

#[test]
fn rsup_ends_although_a_disk_does_not_answer() {
    let Some((s, _)) = with_silent_disk() else {
        return;
    };
    s.start("disk/out.log", "", "");
    s.until_it_is_said("its disk or folder does not answer");
    s.ends();
}

/// `rsup logs` has no more memory than this; what the worker packed takes more.
#[test]
fn a_packed_bomb_takes_little_memory() {
    let Some(s) = Scene::new() else { return };
    s.start("out.log", "", "exec sleep 1000");
    wait_until("the log", || s.theirs.join("out.log").exists());
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![b'0'; 1 << 20];
    for _ in 0..600 {
        io::Write::write_all(&mut bomb, &zeros).unwrap();
    }
    let packed = s.theirs.join("out.log.9.gz");
    fs::write(&packed, bomb.finish().unwrap()).unwrap();
    chown(&packed, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = s.home.command("prlimit");
    command.args([
        "--as=300000000",
        crate::common::RSUP,
        "logs",
        "theirs",
        "--lines",
        "5000",
    ]);
    let run = crate::common::try_run(command).unwrap().ok();
    assert!(run.out.len() < 1 << 20, "{}", run.out.len());
    run.says(&["a line of the app 400", "more bytes)"]);
    // Neither does following: the bomb is what comes between two looks.
    s.ends();
}

/// A process names itself as it likes, and holds the port of an app.
#[test]
fn the_name_of_a_process_forges_no_line() {
    let Some(python) = crate::common::apps::python() else {
        return;
    };
    let home = Home::new();
    let port = home.port();
    let code = "import socket, sys, time
s = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('up', flush=True)
time.sleep(1000)
";
    home.write("hold", code);
    let mut holder = home.command(python);
    holder.args([
        "hold",
        &port.to_string(),
        "\x1b]0;owned\x07\nerror: forged\u{202e}",
    ]);
    let mut holder = holder.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut up = [0; 2];
    holder.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    home.app(
        "web",
        &format!("command = [\"sleep\", \"1000\"]\nlisten = \"127.0.0.1:{port}\""),
    );
    let run = home.run(&["start"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let run = run.code(1).says(&["error: forged"]);
    for text in [&run.out, &run.err, &home.daemon_log()] {
        assert!(!text.contains(['\x1b', '\x07', '\u{202e}']), "{text:?}");
        assert!(
            !text.lines().any(|line| line.starts_with("error: forged")),
            "{text}"
        );
    }
}

#[test]
fn a_folder_of_a_third_user_is_noted() {
    let Some(s) = Scene::new() else { return };
    let log = s.theirs.join("out.log");
    let keys =
        |user: &str| format!("command = [\"sleep\", \"1000\"]\n{user}log = {{ out = {log:?} }}");
    let words = format!("{} belongs to user {NOBODY}", s.theirs.display());
    s.home.app("own", &keys("user = 65534\ngroup = 65534\n"));
    let run = s.home.ok(&["check"]);
    assert!(!run.err.contains("belongs to user"), "{}", run.err);
    s.home.app("other", &keys(""));
    s.home.ok(&["check"]).says(&["other: ", &words]);
    s.home.ok(&["start"]).says(&["other: ", &words]);
    s.ends();
}
