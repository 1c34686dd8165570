//! Starting programs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{ended, localhost, plan, program, report, strings, text};
use crate::exit::Exit;
use crate::sys::listen::Group;
use crate::sys::process::{self, Limit};
use crate::sys::spawn::{Credentials, SpawnError, Step, spawn};

/// The output of a program and how it ended.
fn output(argv: &[&str], change: impl FnOnce(&mut crate::sys::spawn::Plan)) -> (String, Exit) {
    let (mut plan, out) = plan(argv);
    change(&mut plan);
    let mut child = spawn(plan).unwrap();
    report(&mut child.exec).unwrap();
    let text = text(out);
    (text, ended(&child))
}

#[test]
fn what_a_child_gets() {
    let script = "echo $$; cat /proc/$$/stat; ls /proc/$$/fd; readlink \
                  /proc/$$/fd/0; pwd; exit 7";
    let dir = tempfile::tempdir().unwrap();
    let cwd = dir.path().canonicalize().unwrap();
    // A descriptor that could be inherited by mistake: not close-on-exec, and with a high number.
    let leak = nix::unistd::dup(std::io::stderr()).unwrap();
    let (text, exit) = output(&["sh", "-c", script], |plan| plan.cwd.clone_from(&cwd));
    drop(leak);
    assert_eq!(exit, Exit::Code(7));
    let lines: Vec<&str> = text.lines().collect();
    let pid = lines[0];
    let fields: Vec<&str> = lines[1]
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!((fields[2], fields[3]), (pid, pid), "group and session");
    let tail = &lines[lines.len() - 5..];
    assert_eq!(
        tail,
        ["0", "1", "2", "/dev/null", cwd.to_str().unwrap()],
        "{text}"
    );
    // Not of a shell, which blocks signals while it forks.
    let (text, _) = output(&["cat", "/proc/self/status"], |_| {});
    let status = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(status("SigBlk:"), "0000000000000000");
    assert_eq!(status("SigIgn:"), "0000000000000000");
    assert_eq!(status("NoNewPrivs:"), "0");
    assert_eq!(status("Seccomp:"), "0");
}

#[test]
fn descriptors_by_number_and_name() {
    let group = Group::open(localhost(), false, 2).unwrap();
    let (gate, _writer) = std::io::pipe().unwrap();
    let script = "echo $LISTEN_PID $$ $LISTEN_FDS $CHANNEL; cd /proc/$$/fd; for n in 3 4 5; do \
                  readlink $n; done; ls";
    let (text, exit) = output(&["sh", "-c", script], |plan| {
        plan.listen = vec![group.dup(0).unwrap(), group.dup(1).unwrap()];
        plan.extra = vec![(gate.into(), "CHANNEL".to_owned())];
        plan.env
            .extend(strings(&["LISTEN_PID=1", "LISTEN_FDS=9", "CHANNEL=x"]));
    });
    assert_eq!(exit, Exit::Code(0));
    let lines: Vec<&str> = text.lines().collect();
    let words: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!(words[0], words[1]);
    assert_eq!(words[2..], ["2", "5"]);
    assert!(lines[1].starts_with("socket:") && lines[2].starts_with("socket:"));
    assert_ne!(lines[1], lines[2]);
    assert!(lines[3].starts_with("pipe:"));
    assert_eq!(lines[4..], ["0", "1", "2", "3", "4", "5"]);
}

#[test]
fn what_is_given_up_stays_given_up() {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("RSUP_TEST_REQUIRE_ALL").is_none(),
            "root is required"
        );
        eprintln!("skipped: only root can give capabilities up");
        return;
    }
    const NET_BIND: u64 = 1 << 10;
    let sets = |change: &dyn Fn(&mut crate::sys::spawn::Plan)| {
        let (text, _) = output(&["cat", "/proc/self/status"], |plan| change(plan));
        ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].map(|name| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        })
    };
    let nobody = Credentials {
        uid: 65534,
        gid: 65534,
        groups: vec![],
    };
    for keep in [0, NET_BIND] {
        for user in [None, Some(nobody.clone())] {
            let found = sets(&|plan| {
                plan.capabilities = Some(keep);
                plan.credentials.clone_from(&user);
            });
            assert_eq!(found, [keep; 5], "{user:?}");
        }
    }
    // Without configured capabilities, another user has none and could get them back by a setuid
    // program only.
    let all = crate::sys::capability::effective().unwrap();
    assert_eq!(
        sets(&|plan| plan.credentials = Some(nobody.clone())),
        [0, 0, 0, all, 0]
    );
}

#[test]
fn priority_and_umask() {
    let (text, _) = output(&["sh", "-c", "umask; nice"], |plan| {
        plan.umask = Some(0o137);
        plan.nice = Some(19);
    });
    assert_eq!(text, "0137\n19\n");
}

#[test]
fn the_first_closed_part_of_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("a/b");
    std::fs::create_dir_all(&inner).unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
    };
    let stranger = Credentials {
        uid: 54321,
        gid: 54321,
        groups: vec![],
    };
    open(folder.path(), 0o711);
    open(&inner, 0o755);
    open(&folder.path().join("a"), 0o750);
    assert_eq!(
        stranger.first_closed(&inner),
        Some(folder.path().canonicalize().unwrap().join("a"))
    );
    open(&folder.path().join("a"), 0o711);
    assert_eq!(stranger.first_closed(&inner), None);
    let own = nix::unistd::getgid().as_raw();
    open(&inner, 0o710);
    assert_eq!(
        Credentials {
            groups: vec![own],
            ..stranger.clone()
        }
        .first_closed(&inner),
        None
    );
    assert!(stranger.first_closed(&inner).is_some());
}

