//! Capabilities of a process (capabilities(7)): reading this process's own, and dropping them
//! between fork and exec.

use std::ffi::{c_int, c_ulong};
use std::io;

use super::raw;

/// `struct __user_cap_header_struct` (linux/capability.h).
#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

/// `struct __user_cap_data_struct`, for 32 capabilities each.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// The effective capabilities of this process, a bit for each number.
///
/// # Errors
/// As `capget(2)`.
pub fn effective() -> io::Result<u64> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: this version has a header and two blocks of data, both valid for writes.
    raw::check_long(unsafe {
        libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr())
    })?;
    let [low, high] = data;
    Ok(u64::from(low.effective) | u64::from(high.effective) << 32)
}

/// `CAP_SYS_PTRACE` (linux/capability.h).
const SYS_PTRACE: u32 = 19;

/// Whether this process may inspect those of every user, whatever Yama's `ptrace_scope` is (up to
/// 2).
#[must_use]
pub fn may_trace_all() -> bool {
    effective().is_ok_and(|mine| mine & (1 << SYS_PTRACE) != 0)
}

/// Makes exactly `bits` effective for this thread; all of them must be permitted.
///
/// # Errors
/// As `capset(2)`.
pub(super) fn put_in_force(bits: u64) -> io::Result<()> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: as in `effective`; the second call reads only.
    unsafe {
        raw::check_long(libc::syscall(
            libc::SYS_capget,
            &raw mut header,
            data.as_mut_ptr(),
        ))?;
        let [low, high] = &mut data;
        (low.effective, high.effective) = (bits as u32, (bits >> 32) as u32);
        raw::check_long(libc::syscall(
            libc::SYS_capset,
            &raw const header,
            data.as_ptr(),
        ))?;
    }
    Ok(())
}

/// Limits this process, and all that it executes, to the capabilities `keep` for good (the bounding
/// set). Needs `CAP_SETPCAP`. Async-signal-safe.
pub(super) fn bound(keep: u64) -> Result<(), c_int> {
    for number in 0..64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as c_ulong, 0, 0, 0) } < 0 {
            return match errno() {
                // Past the last one that this kernel has.
                libc::EINVAL => Ok(()),
                errno => Err(errno),
            };
        }
    }
    Ok(())
}

/// Keeps the permitted capabilities over the next change of user, until exec. Async-signal-safe.
pub(super) fn keep_over_user_change() -> Result<(), c_int> {
    // SAFETY: integers.
    if unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) } < 0 {
        Err(errno())
    } else {
        Ok(())
    }
}

/// Sets exactly `keep`, over an exec too (the ambient set). Async-signal-safe.
pub(super) fn set(keep: u64) -> Result<(), c_int> {
    let half = |bits: u64| Data {
        effective: bits as u32,
        permitted: bits as u32,
        inheritable: bits as u32,
    };
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data = [half(keep), half(keep >> 32)];
    // SAFETY: as in `effective`; only read.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(errno());
    }
    for number in (0..64).filter(|number| keep & (1 << number) != 0) {
        // SAFETY: integers.
        if unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as c_ulong,
                number as c_ulong,
                0,
                0,
            )
        } < 0
        {
            return Err(errno());
        }
    }
    Ok(())
}

fn errno() -> c_int {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn as_proc_says() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .unwrap();
        assert_eq!(
            super::effective().unwrap(),
            u64::from_str_radix(line.trim(), 16).unwrap()
        );
    }
}
