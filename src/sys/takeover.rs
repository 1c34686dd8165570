//! Answers `bind(2)` of an unmodified app with a socket of rsup.
//!
//! Between fork and exec the child installs a seccomp filter ([`filter`]) that reports `bind(2)` of
//! internet addresses to the holder of the filter's notification descriptor, and lets all else
//! pass; descendants inherit it. The holder, a [`Listener`], then puts a listening socket in place
//! of the app's own and answers 0, or lets the call proceed (seccomp_unotify(2)). Where a port is
//! hidden from an app, `connect(2)` is reported as well.
//!
//! A call that proceeds reads its arguments again, so this is no security boundary, and need not be
//! one: all that an app gains by changing its address meanwhile is its own socket.

use std::ffi::{c_int, c_ulong};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, sock_filter};

use super::{listen, raw};

pub(super) mod held;
mod look;
mod support;
pub use held::{may_hold, take_back};
pub use support::{Support, TRIAL, Untried, probe_support, probe_support_as, run_trial};

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: Option<u32> = Some(0xc000_003e); // AUDIT_ARCH_X86_64, include/uapi/linux/audit.h
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: Option<u32> = Some(0xc000_00b7); // AUDIT_ARCH_AARCH64
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const AUDIT_ARCH: Option<u32> = None;

/// The lengths of addresses for which a `bind(2)` or `connect(2)` is reported: `sockaddr_in`,
/// `sockaddr_in6`, and `sockaddr_storage`, which some programs pass for every address. The filter
/// cannot read the address itself. Binds of netlink (12) and nearly all of unix sockets are not
/// reported.
const LENGTHS: [u32; 3] = [16, 28, 128];

/// The filter, built before fork; `None` on machines whose system call numbers rsup does not know.
/// Calls of a foreign architecture (32-bit programs) are not reported. `connects`: whether
/// `connect(2)` is reported too, which makes each of them wait for an answer.
#[must_use]
pub fn filter(connects: bool) -> Option<Vec<sock_filter>> {
    let arch = AUDIT_ARCH?;
    let load = |offset| sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    };
    let equal = |k, jt, jf| sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let ret = |k| sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // struct seccomp_data: nr at 0, arch at 4, args from 16, eight bytes each; both architectures
    // are little-endian, so the low half of args[2] comes first. x32 system calls have the x86_64
    // architecture and a bit set in the number.
    let calls = match connects {
        true => vec![
            equal(libc::SYS_bind as u32, 1, 0),
            equal(libc::SYS_connect as u32, 0, 4),
        ],
        false => vec![equal(libc::SYS_bind as u32, 0, 4)],
    };
    let to_the_end = 5 + calls.len() as u8;
    let tail = [
        load(16 + 2 * 8),
        equal(LENGTHS[0], 3, 0),
        equal(LENGTHS[1], 2, 0),
        equal(LENGTHS[2], 1, 0),
        ret(libc::SECCOMP_RET_ALLOW),
        ret(libc::SECCOMP_RET_USER_NOTIF),
    ];
    Some(
        [
            vec![load(4), equal(arch, 0, to_the_end), load(0)],
            calls,
            tail.to_vec(),
        ]
        .concat(),
    )
}

/// Installs the filter on the calling thread and returns the notification descriptor
/// (close-on-exec) or a negative `errno`.
///
/// Async-signal-safe: system calls alone, no allocation. Needs `CAP_SYS_ADMIN` or
/// `PR_SET_NO_NEW_PRIVS` (`EACCES` otherwise).
pub(super) fn install(filter: &[sock_filter]) -> c_int {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    let set = |flags: c_ulong| {
        // SAFETY: the program and its instructions live through the call; the kernel copies them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        if result < 0 {
            // SAFETY: the address of this thread's errno is always valid.
            -unsafe { *libc::__errno_location() }
        } else {
            result as c_int
        }
    };
    // SPEC_ALLOW: the filter confines nothing, and must not switch off the processor's speculation
    // for the worker, as filters do by default before Linux 5.16 (kernel/seccomp.c).
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // Without WAIT_KILLABLE_RECV (Linux 5.19), a signal between the receipt of a call and its
    // answer restarts it: Go's runtime sends itself such signals all the time.
    match set(listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        error if error == -libc::EINVAL => set(listener),
        result => result,
    }
}

