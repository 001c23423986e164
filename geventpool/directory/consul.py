"""ConsulResolver: services of Consul, watched by its blocking queries."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from http.client import HTTPMessage
from time import monotonic
from typing import Any, Literal, get_args
from urllib.parse import quote, urlencode

import gevent

from geventpool.addresses import AnyAddress, UnixAddress, address
from geventpool.coordination.json_api import ApiError, JsonConnection, check_header, host_of
from geventpool.directory.member import weight_of
from geventpool.directory.source import Members
from geventpool.directory.watching import WatchingResolver
from geventpool.pools.extension import check_seconds, check_text
from geventpool.sockets import SocketFactory

__all__ = ["Consistency", "ConsulResolver"]

Consistency = Literal["default", "stale", "consistent"]

_TIMEOUT = 5.0  # seconds for a connect, and for an answer that is due
_LONGEST_WAIT = 600.0  # Consul's
_PACE = 0.1  # seconds between two answers at least, however often there is something new


class ConsulResolver(WatchingResolver):
    """The servers of a service are the instances that Consul has of it, and that are healthy::

        resolver = ConsulResolver("127.0.0.1:8500")
        manager = ConnectionManager(resolver)
        with manager.connection("web") as sock:
            ...

    - *target*: where an agent of Consul is, or several, as for SocketFactory; *tls*: as there.
      *token*: sent as X-Consul-Token; it needs ``service:read`` and ``node:read``.
    - *passing*: only instances all of whose checks pass; else those, too, that are in "warning",
      with their weight for that.  Those that are "critical" never.
    - *tags*: only instances that have all of these.  *filter*: only those it is true of, as Consul
      understands it.  *datacenter*: another one than the agent's.
    - *consistency*: "stale" lets any of Consul's servers answer, even without a leader;
      "consistent" has the leader make sure that it is one.
    - *wait*: so many seconds, 600 at most, a query is left open until something changes.
    - *settings* are those of WatchingResolver, which says what happens when Consul is away.

    Weights are those of the instances.  Each name is watched over a connection of its own.
    """

    def __init__(
        self,
        target: object = ("127.0.0.1", 8500),
        *,
        tls: Any = False,
        token: str | None = None,
        passing: bool = True,
        tags: Iterable[str] = (),
        filter: str | None = None,
        datacenter: str | None = None,
        consistency: Consistency = "default",
        wait: float = 60.0,
        **settings: Any,
    ) -> None:
        check_seconds("wait", wait, none=False)
        if wait > _LONGEST_WAIT:
            raise ValueError(f"wait must be {_LONGEST_WAIT:g} at most, not {wait!r}")
        if consistency not in get_args(Consistency):
            known = ", ".join(f'"{each}"' for each in get_args(Consistency))
            raise ValueError(f"consistency must be one of {known}, not {consistency!r}")
        if isinstance(tags, str) or not isinstance(tags, Iterable):
            raise TypeError(f"tags must be a list of strings, not {tags!r}")
        tags = tuple(tags)
        for number, each in enumerate(tags):
            check_text(f"tags[{number}]", each)
        for what, text in (("filter", filter), ("datacenter", datacenter)):
            if text is not None:
                check_text(what, text)
        question = [("passing", "1")] if passing else []
        question += [("tag", each) for each in tags]
        question += [("filter", filter)] if filter is not None else []
        question += [("dc", datacenter)] if datacenter is not None else []
        question += [(consistency, "1")] if consistency != "default" else []
        if token is not None:
            check_header("token", token)
            if not token:
                raise ValueError("token must not be empty; None sends none")
        headers = {} if token is None else {"X-Consul-Token": token}
        super().__init__(_Source(target, tls, headers, question, wait), **settings)


class _Source:
    """The services of one Consul."""

    def __init__(
        self,
        target: object,
        tls: Any,
        headers: Mapping[str, str],
        question: list[tuple[str, str]],
        wait: float,
    ) -> None:
        self._target = target
        self._dial = SocketFactory(target, tls=tls, connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT)
        self._headers = headers
        self._question = question
        self._wait = wait

    def check(self, name: str) -> None:
        if not name or not name.isprintable():
            raise ValueError(f"name must be that of a service of Consul, not {name!r}")

    def watch(self, name: str) -> Generator[Members, None, None]:
        """By the rules of Consul's documentation for blocking queries."""
        index = 0
        with closing(JsonConnection(host_of(self._target), self._dial)) as conn:
            while True:
                asked = monotonic()
                patience = self._patience if index else _TIMEOUT
                found, headers = conn.ask(self._path(name, index), self._headers, patience)
                if not isinstance(found, list):
                    raise ApiError(200, f"no list of instances: {str(found)[:100]}")
                yield _members(found)
                # What is not above 0 would not block; what has gone back is another state's.
                now = max(_index_in(headers), 1)
                index = now if now >= index else 0
                gevent.sleep(max(asked + _PACE - monotonic(), 0.0))

    def close(self) -> None:
        """Nothing is open but what is watched."""

    def __str__(self) -> str:
        return f"Consul at {self._target}"

    @property
    def _patience(self) -> float:
        """Seconds for an answer that may wait.  Consul adds up to a sixteenth to what it waits."""
        return self._wait * (1 + 1 / 16) + _TIMEOUT

    def _path(self, name: str, index: int) -> str:
        question = list(self._question)
        if index:
            question += [("index", str(index)), ("wait", f"{max(round(self._wait * 1000), 1)}ms")]
        return f"/v1/health/service/{quote(name, safe='')}?{urlencode(question)}"


def _index_in(headers: HTTPMessage) -> int:
    try:
        return int(headers["X-Consul-Index"])
    except (KeyError, TypeError, ValueError) as error:
        raise ApiError(200, "no X-Consul-Index: it is not Consul that answers") from error


def _members(instances: list[Any]) -> Members:
    """The addresses and weights of instances; what is none is left out."""
    found: dict[AnyAddress, float] = {}
    for each in instances:
        try:
            statuses = {check["Status"] for check in each.get("Checks") or ()}
            if statuses <= {"passing", "warning"}:
                weights = each["Service"].get("Weights") or {}
                weight = weights.get("Warning" if "warning" in statuses else "Passing", 1.0)
                found[_address(each)] = weight_of(weight)
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return found


def _address(instance: Mapping[str, Any]) -> AnyAddress:
    service = instance["Service"]
    if service.get("SocketPath"):
        return UnixAddress(service["SocketPath"])
    return address((service.get("Address") or instance["Node"]["Address"], service["Port"]))
