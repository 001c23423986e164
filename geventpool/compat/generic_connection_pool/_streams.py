"""Streams: pairs of buffered files over one socket."""

from __future__ import annotations

import io
import ssl as tls
from typing import Any

__all__ = ["Stream", "StreamReader", "StreamWriter", "streams"]


class StreamReader(io.BufferedReader):
    """A buffered file that reads from *sock*: ``readline()``, ``read(n)`` (n bytes, fewer only at
    the end), ``read1(n)`` (what has come, n bytes at most)."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock.makefile("rb", buffering=0))
        self.sock = sock

    def _has_unread(self) -> bool:
        timeout = self.sock.gettimeout()
        self.sock.settimeout(0.0)  # so that peek, with an empty buffer, does not wait
        try:
            return bool(self.peek(1))
        except tls.SSLWantReadError:
            return False
        finally:
            self.sock.settimeout(timeout)


class StreamWriter(io.BufferedWriter):
    """A buffered file that sends to *sock*.  As with asyncio, what is written is on its way, and
    nothing is left for the next user to send; unlike there, ``write`` waits for the peer."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock.makefile("wb", buffering=0))
        self.sock = sock

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.flush()
        return count


Stream = tuple[StreamReader, StreamWriter]


def streams(sock: Any) -> Stream:
    return StreamReader(sock), StreamWriter(sock)
