"""SocketPool: the sockets of a ConnectionManager, and what was made of them.

An EndpointPool in which no caller waits for a place, or for a server that is away.  What is pooled
is a MonitoredSocket, or what a caller's *sock_type* has made of one; that one is found again by
``socket_of``.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import gevent

from geventpool import sockets
from geventpool._util.arguments import check_seconds, check_whole
from geventpool._util.clock import monotonic
from geventpool._util.errors import about, copy_of
from geventpool.addresses import AnyAddress
from geventpool.errors import ConnectError, MultiConnectFailure, Verdict
from geventpool.manager.balancing import ServerModelDirectory
from geventpool.manager.health import Attempt, ServerModel
from geventpool.manager.server_backoff import DialFailures, ServerBackoff
from geventpool.manager.socket_index import SocketIndex
from geventpool.pools import EndpointPool, Limit
from geventpool.sockets.factory import SocketFactory
from geventpool.sockets.monitored import MonitoredSocket, Traffic

__all__ = ["DialError", "Endpoint", "SockType", "SocketPool"]

#: What makes of a socket the thing that is pooled.
SockType: TypeAlias = Callable[[Any], Any]

_NO_BOUND = 2**31 - 1
_MOST_FACTORIES = 1024

#: What a system call says if it is this machine that has no room for one more socket.
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}

#: What a dial says that has not come so far as to ask the server: the host was not found in time,
#: or its line of those to be accepted was full.
_NOT_ASKED = {errno.EAGAIN, socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM}


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

    def __init__(
        self, message: str, *, blames: bool = True, verdict: Verdict = Verdict.BROKEN
    ) -> None:
        super().__init__(message)
        self._blame = [blames and verdict is not Verdict.SERVER_FULL]  # one for all copies
        self.verdict = verdict

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


class SocketPool(EndpointPool[Endpoint, Any]):
    """The sockets of a *manager*, of that class.  No caller waits for a place in it, or for a
    server that is away.

    At most *max_sockets* are open (None: 0.8 of the files that this process may open), and at most
    *max_per_address* to one address.
    """

    _is_managed = True

    def __init__(
        self,
        servers: ServerModelDirectory,
        *,
        manager: type,
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
        self._named_after = manager
        self._max_per_address = max_per_address
        self._address_limits: WeakValueDictionary[AnyAddress, Limit] = WeakValueDictionary()
        self._traffic: WeakKeyDictionary[ServerModel, Traffic] = WeakKeyDictionary()
        self._failed_dials: WeakKeyDictionary[ServerModel, DialFailures] = WeakKeyDictionary()
        self._factories: dict[object, SocketFactory] = {}
        #: What callers that wait no longer have left for the end of a dial to decide; empty if they
        #: have told the server's model themselves.
        self._left: dict[Endpoint, list[Attempt]] = {}
        #: The use that a greenlet is about to get, for listeners that it calls before it has it.
        self.coming_uses: dict[Any, Any] = {}
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

    def failed_dials(self, server: ServerModel) -> DialFailures:
        """Those to *server* in a row, by whichever endpoint."""
        return self._failed_dials.setdefault(server, DialFailures())

    def leave_dial(self, endpoint: Endpoint, attempt: Attempt | None) -> None:
        """Its caller waits no longer for a dial that may be under way; how that ends decides the
        *attempt*.  None: the caller has decided it, and the dial has nothing to add if it fails."""
        if self._standing(endpoint).connecting:
            left = self._left.setdefault(endpoint, [])
            if attempt is not None:
                left.append(attempt)
        elif attempt is not None:
            attempt.cancelled(monotonic())

    def drain_address(self, gone: AnyAddress, over: float = 0.0) -> None:
        """Close every connection to an address, those in use on return."""
        for endpoint in self.endpoints():
            if endpoint.address == gone:
                self.drain(endpoint, over)

    def has_idle(self, endpoint: Endpoint) -> bool:
        """Whether a connection to *endpoint* lies idle."""
        return self._standing(endpoint).idle > 0

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
        server = self.servers[endpoint.address]
        server.dials += 1
        failed_dials = self.failed_dials(server)
        try:
            conn = self._open(endpoint, server)
        except gevent.Timeout as expired:  # the pool's own, or one that a sock_type let out
            why = f": {expired.__cause__}" if expired.__cause__ is not None else ""
            text = f"{endpoint.address}: not open after {monotonic() - began:.3f} s{why}"
            blames = expired.__cause__ is None or not _is_not_the_servers(expired.__cause__)
            failed_dials.error = error = DialError(text, blames=blames)
            self._tell_of_failure(endpoint, server, error)
            raise error from expired
        except Exception as raised:
            failed_dials.error = raised
            self._tell_of_failure(endpoint, server, raised)
            raise
        except BaseException:
            self._cancel_left(endpoint)
            # What those in line get: that this greenlet is killed is no failure of the server.
            text = f"{endpoint.address}: the dial was killed"
            self._dial_was_killed(DialError(text, blames=False), endpoint)
            raise
        now = monotonic()
        failed_dials.opened(now)
        for attempt in self._left.pop(endpoint, ()):
            attempt.connected(now)
            attempt.cancelled(now)
        return conn

    def _tell_of_failure(
        self, endpoint: Endpoint, server: ServerModel, error: BaseException
    ) -> None:
        """Tell the server's model of a failed dial, unless a caller that waits for it will."""
        left = self._left.pop(endpoint, None)
        is_awaited = self._standing(endpoint).waiting > 0
        now = monotonic()
        if left:
            if isinstance(error, DialError) and error.claim_blame():
                decides = next((each for each in left if each.probe), left[0])
                decides.failed(now, error.cause_for_caller())
        elif left is None and not is_awaited:
            if isinstance(error, DialError) and error.claim_blame():
                server.failed(now, error.cause_for_caller(), connecting=True)
        self._cancel_left(endpoint, left)

    def _cancel_left(self, endpoint: Endpoint, left: list[Attempt] | None = None) -> None:
        for attempt in self._left.pop(endpoint, ()) if left is None else left:
            attempt.cancelled(monotonic())

    def _open(self, endpoint: Endpoint, server: ServerModel) -> Any:
        """Open a socket and make of it what is pooled."""
        try:
            sock = self.factory(endpoint)()
        except Exception as error:
            text = about(endpoint.address, error)
            raise DialError(text, blames=not _is_not_the_servers(error)) from error
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
            text = f"{about(endpoint.address, error)} (raised by {endpoint.sock_type!r})"
            raise DialError(text, verdict=self._verdict_of(endpoint, error)) from error
        if conn is None:
            raise DialError(f"{endpoint.address}: {endpoint.sock_type!r} returned None")
        if self.socket_of(conn) is not None:
            text = f"{endpoint.sock_type!r} returned what is pooled already: {conn!r}"
            raise DialError(f"{endpoint.address}: {text}")
        return conn

    def _verdict_of(self, endpoint: Endpoint, error: Exception) -> Verdict:
        """By the sock_type, which knows what its server says: SERVER_FULL, or BROKEN for all else,
        as no caller waits here for what a FATAL error is about."""
        classify = getattr(endpoint.sock_type, "classify_error", None)
        if classify is None:
            return Verdict.BROKEN
        try:
            found = classify(error)
        except Exception:
            self._log(logging.ERROR, "classify_error failed at %r", error, exc_info=True)
            return Verdict.BROKEN
        return Verdict.SERVER_FULL if found is Verdict.SERVER_FULL else Verdict.BROKEN

    def _classify_error(self, error: Exception) -> Verdict:
        return error.verdict if isinstance(error, DialError) else super()._classify_error(error)

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

    def _socket(self, endpoint: Endpoint, conn: Any) -> Any:
        """The socket in *conn*, or what *conn* says itself if its sock_type has taken the
        descriptor out of the socket, as wrapping that in TLS does."""
        monitored = self.socket_of(conn)
        return sockets.carriers(
            conn if monitored is None or sockets.fileno(monitored) is None else monitored
        )

    # Buckets

    def _acquire(self, endpoint: Endpoint, timeout: float | None) -> tuple[Any, Any]:
        standing = self._standing(endpoint)
        if not (standing.open or standing.connecting):
            self._cancel_left(endpoint)  # for a dial that never began
            # A bucket knows the pause after its own dials, not that after others to the server.
            failed_dials = self._failed_dials.get(self.servers[endpoint.address])
            if failed_dials is not None and failed_dials.paused:
                if monotonic() < failed_dials.retry_at or self._is_probing(failed_dials):
                    raise _refusal(endpoint, failed_dials)
                failed_dials.probing = endpoint
        return super()._acquire(endpoint, timeout)

    def _is_probing(self, failed_dials: DialFailures) -> bool:
        """Whether the one dial that is to begin after a pause is under way, or about to be."""
        endpoint: Any = failed_dials.probing
        standing = None if endpoint is None else self._standing(endpoint)
        return standing is not None and standing.connecting + standing.waiting > 0

    def _settings_of(self, endpoint: Endpoint | None) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "fail_when_full": True,
            "fail_when_down": True,
            "has_keepalive": False,
        }
        if endpoint is None:
            return settings
        server = self.servers[endpoint.address]
        settings["backoff"] = ServerBackoff(server=server, dials=self.failed_dials(server))
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
        ping = getattr(endpoint.sock_type, "keepalive", None)
        if ping is not None and not callable(ping):
            raise TypeError(f"keepalive of sock_type must be a method, not {ping!r}")
        settings["has_keepalive"] = ping is not None
        return settings


def _most_sockets() -> int | None:
    """0.8 of the files that this process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if files == resource.RLIM_INFINITY else max(int(0.8 * files), 1)


def _is_not_the_servers(error: BaseException) -> bool:
    """Whether it was this machine that had no room for one more socket, or a look-up that did not
    come to an end, and not the server."""
    if isinstance(error, MultiConnectFailure):  # a host with several addresses
        return all(_is_not_the_servers(each) for _, each in error.errors)
    return isinstance(error, OSError) and error.errno in (_NO_ROOM | _NOT_ASKED)


def _refusal(endpoint: Endpoint, failed_dials: DialFailures) -> BaseException:
    """What a caller gets whose dial would come too soon after the last one."""
    if failed_dials.error is not None:
        return copy_of(failed_dials.error)
    text = f"{endpoint.address}: its last connections broke at once, and it waits a moment"
    return DialError(text, blames=False)
