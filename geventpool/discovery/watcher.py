"""Who looks at names again and again, and tells of what has changed behind them.

A Watcher looks by way of any resolver, and knows nothing of how that finds what it says.  One that
*pushes*, as it has ``subscribe(name, wake)``, says itself when there is something new, and is not
looked at before.  Must never be done here: act on a change.  The manager does (``manager``), or the
program itself.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent import Timeout
from gevent.event import Event

from geventpool._util.arguments import check_seconds, check_text
from geventpool._util.log import log_safely
from geventpool.addresses import AddressGroup, AnyAddress, Resolver, described, resolve_by

__all__ = ["PushingResolver", "Subscription", "Watcher"]

_log = logging.getLogger("geventpool.watcher")

#: Seconds that a look-up may hold up those of other names.
_PATIENCE = 1.0

Placement = tuple[tuple[int, float], ...]  # the tiers that an address is in, and its weight there
OnChange = Callable[[str, frozenset[AnyAddress], frozenset[AnyAddress], AddressGroup], object]


class Subscription(Protocol):
    """What ``subscribe`` returns; it ends by ``close()``, or when it is dropped."""

    def close(self) -> None:
        """Call *wake* no more.  Does not block."""


class PushingResolver(Resolver, Protocol):
    """A resolver that tells when what it says of a name changes."""

    def subscribe(self, name: str, wake: Callable[[], object], /) -> Subscription:
        """Have ``wake()`` called after each change of what ``resolve(name)`` says.

        In the thread of the caller; it neither switches nor raises.  Does not block, and must hold
        neither the subscription nor *wake* once the subscription is dropped.
        """
        ...


class Watcher:
    """Looks at names every *interval* seconds, and tells of what has changed.

    A resolver that has ``subscribe(name, wake)`` (PushingResolver) is looked at when it says so,
    and every *interval* seconds only while a change is yet to hold.

    ``on_change(name, added, removed, group)`` gets two frozensets of addresses, and an AddressGroup
    of all that is known now; both sets are empty if only weights or tiers have changed.  Each
    address counts for itself: it is added, or removed, once it has been there, or gone, at every
    look of *hold* seconds.  One that comes and goes is left as it was, and holds up no other.  A
    look-up that fails, or finds no such name, says nothing and removes nothing.

    It is called in the watcher's own greenlet, one for all names, which looks at one after the
    other; while *on_change* blocks, no other is looked at.  A look-up that takes longer than a
    second goes on by itself, and the others are looked at meanwhile.  What *on_change* raises is
    logged.  If it is a method, its object is held weakly.  When that is gone, or the watcher is,
    or on ``close()``, the greenlet ends.
    """

    def __init__(
        self,
        resolver: Resolver,
        on_change: OnChange,
        *,
        interval: float = 1.0,
        hold: float = 5.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if not callable(getattr(resolver, "resolve", None)):
            raise TypeError(f"resolver must have a resolve(name), not {resolver!r}")
        if not callable(on_change):
            raise TypeError(f"on_change must be callable, not {on_change!r}")
        check_seconds("interval", interval, none=False)
        check_seconds("hold", hold, zero=True, none=False)
        self.resolver = resolver
        self.interval = interval
        self.hold = hold
        self.closed = False
        self._clock = clock
        self._subscribe: Any = getattr(resolver, "subscribe", None)
        self._names: dict[str, _Watched] = {}
        self._bell = _Bell()
        self._asked: list[Event] = []  # who waits in look()
        self._telling = False
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._on_change: Callable[[], OnChange | None]
        if inspect.ismethod(on_change):
            self._on_change = weakref.WeakMethod(on_change, self._bell.ring)
        else:
            self._on_change = lambda: on_change

    def add(self, name: str, group: AddressGroup | None = None) -> None:
        """Watch *name*, too.  Does not block; nothing happens if it is watched already.

        *group* is what the caller knows of it; by default, what the first look-up finds is taken
        for known.  Raises RuntimeError after ``close()``, and what ``subscribe`` of the resolver
        raises.
        """
        if self.closed:
            raise RuntimeError("the watcher is closed")
        check_text("name", name)
        if name in self._names:
            return
        watched = _Watched(None if group is None else _placements(group))
        if self._subscribe is not None:
            watched.subscription = self._subscribe(name, partial(_wake, watched, self._bell))
        self._names[name] = watched
        self._wake()

    def discard(self, name: str) -> None:
        """Watch *name* no longer, if it was watched; nothing more is told of it."""
        watched = self._names.pop(name, None)
        if watched is not None:
            watched.stop()

    def look(self) -> None:
        """Look at every name now, not only when the interval is over; blocks until that is done,
        for a second at most for each name."""
        if gevent.getcurrent() is self._greenlet:
            raise RuntimeError("on_change must not wait for the next look: it is in the way")
        if self.closed or not self._names:
            return
        for watched in self._names.values():
            watched.is_due = True
        done = Event()
        self._asked.append(done)
        awaited: list[Any] = [done, self._wake()]  # the greenlet, too: it may be killed
        gevent.wait(awaited, count=1)

    def close(self) -> None:
        """Tell nothing more.  Does not block; a call of *on_change* under way is not cut short."""
        self.closed = True
        for name in list(self._names):
            self.discard(name)
        self._bell.event.set()
        # In the middle of a look-up it would go on for as long as that takes.
        if self._greenlet not in (None, gevent.getcurrent()) and not self._telling:
            self._greenlet.kill(block=False)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._names)} names"
        return f"<{type(self).__name__} {state}, {self.resolver!r}>"

    # What its greenlet does

    def _wake(self) -> gevent.Greenlet[..., None]:
        """Have the greenlet look now.  There is none before the first name, nor after a kill."""
        if self._greenlet is None or self._greenlet.ready():
            self._bell.hub = gevent.get_hub()
            self._greenlet = gevent.spawn(_watch, weakref.ref(self, self._bell.ring), self._bell)
        self._bell.event.set()
        return self._greenlet

    def _round(self) -> bool:
        """Look at every name once.  False if that was the last time."""
        if self._on_change() is None:
            self.close()
        asked, self._asked = self._asked, []
        for name in list(self._names):
            self._look_at(name)
        for done in asked:
            done.set()
        return not self.closed

    @property
    def _patience(self) -> float | None:
        """Seconds until the next look, unless there is something new before; None: only then."""
        names = self._names.values()
        if self._subscribe is not None and not any(watched.is_due for watched in names):
            return None
        return self.interval

    def _look_at(self, name: str) -> None:
        watched = self._names.get(name)
        if watched is None or not (watched.is_due or self._subscribe is None):
            return
        watched.is_due = False
        group = self._ask(name, watched)
        if group is None or self._names.get(name) is not watched:
            return  # discarded meanwhile
        change = watched.changed(group, self._clock(), self.hold)
        watched.is_due |= bool(watched.since)  # what is yet to hold
        on_change = self._on_change()
        if change is None or on_change is None:
            return
        self._telling = True
        try:
            on_change(name, *change)
        except (Exception, Timeout):
            log_safely(_log, logging.ERROR, "on_change raised, told of %r", name, exc_info=True)
        finally:
            self._telling = False

    def _ask(self, name: str, watched: _Watched) -> AddressGroup | None:
        """What the resolver says of *name*; None if it does not say, or not yet."""
        left_behind = not watched.is_late  # by a greenlet of ours that was killed
        if watched.lookup is None or (left_behind and watched.lookup.ready()):
            watched.lookup = gevent.spawn(_outcome_of, self.resolver, name)
        if not watched.is_late:
            watched.lookup.join(_PATIENCE)
        if not watched.lookup.ready():
            if not watched.is_late:
                watched.is_late = True
                who = described(self.resolver)
                text = "%r is watched, and %s has not answered for %s s; it is waited for"
                log_safely(_log, logging.WARNING, text, name, who, _PATIENCE)
            watched.is_due = True
            return None
        outcome = watched.lookup.value
        watched.lookup, watched.is_late = None, False
        if isinstance(outcome, AddressGroup):
            return outcome
        log_safely(_log, logging.DEBUG, "watching %r: %r", name, outcome)
        return None


def _outcome_of(resolver: Resolver, name: str) -> object:
    """What a look-up brings, or raises: a Timeout, too, as in its greenlet it can be no other's."""
    try:
        return resolve_by(resolver, name)
    except (Exception, Timeout) as error:
        return error