#[test]
fn limits_users_and_privileges() {
    let (text, _) = output(&["sh", "-c", "ulimit -Sn; ulimit -Hn"], |plan| {
        plan.nofile = Some(Limit {
            soft: 99,
            hard: 100,
        });
    });
    assert_eq!(text, "99\n100\n");
    let (text, _) = output(&["grep", "NoNewPrivs", "/proc/self/status"], |plan| {
        plan.no_new_privs = true;
    });
    assert_eq!(text, "NoNewPrivs:\t1\n");
    if nix::unistd::geteuid().is_root() {
        let (text, _) = output(&["id"], |plan| {
            plan.credentials = Some(Credentials {
                uid: 12345,
                gid: 54321,
                groups: vec![777],
            });
        });
        assert!(
            text.starts_with("uid=12345 gid=54321 groups=54321,777"),
            "{text}"
        );
    } else {
        eprintln!("skipped: becoming another user needs root");
    }
}

/// Written by install(1): a file that this process has open for writing is also open in each child
/// that another test forks at that moment, until that child's execve(2), and cannot be executed
/// meanwhile (ETXTBSY).
fn file(dir: &Path, name: &str, text: &str, mode: u32) {
    let written = dir.join(format!("{name}.text"));
    std::fs::write(&written, text).unwrap();
    let status = std::process::Command::new("install")
        .arg("-m")
        .arg(format!("{mode:o}"))
        .args([&written, &dir.join(name)])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn what_cannot_be_started_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    file(at, "plain", "hello", 0o644);
    file(at, "here", "#!/bin/sh\necho here\n", 0o755);
    file(at, "formless", "\u{1}\u{2}\u{3}", 0o755);
    file(at, "lost", "#!/no/such/sh -e\n", 0o755);
    file(at, "windows", "#!/bin/sh\r\n", 0o755);
    let attempt = |argv: &[&str], cwd: &Path| {
        let (mut plan, _out) = plan(argv);
        plan.cwd = cwd.to_owned();
        let mut child = spawn(plan)?;
        let report = report(&mut child.exec);
        let exit = ended(&child);
        if report.is_err() {
            assert_eq!(exit, Exit::Code(127));
        }
        report.map(|_| ())
    };
    let says = |argv: &[&str], cwd: &Path, words: &str| {
        let text = attempt(argv, cwd).unwrap_err().to_string();
        assert!(text.contains(words), "{argv:?}: {text}");
    };
    says(&["no-such-program-here"], at, "not found on the PATH");
    says(&["here"], at, "./here");
    says(&["plain"], at, "chmod +x");
    says(&["./nothing"], at, "not found in");
    says(&["./plain"], at, "chmod +x");
    says(&["/no/such"], at, "/no/such not found");
    says(&["/tmp"], at, "is a directory");
    says(&["./formless"], at, "#!");
    says(&["./lost"], at, "interpreter /no/such/sh does not exist");
    says(&["./windows"], at, "interpreter /bin/sh\\r does not exist");
    says(&[], at, "empty");
    says(&[""], at, "empty");
    says(&["sh"], &at.join("gone"), "gone: does not exist");
    says(&["sh"], &at.join("plain"), "is not a directory");
    assert_eq!(attempt(&["./here"], at), Ok(()));
    assert_eq!(attempt(&["sh", "-c", ":"], at), Ok(()));
    let full = SpawnError::system(Step::Fork, &std::io::Error::from_raw_os_error(libc::EAGAIN));
    assert!(full.to_string().contains("limit of processes"));
}

#[test]
fn the_path_is_the_childs() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    file(
        &dir.path().join("bin"),
        "greet",
        "#!/bin/sh\necho \"$0 $1\"\n",
        0o755,
    );
    let (text, _) = output(&["greet", "you"], |plan| {
        plan.cwd = dir.path().to_owned();
        plan.env = strings(&["PATH=/nowhere:bin:/bin"]);
    });
    assert_eq!(text, "bin/greet you\n");
}

#[test]
fn signals_reach_the_tree_but_for_what_left_it() {
    let (plan, out) = plan(&["sh", "-c", "sleep 1000 & echo up; wait"]);
    let mut child = spawn(plan).unwrap();
    report(&mut child.exec).unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(out);
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert!(!process::has_ended(&child.pidfd).unwrap());
    assert_eq!(process::wait(&child.pidfd).unwrap(), None);
    process::signal_group(child.pid, libc::SIGTERM).unwrap();
    assert_eq!(
        ended(&child),
        Exit::Signal {
            signal: libc::SIGTERM,
            core_dumped: false
        }
    );
    // The pipe ends when the last of them is gone.
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(
        process::signal(&child.pidfd, 0).unwrap_err().raw_os_error(),
        Some(libc::ESRCH)
    );
}

#[test]
fn many_at_once_from_many_threads() {
    let _ = program("sh");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..5 {
                    let code = thread * 10 + round;
                    let (text, exit) =
                        output(&["sh", "-c", &format!("echo x; exit {code}")], |_| {});
                    assert_eq!((text.as_str(), exit), ("x\n", Exit::Code(code)));
                }
            });
        }
    });
}
