"""Addresses of this machine for the servers of a test: listened at, or held and refusing."""

from __future__ import annotations

import _socket
import contextlib
import errno
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gevent
import gevent.socket

__all__ = ["Listener", "anywhere", "closed_port", "listen"]

R = TypeVar("R")

# Below the range from which Linux takes the port of an outgoing connection (32768 and up), so that
# no other takes the port of a stopped server, and a dial to it cannot connect to itself.
_PORTS = range(20000, 32000)
_dice = random.SystemRandom()  # hypothesis seeds the global one: then all would pick the same

_PAUSE = 0.1  # seconds without accepting when there is no descriptor left


class Listener:
    """Takes in every client that connects to *address*; *accepted* is called with the socket.

    *address* is ``(host, port)``, the path of a Unix socket, or None: a free port of 127.0.0.1.
    *accepted* is called in the hub, and must not switch.
    """

    def __init__(self, address: Any, accepted: Callable[[Any], None]) -> None:
        self._accepted = accepted
        self._loop: Any = gevent.get_hub().loop
        self._socket = anywhere(listen) if address is None else listen(address)
        self.address: Any = self._socket.getsockname()
        self._watcher: Any = None
        self._pause: Any = self._loop.timer(_PAUSE)
        self._watch()

    @property
    def is_refusing(self) -> bool:
        return self._watcher is None

    def refuse(self) -> None:
        """Refuse every client from now on.  The address stays ours."""
        if self.is_refusing:
            return
        self._accept()  # those that are connected already come before
        self.close()
        # There is no switch since the close, so nothing else in this process took it.
        self._socket = _bind(self.address)
        # Bound alone, it would not keep a server with that option, as most have it, from listening.
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)

    def welcome(self) -> None:
        """Refuse no more."""
        if self.is_refusing:
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            self._socket.listen(4096)
            self._watch()

    def close(self) -> None:
        self._pause.close()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self._socket.close()

    def _watch(self) -> None:
        self._watcher = self._loop.io(self._socket.fileno(), 1)
        self._watcher.start(self._accept)

    def _accept(self) -> None:
        """Take in every client that is connected.  In the hub: nothing here may switch."""
        while True:
            try:
                descriptor, _ = self._socket._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue  # left before we came to it
                # Out of descriptors, say.  Not raised: gevent's loops differ in what they do then.
                gevent.get_hub().handle_error(self, type(error), error, error.__traceback__)
                self._watcher.stop()
                self._pause.close()  # one that was over would not wait again
                self._pause = self._loop.timer(_PAUSE)
                self._pause.start(self._watcher.start, self._accept)
                return
            family = self._socket.family
            self._accepted(gevent.socket.socket(family, _socket.SOCK_STREAM, fileno=descriptor))


def anywhere(open_at: Callable[[tuple[str, int]], R]) -> R:
    """What *open_at* returns for an address of loopback that is free.

    Another one is tried as long as it raises that the address is in use.
    """
    for _ in range(100):
        try:
            return open_at(("127.0.0.1", _dice.choice(_PORTS)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise RuntimeError("no free port in a hundred tries")


def listen(address: Any) -> Any:
    """A listening socket at *address*, ``(host, port)`` or the path of a Unix socket.

    It is one of the interpreter, not of gevent: so it is closed at once, not in the next loop pass.
    """
    sock = _bind(address)
    try:
        sock.listen(4096)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(address: Any) -> Any:
    family = _socket.AF_UNIX if isinstance(address, str) else _socket.AF_INET
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def closed_port() -> Iterator[tuple[str, int]]:
    """An address at which connections are refused, and which no other takes meanwhile."""
    with contextlib.closing(_socket.socket()) as holder:
        anywhere(holder.bind)  # bound, and never listening
        yield holder.getsockname()
