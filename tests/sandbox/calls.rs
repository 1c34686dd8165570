//! One refused system call after the other.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;

use super::refuse::{Call, call, with};
use super::{Sandbox, apps};
use crate::common::http;

/// What is to become of rsup where a call is refused.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Start, requests, reload, stop and kill, as if nothing were.
    Works,
    /// The same, and the daemon's log has these words once.
    Says(&'static str),
    /// `start` fails, and the first line of its error has these words.
    Refuses(&'static str),
}
use Then::{Refuses, Says, Works};

/// Beyond what every program needs. Errors are EPERM, as old profiles say it, and ENOSYS, as newer ones do.
const TABLE: &[(Call, Then)] = &[
    (
        call("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        Works,
    ),
    (
        call("pidfd_open", libc::SYS_pidfd_open),
        Refuses("pidfd_open"),
    ),
    (call("pidfd_getfd", libc::SYS_pidfd_getfd), Works),
    (call("process_vm_readv", libc::SYS_process_vm_readv), Works),
    (call("memfd_create", libc::SYS_memfd_create), Works),
    (call("clone3", libc::SYS_clone3), Works),
    (call("close_range", libc::SYS_close_range), Works),
    (
        with(
            "prctl(PR_SET_CHILD_SUBREAPER)",
            libc::SYS_prctl,
            &[(0, libc::PR_SET_CHILD_SUBREAPER as u32)],
        ),
        Says("reaper"),
    ),
    (
        with(
            "prctl(PR_SET_PTRACER)",
            libc::SYS_prctl,
            &[(0, libc::PR_SET_PTRACER as u32)],
        ),
        Works,
    ),
    (
        with(
            "prctl(PR_SET_NAME)",
            libc::SYS_prctl,
            &[(0, libc::PR_SET_NAME as u32)],
        ),
        Works,
    ),
    (call("setsid", libc::SYS_setsid), Refuses("setsid")),
    (call("setpgid", libc::SYS_setpgid), Works),
    (
        with(
            "SO_ATTACH_REUSEPORT_CBPF",
            libc::SYS_setsockopt,
            &[(1, 1), (2, libc::SO_ATTACH_REUSEPORT_CBPF as u32)],
        ),
        Refuses("SO_ATTACH_REUSEPORT_CBPF"),
    ),
    (
        with(
            "SO_REUSEPORT",
            libc::SYS_setsockopt,
            &[(1, 1), (2, libc::SO_REUSEPORT as u32)],
        ),
        Refuses("SO_REUSEPORT"),
    ),
    (
        with(
            "SO_REUSEADDR",
            libc::SYS_setsockopt,
            &[(1, 1), (2, libc::SO_REUSEADDR as u32)],
        ),
        Refuses("SO_REUSEADDR"),
    ),
    (
        with(
            "socket(AF_NETLINK)",
            libc::SYS_socket,
            &[(0, libc::AF_NETLINK as u32)],
        ),
        Works,
    ),
    (
        with(
            "socket(AF_INET6)",
            libc::SYS_socket,
            &[(0, libc::AF_INET6 as u32)],
        ),
        Works,
    ),
    (
        with(
            "socket(AF_INET)",
            libc::SYS_socket,
            &[(0, libc::AF_INET as u32)],
        ),
        Refuses("socket"),
    ),
    (
        with(
            "socket(AF_UNIX)",
            libc::SYS_socket,
            &[(0, libc::AF_UNIX as u32)],
        ),
        Refuses("control"),
    ),
    (
        call("socketpair", libc::SYS_socketpair),
        Refuses("socketpair"),
    ),
    (call("signalfd4", libc::SYS_signalfd4), Refuses("signalfd")),
    (
        call("epoll_create1", libc::SYS_epoll_create1),
        Refuses("epoll"),
    ),
    (call("epoll_ctl", libc::SYS_epoll_ctl), Refuses("epoll")),
    // Which of the two the C library calls is its own affair.
    #[cfg(target_arch = "x86_64")]
    (
        call("epoll_wait", libc::SYS_epoll_wait),
        Refuses("epoll_wait"),
    ),
    (call("eventfd2", libc::SYS_eventfd2), Refuses("eventfd")),
    (call("timerfd_create", libc::SYS_timerfd_create), Works),
    (call("inotify_init1", libc::SYS_inotify_init1), Works),
    (
        call("inotify_add_watch", libc::SYS_inotify_add_watch),
        Works,
    ),
    (call("ioprio_get", libc::SYS_ioprio_get), Works),
    (call("ioprio_set", libc::SYS_ioprio_set), Works),
    (
        call("sched_setaffinity", libc::SYS_sched_setaffinity),
        Works,
    ),
    (call("io_uring_setup", libc::SYS_io_uring_setup), Works),
    (
        with("waitid(P_PIDFD)", libc::SYS_waitid, &[(0, 3)]),
        Refuses("waitid"),
    ),
    (with("waitid(P_ALL)", libc::SYS_waitid, &[(0, 0)]), Works),
    (call("statx", libc::SYS_statx), Works),
    (call("copy_file_range", libc::SYS_copy_file_range), Works),
    (call("splice", libc::SYS_splice), Works),
    (call("fallocate", libc::SYS_fallocate), Works),
    (call("fsync", libc::SYS_fsync), Works),
    (call("fdatasync", libc::SYS_fdatasync), Works),
    (call("fchown", libc::SYS_fchown), Works),
    (call("fchmod", libc::SYS_fchmod), Works),
    (call("umask", libc::SYS_umask), Works),
    (call("prlimit64", libc::SYS_prlimit64), Works),
    (call("setpriority", libc::SYS_setpriority), Works),
    (call("getpriority", libc::SYS_getpriority), Works),
    (call("capget", libc::SYS_capget), Works),
    (call("madvise", libc::SYS_madvise), Works),
    (call("renameat2", libc::SYS_renameat2), Works),
    (call("utimensat", libc::SYS_utimensat), Works),
    (call("flock", libc::SYS_flock), Works),
    (call("getrandom", libc::SYS_getrandom), Works),
    (
        call("sched_getaffinity", libc::SYS_sched_getaffinity),
        Works,
    ),
    (call("seccomp", libc::SYS_seccomp), Refuses("takeover")),
    (call("sysinfo", libc::SYS_sysinfo), Works),
    (
        call("getsockopt", libc::SYS_getsockopt),
        Refuses("getsockopt"),
    ),
    (call("faccessat2", libc::SYS_faccessat2), Works),
    (call("sigaltstack", libc::SYS_sigaltstack), Works),
    (call("mlock", libc::SYS_mlock), Works),
];

fn errors() -> Vec<(Call, Errno, Then)> {
    let wanted = std::env::var("SANDBOX_CALL").ok();
    let wanted = |call: &Call| wanted.as_deref().is_none_or(|name| call.name == name);
    let each = |(call, then): &(Call, Then)| {
        [Errno::EPERM, Errno::ENOSYS].map(|errno| match (call.name, errno) {
            // The C library goes over to clone(2) after ENOSYS alone, and there are no threads without it.
            ("clone3", Errno::EPERM) => (*call, errno, Refuses("clone3")),
            _ => (*call, errno, *then),
        })
    };
    TABLE
        .iter()
        .filter(|(call, _)| wanted(call))
        .flat_map(each)
        .collect()
}

#[test]
fn each_refused_call_has_a_fallback_or_a_true_sentence() {
    if apps::python().is_none() {
        return;
    }
    let rows = errors();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((call, errno, then)) = rows.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let attempt = std::panic::catch_unwind(|| one(*call, *errno, *then));
                    let problem = match attempt {
                        Ok(Ok(())) => continue,
                        Ok(Err(why)) => why,
                        Err(panic) => format!("panic: {:?}", panic.downcast_ref::<String>()),
                    };
                    wrong
                        .lock()
                        .expect("lock")
                        .insert(format!("{} {errno}: {problem}", call.name));
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("lock");
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        rows.len(),
        wrong.into_iter().collect::<Vec<_>>().join("\n")
    );
}

fn one(call: Call, errno: Errno, then: Then) -> Result<(), String> {
    let Some(sandbox) = Sandbox::new(
        Some((call, errno)),
        "instances = 2\nlisten = PORT\nkill_timeout = \"20s\"",
    ) else {
        return Ok(());
    };
    let start = sandbox.run(&["start"]);
    let words = |what: &str, run: &crate::common::Run| {
        format!(
            "{what}: code {} after {:?}\n{}{}\n{}",
            run.code,
            run.took,
            run.out,
            run.err,
            sandbox.home.daemon_log()
        )
    };
    if let Refuses(name) = then {
        let first = start
            .err
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_default();
        return match start.code {
            1 if first.contains(name) => Ok(()),
            _ => Err(words(
                &format!("start should have been refused with `{name}` first"),
                &start,
            )),
        };
    }
    if start.code != 0 {
        return Err(words("start", &start));
    }
    let ask = || http::get(http::local(sandbox.port), "/").map(|answer| answer.pid());
    let before = ask()?;
    for _ in 0..10 {
        ask()?;
    }
    let reload = sandbox.run(&["reload", "web"]);
    if reload.code != 0 {
        return Err(words("reload", &reload));
    }
    if ask()? == before {
        return Err("the old worker answers".into());
    }
    for verb in ["list", "stop"] {
        let run = sandbox.run(&[verb, "web"][..if verb == "list" { 1 } else { 2 }]);
        if run.code != 0 {
            return Err(words(verb, &run));
        }
    }
    // Both workers of both revisions were asked, none was killed.
    let kill = sandbox.run(&["kill"]);
    if kill.code != 0 {
        return Err(words("kill", &kill));
    }
    let asked = sandbox.home.logs("web").matches("asked to stop").count();
    if asked != 4 {
        return Err(format!(
            "{asked} of 4 workers were asked to stop\n{}",
            sandbox.home.daemon_log()
        ));
    }
    if let Says(words) = then {
        let log = sandbox.home.daemon_log();
        let times = log.lines().filter(|line| line.contains(words)).count();
        if times != 1 {
            return Err(format!("`{words}` is said {times} times\n{log}"));
        }
    }
    Ok(())
}

/// What the fallbacks have to hold for beyond a start: another program in place of the daemon, and its death.
#[test]
fn upgrade_and_death_of_the_daemon_where_calls_are_refused() {
    let calls = [
        call("memfd_create", libc::SYS_memfd_create),
        call("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        call("splice", libc::SYS_splice),
        with(
            "prctl(PR_SET_CHILD_SUBREAPER)",
            libc::SYS_prctl,
            &[(0, libc::PR_SET_CHILD_SUBREAPER as u32)],
        ),
    ];
    for call in calls {
        let Some(sandbox) = Sandbox::new(
            Some((call, Errno::EPERM)),
            "instances = 2\nlisten = \"127.0.0.1:PORT\"",
        ) else {
            return;
        };
        sandbox.run(&["start"]).ok();
        let pids = sandbox.home.pids("web");
        sandbox.run(&["upgrade"]).ok();
        let daemon = || {
            sandbox.run(&["ping", "--json"]).json()["pid"]
                .as_u64()
                .expect("a pid") as u32
        };
        let before = daemon();
        crate::common::signal(before, nix::sys::signal::Signal::SIGKILL);
        crate::common::wait_until("another daemon", || daemon() != before);
        assert_eq!(
            sandbox.home.pids("web"),
            pids,
            "{}: other workers",
            call.name
        );
        http::get(http::local(sandbox.port), "/")
            .unwrap_or_else(|why| panic!("{}: {why}", call.name));
        sandbox.run(&["reload", "web"]).ok();
        assert!(
            sandbox.home.pids("web").is_disjoint(&pids),
            "{}: old workers",
            call.name
        );
        sandbox.run(&["kill"]).ok();
        assert_eq!(
            sandbox.home.logs("web").matches("asked to stop").count(),
            4,
            "{}: {}",
            call.name,
            sandbox.home.daemon_log()
        );
    }
}
