"""Sockets that remember that a wait on them was cut short.

Who waits for a reply and is stopped, by a ``gevent.Timeout`` that ends silently, a kill that is
swallowed or a socket time-out that a driver wraps in an error of its own, leaves the reply to the
next one that reads; and nothing that reaches the pool tells of it.  But every wait of a gevent
socket, TLS or not, goes through its method ``_wait``, and a guarded socket sees an exception leave
it.  That is about a tenth of a microsecond for each wait, and nothing for sockets without a guard.

The note is kept in the class: a socket has room for nothing else, but may change its class for one
of the same layout.  So it costs no memory, and lives as long as the socket.
"""

from __future__ import annotations

import sys
from typing import Any

from gevent.socket import socket
from gevent.ssl import SSLSocket

__all__ = ["Guard", "GuardedSocket", "GuardedTLSSocket", "forgive", "guard", "was_cut_short"]


class Guard:
    """Makes a guarded socket of a class of gevent's: ``class Mine(Guard, socket)``, with no slots
    of its own if that has none."""

    __slots__ = ()

    #: Whether a wait was left by an exception, or sending was in the middle.
    cut_short = False
    _while_whole: Any
    _once_cut: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Guard in cls.__bases__:
            _watch_methods(cls, cls.__bases__[-1])
        if not cls.cut_short:
            cls._while_whole = cls
            namespace = {"__slots__": (), "cut_short": True, "__module__": cls.__module__}
            cls._once_cut = type(cls.__name__, (cls,), namespace)

    def detach(self) -> Any:
        # What puts TLS on a socket takes its descriptor, and says nothing of itself.
        wrapper = sys._getframe(1).f_locals.get("self")
        if isinstance(wrapper, SSLSocket) and guard(wrapper) and self.cut_short:
            _note(wrapper)
        return super().detach()  # type: ignore[misc]


def _note(sock: Any) -> None:
    sock.__class__ = sock._once_cut


def _watch_methods(guarded: Any, base: Any) -> None:
    """Have *guarded*, a subclass of *base*, note what leaves the methods that wait."""
    # Called as functions: by way of super() each would take twice as long.
    wait, sendall = base._wait, base.sendall

    def _wait(self: Any, watcher: Any, timeout_exc: Any = None) -> None:
        try:
            wait(self, watcher, timeout_exc)
        except BaseException:
            self.__class__ = self._once_cut
            raise

    def sendall_(self: Any, *args: Any, **kwargs: Any) -> Any:
        # What was sent in part is cut short, too: it looks at the clock between two waits.
        try:
            return sendall(self, *args, **kwargs)
        except BaseException:
            self.__class__ = self._once_cut
            raise

    guarded._wait, guarded.sendall = _wait, sendall_


class GuardedSocket(Guard, socket):
    """A socket of gevent's with a guard from birth."""

    __slots__ = ()


class GuardedTLSSocket(Guard, SSLSocket):
    """The same with TLS."""


def guard(sock: object) -> bool:
    """Have *sock*, already open, remember from now on; says whether it does.

    It does if it is gevent's, TLS or not, as every socket of a patched program.  Its class becomes
    a subclass of what it was.
    """
    if isinstance(sock, Guard):
        return True
    if not isinstance(sock, socket):
        return False
    try:
        kind = type(sock)
        sock.__class__ = GuardedSocket if kind is socket else _guarded(kind)
    except Exception:  # a class that takes no subclass, or none of the same layout
        return False
    return True


def was_cut_short(sock: object) -> bool:
    """Whether *sock* has a guard, and a wait on it was cut short since, or since ``forgive``."""
    return isinstance(sock, Guard) and sock.cut_short


def forgive(sock: object) -> None:
    """Forget that a wait on *sock* was cut short."""
    if isinstance(sock, Guard) and sock.cut_short:
        sock.__class__ = sock._while_whole


def _guarded(base: type) -> type:
    """The guarded subclass of *base*, which knows it: there is no list that keeps classes alive."""
    made: type
    for made in base.__subclasses__():
        if made.__bases__ == (Guard, base):
            return made
    # It goes by the name of its base: what shows a socket to a user shows what it always did.
    return type(base.__name__, (Guard, base), {"__slots__": (), "__module__": base.__module__})
