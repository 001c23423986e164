"""What carries the bytes of a connection that may be any object: a driver's, a file, a pair.

Nothing here switches, keeps anything alive, or raises for what an object does when it is asked.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from gevent.monkey import get_original
from gevent.socket import socket

__all__ = ["carriers", "descriptors_in", "fileno", "is_socket", "listed"]

_SOCKETS = (socket, get_original("socket", "socket"))
_FILES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom)
_PLACES = ("sock", "_sock")  # where most drivers have theirs
_NOWHERE = object()


def carriers(conn: Any) -> Any:
    """What carries the bytes of *conn*, as far as can be seen: the default of ``_socket``.

    *conn* itself if it is a socket, gevent's or the standard library's, TLS or not.  Else what its
    ``fileno()`` says, which is a descriptor, or the socket of that number if its attribute ``sock``
    or ``_sock`` is that one.  Else that socket.  Of a tuple, as of a reader and a writer, those of
    its parts.  An empty tuple if there is a place for a socket and none in it, as before a driver
    connects and after it has closed; None if nothing is known.
    """
    if isinstance(conn, _SOCKETS):
        return conn
    descriptor = fileno(conn)
    if descriptor is None and isinstance(conn, tuple):
        parts = [found for found in map(carriers, conn) if found is not None]
        return tuple(each for found in parts for each in listed(found)) if parts else None
    sock = _socket_in(conn)
    if descriptor is None:
        return sock
    if sock is None and isinstance(conn, _FILES):
        sock = _socket_of_file(conn)
    return sock if sock and fileno(sock) == descriptor else descriptor


def listed(found: Any) -> tuple[Any, ...]:
    """What a ``_socket`` hook returned, as sockets and descriptors, each file once.

    None is nothing; what is neither is asked in its turn.  Raises TypeError for what leads nowhere.
    """
    if isinstance(found, _SOCKETS):
        return (found,)  # nearly always
    if found is None:
        return ()
    if isinstance(found, int) and not isinstance(found, bool):
        return (found,)
    if isinstance(found, (tuple, list, set, frozenset)):  # a driver's may be iterable: it reads
        return _each_once(each for part in found for each in listed(part))
    inner = carriers(found)
    if inner is None:
        raise TypeError(
            "_socket must return a socket, a file descriptor, several of them or None,"
            f" not {found!r}"
        )
    return listed(inner)


def descriptors_in(thing: object) -> tuple[int, ...]:
    """The numbers of the files that carry the bytes of *thing*, which may be anything; empty if
    none is found.  Reads no property, which might connect."""
    found: tuple[Any, ...] = (thing,)
    if not hasattr(type(thing), "fileno"):
        places = getattr(thing, "__dict__", {})
        found = tuple(places.get(name) for name in _PLACES)
    return tuple(number for number in map(fileno, found) if number is not None)


def is_socket(connection: object) -> bool:
    """Whether *connection* is a socket, gevent's or the standard library's, TLS or not."""
    return isinstance(connection, _SOCKETS)


def fileno(connection: Any) -> int | None:
    """The descriptor of *connection*, or None if it has none (any more)."""
    try:
        method = getattr(connection, "fileno", None)
        if method is None:
            return None  # as of most drivers: an exception would take a microsecond
        descriptor = method()
    except Exception:
        return None
    return descriptor if isinstance(descriptor, int) and descriptor >= 0 else None


def _socket_in(conn: Any) -> Any:
    """The socket that *conn* has; an empty tuple if it has a place for one and none in it."""
    found: Any = None
    for name in _PLACES:
        try:
            there = getattr(conn, name, _NOWHERE)
        except Exception:
            continue
        if isinstance(there, _SOCKETS):
            return there
        if there is None:
            found = ()
    return found


def _socket_of_file(file: Any) -> Any:
    """That of a file made by ``makefile()``, within what decodes it and what buffers it."""
    try:
        buffered = getattr(file, "buffer", file)
        return _socket_in(getattr(buffered, "raw", buffered))
    except Exception:  # it was detached
        return None


def _each_once(found: Iterable[Any]) -> tuple[Any, ...]:
    """Without those whose file is another's, too; a socket tells more than its number."""
    by_descriptor: dict[int | None, Any] = {}
    for each in found:
        is_number = isinstance(each, int)
        descriptor = each if is_number else fileno(each)
        if descriptor not in by_descriptor or not is_number:
            by_descriptor[descriptor] = each
    return tuple(by_descriptor.values())
