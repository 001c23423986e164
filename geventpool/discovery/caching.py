"""What a program's own resolver says, kept for a while.

Must never be done here: connect to what was found, or block the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from geventpool.addresses import AddressGroup, Resolver, described, resolve_by
from geventpool.discovery.lookup_cache import Absent, Answer, Clock, Failed, TimedCache, reason
from geventpool.errors import ConnectError, NameNotFound

__all__ = ["CachingResolver"]


class CachingResolver(TimedCache):
    """Keeps what *resolve* says: for a resolver of your own, that asks a service::

        def ask_the_catalog(name):
            ...  # over the network, with gevent
            return AddressGroup.of("10.0.0.1:443", "10.0.0.2:443")

        manager = ConnectionManager(CachingResolver(ask_the_catalog, ttl=5.0))

    *resolve* is a callable, or an object with a method of that name.  It gets a name and returns
    an AddressGroup, or the tiers of one; it raises NameNotFound, or any LookupError, if there is no
    such name.  Anything else that it raises or returns is a failed look-up, and the error names it.
    It is called in a greenlet of its own, once for all callers that want to know the same, and ends
    after *timeout* seconds (None: it may take as long as it likes).

    *ttl* is how many seconds an answer is good for.  For what then follows, and for the other
    arguments, see DnsResolver.
    """

    def __init__(
        self,
        resolve: Callable[[str], Any] | Resolver,
        *,
        ttl: float = 30.0,
        negative_ttl: float = 1.0,
        max_stale: float = 3600.0,
        stale_if_absent: bool = False,
        timeout: float | None = 10.0,
        max_names: int = 1000,
        clock: Clock = monotonic,
    ) -> None:
        call: Any = getattr(resolve, "resolve", resolve)
        if not callable(call):
            raise TypeError(f"resolve must be callable, or have a resolve(name), not {resolve!r}")
        super().__init__(
            _CallLookup(resolve, call),
            negative_ttl=negative_ttl,
            max_stale=max_stale,
            stale_if_absent=stale_if_absent,
            timeout=timeout,
            max_names=max_names,
            clock=clock,
        )
        self.ttl = ttl


class _CallLookup:
    ttl: float

    def __init__(self, asked: object, call: Callable[[str], Any]) -> None:
        self.asked = asked
        self.call = call

    def __str__(self) -> str:
        return described(self.asked)

    def __repr__(self) -> str:
        return str(self)

    def without_lookup(self, name: str) -> AddressGroup | None:
        return None

    def lookup(self, name: str) -> Answer:
        try:
            return Answer(resolve_by(self, name), self.ttl)
        except NameNotFound as error:
            raise Absent(reason(error), (f"{self}: {name}",)) from error
        except ConnectError as error:
            raise Failed(reason(error), (f"{self}: {name}",)) from (error.__cause__ or error)

    def resolve(self, name: str, /) -> AddressGroup:
        group = self.call(name)
        return AddressGroup(group) if isinstance(group, (list, tuple)) else group
