//! The child between fork and exec. Everything here is async-signal-safe (signal-safety(7)):
//! system calls on memory prepared before the fork; no allocation, no lock, no panic.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use libc::sock_filter;

use super::Step;
use super::confine::Confine;
use crate::sys::{fdpass, takeover};

/// The arguments of [`run`].
pub(super) struct Prepared<'a> {
    program: &'a CStr,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    cwd: &'a CStr,
    /// Source of descriptor 0, 1, …; all numbers beyond the targets.
    sources: Vec<c_int>,
    report: c_int,
    /// The other end of `report`.
    parents_end: c_int,
    /// See [`super::Plan::held`].
    pub(super) held: bool,
    /// Room for `LISTEN_PID=` and a number.
    listen_pid: Box<[u8; 24]>,
    pub(super) listen: bool,
    pub(super) filter: Option<Vec<sock_filter>>,
    /// See [`super::Plan::allow_tracer`].
    pub(super) allow_tracer: bool,
    pub(super) confine: Confine<'a>,
    /// What `envp` points to.
    _env: Vec<CString>,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(
        program: &'a CStr,
        argv: &'a [CString],
        env: Vec<CString>,
        cwd: &'a CStr,
        sources: Vec<c_int>,
        report: c_int,
        parents_end: c_int,
    ) -> Prepared<'a> {
        let listen_pid = Box::new(*b"LISTEN_PID=\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let argv = argv
            .iter()
            .map(|arg| arg.as_ptr())
            .chain([ptr::null()])
            .collect();
        // Two ends: the first is replaced by LISTEN_PID where there are sockets.
        let ends = [ptr::null(), ptr::null()];
        let envp = env.iter().map(|entry| entry.as_ptr()).chain(ends).collect();
        Prepared {
            program,
            argv,
            envp,
            cwd,
            sources,
            report,
            parents_end,
            held: false,
            listen_pid,
            listen: false,
            filter: None,
            allow_tracer: false,
            confine: Confine::default(),
            _env: env,
        }
    }
}

/// Length of a report: the step, and the `errno`.
pub(super) const MESSAGE: usize = 5;

pub(super) fn parse(message: [u8; MESSAGE]) -> Option<(Step, c_int)> {
    let [step, errno @ ..] = message;
    Some((Step::from_code(step)?, c_int::from_ne_bytes(errno)))
}

/// Becomes the program, or reports why not and exits with 127.
pub(super) fn run(plan: &mut Prepared<'_>) -> ! {
    let (step, errno) = attempt(plan);
    let [a, b, c, d] = errno.to_ne_bytes();
    // SAFETY: the report socket is open; _exit runs no handlers of this process's memory.
    unsafe {
        fdpass::send(plan.report, &[step as u8, a, b, c, d], None);
        libc::_exit(super::NO_PROGRAM)
    }
}

fn errno() -> c_int {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// Returns only a failure.
fn attempt(plan: &mut Prepared<'_>) -> (Step, c_int) {
    // SAFETY: system calls with integers and with pointers into `plan`, which outlives them; the
    // strings and arrays among it end with a null.
    unsafe {
        // Otherwise the pair would not end with the parent.
        libc::close(plan.parents_end);
        if libc::setsid() < 0 {
            return (Step::Session, errno());
        }
        default_signals();
        for (target, &source) in (0..).zip(&plan.sources) {
            // Clears close-on-exec, as the numbers always differ.
            if libc::dup2(source, target) < 0 {
                return (Step::Files, errno());
            }
        }
        // All other descriptors of this process. Where the kernel cannot (before Linux 5.11), there
        // should be none: all that rsup opens is close-on-exec.
        let first = plan.sources.len() as libc::c_uint;
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        if let Err(failed) = plan.confine.privileged() {
            return failed;
        }
        // While still privileged.
        if let Some(filter) = &plan.filter {
            let fd = takeover::install(filter);
            if fd < 0 {
                return (Step::Filter, -fd);
            }
            // Closed by exec.
            if !fdpass::send(plan.report, &[0], Some(fd)) {
                return (Step::Filter, errno());
            }
            let Confine {
                no_new_privs,
                credentials,
                ..
            } = &plan.confine;
            if takeover::held::may_be_given(*no_new_privs, credentials.is_some()) {
                takeover::held::keep(fd);
            }
        }
        if let Err(failed) = plan.confine.limit_files() {
            return failed;
        }
        if let Err(failed) = plan.confine.become_user() {
            return failed;
        }
        // As that user: a directory may be open to it alone.
        if libc::chdir(plan.cwd.as_ptr()) < 0 {
            return (Step::Directory, errno());
        }
        if plan.listen {
            write_number(plan.listen_pid.as_mut_slice(), libc::getpid() as u32);
            let spare = plan.envp.len() - 2;
            if let Some(slot) = plan.envp.get_mut(spare) {
                *slot = plan.listen_pid.as_ptr().cast();
            }
        }
        if plan.allow_tracer {
            // Fails with EINVAL where there is no Yama, and then is not needed.
            libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0);
        }
        // Waits until the daemon knows and has saved that this child exists. The end of the pair
        // means that the parent is dead, and no process would ever know of the child.
        let mut word = 0u8;
        if plan.held && libc::recv(plan.report, (&raw mut word).cast(), 1, 0) != 1 {
            libc::_exit(super::NO_PROGRAM);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::execve(
            plan.program.as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
        );
        (Step::Exec, errno())
    }
}

/// exec itself resets handlers, but ignored signals would stay ignored (SIGPIPE, in Rust). By the
/// raw system call, because libc reserves two signals, which may be ignored all the same.
fn default_signals() {
    // struct sigaction of the kernel: handler, flags, restorer, mask. All zero is SIG_DFL.
    const MASK: usize = 8;
    let default = [0u64; 4];
    for signal in 1..=64 {
        // The two that cannot be changed fail harmlessly.
        // SAFETY: the kernel reads one structure of the size that the mask's length implies, and
        // resetting is always sound here, this thread being the only one.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                MASK,
            );
        }
    }
}

/// Writes `number` in decimal after the `=` of `NAME=`, and a zero byte.
fn write_number(buffer: &mut [u8], number: u32) {
    let mut digits = [0u8; 10];
    let mut rest = number;
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    let start = buffer
        .iter()
        .position(|&byte| byte == b'=')
        .map_or(0, |at| at + 1);
    let text = digits.iter().skip(first).chain(&[0]);
    for (to, from) in buffer.iter_mut().skip(start).zip(text) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for number in [0, 1, 9, 10, 4_194_304, u32::MAX] {
            let mut buffer = *b"LISTEN_PID=\0\0\0\0\0\0\0\0\0\0\0\0\0";
            write_number(&mut buffer, number);
            let text = CStr::from_bytes_until_nul(&buffer)
                .unwrap()
                .to_str()
                .unwrap();
            assert_eq!(text, format!("LISTEN_PID={number}"));
        }
    }
}
