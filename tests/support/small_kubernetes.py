"""A small server that answers for EndpointSlices as Kubernetes' API server does.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes: lists
with their version, watches from a version on, bookmarks, and 410 for versions that are too old.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any
from urllib.parse import parse_qs

from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from geventpool.testing.ports import anywhere
from support.servers import listener_at

__all__ = ["SmallKubernetes", "endpoint", "slice_of"]

_PATH = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"


def endpoint(
    *addresses: str,
    ready: bool | None = True,
    serving: bool | None = None,
    terminating: bool | None = None,
) -> dict[str, Any]:
    """An endpoint as in a slice; what is None is left out."""
    conditions = {"ready": ready, "serving": serving, "terminating": terminating}
    return {
        "addresses": list(addresses),
        "conditions": {name: value for name, value in conditions.items() if value is not None},
        "nodeName": "node-1",
        "targetRef": {"kind": "Pod", "name": "web-76d9", "namespace": "shop"},
        "zone": "us-west2-a",
    }


def slice_of(
    name: str,
    *endpoints: dict[str, Any],
    service: str = "web",
    namespace: str = "shop",
    family: str = "IPv4",
    ports: Iterable[tuple[str, int]] = (("http", 8080),),
) -> dict[str, Any]:
    """An EndpointSlice."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": each, "protocol": "TCP", "port": port} for each, port in ports],
    }


class SmallKubernetes:
    """In a ``with`` it listens at *address*, by TLS with *settings* (ssl_context).

    *tokens* are those that it lets in, None: all.  *lists* and *watches* have the parameters of
    each question, *agents* the Authorization of each; *watching* is how many watches are open.
    *gone_by_status*: a version that is too old is answered by the status, and not in the stream.
    """

    def __init__(self, **settings: Any) -> None:
        self.address: tuple[str, int]
        self.tokens: set[str] | None = None
        self.gone_by_status = False
        self.agents: list[str] = []
        self.lists: list[dict[str, list[str]]] = []
        self.watches: list[dict[str, list[str]]] = []
        self.watching = 0
        self._settings = settings
        self._slices: dict[tuple[str, str], dict[str, Any]] = {}
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._oldest = 0
        self._versions = itertools.count(1001)
        self._version = 1000
        self._changed = Event()
        self._ended = Event()
        self._server: Any = None

    def __enter__(self) -> SmallKubernetes:
        def start(each: tuple[str, int]) -> None:
            self.address = ("127.0.0.1", each[1])
            self.start()

        anywhere(start)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        listener = listener_at(self.address)
        self._server = _Server(
            listener, self._answer, spawn=Pool(), log=None, error_log=None, **self._settings
        )
        self._server.start()

    def stop(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._server.stop(timeout=0)

    # What there is

    def put(self, made: dict[str, Any]) -> None:
        """A slice, instead of the one of that name if there is one."""
        key = (made["metadata"]["namespace"], made["metadata"]["name"])
        what = "MODIFIED" if key in self._slices else "ADDED"
        self._slices[key] = made
        self._tell(what, made)

    def delete(self, name: str, namespace: str = "shop") -> None:
        self._tell("DELETED", self._slices.pop((namespace, name)))

    def bookmark(self) -> int:
        """Tell all watches the version of now, to which other things have come."""
        self._tell("BOOKMARK", {"kind": "EndpointSlice", "metadata": {"annotations": {}}})
        return self._version

    def compact(self) -> None:
        """Forget what has happened so far: who has not seen it must ask for all again."""
        self._oldest, self._events = next(self._versions), []
        self._version = self._oldest

    def end_watches(self) -> None:
        """As when their time is over."""
        before, self._ended = self._ended, Event()
        before.set()
        self._wake()

    def _tell(self, what: str, made: dict[str, Any]) -> None:
        self._version = next(self._versions)
        seen = {**made, "metadata": {**made["metadata"], "resourceVersion": str(self._version)}}
        self._events.append((self._version, what, seen))
        self._wake()

    def _wake(self) -> None:
        before, self._changed = self._changed, Event()
        before.set()

    # What is answered

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        query = parse_qs(environ["QUERY_STRING"])
        agent = environ.get("HTTP_AUTHORIZATION", "")
        self.agents.append(agent)
        if self.tokens is not None and agent.removeprefix("Bearer ") not in self.tokens:
            return _status(start_response, 401, "Unauthorized")
        namespace = environ["PATH_INFO"].split("/")[5:6]
        if not namespace or environ["PATH_INFO"] != _PATH.format(namespace[0]):
            return _status(start_response, 404, "NotFound")
        label, _, service = query["labelSelector"][0].partition("=")
        assert label == "kubernetes.io/service-name"
        if "watch" in query:
            self.watches.append(query)
            since = int(query["resourceVersion"][0])
            if since < self._oldest and self.gone_by_status:
                return _status(start_response, 410, "Expired")
            start_response("200 OK", [("Content-Type", "application/json")])
            return self._watch(namespace[0], service, since, float(query["timeoutSeconds"][0]))
        self.lists.append(query)
        found = {
            "kind": "EndpointSliceList",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"resourceVersion": str(self._version)},
            "items": [
                made for made in self._slices.values() if _is_of(made, namespace[0], service)
            ],
        }
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(found).encode()]

    def _watch(self, namespace: str, service: str, since: int, seconds: float) -> Iterator[bytes]:
        self.watching += 1
        ends, ended = monotonic() + seconds, self._ended
        try:
            while not ended.is_set() and monotonic() < ends:
                changed = self._changed
                if since < self._oldest:
                    message = f"too old resource version: {since} ({self._oldest})"
                    yield _event("ERROR", _failure(410, "Expired", message))
                    return
                for version, what, made in list(self._events):
                    if version > since:
                        since = version
                        if what == "BOOKMARK" or _is_of(made, namespace, service):
                            yield _event(what, made)
                changed.wait(max(ends - monotonic(), 0.0))
        finally:
            self.watching -= 1


class _Server(WSGIServer):  # type: ignore[misc]
    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> Any:
        try:
            return super().wrap_socket_and_handle(client_socket, address)
        except OSError:  # a handshake that has failed is no fault of the server's
            client_socket.close()


def _is_of(made: dict[str, Any], namespace: str, service: str) -> bool:
    metadata = made["metadata"]
    is_there = metadata["namespace"] == namespace
    return is_there and bool(metadata["labels"]["kubernetes.io/service-name"] == service)


def _event(what: str, found: dict[str, Any]) -> bytes:
    return json.dumps({"type": what, "object": found}).encode() + b"\n"


def _failure(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _status(start_response: Callable[..., object], code: int, reason: str) -> list[bytes]:
    start_response(f"{code} {reason}", [("Content-Type", "application/json")])
    return [json.dumps(_failure(code, reason, reason)).encode()]