/// The notification descriptor of a worker's filter. Readable when a call waits; one reader only.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A `bind(2)` that waits for an answer. Each must be answered once, by one of the methods of
/// [`Listener`]; until then the calling thread is blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The kernel's id of this call.
    pub id: u64,
    /// The id of the calling *thread*.
    pub pid: u32,
    /// The id of the process it belongs to.
    pub process: u32,
    /// The app's number for the socket.
    pub fd: i32,
    /// The address asked for; as a rule the socket is of the same family.
    pub addr: SocketAddr,
    /// The socket to bind.
    pub socket: AppSocket,
}

/// A `connect(2)` that waits for an answer, as a [`Bind`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The kernel's id of this call.
    pub id: u64,
    /// The id of the calling *thread*.
    pub pid: u32,
    /// The id of the process it belongs to.
    pub process: u32,
    /// The app's number for the socket.
    pub fd: i32,
    /// The address to connect to.
    pub addr: SocketAddr,
}

impl Connect {
    /// Whether the address is one of this machine's: loopback, «any» (which connects to loopback, ip(7)),
    /// or of one of its interfaces.
    #[must_use]
    pub fn is_to_this_machine(&self) -> bool {
        let ip = self.addr.ip().to_canonical();
        let of_interface = || {
            let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
            all.filter_map(|found| found.address).any(|address| {
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into())) == Some(ip)
            })
        };
        ip.is_loopback() || ip.is_unspecified() || of_interface()
    }

    /// Whether it is a connection in the sense of TCP. Connecting a datagram socket sends nothing:
    /// getaddrinfo(3) does it to sort addresses.
    ///
    /// # Errors
    /// When the socket cannot be examined.
    pub fn is_stream(&self) -> io::Result<bool> {
        Ok(look::socket(self.pid, self.process, self.fd)?.is_stream)
    }
}

/// A trapped call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Of `bind(2)`.
    Bind(Bind),
    /// Of `connect(2)`, where the filter reports it.
    Connect(Connect),
}

impl Waiting for Call {
    fn id(&self) -> u64 {
        match self {
            Call::Bind(bind) => bind.id,
            Call::Connect(connect) => connect.id,
        }
    }

    fn process(&self) -> u32 {
        match self {
            Call::Bind(bind) => bind.process,
            Call::Connect(connect) => connect.process,
        }
    }
}

/// Something that waits for an answer.
pub trait Waiting {
    /// The kernel's id of the call.
    fn id(&self) -> u64;
    /// The id of the process that waits.
    fn process(&self) -> u32;
}

impl Waiting for Bind {
    fn id(&self) -> u64 {
        self.id
    }

    fn process(&self) -> u32 {
        self.process
    }
}

impl Waiting for Connect {
    fn id(&self) -> u64 {
        self.id
    }

    fn process(&self) -> u32 {
        self.process
    }
}

/// The app's socket at the time of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppSocket {
    /// `O_NONBLOCK`
    pub nonblocking: bool,
    /// `FD_CLOEXEC`
    pub cloexec: bool,
    /// `IPV6_V6ONLY`; false for IPv4 sockets. An app may set it only before `bind(2)`, so this is
    /// final. `None` where a sandbox refuses `pidfd_getfd(2)`: nothing else shows it.
    pub v6only: Option<bool>,
    /// `SO_TYPE` is `SOCK_STREAM` (or the protocol's name is that of TCP). Calls on datagram
    /// sockets (DNS, QUIC) proceed.
    pub is_stream: bool,
    /// `SO_DOMAIN` is `AF_INET6`.
    pub is_v6: bool,
}

/// The result of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call returns the answer.
    Delivered,
    /// The caller is gone, or a signal interrupted it: then it calls again.
    Vanished,
}

