//! The sandbox program: between fork and exec, a command gets a seccomp filter that answers one system
//! call with an error, as a container's profile does. All that it starts has the filter too.

#![allow(unsafe_code, reason = "between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc::{self, c_long, sock_filter};

/// A system call that is refused; with an argument, only where that has this value (its low 32 bits).
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    number: c_long,
    arguments: &'static [(u32, u32)],
}

/// Every call of this number.
pub const fn call(name: &'static str, number: c_long) -> Call {
    Call {
        name,
        number,
        arguments: &[],
    }
}

/// Those whose arguments, counted from 0, have these values.
pub const fn with(name: &'static str, number: c_long, arguments: &'static [(u32, u32)]) -> Call {
    Call {
        name,
        number,
        arguments,
    }
}

impl Call {
    /// The filter (`struct seccomp_data`: the number at 0, arguments from 16, eight bytes each, the low
    /// half first). Calls of a foreign architecture are not looked at: nothing here makes any.
    fn filter(self, errno: Errno) -> Vec<sock_filter> {
        let load = |k| sock_filter {
            code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
            jt: 0,
            jf: 0,
            k,
        };
        let ret = |k| sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k,
        };
        let mut checks = vec![(0, self.number as u32)];
        checks.extend(
            self.arguments
                .iter()
                .map(|(argument, value)| (16 + 8 * argument, *value)),
        );
        let mut filter = Vec::new();
        for (at, (offset, value)) in checks.iter().enumerate() {
            // Past the checks that are left, and past the refusal.
            let over = (2 * (checks.len() - at - 1) + 1) as u8;
            filter.push(load(*offset));
            filter.push(sock_filter {
                code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
                jt: 0,
                jf: over,
                k: *value,
            });
        }
        filter.push(ret(libc::SECCOMP_RET_ERRNO | errno as u32));
        filter.push(ret(libc::SECCOMP_RET_ALLOW));
        filter
    }

    /// Makes a command run where this is refused.
    pub fn refuse(self, errno: Errno, command: &mut Command) {
        let filter = self.filter(errno);
        let install = move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            // SAFETY: integers, and a program that lives through the call.
            let failed = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                    || libc::prctl(
                        libc::PR_SET_SECCOMP,
                        libc::SECCOMP_MODE_FILTER,
                        &raw const program,
                    ) != 0
            };
            if failed {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        };
        // SAFETY: system calls alone, on memory that was made before the fork.
        unsafe { command.pre_exec(install) };
    }
}
