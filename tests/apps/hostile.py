"""A worker that tries whatever it should not be able to do, and says on stdout what it got.

Its environment names its victims: DAEMON and NEIGHBOURS (pids), HOME_OF_RSUP, SECRET_FILES, NOTIFY_OF_OTHERS.
"""

import ctypes
import json
import os
import signal
import socket
import time

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PR_SET_DUMPABLE = 0x4206, 4


def attempt(act):
    try:
        result = act()
        return {"done": True, "result": repr(result)[:200]}
    except OSError as why:
        return {"done": False, "errno": why.errno, "why": str(why)}


def raw(result):
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def connect(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as s:
        s.connect(path)


def ask(path):
    """A well-formed request, to see whether it is answered."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        body = json.dumps({"version": 2, "request": {"query": "list"}, "wait": False}).encode()
        answer = b""
        try:
            s.sendall(len(body).to_bytes(4, "big") + body)
        except BrokenPipeError:
            pass  # it was answered without being heard
        try:
            while piece := s.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass  # the same, a moment later
        return answer[4:].decode()


def say_ready(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(b"READY=1", path)


def read(path):
    with open(path, "rb") as f:
        return f.read(100)


def write(path):
    with open(path, "ab") as f:
        f.write(b"forged\n")


def pidfd_getfd(pid):
    pidfd = os.pidfd_open(pid)
    return raw(libc.syscall(438, pidfd, 0, 0))


def process_vm_readv(pid):
    class IoVec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(8)
    mine = IoVec(ctypes.addressof(buffer), 8)
    theirs = IoVec(0x400000, 8)
    return raw(libc.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))


def descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # that of the listing itself
    return found


def on_process(pid):
    return {
        "environ": attempt(lambda: read(f"/proc/{pid}/environ")),
        "fd": attempt(lambda: os.listdir(f"/proc/{pid}/fd")),
        "mem": attempt(lambda: os.open(f"/proc/{pid}/mem", os.O_RDONLY)),
        "cwd": attempt(lambda: os.listdir(f"/proc/{pid}/cwd")),
        "ptrace": attempt(lambda: raw(libc.ptrace(PTRACE_SEIZE, pid, 0, 0))),
        "getfd": attempt(lambda: pidfd_getfd(pid)),
        "readv": attempt(lambda: process_vm_readv(pid)),
        "nothing": attempt(lambda: os.kill(pid, 0)),
        "signal": attempt(lambda: os.kill(pid, signal.SIGTERM)),
        "nice": attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        "limit": attempt(lambda: __import__("resource").prlimit(pid, 7, (10, 10))),
    }


def main():
    home = os.environ["HOME_OF_RSUP"]
    control = home + "/run/control.sock"
    said = {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "fds": descriptors(),
        "connect": attempt(lambda: connect(control)),
        "ask": attempt(lambda: ask(control)),
        "enter": attempt(lambda: os.chdir(home + "/run")),
        "list": {name: attempt(lambda: os.listdir(home + name)) for name in ("", "/run", "/state", "/state/logs", "/run.notify")},
        "read": {path: attempt(lambda: read(path)) for path in os.environ["SECRET_FILES"].split(":")},
        "write": {path: attempt(lambda: write(path)) for path in os.environ["SECRET_FILES"].split(":")},
        "lock": attempt(lambda: read(home + "/run/daemon.lock")),
        "ready": {path: attempt(lambda: say_ready(path)) for path in os.environ["NOTIFY_OF_OTHERS"].split(":")},
        "daemon": on_process(int(os.environ["DAEMON"])),
        "neighbours": {pid: on_process(int(pid)) for pid in os.environ["NEIGHBOURS"].split(",") if pid},
        "cgroup": attempt(lambda: write("/proc/self/oom_score_adj") or open("/proc/self/cgroup").read()),
        "root": attempt(lambda: os.setuid(0)),
        # What it may do: its own output, opened anew.
        "stdout": attempt(lambda: open("/dev/stdout", "w").close()),
    }
    print("SAID " + json.dumps(said), flush=True)
    while True:
        time.sleep(3600)


main()
