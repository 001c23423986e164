"""The servers of a factory, in the order in which to try them, and which of them failed last."""

from __future__ import annotations

import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import gevent

from geventpool._util.clock import monotonic
from geventpool._util.errors import about
from geventpool._util.log import log_safely
from geventpool.addresses import AddressGroup, AnyAddress, Resolver, address, resolve_by
from geventpool.backoff import Backoff
from geventpool.errors import ConnectError

__all__ = ["ServerList", "Turn"]

_log = logging.getLogger("geventpool.sockets")

_MOST_FAILURES = 1024  # servers of which it is remembered; a resolver may name ever new ones

#: How long one that has failed comes after the others.
_BACKOFF = Backoff(first=1.0, factor=2.0, longest=60.0)


class Turn(NamedTuple):
    """Those that are tried together: one server, or all addresses of one host."""

    name: object
    addresses: Sequence[AnyAddress]


class _Failure:
    """That of a server; in a row, they are *count*.  *is_told*: the log says so."""

    def __init__(self, now: float) -> None:
        self.count = 0
        self.since = now
        self.until = now
        self.why = ""
        self.is_told = False


class ServerList:
    """What a *target*, with or without a *resolver*, has for servers.

    *known* are all that there are, None if only the resolver can say; *name* is what to call them.
    One that failed comes after the others, for a time that grows with each failure in a row; the
    log says once that it was passed over, and once that it is back.
    """

    def __init__(self, target: object, resolver: Resolver | None) -> None:
        self.known: Collection[AnyAddress] | None = None
        self._resolver = resolver
        self._failures: dict[AnyAddress, _Failure] = {}
        self._news: deque[tuple[int, str]] = deque()
        self._order: Callable[[], Sequence[AnyAddress]]
        if resolver is not None:
            if not callable(getattr(resolver, "resolve", None)):
                raise TypeError(f"resolver must have a method resolve(name), {resolver!r} has none")
            if not isinstance(target, str) or not target:
                raise TypeError(f"target must be a name for the resolver, not {target!r}")
            self.name = target
            return
        if isinstance(target, AddressGroup):
            self.known = sorted(target.addresses, key=str)
            self._order = target.connect_ordering
        else:
            if isinstance(target, list) and not target:
                raise ValueError("target must be at least one address, not an empty list")
            self.known = [
                address(each) for each in (target if isinstance(target, list) else [target])
            ]
            self._order = _Rotation(self.known)
        self.name = _listed(list(self.known))

    def turns(self) -> list[Turn]:
        """Who is to be tried now, in order.  A resolver may block, and raise a ConnectError."""
        if self._resolver is None:
            return self._in_turn(self._order())
        return self._turns_of(resolve_by(self._resolver, self.name))

    def new_turns(self, tried: Sequence[Turn]) -> list[Turn]:
        """Those that a resolver has for more, asked anew, as none of those *tried* is of use."""
        known = {each for turn in tried for each in turn.addresses}
        if self._resolver is None or not hasattr(self._resolver, "refresh"):
            return []
        try:
            group = resolve_by(self._resolver, self.name, "refresh")
        except (ConnectError, ValueError):
            return []  # what those that were tried came to says more
        return [] if group.addresses <= known else self._turns_of(group)

    def refresh_later(self) -> None:
        """Have a resolver ask anew; for a caller that has no time left to wait for that."""
        if self._resolver is not None and hasattr(self._resolver, "refresh"):
            gevent.spawn(self.new_turns, ())

    def failed(self, turn: Turn, error: Exception | None) -> None:
        """None of a turn could be connected to; no *error*: there was no answer."""
        if len(turn.addresses) != 1 or (self.known is not None and len(self.known) == 1):
            return  # there is no other, or it was a race
        now, server = monotonic(), turn.addresses[0]
        failure = self._failures.pop(server, None) or _Failure(now)
        failure.count += 1
        failure.until = now + _BACKOFF.delay(failure.count)
        self._failures[server] = failure
        if len(self._failures) > _MOST_FAILURES:
            del self._failures[next(iter(self._failures))]
        failure.why = f"{server}: no answer" if error is None else about(server, error)

    def connected(self, turn: Turn) -> None:
        """One of a turn was connected to."""
        if not self._failures:
            return
        now = monotonic()
        if len(turn.addresses) == 1 and (back := self._failures.pop(turn.addresses[0], None)):
            if back.is_told:
                dials = "1 dial" if back.count == 1 else f"{back.count} dials"
                text = f"{turn.name} is back after {now - back.since:.1f} s and {dials} in vain"
                self._news.append((logging.INFO, text))
        for failure in self._failures.values():
            if not failure.is_told and now < failure.until:
                failure.is_told = True
                self._news.append((logging.WARNING, f"a server was passed over: {failure.why}"))

    def tell(self) -> None:
        """Log what is new.  May switch, if a handler does."""
        while self._news:
            level, text = self._news.popleft()
            log_safely(_log, level, "%s", text)

    def _turns_of(self, group: AddressGroup) -> list[Turn]:
        order = group.connect_ordering()
        return [Turn(self.name, order)] if group.raced else self._in_turn(order)

    def _in_turn(self, order: Sequence[AnyAddress]) -> list[Turn]:
        if self._failures:
            now, failures = monotonic(), self._failures

            def last(each: AnyAddress) -> float:
                until = failures[each].until if each in failures else 0.0
                return until if until > now else 0.0

            order = sorted(order, key=last)
        return [Turn(each, (each,)) for each in order]


class _Rotation:
    """The same addresses again and again, beginning with the next one each time."""

    def __init__(self, addresses: Sequence[AnyAddress]) -> None:
        self._addresses = list(addresses)
        # Not every program that starts now shall start with the same server.
        self._turns = itertools.count(random.randrange(len(self._addresses)))

    def __call__(self) -> list[AnyAddress]:
        first = next(self._turns) % len(self._addresses)
        return self._addresses[first:] + self._addresses[:first]


def _listed(addresses: Sequence[Any]) -> str:
    shown = ", ".join(map(str, addresses[:3]))
    return shown if len(addresses) <= 3 else f"{shown} and {len(addresses) - 3} more"
