"""KubernetesResolver: services of Kubernetes, whose EndpointSlices are watched."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote, urlencode

import gevent

from geventpool.addresses import AnyAddress, address
from geventpool.coordination.json_api import ApiError, JsonConnection, check_header, host_of
from geventpool.directory.endpoint_slices import ServiceName, addresses_in
from geventpool.directory.source import Members, NameUnclear
from geventpool.directory.watching import WatchingResolver
from geventpool.sockets import SocketFactory

__all__ = ["KubernetesResolver"]

#: Where a pod finds what it needs to ask the API server.
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_FAMILIES = ("IPv4", "IPv6", "FQDN")
_TIMEOUT = 5.0  # seconds for a connect, and for an answer that is due
_WATCH = (90.0, 150.0)  # seconds of one watch, drawn, lest all processes begin theirs anew at once
_SHORT = 1.0  # one that ends so soon and has told nothing is not begun anew at once
_AGAIN = 0.5  # seconds, at most, before all is asked for anew: so may be all other processes
_GONE = 410


class KubernetesResolver(WatchingResolver):
    """The servers of a service are the endpoints in its EndpointSlices that are ready::

        resolver = KubernetesResolver()  # in a pod
        manager = ConnectionManager(resolver)
        with manager.connection("web:http") as sock:  # or web, web.shop, web.shop:8080
            ...

    A name is that of a service, with its namespace behind a dot, and its port behind a colon; it
    needs none where the service has a single one for TCP.  Connections go to the pods themselves,
    so that a port's number is that at the pods (*targetPort*), while its name is that of the
    service.  An endpoint that is terminating, or not ready, is given out no more; unless
    none is ready: then those that still serve while they terminate.

    - *namespace*: that of names without one; None: the pod's own.
    - *target*: the address of the API server, in any spelling; None: as a pod finds it.
    - *token*: the file that holds one, which is read again for each request, as it changes; or a
      function that returns one; None: the pod's service account.  It may list and watch
      endpointslices of discovery.k8s.io in the namespaces.
    - *ca*: the file of the authorities that the server's certificate is verified by, which is read
      again for each connection; None: the pod's.  Or *tls*: as for SocketFactory.
    - *families*: of "IPv4", "IPv6" and "FQDN" those to use, best first.
    - *settings* are those of WatchingResolver, which says what happens when the API server is away.

    Each name is watched over a connection of its own.  Raises OSError if it is made with defaults
    where there are none, outside of a pod.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        target: object = None,
        token: str | os.PathLike[str] | Callable[[], str] | None = None,
        ca: str | os.PathLike[str] | None = None,
        tls: Any = None,
        families: Sequence[str] = _FAMILIES,
        **settings: Any,
    ) -> None:
        if ca is not None and tls is not None:
            raise TypeError("ca and tls must not both be given: an SSLContext has its authorities")
        if not isinstance(families, Sequence) or isinstance(families, str):
            raise TypeError(f"families must be a list of {', '.join(_FAMILIES)}, not {families!r}")
        if not families or not set(_FAMILIES).issuperset(families):
            raise ValueError(f"families must be some of {', '.join(_FAMILIES)}, not {families!r}")
        if namespace is None:
            namespace = _read(_ACCOUNT / "namespace")
        ServiceName.parsed(f"any.{namespace}")
        api = _Api(
            address(_target_of_pod() if target is None else target, 443),
            token if callable(token) else _reader(_ACCOUNT / "token" if token is None else token),
            tls,
            Path(_ACCOUNT / "ca.crt" if ca is None else ca),
        )
        super().__init__(_Source(api, namespace, tuple(families)), **settings)


class _Api:
    """The API server, and how this process may ask it."""

    def __init__(self, target: AnyAddress, token: Callable[[], str], tls: Any, ca: Path) -> None:
        self.target = target
        self.host = host_of(target)
        self._token = token
        self._tls = tls
        self._ca = ca
        self.dial()  # what cannot be made of these is said now

    def dial(self) -> SocketFactory:
        """By the authorities of now."""
        tls = self._tls
        if tls is None:
            tls = ssl.create_default_context(cafile=str(self._ca))
        return SocketFactory(self.target, tls=tls, connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT)

    def headers(self) -> dict[str, str]:
        """By the token of now."""
        token = self._token()
        check_header("token", token)
        return {"Accept": "application/json", "Authorization": f"Bearer {token}"}


