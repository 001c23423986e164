"""A small server that answers for the services of Consul as Consul's documentation says.

https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service and
https://developer.hashicorp.com/consul/api-docs/features/blocking
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, unquote

from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from geventpool.testing.ports import anywhere
from support.managers import a_host
from support.servers import listener_at

__all__ = ["SmallConsul"]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}
_PATH = "/v1/health/service/"


class SmallConsul:
    """In a ``with`` it listens at *address*.

    *token*: what it asks for; *leaderless*: it has none; *index_shown*: the header instead of the
    right one.  *queries* has the path and the parameters of each question, *waiting* is how many
    wait for a change just now.
    """

    def __init__(self) -> None:
        self.address: tuple[str, int]
        self.token: str | None = None
        self.leaderless = False
        self.index_shown: str | None = None
        self.queries: list[tuple[str, dict[str, list[str]]]] = []
        self.waiting = 0
        self._services: dict[str, dict[str, dict[str, Any]]] = {}
        self._indexes: dict[str, int] = {}
        self._count = itertools.count(100)
        self._changed = Event()
        self._server: Any = None

    def __enter__(self) -> SmallConsul:
        def start(each: tuple[str, int]) -> None:
            self.address = (a_host(), each[1])
            self.start()

        anywhere(start)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        listener = listener_at(self.address)
        self._server = WSGIServer(listener, self._answer, spawn=Pool(), log=None, error_log=None)
        self._server.start()

    def stop(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._server.stop(timeout=0)

    def leave(self) -> None:
        """In a child: this is the parent's server."""
        self._server.close()

    # What there is

    def register(
        self,
        service: str,
        target: tuple[str, int],
        *statuses: str,
        weights: dict[str, int] | None = None,
        **fields: Any,
    ) -> None:
        """An instance, with checks of these *statuses*; again: instead of the one there was."""
        host, port = target
        id = f"{service}-{host}-{port}"
        node = {"ID": "40e4a748", "Node": "foobar", "Address": "10.1.10.12", "Datacenter": "dc1"}
        self._services.setdefault(service, {})[id] = {
            "Node": node,
            "Service": {
                "ID": id,
                "Service": service,
                "Tags": ["primary"],
                "Address": host,
                "Port": port,
                "Weights": weights or {"Passing": 1, "Warning": 1},
                **fields,
            },
            "Checks": [
                {"Node": "foobar", "CheckID": f"check:{number}", "Status": status}
                for number, status in enumerate(statuses or ("passing",))
            ],
        }
        self._note(service)

    def deregister(self, service: str, target: tuple[str, int]) -> None:
        del self._services[service]["{}-{}-{}".format(service, *target)]
        self._note(service)

    def restore(self) -> None:
        """As from a snapshot: all indexes go back."""
        self._count = itertools.count(5)
        for service in self._services:
            self._note(service)

    def _note(self, service: str) -> None:
        self._indexes[service] = next(self._count)
        before, self._changed = self._changed, Event()
        before.set()

    # What is answered

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        path = unquote(environ["PATH_INFO"])
        query = parse_qs(environ["QUERY_STRING"])
        self.queries.append((path, query))
        stale = "stale" in query
        if self.token is not None and environ.get("HTTP_X_CONSUL_TOKEN") != self.token:
            return _text(start_response, "403 Forbidden", "ACL not found")
        if self.leaderless and not stale:
            return _text(start_response, "500 Internal Server Error", "No cluster leader")
        if not path.startswith(_PATH):
            return _text(start_response, "404 Not Found", "")
        service = path.removeprefix(_PATH)
        self._wait(service, query)
        found = list(self._services.get(service, {}).values())
        if "passing" in query:
            found = [each for each in found if _worst(each) == "passing"]
        for tag in query.get("tag", ()):
            found = [each for each in found if tag in each["Service"]["Tags"]]
        index = str(self._indexes.get(service, 1))
        headers = [
            ("Content-Type", "application/json"),
            ("X-Consul-Index", self.index_shown or index),
            ("X-Consul-Knownleader", "false" if self.leaderless else "true"),
            ("X-Consul-Lastcontact", "20" if stale else "0"),
        ]
        start_response("200 OK", headers)
        return [json.dumps(found).encode()]

    def _wait(self, service: str, query: dict[str, list[str]]) -> None:
        index = int(query.get("index", ["0"])[0])
        wait = query.get("wait", ["5m"])[0]
        number, unit = re.fullmatch(r"(\d+)(ms|s|m)", wait).groups()  # type: ignore[union-attr]
        seconds = min(int(number) * _UNITS[unit], 600.0)
        ends = monotonic() + seconds + random.uniform(0, seconds / 16)
        state = self._count
        while index > 0 and self._indexes.get(service, 1) <= index and state is self._count:
            self.waiting += 1
            try:
                if not self._changed.wait(max(ends - monotonic(), 0.0)):
                    return
            finally:
                self.waiting -= 1


def _worst(instance: dict[str, Any]) -> str:
    statuses = {check["Status"] for check in instance["Checks"]}
    return next(each for each in ("critical", "warning", "passing") if each in statuses)


def _text(start_response: Callable[..., object], status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain")])
    return [text.encode()]
