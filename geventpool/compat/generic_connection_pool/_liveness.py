"""Whether a socket, or a stream, is as it should be before somebody gets it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic

from geventpool import sockets
from geventpool.compat.generic_connection_pool._streams import StreamReader
from geventpool.compat.generic_connection_pool.common import EndpointT

__all__ = ["LookingMixin", "StreamProbe", "make_probe", "socket_of"]


class LookingMixin(Generic[EndpointT]):
    def check_aliveness(self, endpoint: EndpointT, conn: Any, timeout: float | None = None) -> bool:
        """Whether *conn* is open and has no unread bytes.  Does not block.

        A pool looks by itself, and does not call this unless it is overridden.
        """
        why_unusable = make_probe(conn)
        return why_unusable is None or not why_unusable()


def socket_of(conn: Any) -> Any:
    """What has the descriptor: *conn* itself, unless it is a stream."""
    if isinstance(conn, tuple) and conn and isinstance(conn[0], StreamReader):
        return conn[0].sock
    return conn


def make_probe(conn: Any) -> Callable[[], object] | None:
    """As ``sockets.make_probe``, for streams, too."""
    sock = socket_of(conn)
    probe = sockets.make_probe(sock)
    if sock is conn or probe is None:
        return probe
    return StreamProbe(conn, probe)


class StreamProbe:
    """A probe of a stream, which reads ahead; all but the look is done by that of its socket."""

    __slots__ = ("_probe", "_reader")

    def __init__(self, conn: Any, probe: Any) -> None:
        self._reader = weakref.ref(conn[0])
        self._probe = probe

    def __call__(self, conn: Any = None) -> object:
        reader = self._reader()
        try:
            if reader is None or reader._has_unread():
                return "unread bytes"
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return self._probe(conn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)
