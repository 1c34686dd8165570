"""An HTTP server on asyncio of the usual kind. It knows nothing of rsup."""
import asyncio
import json
import os
import signal

active = 0


async def handle(reader, writer):
    global active
    active += 1
    try:
        line = await reader.readline()
        while (await reader.readline()).strip():
            pass
        if line:
            body = json.dumps({"pid": os.getpid(), "version": os.environ.get("APP_VERSION", "v1")}).encode() + b"\n"
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
        active -= 1


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_server(handle, "0.0.0.0", int(os.environ["PORT"]))
    print(f"server.py {os.getpid()}: listening", flush=True)
    await stop.wait()
    server.close()
    await asyncio.sleep(0.1)  # what was accepted a moment ago has no handler yet
    while active:
        await asyncio.sleep(0.01)


asyncio.run(main())
