"""A file system of one file, `memory`, that is never read: the server answers everything but reads (fuse.ko).

Usage: silent_disk.py FOLDER; prints «mounted» when it is, and ends with its stdin.
"""

import ctypes
import os
import select
import struct
import sys

folder = sys.argv[1]
SIZE = 1 << 20
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"silent", folder.encode(), b"fuse.silent", 6, options.encode()) < 0:  # MS_NODEV | MS_NOSUID
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
print("mounted", flush=True)

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT = 1, 2, 3, 14, 15, 18, 25, 26, 36


def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100644, SIZE)
    return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def reply(unique, body=b"", error=0):
    os.write(device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


while True:
    readable, _, _ = select.select([device, 0], [], [])
    if 0 in readable and not os.read(0, 1):
        break
    if device not in readable:
        continue
    message = os.read(device, 1 << 17)
    _, opcode, unique, node = struct.unpack_from("<IIQQ", message)
    if opcode == INIT:
        reply(unique, struct.pack("<4I2H2I2HI7I", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0, *[0] * 7))
    elif opcode == LOOKUP and message[40:].rstrip(b"\0") == b"memory":
        reply(unique, struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + attributes(2))
    elif opcode == LOOKUP:
        reply(unique, error=2)
    elif opcode == GETATTR:
        reply(unique, struct.pack("<Q2I", 3600, 0, 0) + attributes(node))
    elif opcode == OPEN:
        reply(unique, struct.pack("<Q2I", 1, 2, 0))  # FOPEN_KEEP_CACHE: the next open waits for no page
    elif opcode in (FLUSH, RELEASE):
        reply(unique)
    elif opcode in (FORGET, INTERRUPT, READ):
        pass
    else:
        reply(unique, error=38)
