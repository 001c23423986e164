"""SocketPool: the sockets of a ConnectionManager, and what was made of them.

An EndpointPool in which no caller waits for a place, or for a server that is away.  What is pooled
is a MonitoredSocket, or what a caller's *sock_type* has made of one; that one is found again by
``socket_of``.
"""

from __future__ import annotations

import errno
import resource
import ssl
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import gevent

from geventpool import sockets
from geventpool._scheduler.limit import Limit
from geventpool._util.arguments import check_seconds, check_whole
from geventpool._util.errors import copy_of
from geventpool.addresses import AnyAddress
from geventpool.backoff import Backoff
from geventpool.errors import ConnectError, MultiConnectFailure
from geventpool.manager.health import ServerModel, ServerModelDirectory
from geventpool.pools.endpoint_pool import EndpointPool
from geventpool.sockets.factory import SocketFactory
from geventpool.sockets.monitored import MonitoredSocket, Traffic

__all__ = ["DialError", "Endpoint", "SockType", "SocketPool", "about"]

#: What makes of a socket the thing that is pooled.
SockType: TypeAlias = Callable[[Any], Any]

_NO_BOUND = 2**31 - 1
_MOST_FACTORIES = 1024

#: What a system call says if it is this machine that has no room for one more socket.
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


class Endpoint(NamedTuple):
    """What makes two connections interchangeable."""

    address: AnyAddress
    context: ssl.SSLContext | None
    sock_type: SockType | None
    server_hostname: str | None

    def __str__(self) -> str:
        tls = "" if self.context is None else " TLS"
        return f"{self.address}{tls}"


class DialError(ConnectError):
    """A dial failed: what it raised is the ``__cause__``.

    Who waits for the dial gets a copy of this, and not of what it raised: a caller's own Timeout
    may carry any exception, an OSError too, and must not look like a server that does not answer.
    """

    def __init__(self, message: str, *, blames: bool = True) -> None:
        super().__init__(message)
        self._blame = [blames]  # one for all copies

    def claim_blame(self) -> bool:
        """Whether the server has failed, and no caller was told yet: forty callers that waited for
        one dial have seen one failure, and not forty."""
        blames, self._blame[0] = self._blame[0], False
        return blames

    def cause_for_caller(self) -> BaseException:
        """What the dial raised, if that is an OSError, or else a ConnectError that tells of it.

        One for each caller: what is raised takes on the frames that it passes.
        """
        cause = self.__cause__
        if isinstance(cause, OSError) and (own := copy_of(cause)) is not cause:
            return own
        error = ConnectError(str(self))
        error.__cause__ = cause
        return error


@dataclass(frozen=True)
class _ServerBackoff(Backoff):
    """How long no dial begins after a failed one.

    While the server is up, the first failures are followed by no pause: they count, and it is the
    markdown that keeps callers away.  The pauses are for when there is no other server, and for one
    that accepts connections and closes them at once.
    """

    server: ServerModel | None = None
    first: float = 0.02

    def delay(self, failures: int) -> float:
        up = self.server is not None and self.server.down_until is None
        return super().delay(failures - 2 if up else failures)


