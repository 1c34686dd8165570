//! Limits and user of the program, set between fork and exec. As everything there,
//! async-signal-safe.

use std::ffi::c_int;
use std::os::fd::RawFd;

use super::{Credentials, Step};
use crate::sys::capability;
use crate::sys::process::Limit;

/// The order of use is that of [`Confine::privileged`], the filter, [`Confine::become_user`].
#[derive(Debug, Default)]
pub(super) struct Confine<'a> {
    /// The folder of the cgroup to move to, unless the process was made in it.
    pub cgroup: Option<RawFd>,
    pub nofile: Option<Limit>,
    pub nice: Option<i8>,
    pub umask: Option<u32>,
    pub no_new_privs: bool,
    pub capabilities: Option<u64>,
    pub credentials: Option<&'a Credentials>,
}

type Failed = (Step, c_int);

impl Confine<'_> {
    /// The limit of open files: set after the last descriptor is made, as all of rsup's own are
    /// open until exec(2), and may be more than the limit. While still privileged: the hard limit
    /// may be raised.
    pub fn limit_files(&self) -> Result<(), Failed> {
        let Some(Limit { soft, hard }) = self.nofile else {
            return Ok(());
        };
        let limit = libc::rlimit {
            rlim_cur: soft.min(hard) as _,
            rlim_max: hard as _,
        };
        // SAFETY: a pointer to a local structure.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
            return Err((Step::Limit, errno()));
        }
        Ok(())
    }

    /// Everything that may need the privileges that are dropped later, except for the filter and
    /// the limit of files.
    pub fn privileged(&self) -> Result<(), Failed> {
        if let Some(folder) = self.cgroup {
            move_to(folder).map_err(|errno| (Step::Cgroup, errno))?;
        }
        // SAFETY: integers, and a pointer to a local structure.
        unsafe {
            if let Some(nice) = self.nice
                && libc::setpriority(libc::PRIO_PROCESS, 0, nice.into()) < 0
            {
                return Err((Step::Nice, errno()));
            }
            if let Some(umask) = self.umask {
                libc::umask(umask);
            }
            if let Some(keep) = self.capabilities {
                capability::bound(keep).map_err(|errno| (Step::Capabilities, errno))?;
            }
            if self.no_new_privs && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
                return Err((Step::NoNewPrivs, errno()));
            }
        }
        Ok(())
    }

    /// Sets the groups before the user, who could not change them.
    pub fn become_user(&self) -> Result<(), Failed> {
        let kept = self.capabilities.filter(|keep| *keep != 0);
        if let Some(who) = self.credentials {
            if kept.is_some() {
                capability::keep_over_user_change().map_err(|errno| (Step::Capabilities, errno))?;
            }
            // The raw system calls: those of libc would signal other threads, of which there are none.
            // SAFETY: integers, and a pointer with its length.
            unsafe {
                let groups =
                    libc::syscall(libc::SYS_setgroups, who.groups.len(), who.groups.as_ptr());
                if groups < 0
                    || libc::syscall(libc::SYS_setresgid, who.gid, who.gid, who.gid) < 0
                    || libc::syscall(libc::SYS_setresuid, who.uid, who.uid, who.uid) < 0
                {
                    return Err((Step::User, errno()));
                }
            }
        }
        match self.capabilities {
            Some(keep) => capability::set(keep).map_err(|errno| (Step::Capabilities, errno)),
            None => Ok(()),
        }
    }
}

/// Moves this process: process 0 is the one that writes (cgroups(7)).
fn move_to(folder: RawFd) -> Result<(), c_int> {
    // SAFETY: a name that ends with a zero, a constant of one byte, and descriptors of our own.
    unsafe {
        let procs = libc::openat(
            folder,
            c"cgroup.procs".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if procs < 0 {
            return Err(errno());
        }
        let written = libc::write(procs, b"0".as_ptr().cast(), 1);
        let result = if written < 0 { Err(errno()) } else { Ok(()) };
        libc::close(procs);
        result
    }
}

fn errno() -> c_int {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}
