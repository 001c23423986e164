"""Runs a program, and an HTTP server at a Unix socket beside it, which is slow.

    python slow_upstream.py SOCKET nginx -c …

``/slow/0.03/TOKEN`` is answered with TOKEN after 0.03 s.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer
from gevent.socket import AF_UNIX, socket


def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    _, _, seconds, token = environ["PATH_INFO"].split("/", 3)
    gevent.sleep(float(seconds))
    body = token.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def main(path: str, command: list[str]) -> None:
    listener = socket(AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(128)
    server = WSGIServer(listener, answer, log=None)
    gevent.signal_handler(signal.SIGTERM, server.stop, 0)
    server.start()
    with subprocess.Popen(command) as program:
        try:
            server.serve_forever()
        finally:
            program.terminate()
            os.unlink(path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