class SocketPool(EndpointPool[Endpoint, Any]):
    """The sockets of a manager.  No caller waits for a place in it, or for a server that is away.

    At most *max_sockets* are open (None: 0.8 of the files that this process may open), and at most
    *max_per_address* to one address.
    """

    def __init__(
        self,
        servers: ServerModelDirectory,
        *,
        max_sockets: int | None,
        max_per_address: int | None,
        **settings: Any,
    ) -> None:
        if max_per_address is not None:
            check_whole("max_per_address", max_per_address, least=1)
        if max_sockets is None:
            max_sockets = _most_sockets()
        else:
            check_whole("max_sockets", max_sockets, least=1)
        self.servers = servers
        self._max_per_address = max_per_address
        self._address_limits: WeakValueDictionary[AnyAddress, Limit] = WeakValueDictionary()
        self._traffic: WeakKeyDictionary[ServerModel, Traffic] = WeakKeyDictionary()
        self._factories: dict[object, SocketFactory] = {}
        self._socket_index = SocketIndex()
        super().__init__(
            max_size=_NO_BOUND if max_sockets is None else max_sockets,
            total_max_size=max_sockets,
            min_idle=0,
            **settings,
        )
        self._total.name = f"max_sockets of {self.name}"

    def socket_of(self, conn: Any) -> MonitoredSocket | None:
        """The socket in what is pooled; None if it is gone."""
        return self._socket_index.get(conn)

    def traffic_of(self, server: ServerModel) -> Traffic:
        """That of all sockets to *server*."""
        return self._traffic.setdefault(server, Traffic())

    def drain_address(self, gone: AnyAddress, over: float = 0.0) -> None:
        """Close every connection to an address, those in use on return."""
        for endpoint in self.endpoints():
            if endpoint.address == gone:
                self.drain(endpoint, over)

    def has_idle(self, endpoint: Endpoint) -> bool:
        """Whether a connection to *endpoint* lies idle."""
        bucket = self._buckets.get(endpoint)
        return bucket is not None and bucket.idle > 0

    def factory(self, endpoint: Endpoint) -> SocketFactory:
        """What opens sockets to *endpoint*; raises ValueError where TLS could never work."""
        key = (endpoint.address, endpoint.context, endpoint.server_hostname)
        factory = self._factories.get(key)
        if factory is None:
            factory = SocketFactory(
                endpoint.address,
                tls=False if endpoint.context is None else endpoint.context,
                server_hostname=endpoint.server_hostname,
                connect_timeout=self.connect_timeout,
            )
            if len(self._factories) >= _MOST_FACTORIES:  # a resolver may name ever new servers
                del self._factories[next(iter(self._factories))]
            self._factories[key] = factory
        return factory

    # Hooks

    def _new_connection(self, endpoint: Endpoint) -> Any:
        began = monotonic()
        try:
            return self._open(endpoint)
        except gevent.Timeout as expired:  # the pool's own, or one that a sock_type let out
            why = f": {expired.__cause__}" if expired.__cause__ is not None else ""
            text = f"{endpoint.address}: not open after {monotonic() - began:.3f} s{why}"
            raise DialError(text) from expired
        except Exception:
            raise
        except BaseException:
            # What those in line get: that this greenlet is killed is no failure of the server.
            if (bucket := self._buckets.get(endpoint)) is not None:
                text = f"{endpoint.address}: the dial was killed"
                bucket.note_error(DialError(text, blames=False))
            raise

    def _open(self, endpoint: Endpoint) -> Any:
        """Open a socket and make of it what is pooled."""
        try:
            sock = self.factory(endpoint)()
        except Exception as error:
            text = about(endpoint.address, error)
            raise DialError(text, blames=not _is_for_want_of_room(error)) from error
        server = self.servers[endpoint.address]
        monitored = MonitoredSocket(sock, self.traffic_of(server), address=endpoint.address)
        try:
            conn = self._wrapped(endpoint, monitored)
            self._socket_index.put(conn, monitored)
            server.sock_in_use(monitored, monitored.opened_at)
            return conn
        except BaseException:
            monitored.close_now()
            raise

    def _wrapped(self, endpoint: Endpoint, monitored: MonitoredSocket) -> Any:
        """What is pooled: the socket, or what its sock_type makes of it."""
        if endpoint.sock_type is None:
            return monitored
        try:
            conn = endpoint.sock_type(monitored)
        except Exception as error:
            text = about(endpoint.address, error)
            raise DialError(f"{text} (raised by {endpoint.sock_type!r})") from error
        if conn is None:
            raise DialError(f"{endpoint.address}: {endpoint.sock_type!r} returned None")
        if self.socket_of(conn) is not None:
            text = f"{endpoint.sock_type!r} returned what is pooled already: {conn!r}"
            raise DialError(f"{endpoint.address}: {text}")
        return conn

    def _keepalive(self, endpoint: Endpoint, conn: Any) -> object:
        return conn.keepalive()

    def _close_connection(self, endpoint: Endpoint, conn: Any) -> object:
        monitored = self.socket_of(conn)
        try:
            sockets.close(conn)
        finally:
            if monitored is not None:
                monitored.close_now()
                self.servers[endpoint.address].active_connections.pop(monitored, None)
                self._socket_index.discard(conn)
        return None

    def _fileno(self, endpoint: Endpoint, conn: Any) -> int | None:
        return sockets.fileno(self._carrier(conn))

    def _make_probe(self, conn: Any) -> Callable[[], object] | None:
        carrier = self._carrier(conn)
        return sockets.make_probe(carrier._sock if type(carrier) is MonitoredSocket else carrier)

    def _carrier(self, conn: Any) -> Any:
        """What has the descriptor: the socket in *conn*, or *conn* itself if its sock_type has
        taken it out of the socket, as wrapping that in TLS does."""
        monitored = self.socket_of(conn)
        return conn if monitored is None or sockets.fileno(monitored) is None else monitored

    # Buckets

    def _settings_of(self, endpoint: Endpoint | None) -> dict[str, Any]:
        settings: dict[str, Any] = {"fail_when_full": True, "fail_when_down": True}
        if endpoint is None:
            return settings
        settings["backoff"] = _ServerBackoff(server=self.servers[endpoint.address])
        if self._max_per_address is not None:
            limit = self._address_limits.get(endpoint.address)
            if limit is None:
                name = f"max_per_address of {self.name} {endpoint.address}"
                limit = Limit(self._max_per_address, name)
                self._address_limits[endpoint.address] = limit
            settings["limits"] = (limit, self._total, *self._limits)
        idle_timeout = getattr(endpoint.sock_type, "idle_timeout", None)
        if idle_timeout is not None:
            check_seconds("idle_timeout of sock_type", idle_timeout)
            settings["idle_timeout"] = idle_timeout
        return settings

    def _make_bucket(self, endpoint: Endpoint | None) -> Any:
        bucket = super()._make_bucket(endpoint)
        ping = None if endpoint is None else getattr(endpoint.sock_type, "keepalive", None)
        if ping is not None and not callable(ping):
            raise TypeError(f"keepalive of sock_type must be a method, not {ping!r}")
        bucket.has_keepalive = ping is not None
        return bucket


