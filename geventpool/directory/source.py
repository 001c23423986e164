"""What a directory must do for its resolver.

A directory is a *source*, an object with the methods of ``Source``.  Its ``watch`` is a generator::

    def watch(self, name):
        with closing(self._connect()) as conn:
            members = ...       # of all servers of the service
            yield members       # once the directory has answered, even if there are none
            for change in conn:
                ...
                yield members   # all of them, again

Each value is a mapping of *all* servers of the service, by address (an Address), to their weights
(1.0 where there are none); it may be empty.  What is no address there, ``watch`` leaves out: that
must not spoil the others.  To yield the same again is fine.  In the place of the servers it may
yield a NameUnclear, and watch on: the directory is there, but the name does not lead to servers.

What it raises (any Exception, or a gevent.Timeout), or its end, means that the directory is away:
it is called again, after a back-off that grows.  It runs in a greenlet of its own, one for each
name, and is ended there by a kill, or by its ``close()`` where it yields: what it has open, a
``with`` or a ``finally`` of it closes.  It must notice by itself, by a time limit, that nothing
comes any more.  In a forked child it is ended, as a copy, and begun anew.

A resolver is a subclass that makes its source, which must not hold it::

    class EtcdResolver(WatchingResolver):
        def __init__(self, target, *, prefix="services/", **settings):
            super().__init__(EtcdSource(target, prefix), **settings)

``tests/directory/test_watching.py`` has a source of the tests' own.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Protocol

from geventpool.addresses import AnyAddress
from geventpool.backoff import Backoff

__all__ = ["BACKOFF", "Members", "NameUnclear", "Source"]

#: How a directory that is away is asked again.
BACKOFF = Backoff(first=0.1, factor=2.0, longest=2.0, jitter=0.5)

#: The servers of a service, with their weights.
Members = Mapping[AnyAddress, float]


class NameUnclear(LookupError):
    """The directory has answered, but a name does not say which servers it means; the text says
    why."""


class Source(Protocol):
    """One directory; ``str()`` of it is what to call it in messages, without passwords."""

    def check(self, name: str, /) -> None:
        """Raises ValueError if *name* can be no name of a service.  Does not block."""

    def watch(self, name: str, /) -> Generator[Members | NameUnclear, None, None]:
        """All servers of *name*, and again after each change; raises if the directory is away."""
        ...

    def close(self) -> None:
        """End what is open beside the generators, which have ended by now.  May block; must not
        raise."""
