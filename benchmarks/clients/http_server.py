"""``python -m benchmarks.clients.http_server``: answers ``GET /TOKEN/SECONDS`` with the token,
after so many seconds.  Prints its port."""

from __future__ import annotations

from typing import Any

import gevent
from gevent.server import StreamServer


def serve(sock: Any, address: Any) -> None:
    try:
        _serve(sock)
    except ConnectionError:
        pass  # who gives up closes


def _serve(sock: Any) -> None:
    unread = b""
    while data := sock.recv(65536):
        unread += data
        while b"\r\n\r\n" in unread:
            head, _, unread = unread.partition(b"\r\n\r\n")
            _, token, seconds = head.split(b" ", 2)[1].split(b"/")
            if float(seconds):
                gevent.sleep(float(seconds))
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
            sock.sendall(answer % (len(token), token))


if __name__ == "__main__":
    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()
