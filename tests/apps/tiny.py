"""The smallest HTTP server there is: one connection after the other. It knows nothing of rsup."""
import os
import signal
import socket

server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", int(os.environ["PORT"])))
server.listen(128)


def stop(*_):
    print("asked to stop", flush=True)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
body = b'{"pid": %d}\n' % os.getpid()
head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
while True:
    connection, _ = server.accept()
    # A probe says nothing and goes; a client sends its request at once.
    connection.settimeout(5)
    try:
        if connection.recv(65536):
            connection.sendall(head + body)
    except OSError:
        pass
    connection.close()
