"""A memcached that is slow when it is asked for a key like ``slow-0.03-…``: by 0.03 s.

    python slow_memcached.py PORT memcached -s SOCKET …

It listens at that port of 127.0.0.1, and passes everything on to the memcached that it starts.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import Any

import gevent
from gevent.server import StreamServer
from gevent.socket import AF_UNIX, socket


def upstream(path: str) -> socket:
    sock = socket(AF_UNIX)
    sock.connect(path)
    return sock


def forward(source: Any, target: Any) -> None:
    try:
        while data := source.recv(65536):
            if slow := re.match(rb"get slow-([0-9.]+)-", data):
                gevent.sleep(float(slow[1]))
            target.sendall(data)
    except OSError:
        pass


def serve(path: str, client: Any, address: object) -> None:
    try:
        server = upstream(path)
    except OSError:
        return
    with server:
        ways = [gevent.spawn(forward, client, server), gevent.spawn(forward, server, client)]
        gevent.wait(ways, count=1)
        gevent.killall(ways)


def main(port: int, command: list[str]) -> None:
    path = command[command.index("-s") + 1]
    with subprocess.Popen(command) as memcached:
        try:
            while memcached.poll() is None:
                try:
                    upstream(path).close()
                    break
                except OSError:
                    gevent.sleep(0.01)
            server = StreamServer(
                ("127.0.0.1", port), lambda client, address: serve(path, client, address)
            )
            gevent.signal_handler(signal.SIGTERM, server.stop, 0)
            server.serve_forever()
        finally:
            memcached.terminate()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