/// Whether a thread of one of these processes waits in a call that is never answered, because a
/// process had [received](Listener::receive) it and died before its answer. The kernel hands out
/// each call once, to any holder of the descriptor (`SECCOMP_NOTIFY_SENT`, kernel/seccomp.c), so
/// the thread would wait as long as its filter has a listener.
///
/// Called before calls are received from `listener`. False where `/proc/PID/syscall`
/// (proc_pid_syscall(5)) is not accessible.
#[must_use]
pub fn left_unanswered(listener: impl AsFd, processes: &[u32]) -> bool {
    // Checked first: a call that begins meanwhile is seen to wait.
    let stands = processes.iter().any(|process| stands_in_call(*process));
    stands
        && raw::poll(listener, libc::POLLIN, Duration::ZERO)
            .is_ok_and(|seen| seen & libc::POLLIN == 0)
}

fn stands_in_call(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let number = |file| {
        std::fs::read_to_string(file)
            .ok()?
            .split(' ')
            .next()?
            .parse::<libc::c_long>()
            .ok()
    };
    // A call that was let proceed waits, if at all, at another place in the kernel
    // (proc_pid_wchan(5), which is 0 where it is hidden).
    let place = |thread: &std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("wchan")).unwrap_or_default()
    };
    threads
        .into_iter()
        .any(|thread| match number(thread.path().join("syscall")) {
            Some(libc::SYS_bind) => {
                let place = place(&thread);
                place.contains("seccomp") || matches!(place.as_str(), "" | "0")
            }
            Some(libc::SYS_connect) => place(&thread).contains("seccomp"),
            Some(_) | None => false,
        })
}

impl From<OwnedFd> for Listener {
    /// Takes back a descriptor that was [kept](Listener::into_fd) elsewhere.
    fn from(fd: OwnedFd) -> Listener {
        Listener(fd)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Listener {
    /// The descriptor itself. When its last copy is closed, every trapped call fails with `ENOSYS`.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Whether a call comes within this time, or the last process under the filter ends.
    ///
    /// # Errors
    /// As `poll(2)`.
    pub fn has_call_within(&self, time: Duration) -> io::Result<bool> {
        raw::poll(self, libc::POLLIN, time).map(|seen| seen != 0)
    }

    /// Takes the next call, if one waits. It reads the worker's memory, which can take as long as the
    /// worker wants: a page of it may be of a file whose server does not answer.
    ///
    /// `Ok(None)` when none waits, when it vanished, or when it was not about an internet address
    /// and has been let proceed.
    ///
    /// # Errors
    /// `BrokenPipe` once every process under the filter is gone. Any other error concerns one call
    /// only, which has been let proceed.
    pub fn receive(&self) -> io::Result<Option<Call>> {
        let seen = raw::poll(self, libc::POLLIN, Duration::ZERO)?;
        if seen & libc::POLLIN == 0 {
            if seen & libc::POLLHUP != 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            return Ok(None);
        }
        // The kernel insists on zeroes.
        // SAFETY: integers only, for which zero is a value.
        let mut call: seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: `call` is what this ioctl fills in. It does not wait: the semaphore behind it
        // counts every call that has not been received, vanished ones included.
        match raw::check(unsafe {
            libc::ioctl(
                self.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV as _,
                &raw mut call,
            )
        }) {
            Err(error) if gone(&error) || error.kind() == io::ErrorKind::Interrupted => {
                return Ok(None);
            }
            result => result?,
        };
        let looked = look(&call);
        // What was read is of the right process only if the call still waits.
        if !self.waits(call.id) {
            return Ok(None);
        }
        match looked {
            Ok(Some(call)) => Ok(Some(call)),
            Ok(None) => self.go_on(call.id).map(|_| None),
            Err(error) => {
                self.go_on(call.id)?;
                Err(error)
            }
        }
    }

    /// Puts `socket` in place of the app's own, at the same number, and makes the call return 0.
    ///
    /// `FD_CLOEXEC` and `O_NONBLOCK` become what the app's socket had; the latter for all holders
    /// of the description, this process included.
    ///
    /// # Errors
    /// When the exchange failed. The call still waits then: [`Listener::proceed`] or
    /// [`Listener::refuse`] must follow.
    pub fn inject(&self, bind: &Bind, socket: BorrowedFd<'_>) -> io::Result<Answer> {
        listen::set_nonblocking(socket, bind.socket.nonblocking)?;
        let exchange = seccomp_notif_addfd {
            id: bind.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: socket.as_raw_fd() as u32,
            newfd: bind.fd as u32,
            newfd_flags: if bind.socket.cloexec {
                libc::O_CLOEXEC as u32
            } else {
                0
            },
        };
        let done = raw::retry(|| {
            let (fd, request) = (self.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _);
            // SAFETY: `exchange` is what this ioctl reads, and `socket` is open.
            raw::check(unsafe { libc::ioctl(fd, request, &raw const exchange) })
        });
        match done {
            // SECCOMP_ADDFD_FLAG_SEND would answer in the same step, but with the number of the
            // descriptor, where bind(2) must return 0.
            Ok(_) => self.respond(bind.id, 0, 0),
            Err(error) if gone(&error) => Ok(Answer::Vanished),
            Err(error) => Err(raw::context("SECCOMP_IOCTL_NOTIF_ADDFD", &error)),
        }
    }

    /// Lets the call proceed as if there were no filter.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn proceed(&self, call: &impl Waiting) -> io::Result<Answer> {
        self.go_on(call.id())
    }

    /// Makes the call fail with `errno`.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn refuse(&self, call: &impl Waiting, errno: i32) -> io::Result<Answer> {
        self.respond(call.id(), -errno.abs(), 0)
    }