class _Source:
    """The services of one cluster."""

    def __init__(self, api: _Api, namespace: str, families: Sequence[str]) -> None:
        self._api = api
        self._namespace = namespace
        self._families = families

    def check(self, name: str) -> None:
        ServiceName.parsed(name)

    def watch(self, name: str) -> Generator[Members | NameUnclear, None, None]:
        """A list, and then watches from its version on, until the server knows that no more."""
        parsed = ServiceName.parsed(name)
        while True:
            with closing(JsonConnection(self._api.host, lambda: self._api.dial()())) as conn:
                slices = _Slices(conn, self._api.headers, parsed, self._namespace)
                slices.list()
                while not slices.outdated:
                    yield self._members(slices.known, parsed.port)
                    with closing(slices.watch()) as changes:
                        for known in changes:
                            yield self._members(known, parsed.port)
            gevent.sleep(random.uniform(0.0, _AGAIN))

    def _members(self, known: Mapping[str, Any], port: str | None) -> Members | NameUnclear:
        try:
            return addresses_in(known.values(), port, self._families)
        except NameUnclear as error:
            return error

    def close(self) -> None:
        """Nothing is open but what is watched."""

    def __str__(self) -> str:
        return f"Kubernetes at {self._api.target}"


class _Slices:
    """The EndpointSlices of a service, as a list and the watches after it tell of them."""

    def __init__(
        self,
        conn: JsonConnection,
        headers: Callable[[], dict[str, str]],
        name: ServiceName,
        namespace: str,
    ) -> None:
        self._conn = conn
        self._headers = headers
        where = quote(name.namespace or namespace)
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{where}/endpointslices?"
        self._question = {"labelSelector": f"kubernetes.io/service-name={name.service}"}
        self._version = ""
        self.known: dict[str, Any] = {}
        self.outdated = False  # the server has nothing any more of what came after the version

    def list(self) -> None:
        """Ask for all, as they are now."""
        path = self._path + urlencode(self._question)
        found, _ = self._conn.ask(path, self._headers(), _TIMEOUT)
        self._version = found["metadata"]["resourceVersion"]
        self.known = {each["metadata"]["name"]: each for each in found.get("items") or []}

    def watch(self) -> Generator[dict[str, Any], None, None]:
        """All slices, again after each change.

        Ends when the server ends it, as it does after a while, or with *outdated*.
        """
        began, seconds = monotonic(), random.uniform(*_WATCH)
        question = {
            **self._question,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": f"{seconds:.0f}",
        }
        path = self._path + urlencode(question)
        told = False
        try:
            with closing(self._conn.stream(path, self._headers(), seconds + _TIMEOUT)) as events:
                for event in events:
                    told = True
                    self._take(event["type"], event["object"])
                    yield self.known
        except ApiError as error:
            if error.status != _GONE:
                raise
            self.outdated = True
            return
        if not told and monotonic() - began < _SHORT:
            raise EOFError("the watch has ended at once")

    def _take(self, what: str, found: Any) -> None:
        if what == "ERROR":
            raise ApiError(found.get("code", 500), str(found.get("message", found)))
        self._version = found["metadata"]["resourceVersion"]
        if what == "BOOKMARK":
            return  # so far there was nothing else
        name = found["metadata"]["name"]
        if what == "DELETED":
            self.known.pop(name, None)
        else:
            self.known[name] = found


def _target_of_pod() -> tuple[str, int]:
    try:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    except KeyError as error:
        raise OSError(f"target must be given outside of a pod: there is no {error}") from error
    return host, int(port)


def _reader(path: str | os.PathLike[str]) -> Callable[[], str]:
    check_header("token", _read(path))  # that there is none is said now
    return lambda: _read(path)


def _read(path: str | os.PathLike[str]) -> str:
    # As HTTP sends it.  An error of a decoder would have all that it has read, a token, too.
    return Path(path).read_text(encoding="latin-1").strip()
