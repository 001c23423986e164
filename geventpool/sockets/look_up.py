"""How the host of an address is looked up: at most two look-ups of one host at a time.

gevent's usual resolver asks the system in one of the ten threads of a hub, and a thread cannot be
called back: a host whose name servers are dead would take all ten, and no other be looked up.
"""

from __future__ import annotations

import importlib
import os
from functools import partial
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.monkey import get_original
from gevent.socket import AI_NUMERICHOST, AI_NUMERICSERV, SOCK_STREAM, gaierror, getaddrinfo

from geventpool.addresses import Address
from geventpool.errors import NameNotFound

__all__ = ["look_up", "numeric"]

# The standard library's own, also in a patched program.
_own_getaddrinfo = get_original("socket", "getaddrinfo")
_own_close = get_original("os", "close")

# What a look-up, and what gevent makes of the error of one, would import when it is needed: with no
# descriptor left that fails, and who waits for the answer is never told.
for _name in ("encodings.idna", "pickle"):
    importlib.import_module(_name)

_MOST = 2  # look-ups of one host at a time; the second, as the first may have been unlucky


def numeric(server: Address, family: int) -> Any:
    """The answer of getaddrinfo for an IP address; None if it is none.

    Through gevent's resolver it would go to a thread and back, which takes longer than to connect.
    """
    flags = AI_NUMERICHOST | AI_NUMERICSERV
    try:
        return _own_getaddrinfo(server.ip, server.port, family, SOCK_STREAM, 0, flags)
    except (gaierror, UnicodeError):
        return None


def look_up(server: Address, family: int) -> Any:
    """The answer of gevent's resolver, or what it raised.

    It is asked by a greenlet of its own: that is how one knows what the resolver raised, and what
    was thrown at the greenlet that waits for it.  If two ask for this host already, the caller
    waits until one of them has ended, and has that answer, if it is one, or else asks itself.  A
    caller that gives up ends no look-up, as the thread that is at it cannot be ended.
    """
    key = server.ip, family
    while True:
        host = _of_this_hub().setdefault(key, _Host())
        if host.under_way < _MOST:
            break
        port, answer = host.ends.get()
        if port == server.port and isinstance(answer, list) and answer:
            return answer
    asking = host.ask(key, server)
    asking.join()
    answer = asking.value
    if isinstance(answer, gevent.GreenletExit):  # by code that kills whatever it finds
        return NameNotFound(f"the look-up of {server.ip} was killed", name=server.ip)
    return answer


class _Host:
    """How many look-ups of a host are under way in a hub; *ends* is set when the next one ends."""

    def __init__(self) -> None:
        self.under_way = 0
        self.ends: Any = AsyncResult()

    def ask(self, key: tuple[str, int], server: Address) -> gevent.Greenlet[..., Any]:
        asking = gevent.spawn(_ask_resolver, server.ip, server.port, key[1])
        asking.rawlink(partial(self._ended, _of_this_hub(), key, server.port))
        self.under_way += 1
        return asking

    def _ended(
        self,
        hosts: dict[tuple[str, int], _Host],
        key: tuple[str, int],
        port: int,
        asking: gevent.Greenlet[..., Any],
    ) -> None:
        self.under_way -= 1
        if not self.under_way:
            del hosts[key]
        ended, self.ends = self.ends, AsyncResult()
        ended.set((port, asking.value))


def _of_this_hub() -> dict[tuple[str, int], _Host]:
    """The hosts that are being looked up; in a child none, as the parent's threads are not here."""
    hub: Any = gevent.get_hub()
    pid, hosts = getattr(hub, "_geventpool_look_ups", (0, {}))
    if pid != os.getpid():
        hosts = {}
        hub._geventpool_look_ups = os.getpid(), hosts
    known: dict[tuple[str, int], _Host] = hosts
    return known


def _ask_resolver(host: str, port: int, family: int) -> Any:
    try:
        return getaddrinfo(host, port, family, SOCK_STREAM)
    except OSError as error:
        # With no descriptor left the system cannot open the files in which it looks, and says "not
        # known", or whatever its last module of names makes of that: "busy", say, with mdns.
        return _want_of_descriptors() or error.with_traceback(None)
    except Exception as error:
        return error.with_traceback(None)


def _want_of_descriptors() -> OSError | None:
    """What the system says if no descriptor is left, or None."""
    try:
        _own_close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return OSError(error.errno, error.strerror)
    return None