    fn go_on(&self, id: u64) -> io::Result<Answer> {
        self.respond(id, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32)
    }

    fn waits(&self, id: u64) -> bool {
        // SAFETY: the ioctl reads the u64 that lives through the call.
        let result = unsafe {
            libc::ioctl(
                self.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _,
                &raw const id,
            )
        };
        result == 0
    }

    fn respond(&self, id: u64, error: i32, flags: u32) -> io::Result<Answer> {
        let mut response = seccomp_notif_resp {
            id,
            val: 0,
            error,
            flags,
        };
        let sent = raw::retry(|| {
            let (fd, request) = (self.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _);
            // SAFETY: `response` is what this ioctl reads.
            raw::check(unsafe { libc::ioctl(fd, request, &raw mut response) })
        });
        match sent {
            Ok(_) => Ok(Answer::Delivered),
            Err(error) if gone(&error) => Ok(Answer::Vanished),
            Err(error) => Err(raw::context("SECCOMP_IOCTL_NOTIF_SEND", &error)),
        }
    }
}

/// `ENOENT`: the call has ended. `ESRCH`: its process has begun to exit. `EINPROGRESS`: a signal
/// has restarted it, and it waits to be received again.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::EINPROGRESS)
    )
}

/// Reads what the call is about. `None` for addresses that are not of the internet families.
fn look(call: &seccomp_notif) -> io::Result<Option<Call>> {
    let [fd, pointer, len, ..] = call.data.args;
    let connects = libc::c_long::from(call.data.nr) == libc::SYS_connect;
    let addr = match look::address(call.pid, pointer, len) {
        Ok(Some(addr)) => addr,
        Ok(None) => return Ok(None),
        // The address is invalid, which the kernel reports itself, or unreadable, and then nothing
        // is hidden.
        Err(_) if connects => return Ok(None),
        Err(error) => return Err(error),
    };
    let fd = fd as u32 as i32;
    let process = look::thread_group(call.pid).unwrap_or(call.pid);
    if connects {
        return Ok(Some(Call::Connect(Connect {
            id: call.id,
            pid: call.pid,
            process,
            fd,
            addr,
        })));
    }
    let socket = look::socket(call.pid, process, fd)?;
    Ok(Some(Call::Bind(Bind {
        id: call.id,
        pid: call.pid,
        process,
        fd,
        addr,
        socket,
    })))
}
