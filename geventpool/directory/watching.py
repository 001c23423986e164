"""What every resolver is that watches a directory: its part that knows no directory.

What a directory must do, its *source*, is in ``source.py``.  What holds for all of them (see
WatchingResolver) is done here and in ``service.py``, once: one watch for all callers, the last
known addresses while the directory is away, the push to whom it concerns, the end, a fork.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import gevent.hub

from geventpool.addresses import AddressGroup
from geventpool.backoff import Backoff
from geventpool.directory.roster import Roster
from geventpool.directory.service import Service, Subscription, keep_watching
from geventpool.directory.source import BACKOFF, NameUnclear, Source
from geventpool.errors import ConnectError, NameNotFound, WrongHub
from geventpool.pools.extension import Fork, check_seconds, check_text, check_whole, in_child

__all__ = ["WatchingResolver"]

#: Seconds after which a name that no caller has asked for is watched no longer.
_KEPT = 600.0


class WatchingResolver:
    """Knows the servers of services from a directory that it watches; see its subclasses.

    The first caller that asks for a name begins to watch it, and waits for the first answer, for
    *timeout* seconds at most.  From then on what is known is given out at once, and a change is
    known as soon as the directory tells of it; ``subscribe`` is how a ConnectionManager hears of
    it.  A name that no caller has asked for in ten minutes, and that nobody subscribes to, is
    watched no longer; there are never more than *max_names* of those.

    While the directory is away its last answers serve on, without end; it is asked again after
    *backoff*.  A service that vanishes as a whole keeps its last servers for *keep_emptied* seconds
    (0: none), as mostly it is the directory that was emptied.  Its loss, its return, and a service
    that is emptied, are on the log ``geventpool.directory``.

    One is for one gevent hub.  In a forked child it watches anew.  Dropped, or closed, it ends.
    """

    _is_own = True

    def __init__(
        self,
        source: Source,
        *,
        timeout: float = 5.0,
        keep_emptied: float = 300.0,
        max_names: int = 1000,
        backoff: Backoff = BACKOFF,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        check_seconds("timeout", timeout, none=False)
        check_seconds("keep_emptied", keep_emptied, zero=True, none=False)
        check_whole("max_names", max_names, least=1)
        if not isinstance(backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, not {backoff!r}")
        self.timeout = timeout
        self.keep_emptied = keep_emptied
        self.max_names = max_names
        self.backoff = backoff
        self.closed = False
        self._source = source
        self._clock = clock
        self._services: dict[str, Service] = {}
        self._belong_to(gevent.get_hub())
        _resolvers.add(self)

    def resolve(self, name: str, /) -> AddressGroup:
        """The servers of *name*, as the directory has told last.

        Blocks for *timeout* seconds at most, and only if the directory has never answered for this
        name.  Raises NameNotFound if there are none, ConnectError if the directory is away and has
        not answered before, or if the resolver is closed, ValueError if it can be no name, and
        WrongHub in another thread than that which has made the resolver.
        """
        service = self._service(name)
        group = service.roster.group(service.asked_at)
        if group is None:
            with service.waited_for():
                service.news.wait(self.timeout)  # not once there was an answer, or a failure
            group = service.roster.group(self._clock())
        if group is None:
            raise self._failure(service)
        return group

    def subscribe(self, name: str, wake: Callable[[], object], /) -> Subscription:
        """Have ``wake()`` called after each change of what ``resolve(name)`` says, until the
        subscription that is returned is closed, or dropped.

        It is called in the greenlet that watches, and must neither switch nor raise: to set an
        Event, say.  Does not block.  Raises as ``resolve``, but not for what is not known.
        """
        return Subscription(self._service(name), wake)

    def close(self) -> None:
        """Watch nothing any more, and end the connections to the directory, which may block."""
        if self.closed:
            return
        self._assert_here()
        self.closed = True
        if self._finalizer.detach() is not None:
            # Apart: all of it ends, too, if this caller is killed meanwhile.
            gevent.spawn(_end, self._services, self._source).join()

    def __enter__(self) -> WatchingResolver:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._services)} names"
        return f"<{type(self).__name__} {self._source}, {state}>"

    # Inside

    def _service(self, name: str) -> Service:
        """That of *name*, which is watched by now."""
        check_text("name", name)
        if self.closed:
            raise ConnectError(f"{name!r} cannot be asked for: {self!r}")
        self._assert_here()
        service = self._services.get(name)
        now = self._clock()
        if service is None:
            self._source.check(name)
            self._tidy(now)
            service = self._services[name] = Service(name, Roster(self.keep_emptied))
        service.asked_at = now
        if service.greenlet is None or service.greenlet.ready():  # new, or it was killed
            self._watch(service)
        return service

    def _assert_here(self) -> None:
        hub: Any = gevent.get_hub()
        if self._hub is None:  # forked by a thread that was not its own
            self._finalizer.detach()  # it would turn to a hub that is not here
            self._belong_to(hub)
        elif self._hub is not hub:
            raise WrongHub(f"{self!r} is another thread's: make one for each")

    def _belong_to(self, hub: Any) -> None:
        self._hub: Any = hub
        self._finalizer = weakref.finalize(self, _dropped, self._services, self._source, hub)
        self._finalizer.atexit = False

    def _watch(self, service: Service) -> None:
        service.greenlet = gevent.spawn(
            keep_watching, self._source, service, self.backoff, self._clock
        )

    def _tidy(self, now: float) -> None:
        """Make room for one more."""
        idle = [each for each in list(self._services.values()) if not each.in_use]
        idle.sort(key=lambda each: each.asked_at)
        surplus = len(idle) + 1 - self.max_names
        for number, each in enumerate(idle):
            if number < surplus or now - each.asked_at >= _KEPT:
                del self._services[each.name]
                each.end()

    def _failure(self, service: Service) -> ConnectError:
        """Why there is no group."""
        name, source, error = service.name, self._source, service.error
        found: ConnectError
        if isinstance(error, NameUnclear):
            text = f"{name!r} was not found: {source} has answered that {error}"
            found = NameNotFound(text, name=name, tried=(str(source),))
        elif error is not None:
            text = f"{name!r} is not known: {source} does not answer: {error!r}; it is asked again"
            found = ConnectError(text)
        elif service.roster.is_known:
            text = f"{name!r} was not found: {source} has no server of it"
            found = NameNotFound(text, name=name, tried=(str(source),))
        else:
            text = f"{name!r} is not known: {source} has not answered within {self.timeout:g} s"
            found = ConnectError(text)
        found.__cause__ = error
        return found

    def _forked(self, fork: Fork, hub: Any) -> None:
        """In a child: watch anew; the greenlets here are copies of the parent's."""
        strays = [service.greenlet for service in self._services.values()]
        if self._hub is not hub:  # of a thread that is not here
            self._hub = None
            for service in self._services.values():
                service.greenlet, service.callers = None, 0
            return
        fork.once(gevent.reinit, hub)
        for stray in strays:
            if stray is not None:
                stray.kill(block=False)
        for service in self._services.values():
            self._watch(service)


# The end, and a fork


def _end(services: dict[str, Service], source: Source) -> None:
    """End all greenlets, and then the source.  May block."""
    ending = list(services.values())
    services.clear()
    for service in ending:
        service.end()
    gevent.joinall([each.greenlet for each in ending if each.greenlet is not None], timeout=1.0)
    source.close()


def _dropped(services: dict[str, Service], source: Source, hub: Any) -> None:
    """A resolver was collected, in any thread: have its hub end what it began."""
    loop = getattr(hub, "loop", None)
    if loop is not None:
        loop.run_callback_threadsafe(gevent.spawn, _end, services, source)


_resolvers: weakref.WeakSet[WatchingResolver] = weakref.WeakSet()


@in_child
def _in_child(fork: Fork) -> None:
    hub: Any = gevent.hub._get_hub()  # type: ignore[attr-defined]
    for resolver in list(_resolvers):
        if not resolver.closed:
            resolver._forked(fork, hub)
