//! Drops what a long-lived process must not keep of the command that happened to start it first: a
//! deploy script's lock on descriptor 9, the priority of a cron job, signals that nohup(1) ignores,
//! a session's umask.
//!
//! The reference is process 1: the machine's, or the container's, whose owner decides its priority
//! and OOM score.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::RawFd;

use super::raw;

/// Drops all that, as far as the privileges allow; returns what could not be dropped, as messages.
///
/// `keep` are the only descriptors beside 0, 1 and 2 that stay open. Called first of all, while
/// there is one thread and nothing in this program owns a descriptor.
pub fn from_caller(keep: &[RawFd]) -> Vec<String> {
    close_others(keep);
    default_signals();
    // SAFETY: an integer. Where a sandbox refuses the call the old mask stays; nix would panic.
    unsafe { libc::umask(0o022) };
    type Step = fn() -> io::Result<()>;
    let steps: [(&str, Step); 5] = [
        ("OOM score", oom_score),
        ("scheduling policy", scheduling_policy),
        ("priority", nice),
        ("I/O priority", io_priority),
        ("set of processors", processors),
    ];
    let failed = |(what, step): (&str, Step)| {
        let why = step().err()?;
        Some(format!(
            "the {what} of the command that started rsup stays, for rsup and the apps: {why}"
        ))
    };
    steps.into_iter().filter_map(failed).collect()
}

/// A systemd service that this process is a part of, and ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name of its unit.
    pub unit: String,
    /// Whether it belongs to a user's manager.
    pub of_user: bool,
}

/// The service of the command that started this process, unless it is rsup's own.
#[must_use]
pub fn service_of_caller() -> Option<Service> {
    service_in(&fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// Parses `/proc/PID/cgroup` (cgroups(7)): `0::/system.slice/cron.service`. A user's manager is a
/// service too, which contains all that user's units.
fn service_in(cgroups: &str) -> Option<Service> {
    let path = cgroups.lines().find_map(|line| {
        let of_old = || Some(line.split_once(":name=systemd:")?.1);
        line.strip_prefix("0::").or_else(of_old)
    })?;
    let is_unit = |part: &&str| {
        [".service", ".scope"]
            .iter()
            .any(|kind| part.ends_with(kind))
            && !part.starts_with("user@")
    };
    let unit = path.split('/').rev().find(is_unit)?;
    unit.ends_with(".service").then(|| Service {
        unit: unit.to_owned(),
        of_user: path.contains("/user@"),
    })
}

fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.iter().copied().chain([c_int::MAX]) {
        if from < fd && close_range(from, fd - 1).is_err() {
            // Before Linux 5.9.
            return close_listed(&keep);
        }
        from = fd.saturating_add(1);
    }
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: integers. Nothing in this program owns a descriptor of the range yet: see `from_caller`.
    raw::check_long(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

fn close_listed(keep: &[RawFd]) {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        // SAFETY: as in `close_range`; the descriptor of the listing is closed already, and then this fails.
        unsafe { libc::close(fd) };
    }
}

/// Resets ignored signals to their default and unblocks all: both states pass through exec
/// (execve(2)). With SIGCHLD ignored, children could not be waited for (waitpid(2)).
fn default_signals() {
    // struct sigaction of the kernel: handler, flags, restorer, mask. By the raw call, because libc
    // reserves two signals, which may be ignored all the same. All zero is SIG_DFL.
    const MASK: usize = 8;
    let default = [0u64; 4];
    for signal in 1..=64 {
        // Rust's runtime ignores the first, `outlive_file_size_limit` handles the second.
        if signal == libc::SIGPIPE || signal == libc::SIGXFSZ {
            continue;
        }
        let mut now = [0u64; 4];
        // SAFETY: no new action is given, and the kernel writes one structure of the size that the mask's length implies.
        let asked = unsafe {
            let none = std::ptr::null::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, none, now.as_mut_ptr(), MASK)
        };
        if asked == 0 && now[0] == libc::SIG_IGN as u64 {
            // SAFETY: the kernel reads one such structure; no handler of this program is replaced.
            unsafe {
                let none = std::ptr::null_mut::<u64>();
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, MASK);
            }
        }
    }
    // Cannot fail: the set is valid.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// proc_pid_oom_score_adj(5). Without `CAP_SYS_RESOURCE` it can only be raised.
fn oom_score() -> io::Result<()> {
    let of = |pid: &str| -> Option<i32> {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
        text.trim().parse().ok()
    };
    let usual = of("1").unwrap_or(0);
    match of("self") {
        Some(mine) if mine != usual => fs::write("/proc/self/oom_score_adj", usual.to_string()),
        Some(_) | None => Ok(()),
    }
}

/// A field of proc_pid_stat(5), by its number there.
fn stat(pid: &str, field: usize) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second is the name in brackets, which may contain anything.
    let rest = text.rsplit_once(')')?.1;
    rest.split_ascii_whitespace().nth(field - 3)?.parse().ok()
}

