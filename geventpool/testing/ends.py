"""How a server ends its connections: at once, in an orderly way or with a reset."""

from __future__ import annotations

import _socket
import struct
from typing import Any

import gevent

__all__ = ["hang_up", "wait_closed"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PIECE = 65536


def hang_up(sock: Any, reset: bool) -> None:
    """Close *sock* with a FIN, whatever came that was not read, or else with a reset."""
    raw = sock._sock
    try:
        if reset:
            raw.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET_ON_CLOSE)
        else:
            raw.shutdown(_socket.SHUT_WR)
            _read_what_is_there(raw)  # unread bytes would make a reset of it
    except OSError:
        pass  # it is broken already
    sock.close()


def wait_closed() -> None:
    """gevent closes the descriptor of a closed socket in a callback of the next loop pass."""
    gevent.sleep(0)
    gevent.sleep(0)


def _read_what_is_there(raw: Any) -> None:
    try:
        # Not for ever: a client of another process may send faster than we read.
        for _ in range(1000):
            if not raw.recv(_PIECE, _socket.MSG_DONTWAIT):
                return
    except BlockingIOError:
        pass
