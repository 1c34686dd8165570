"""A server that takes its sockets as it is told, and tells what it got.

BIND: what to bind, separated by spaces: 127.0.0.1:80, [::]:80, unix:/path; `v6only` before an
address, or `dual`, sets IPV6_V6ONLY; `fd:3` takes an inherited socket; `udp` before an address.
SHUTDOWN: on SIGTERM, shuts its listening sockets down and lives so many seconds more.
FORK: so many processes of its own, after the sockets are made.
"""
import json
import os
import select
import signal
import socket
import sys
import time

sockets = []


def make(word, v6only, udp):
    if word.startswith("fd:"):
        return socket.socket(fileno=int(word[3:]))
    if word.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(word[5:])
        return sock
    host, port = word.rsplit(":", 1)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    if v6only is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host.strip("[]"), int(port)))
    return sock


def domain(sock):
    """What the kernel says; Python only remembers what it asked for."""
    return socket.AddressFamily(sock.getsockopt(socket.SOL_SOCKET, 39)).name  # SO_DOMAIN


def describe(sock):
    return {"family": domain(sock), "name": str(sock.getsockname())}


options = {"v6only": None, "udp": False}
for word in os.environ.get("BIND", "0.0.0.0:" + os.environ.get("PORT", "0")).split():
    if word in ("v6only", "dual"):
        options["v6only"] = int(word == "v6only")
    elif word == "udp":
        options["udp"] = True
    else:
        sock = make(word, **options)
        if not options["udp"]:
            sock.listen(128)
            sock.setblocking(False)
        sockets.append(sock)
        options = {"v6only": None, "udp": False}

listeners = [s for s in sockets if s.type == socket.SOCK_STREAM]
print("sockets.py:", json.dumps([describe(s) for s in sockets]), flush=True)

children = []
for _ in range(int(os.environ.get("FORK", "0"))):
    pid = os.fork()
    if pid == 0:
        children = None
        break
    children.append(pid)

stopping = False


def stop(*_):
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)
if children:
    while not stopping:
        select.select([], [], [], 0.05)
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    for pid in children:
        os.waitpid(pid, 0)
    sys.exit(0)


def answer(listener, connection, peer):
    connection.setblocking(True)
    connection.settimeout(5)
    request = b""
    while b"\r\n\r\n" not in request:
        chunk = connection.recv(4096)
        if not chunk:
            return
        request += chunk
    wanted = ("LISTEN_", "RSUP_", "PORT")
    env = {name: value for name, value in os.environ.items() if name.startswith(wanted)}
    body = json.dumps({"pid": os.getpid(), "version": "v1", "listener": describe(listener), "accepted": domain(connection), "peer": str(peer), "env": env})
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


# Whatever arrives from now on is not ours any more.
while not stopping:
    ready, _, _ = select.select(listeners, [], [], 0.05)
    for listener in ready:
        try:
            connection, peer = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            try:
                answer(listener, connection, peer)
            except OSError:
                pass

if "SHUTDOWN" in os.environ:
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
    time.sleep(float(os.environ["SHUTDOWN"]))
