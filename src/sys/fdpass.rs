//! Passes a message with a file descriptor over a unix socket (`SCM_RIGHTS`, unix(7)); [`send`]
//! also works where allocation is forbidden: between fork and exec.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::raw;

/// Room for a control message with one descriptor: a header of 16 bytes, a number, padding.
#[derive(Default)]
struct Control([u64; 4]);

/// Sends `payload`, not empty, and a descriptor with it. Async-signal-safe. False when it failed.
///
/// # Safety
/// `socket` and `fd` must be open.
pub(super) unsafe fn send(socket: c_int, payload: &[u8], fd: Option<c_int>) -> bool {
    let iov = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    let mut control = Control::default();
    // SAFETY: all pointers are to locals that outlive the call; the kernel only reads them. The
    // CMSG_* macros stay within `control`, of which `msg_controllen` is a part.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = (&raw const iov).cast_mut();
        message.msg_iovlen = 1;
        if let Some(fd) = fd {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as _;
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as _;
            libc::CMSG_DATA(head).cast::<c_int>().write_unaligned(fd);
        }
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) >= 0
    }
}

/// As [`send`], with an error.
///
/// # Errors
/// As `sendmsg(2)`: `WouldBlock` if the socket is non-blocking and full.
pub fn send_message(
    socket: impl AsFd,
    payload: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    raw::retry(|| {
        // SAFETY: both are borrowed for the call.
        let sent = unsafe {
            send(
                socket.as_fd().as_raw_fd(),
                payload,
                fd.map(|fd| fd.as_raw_fd()),
            )
        };
        if sent {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    })
}

/// Receives what [`send`] sent: the length of the payload (0 at the end) and the descriptor,
/// close-on-exec. A message longer than `payload` is cut; the kernel closes a second descriptor.
///
/// # Errors
/// As `recvmsg(2)`.
pub fn receive(socket: impl AsFd, payload: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut iov = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    let mut control = Control::default();
    // SAFETY: all pointers are to locals and to `payload`, with their lengths; the kernel writes
    // no more than those. A descriptor in the message is a new one, for us alone.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        let got = raw::retry(|| {
            let flags = libc::MSG_CMSG_CLOEXEC;
            let got = libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags);
            usize::try_from(got).map_err(|_| io::Error::last_os_error())
        })?;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        let fd = (!head.is_null()
            && (*head).cmsg_level == libc::SOL_SOCKET
            && (*head).cmsg_type == libc::SCM_RIGHTS)
            .then(|| raw::own(libc::CMSG_DATA(head).cast::<c_int>().read_unaligned()));
        Ok((got, fd))
    }
}