/// sched(7): any process may leave a realtime policy; leaving the idle one needs `RLIMIT_NICE`.
fn scheduling_policy() -> io::Result<()> {
    const POLICY: usize = 41;
    let usual = stat("1", POLICY).unwrap_or(libc::SCHED_OTHER);
    if stat("self", POLICY).is_none_or(|mine| mine == usual) || usual != libc::SCHED_OTHER {
        return Ok(());
    }
    // SAFETY: all zero is a valid sched_param.
    let none: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is valid for reads; 0 is this process.
    raw::check(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const none) })?;
    Ok(())
}

/// setpriority(2): without `CAP_SYS_NICE` or `RLIMIT_NICE` priority can only be lowered.
fn nice() -> io::Result<()> {
    const NICE: usize = 19;
    let usual = stat("1", NICE).unwrap_or(0);
    if stat("self", NICE).is_none_or(|mine| mine == usual) {
        return Ok(());
    }
    // SAFETY: integers; 0 is this process.
    raw::check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, usual) })?;
    Ok(())
}

/// ioprio_set(2): without a class of its own, the kernel derives it from the priority.
fn io_priority() -> io::Result<()> {
    const WHO_PROCESS: c_int = 1;
    const CLASS_NONE: c_int = 0;
    // SAFETY: integers; 0 is this process.
    let now = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) };
    // Of the class none there is a form with a level in it as well.
    const CLASS: u32 = 13;
    if now < 0 || now >> CLASS == i64::from(CLASS_NONE) as libc::c_long {
        return Ok(());
    }
    // SAFETY: integers.
    raw::check_long(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_NONE) })?;
    Ok(())
}

/// Undoes taskset(1); a cpuset stays, which belongs to the machine or the container.
fn processors() -> io::Result<()> {
    use nix::sched::{sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;
    let (Ok(usual), Ok(mine)) = (
        sched_getaffinity(Pid::from_raw(1)),
        sched_getaffinity(Pid::from_raw(0)),
    ) else {
        return Ok(());
    };
    if usual != mine {
        // Refused where none of them is in the cpuset of this process.
        let _ = sched_setaffinity(Pid::from_raw(0), &usual);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_of_a_command_is_told_from_scopes_and_managers() {
        for (cgroups, service) in [
            (
                "0::/system.slice/webhook.service\n",
                Some("webhook.service"),
            ),
            (
                "0::/system.slice/cron.service/inner\n",
                Some("cron.service"),
            ),
            (
                "1:name=systemd:/system.slice/ci.service\n0::/\n",
                Some("ci.service"),
            ),
            ("0::/\n", None),
            ("0::/user.slice/user-7.slice/session-3.scope\n", None),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/a.scope\n",
                None,
            ),
            (
                "0::/user.slice/user-7.slice/user@7.service/init.scope\n",
                None,
            ),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/b.service\n",
                Some("b.service"),
            ),
            ("0::/system.slice/docker-0123.scope\n", None),
            ("", None),
        ] {
            let found = service_in(cgroups);
            assert_eq!(
                found.as_ref().map(|found| found.unit.as_str()),
                service,
                "{cgroups}"
            );
            assert!(found.is_none_or(|found| found.of_user == cgroups.contains("user@")));
        }
    }

    #[test]
    fn fields_of_stat_are_found_whatever_the_name() {
        const PPID: usize = 4;
        assert_eq!(
            stat("self", PPID),
            i32::try_from(std::os::unix::process::parent_id()).ok()
        );
        assert!(stat("self", 19).is_some_and(|nice| (-20..20).contains(&nice)));
        assert_eq!(stat("none", 19), None);
    }
}