class SocketIndex:
    """The MonitoredSocket in each thing that is pooled, which may be that itself.

    A thing is known by its identity, as it may say that it equals others; and a tuple, as of a
    reader and a writer, by that of its parts, as its holder may take it apart and put it together
    again.  For as long as they live the socket does, even if nothing in them needs it any more.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def get(self, thing: Any) -> MonitoredSocket | None:
        """The socket in *thing*; None if there is none."""
        entry = self._entry(thing)
        return None if entry is None else entry.sock()

    def put(self, thing: Any, sock: MonitoredSocket) -> None:
        """Note that *sock* is in *thing*."""
        parts = _parts(thing)
        part_ids = tuple(map(id, parts))
        weakrefable = [part for part in parts if _is_weakrefable(part)]
        # It must not keep itself alive; and what cannot tell of its end must not keep anything.
        is_part = any(part is sock for part in parts)
        hold = weakref.ref(sock) if is_part or not weakrefable else lambda: sock
        for part in weakrefable:
            self._entries[id(part)] = _Entry(part_ids, hold, self._until_gone(part, id(part)))
        if not weakrefable:
            self._entries[id(thing)] = _Entry(part_ids, hold, self._until_gone(sock, id(thing)))

    def discard(self, thing: Any) -> None:
        """Keep nothing of *thing*."""
        entry = self._entry(thing)
        if entry is not None:
            for key in entry.part_ids:
                self._entries.pop(key, None)

    def _entry(self, thing: Any) -> _Entry | None:
        entry = self._entries.get(id(thing))
        if entry is not None and len(entry.part_ids) == 1:
            return entry
        parts = _parts(thing)
        found = (self._entries.get(id(part)) for part in parts)
        # Parts may be shared; None stands for one that has been collected.
        return next((entry for entry in found if entry is not None and entry.is_of(parts)), None)

    def _until_gone(self, anchor: Any, key: int) -> weakref.ref[Any]:
        entries = self._entries
        return weakref.ref(anchor, lambda _: entries.pop(key, None))


class _Entry(NamedTuple):
    part_ids: tuple[int, ...]  # the identities of the parts
    sock: Callable[[], MonitoredSocket | None]
    anchor: weakref.ref[Any]  # takes the entry out of the book

    def is_of(self, parts: Sequence[Any]) -> bool:
        return len(parts) == len(self.part_ids) and all(
            part is None or id(part) == known
            for part, known in zip(parts, self.part_ids, strict=True)
        )


def _parts(thing: Any) -> Sequence[Any]:
    """What *thing* is known by: the parts of a plain tuple, if one of them tells of its end."""
    if isinstance(thing, tuple) and not _is_weakrefable(thing) and any(map(_is_weakrefable, thing)):
        return thing
    return (thing,)


def _is_weakrefable(thing: Any) -> bool:
    """Whether *thing* can be weakly referenced."""
    return type(thing).__weakrefoffset__ != 0  # negative where the interpreter keeps it for itself


def _most_sockets() -> int | None:
    """0.8 of the files that this process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if files == resource.RLIM_INFINITY else max(int(0.8 * files), 1)


def _is_for_want_of_room(error: BaseException) -> bool:
    """Whether it was this machine that had no room for one more socket, and not the server."""
    if isinstance(error, MultiConnectFailure):  # a host with several addresses
        return all(_is_for_want_of_room(each) for _, each in error.errors)
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def about(where: object, error: BaseException) -> str:
    """What *error* says, and where it was, unless it says that itself."""
    text = str(error) or type(error).__name__
    return text if str(where) in text else f"{where}: {text}"
