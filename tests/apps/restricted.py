"""Executes a program as sandboxes and containers let it run.

restricted.py WORD... -- PROGRAM ARGUMENT...

A WORD is a system call that fails with EPERM, or
  no-sock-diag    sockets of NETLINK_SOCK_DIAG fail with EPROTONOSUPPORT, as in a kernel without it
  no-ptrace       root without CAP_SYS_PTRACE
  listener        another program answers system calls by seccomp notification (it answers none)
"""
import ctypes
import errno
import os
import platform
import struct
import sys

AUDIT_ARCH, NUMBERS = {
    "x86_64": (0xC000003E, {"process_vm_readv": 310, "pidfd_getfd": 438, "seccomp": 317, "socket": 41}),
    "aarch64": (0xC00000B7, {"process_vm_readv": 270, "pidfd_getfd": 438, "seccomp": 277, "socket": 198}),
}[platform.machine()]
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAP_SYS_PTRACE = 19
AF_NETLINK, NETLINK_SOCK_DIAG = 16, 4

libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    if result < 0:
        sys.exit(f"restricted.py: {what}: {os.strerror(ctypes.get_errno())}")
    return result


def load(offset):
    return struct.pack("HBBI", 0x20, 0, 0, offset)


def skip_unless(value, count):
    return struct.pack("HBBI", 0x15, 0, count, value)


def ret(value):
    return struct.pack("HBBI", 0x06, 0, 0, value)


def install(rules, flags=0):
    program = load(4) + skip_unless(AUDIT_ARCH, 1) + load(0)
    # A foreign architecture loads no number, and finds no rule for its own.
    program += b"".join(rules) + ret(ALLOW)
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    number = NUMBERS["seccomp"]
    return check(libc.syscall(number, 1, flags, ctypes.create_string_buffer(fprog, len(fprog))), "seccomp")


def main():
    end = sys.argv.index("--")
    words, command = sys.argv[1:end], sys.argv[end + 1 :]
    if os.geteuid() != 0:
        check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    rules = []
    for word in words:
        if word == "no-ptrace":
            # Root's capabilities after an exec are those of this set.
            check(libc.prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0), "PR_CAPBSET_DROP")
        elif word == "listener":
            os.set_inheritable(install([], flags=8), True)
        elif word == "no-sock-diag":
            arguments = load(16) + skip_unless(AF_NETLINK, 3) + load(32) + skip_unless(NETLINK_SOCK_DIAG, 1)
            rules.append(skip_unless(NUMBERS["socket"], 6) + arguments + ret(ERRNO | errno.EPROTONOSUPPORT) + load(0))
        else:
            rules.append(skip_unless(NUMBERS[word], 1) + ret(ERRNO | errno.EPERM))
    # That of `seccomp` itself must not refuse this call.
    install(rules)
    os.execv(command[0], command)


main()