def _wake(watched: _Watched, bell: _Bell) -> None:
    """A resolver says that there is something new."""
    watched.is_due = True
    bell.event.set()


class _Bell:
    """Wakes the greenlet of a watcher; may be rung by the garbage collector, in any thread."""

    def __init__(self) -> None:
        self.event = Event()
        self.hub: Any = None

    def ring(self, reference: object) -> None:
        loop = getattr(self.hub, "loop", None)
        if loop is not None:
            loop.run_callback_threadsafe(self.event.set)


def _watch(reference: weakref.ref[Watcher], bell: _Bell) -> None:
    """The greenlet of a watcher, which is held only while it looks."""
    while True:
        watcher = reference()
        if watcher is None or not watcher._round():
            return
        patience = watcher._patience
        del watcher
        bell.event.wait(patience)
        bell.event.clear()


class _Watched:
    """What was told of a name, and what is yet to hold."""

    def __init__(self, notified: dict[AnyAddress, Placement] | None) -> None:
        self.notified = notified
        self.since: dict[AnyAddress, tuple[Placement | None, float]] = {}
        self.lookup: gevent.Greenlet[..., object] | None = None
        self.is_late = False  # it is not waited for
        self.is_due = True  # there may be something new
        self.subscription: Subscription | None = None

    def stop(self) -> None:
        """Look no further."""
        if self.subscription is not None:
            self.subscription.close()
        if self.lookup is not None:
            self.lookup.kill(block=False)

    def changed(
        self, group: AddressGroup, now: float, hold: float
    ) -> tuple[frozenset[AnyAddress], frozenset[AnyAddress], AddressGroup] | None:
        """What to tell now that *group* is seen: (added, removed, group); None if nothing."""
        seen = _placements(group)
        if self.notified is None:
            self.notified = seen
        notified = self.notified
        differing = {a: seen.get(a) for a in [*notified, *seen] if notified.get(a) != seen.get(a)}
        self.since = {
            a: self.since[a] if a in self.since and self.since[a][0] == place else (place, now)
            for a, place in differing.items()
        }
        held = {a: place for a, (place, since) in self.since.items() if now - since >= hold}
        placed = {a: place for a, place in {**notified, **held}.items() if place is not None}
        if not held or not placed:  # the last one stays until another has held
            return None
        self.notified = placed
        current = group if placed == seen else _placed(placed)
        added, removed = placed.keys() - notified.keys(), notified.keys() - placed.keys()
        return frozenset(added), frozenset(removed), current


def _placements(group: AddressGroup) -> dict[AnyAddress, Placement]:
    found: dict[AnyAddress, Placement] = {}
    for number, tier in enumerate(group.tiers):
        for weight, target in tier:
            found[target] = (*found.get(target, ()), (number, weight))
    return found


def _placed(placements: Mapping[AnyAddress, Placement]) -> AddressGroup:
    """The group whose placements these are, without its empty tiers."""
    tiers: dict[int, list[tuple[float, AnyAddress]]] = {}
    for target, place in placements.items():
        for number, weight in place:
            tiers.setdefault(number, []).append((weight, target))
    return AddressGroup([tiers[number] for number in sorted(tiers)])
