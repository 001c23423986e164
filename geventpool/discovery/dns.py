"""From a host to its A and AAAA records, by way of gevent's resolver.

Must never be done here: connect to what was found, or block the hub.
"""

from __future__ import annotations

import ipaddress
import os
import socket as constants
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

import gevent

from geventpool._util.arguments import check_port
from geventpool._util.one_at_a_time import OneAtATime
from geventpool.addresses import Address, AddressGroup, AnyAddress, address
from geventpool.discovery.lookup_cache import Absent, Answer, Clock, Failed, TimedCache

__all__ = ["DnsResolver"]


class DnsResolver(TimedCache):
    """The A and AAAA records of a host, by way of gevent's resolver: hosts file, search list, all.

    A name is ``"host:port"``, or ``"host"`` if there is a default *port*.  All its addresses make
    one tier, with equal weights, and are raced when they are connected to.  Numeric addresses and
    ``"unix:/path"`` cost no look-up.

    As getaddrinfo does not tell how long an answer is good for, *ttl* says so, in seconds.  A stale
    answer is still given out at once for as long again, while one look-up in the background brings
    a new one; later, callers wait for that, and get the stale one if it fails or takes longer than
    1.8 s, up to *max_stale* seconds after its time.  That there is no such name is believed for
    *negative_ttl* seconds; with *stale_if_absent* the last answer serves on for *max_stale* then,
    too.  ``refresh(name)`` asks at once.  A look-up may take *timeout* seconds (None: as long as it
    likes), and of more than *max_names* names those asked for longest ago are forgotten.

    *family* may be ``AF_INET`` or ``AF_INET6``, for addresses of one kind.  *resolver* is the
    gevent resolver to ask, a ``gevent.resolver.ares.Resolver(servers=[...])`` for instance, which
    belongs to one hub; by default that of the caller's hub.  Gevent's usual one asks the system in
    a thread, of which a hub has ten; one name takes one of them at most, for as long as the system
    likes, which is up to half a minute for a name whose servers are dead.  A program that has many
    such names sets ``GEVENT_RESOLVER=ares``: that one needs no thread.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        family: int = constants.AF_UNSPEC,
        ttl: float = 30.0,
        negative_ttl: float = 1.0,
        max_stale: float = 3600.0,
        stale_if_absent: bool = False,
        timeout: float | None = 10.0,
        max_names: int = 1000,
        resolver: Any = None,
        clock: Clock = monotonic,
    ) -> None:
        families = (constants.AF_UNSPEC, constants.AF_INET, constants.AF_INET6)
        if family not in families:
            raise ValueError(f"family must be AF_UNSPEC, AF_INET or AF_INET6, not {family!r}")
        if resolver is not None and not callable(getattr(resolver, "getaddrinfo", None)):
            raise TypeError(f"resolver must be a resolver of gevent or None, not {resolver!r}")
        if port is not None:
            check_port("port", port)
        super().__init__(
            _AddressLookup(port, family, resolver),
            negative_ttl=negative_ttl,
            max_stale=max_stale,
            stale_if_absent=stale_if_absent,
            timeout=timeout,
            max_names=max_names,
            clock=clock,
        )
        self.ttl = ttl


class _AddressLookup:
    ttl: float

    def __init__(self, port: int | None, family: int, resolver: Any) -> None:
        self.port = port
        self.family = family
        self.resolver = resolver
        #: A caller that gives up does not end what a thread does: by process, hub and host.
        self._asking: OneAtATime[Any, gevent.Greenlet[..., Any]] = OneAtATime()

    def __str__(self) -> str:
        kinds: dict[int, str] = {constants.AF_INET: "A", constants.AF_INET6: "AAAA"}
        return kinds.get(self.family, "A and AAAA")

    def without_lookup(self, name: str) -> AddressGroup | None:
        target = self._split(name)
        if isinstance(target, Address):
            try:
                ipaddress.ip_address(target.ip)
            except ValueError:
                return None
        return AddressGroup.of(target)

    def lookup(self, name: str) -> Answer:
        target: Any = self._split(name)
        tried = (f"{self} of {target.ip}",)
        resolver = gevent.get_hub().resolver if self.resolver is None else self.resolver
        key = os.getpid(), gevent.get_hub(), target

        def start() -> gevent.Greenlet[..., Any]:
            asking = gevent.spawn(_ask, resolver, target.ip, target.port, self.family)
            asking.rawlink(partial(self._asking.discard, key))
            return asking

        asking = self._asking.start_or_join(key, start)
        asking.join()
        infos: Any = asking.value
        if isinstance(infos, constants.gaierror):
            kind = Absent if infos.errno in _NO_SUCH_NAME else Failed
            raise kind(infos.strerror or str(infos), tried) from infos
        if isinstance(infos, gevent.GreenletExit):  # by code that kills whatever it finds
            raise Failed("the look-up was killed", tried)
        if isinstance(infos, BaseException):
            raise infos
        hosts = dict.fromkeys(_host(info[4]) for info in infos)
        if not hosts:
            raise Absent("no address", tried)
        targets = [Address(host, target.port) for host in hosts]
        return Answer(AddressGroup.of(*targets, raced=True), self.ttl)

    def _split(self, name: str) -> AnyAddress:
        """The host and port that *name* spells.  Raises ValueError if it does not."""
        try:
            return address(name, self.port)
        except ValueError as error:
            raise ValueError(f"name {name!r} is no host and port: {error}") from error


def _ask(resolver: Any, host: str, port: int, family: int) -> Any:
    """The answer of a gevent resolver, or what it raised."""
    try:
        return resolver.getaddrinfo(host, port, family, constants.SOCK_STREAM)
    except (Exception, gevent.Timeout) as error:
        return error


# Those that say so: others (EAI_AGAIN, EAI_FAIL) tell of a server that did not answer, or not well.
_NO_SUCH_NAME = {constants.EAI_NONAME, getattr(constants, "EAI_NODATA", constants.EAI_NONAME)}


def _host(sockaddr: Sequence[Any]) -> str:
    """The host of what getaddrinfo returned, a link-local one with its interface."""
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == 4 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host
