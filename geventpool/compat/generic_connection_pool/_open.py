"""How a socket is opened."""

from __future__ import annotations

from typing import Any

from gevent import Timeout
from gevent.socket import getdefaulttimeout

from geventpool import sockets
from geventpool.errors import MultiConnectFailure

__all__ = ["open_socket"]


def open_socket(target: object, timeout: float | None, context: Any = False) -> Any:
    """A socket to *target* within *timeout* seconds; raises what a plain connect would."""
    factory = sockets.SocketFactory(
        target, tls=context, connect_timeout=None, read_timeout=getdefaulttimeout()
    )
    timer = Timeout.start_new(timeout)
    try:
        return factory()
    except Timeout as expired:
        if expired is not timer:
            raise
        raise TimeoutError(f"timed out after {timeout} s: {expired.__cause__}") from None
    except MultiConnectFailure as failure:
        raise failure.errors[-1][1] from failure
    finally:
        timer.close()
