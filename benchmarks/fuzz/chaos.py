"""What goes wrong at random, and what must hold all the same."""

from __future__ import annotations

import itertools
import logging
import random
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent import GreenletExit, get_hub

from benchmarks.fuzz.server import ALL, FIN, LATE, RESET
from geventpool import PoolError, SocketFactory

__all__ = ["ALLOWED", "Chaos", "Interrupt", "Trouble"]

_MENDED = "the books were wrong"  # what an audit says that finds something


class Trouble(Exception):
    """A bug of the user's, in a hook or in a ``with``."""


class Interrupt(BaseException):
    """What is no Exception, and no kill and no Timeout either."""


#: What a caller may get.
ALLOWED = (PoolError, OSError, Trouble, Interrupt, GreenletExit, gevent.Timeout)


class Chaos:
    """Raises and gives way by the *dice*, and keeps the books that the pools are judged by.

    *most*: connections that may be open at any moment.  *faults*: what did not hold.
    """

    def __init__(self, dice: random.Random, address: tuple[str, int], most: int) -> None:
        self.dice = dice
        self.most = most
        self.calm = False
        self.faults: list[BaseException] = []
        self.served = 0
        self.conns: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Of these a pool cannot tell that a wait was cut short.
        self.unwatched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._held: dict[int, tuple[Any, int]] = {}
        self._numbers = itertools.count(1)
        self._open = SocketFactory(address)

    # What goes wrong

    def wander(self) -> None:
        """Give way to others, for a moment or not at all."""
        drawn = 0.0 if self.calm else self.dice.random()
        if drawn > 0.5:
            gevent.sleep(0)
        if drawn > 0.9:
            gevent.sleep(self.dice.random() * 0.003)

    def trouble(self, share: float = 0.1) -> None:
        """Raise something, in that *share* of calls."""
        if not self.calm and self.dice.random() < share:
            raise self.dice.choice([Trouble, OSError, ConnectionResetError, Interrupt])("by chance")

    # Connections

    def open(self) -> Any:
        """What a pool's dial does: it takes its time, and may fail before or after."""
        self.wander()
        self.trouble(0.05)
        return self.track(self._open())

    def track(self, conn: Any) -> Any:
        """Count *conn*, which was just opened, among those that are; or fail, and close it."""
        self.conns.add(conn)
        self.look_at_open()
        try:
            self.wander()
            self.trouble(0.02)
        except BaseException:
            conn.close()
            raise
        return conn

    @property
    def open_now(self) -> int:
        """How many connections are open."""
        return sum(conn.fileno() >= 0 for conn in list(self.conns))

    def look_at_open(self) -> None:
        """There are never more than there may be."""
        if (count := self.open_now) > self.most:
            self.fault(AssertionError(f"{count} connections are open, of {self.most}"))

    @contextmanager
    def holding(self, conn: Any, shared: bool = False) -> Iterator[None]:
        """In this ``with`` the current greenlet holds *conn*, and no other does."""
        me = gevent.getcurrent()
        holder, times = self._held.get(id(conn), (me, 0))
        if holder is not me or (times and not shared):
            self.fault(AssertionError(f"{me} and {holder} both have {conn}"))
        self._held[id(conn)] = holder, times + 1
        self.served += 1
        try:
            yield
        finally:
            holder, times = self._held.pop(id(conn))
            if times > 1:
                self._held[id(conn)] = holder, times - 1

    def ask(self, conn: Any) -> None:
        """A request over *conn*: what comes back is the reply to this one, or an OSError."""
        late = LATE if not self.calm and self.dice.random() < 0.2 else b""
        request = b"%s %d\n" % (late, next(self._numbers))
        conn.sendall(request)
        reply = b""
        while not reply.endswith(b"\n"):
            data = conn.recv(4096)
            if not data:
                raise ConnectionResetError("cut by the server")
            reply += data
        if reply != request:
            fault = AssertionError(f"{request!r} was asked, and {reply!r} came")
            self.fault(fault)
            raise fault

    def salvage(self, conn: Any) -> None:
        """Read what still comes over *conn*."""
        marker = b"marker %d\n" % next(self._numbers)
        conn.sendall(marker)
        reply = b""
        while not reply.endswith(marker):
            data = conn.recv(4096)
            if not data:
                raise ConnectionResetError("cut by the server")
            reply += data

    def cut(self, conn: Any) -> None:
        """Have the server hang up on *conn*, or on all."""
        conn.sendall(self.dice.choice([FIN, FIN, RESET, RESET, ALL]))

    # What must hold

    def fault(self, error: BaseException) -> None:
        """Note that something did not hold."""
        self.faults.append(error)

    def judge(self, what: str) -> None:
        """Raise AssertionError, with all that did not hold, if there is any."""
        if self.faults:
            told = "".join("".join(traceback.format_exception(each)) for each in self.faults[:5])
            raise AssertionError(f"{what}: {len(self.faults)} faults\n{told}")

    def attempt(self, call: Callable[[], object]) -> None:
        """*call*, which may end with what a caller may get, and nothing else."""
        try:
            call()
        except ALLOWED:
            pass
        except BaseException as error:
            self.fault(error)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In this ``with`` an error that reaches the hub is a fault, and so is what an audit mends;
        the pools log to nobody."""
        hub_class: Any = type(get_hub())
        printed = hub_class.print_exception
        logger = logging.getLogger("geventpool")
        before = logger.level, logger.propagate
        hook = sys.unraisablehook

        def note(hub: Any, context: Any, exc_class: Any, exc: Any, tb: Any) -> None:
            if not isinstance(exc, ALLOWED):
                self.fault(exc)

        def note_unraisable(unraisable: Any) -> None:
            if not isinstance(unraisable.exc_value, ALLOWED):
                self.fault(unraisable.exc_value)

        handler = _Mended(self)
        hub_class.print_exception = note
        sys.unraisablehook = note_unraisable
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        try:
            yield
        finally:
            hub_class.print_exception = printed
            sys.unraisablehook = hook
            logger.removeHandler(handler)
            logger.level, logger.propagate = before


class _Mended(logging.Handler):
    """Takes it for a fault that books were wrong."""

    def __init__(self, chaos: Chaos) -> None:
        super().__init__(logging.WARNING)
        self._chaos = chaos

    def emit(self, record: logging.LogRecord) -> None:
        if _MENDED in record.getMessage():
            self._chaos.fault(AssertionError(record.getMessage()))
