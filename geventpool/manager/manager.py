"""ConnectionManager: from a name to an open connection.

It puts together what others know: Names, which addresses a name has (``names.py``); a
ServerModelDirectory, how each of them is doing and which to try next (``health.py``); and a
SocketPool, the sixth socket of which is never opened if five are the limit (``socket_pool.py``).
What is here is the walk over the addresses, and what is told to whom when it has come to an end.

The walk never counts as a failure of a server what is none: that its caller was killed, or that
there was no place for one more socket.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from time import monotonic
from types import TracebackType
from typing import Any, TypeAlias, cast

import gevent
from gevent.monkey import get_original

from geventpool._scheduler.limit import Limit
from geventpool._scheduler.state import IN_USE
from geventpool._util.arguments import check_seconds
from geventpool._util.errors import about
from geventpool.addresses import Address, AnyAddress, Resolver, address
from geventpool.errors import (
    ConnectError,
    MarkedDownError,
    MultiConnectFailure,
    OutOfSockets,
    PoolError,
    PoolTimeout,
)
from geventpool.events import PoolStats, Reason
from geventpool.manager.health import Attempt, Balance, HealthPolicy, ServerModelDirectory
from geventpool.manager.names import AddressGroupMap, ConnectInfo, Names, Target
from geventpool.manager.socket_pool import DialError, Endpoint, SocketPool, SockType
from geventpool.pools.lease import DEFAULT
from geventpool.sockets.factory import SocketFactory
from geventpool.sockets.monitored import MonitoredSocket, Traffic

__all__ = ["AddressGroupMap", "ConnectInfo", "ConnectionManager"]

#: What a caller may say about TLS: no; yes, verified; by this context; yes, with whomever.
Tls: TypeAlias = "bool | str | ssl.SSLContext"

_SSLContext = get_original("ssl", "SSLContext")
_LEAST_PART = 2.0  # seconds for each of many addresses: enough for a SYN to be lost once
_IMPATIENT = 0.1  # a caller that waited less has learnt nothing about the server
_FRESH = 0.05  # seconds for which a ranking of servers is good


class ConnectionManager:
    """Gives out open connections by the name of a service, and avoids servers that are sick::

        manager = ConnectionManager({"paymentserv": [[(1, "10.0.0.1:443"), (1, "10.0.0.2:443")]]})
        with manager.connection("paymentserv", ssl=True) as sock:
            sock.sendall(request)
            ...

    *address_groups* maps each name to an AddressGroup or to its tiers; or it is a resolver, as a
    DnsResolver or an AddressGroupMap: then the names it was asked for are watched, every
    *watch_interval* seconds, and a change counts once it has held for *watch_hold*.  Connections
    to an address that is gone are closed, those in use on return.  With *rebalance*, when an
    address is new, all connections of that name are replaced within so many seconds.
    *address_aliases* maps a name to another one, or to one address.  *ssl_context* is what
    ``ssl=True`` means (None: TLS 1.2 or later, verified against the system's roots).

    - Each call takes at most *timeout* seconds, resolving, markdown and all addresses included.
      *connect_infos* says of a name how to connect to it (default: a plain ConnectInfo).
      *connect_timeout* is that of one connect, TLS and *sock_type* included; it goes on for others
      when its caller has gone on to the next address.
    - *balance* ("weighted" or "p2c") and *health* say which address comes first, and when one is
      marked down: see ServerModelDirectory and HealthPolicy.  ``servers`` has what is known.
    - At most *max_sockets* are open (None: 0.8 of the files that the process may open), and at most
      *max_per_address* to one address; the longest idle ones are closed to make room.  With
      *limits* it shares the limits of other pools.
    - A socket that was idle for *idle_timeout*, or open for *max_lifetime*, is closed.

    One manager is for one gevent hub.  Dropped, it closes what is idle.  Durations are seconds;
    None means no bound.
    """

    def __init__(
        self,
        address_groups: Mapping[str, Any] | Resolver | None = None,
        address_aliases: Mapping[str, Any] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        *,
        connect_infos: Mapping[str, ConnectInfo] | None = None,
        timeout: float | None = 10.0,
        connect_timeout: float | None = 5.0,
        balance: Balance = "weighted",
        health: HealthPolicy | None = None,
        max_sockets: int | None = None,
        max_per_address: int | None = None,
        limits: Iterable[Limit] = (),
        idle_timeout: float | None = 60.0,
        max_lifetime: float | None = 3600.0,
        keepalive: float | None = 30.0,
        rebalance: float | None = None,
        watch_interval: float = 1.0,
        watch_hold: float = 5.0,
        listeners: Iterable[object] = (),
        name: str = "manager",
    ) -> None:
        check_seconds("timeout", timeout, zero=True)
        check_seconds("rebalance", rebalance, zero=True)
        if ssl_context is not None and not isinstance(ssl_context, _SSLContext):
            raise TypeError(f"ssl_context must be an SSLContext or None, not {ssl_context!r}")
        self.timeout = timeout
        self.ssl_context = ssl_context
        self.rebalance = rebalance
        self.servers = ServerModelDirectory(health, balance=balance)
        self._contexts: dict[object, ssl.SSLContext | None] = {}
        self._names = Names(
            address_groups,
            address_aliases,
            connect_infos,
            on_change=self._changed,
            watch_interval=watch_interval,
            watch_hold=watch_hold,
        )
        self.connect_infos = self._names.infos
        self._pool = SocketPool(
            self.servers,
            max_sockets=max_sockets,
            max_per_address=max_per_address,
            connect_timeout=_longest(connect_timeout, self.connect_infos),
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
            keepalive=keepalive,
            limits=limits,
            listeners=listeners,
            name=name,
        )

    # Names

    def get_all_addrs(self, name: str) -> list[AnyAddress]:
        """All addresses of *name*, in an order drawn anew; raises NameNotFound if there are none.

        May block for *timeout* seconds of the manager, if the resolver does.
        """
        return self._names.find(name, self._ends_at(DEFAULT)).group.connect_ordering()

    def get_addr(self, name: str) -> AnyAddress:
        """The first of ``get_all_addrs(name)``."""
        return self.get_all_addrs(name)[0]

    # Connections

    def get_connection(
        self,
        name_or_addr: object,
        ssl: Tls = False,
        sock_type: SockType | None = None,
        read_timeout: float | None = None,
        *,
        server_hostname: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> Any:
        """Return an open connection to the best address of *name_or_addr*; ``release_connection``
        it afterwards.

        That is a name, an AddressGroup, or one address in any spelling (a text is a name if the
        manager knows it).  With *ssl*, TLS: True (verified, by the manager's context), an
        SSLContext, or "unverified".  The certificate must be that of *server_hostname*, by default
        the host of the address, or, where a resolver found that, the host in the name.

        What is returned, and pooled, is a MonitoredSocket, or what *sock_type* makes of one: a
        callable that takes the socket, and may shake hands and log in.  If it has a method
        *keepalive*, that is called on what it made when this was idle for the manager's
        *keepalive* seconds, and what it raises closes it; its *idle_timeout*, in seconds, goes
        before the manager's.  It should be one object, not made anew for each call: connections
        are shared by callers that ask with the same.

        The timeout of the socket is *read_timeout* seconds (None: that of the name's ConnectInfo).

        Blocks for at most *timeout* seconds.  Raises an OSError: NameNotFound; OutOfSockets, with
        the name of the limit; the one address's own error, or MultiConnectFailure with those of
        all; MarkedDownError where that was done by hand.  Nothing half-open stays behind.
        """
        self._pool._runtime.assert_usable_here(self._pool)
        check_seconds("read_timeout", read_timeout)
        if sock_type is not None and not callable(sock_type):
            raise TypeError(f"sock_type must be callable, not {sock_type!r}")
        context = self._context(ssl)
        ends_at = self._ends_at(timeout)
        found = self._names.find(name_or_addr, ends_at)
        if found.info.markdown:
            message = f"{found.name} is marked down by its ConnectInfo"
            raise MarkedDownError(message, address=found.name)
        if context is None:
            if server_hostname is not None:
                raise ValueError("server_hostname is of no use without ssl")
        elif server_hostname is None and found.host is not None:
            server_hostname = _certified(found.host)
        if read_timeout is None and found.info.response_timeout_ms is not None:
            read_timeout = found.info.response_timeout_ms / 1000.0

        def endpoint_at(each: AnyAddress) -> Endpoint:
            return Endpoint(each, context, sock_type, server_hostname)

        return _AddressWalk(
            self.servers, self._pool, found, endpoint_at, ends_at, read_timeout
        ).run()

    def connection(
        self,
        name_or_addr: object,
        ssl: Tls = False,
        sock_type: SockType | None = None,
        read_timeout: float | None = None,
        *,
        server_hostname: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> ManagedLease:
        """A connection for the length of a ``with``; the arguments are ``get_connection``'s.

        Nothing raised in the ``with``: the server did well, and the connection goes back.  A broken
        connection, or a time-out, also a ``gevent.Timeout``: the server failed, and it is closed.
        Any other OSError, or a kill: it is closed, and no server blamed.  Another exception:
        it goes back, unless bytes lie unread on it.
        """
        options = {"server_hostname": server_hostname, "timeout": timeout}
        return ManagedLease(self, (name_or_addr, ssl, sock_type, read_timeout), options)

    def release_connection(self, sock: Any) -> None:
        """Give back a connection that is fit for use.  Does not block.

        Its server did well, unless that was ``report``-ed otherwise or *sock* is closed.  Raises
        NotInUse if it was released already, or is none of this manager's.
        """
        monitored = self._held(sock)
        if monitored is not None:
            if monitored.closed_at is not None and not monitored.detached:
                self.discard_connection(sock)
                return
            if monitored.use.outcome is None:
                monitored.use.succeeded()
        self._pool.release(sock)

    def discard_connection(self, sock: Any) -> None:
        """Give back a connection that must not be used again; it is closed in the background.

        No server is blamed for that: ``report`` it before, if the server is to blame.
        """
        monitored = self._held(sock)
        if monitored is not None:
            monitored.use.cancelled()
        self._pool.discard(sock)

    def report(self, sock: Any, ok: bool = True, error: BaseException | None = None) -> None:
        """Say of *sock*, which you hold, whether its server did what was wanted.

        Failures in a row mark an address down, though it can be connected to; its connections are
        closed then.  May be called for each request.
        """
        monitored = self._held(sock)
        if monitored is not None:
            if ok:
                monitored.use.succeeded()
            else:
                self._failed(monitored.use, error)

    # Health, by hand

    def mark_down(self, target: object, seconds: float | None = None) -> None:
        """Use the address *target* for nothing, for *seconds* (None: until ``mark_up``).

        Its connections are closed, those in use on return.
        """
        self._pool._runtime.assert_usable_here(self._pool)
        server = self.servers[address(target)]
        server.mark_down(monotonic(), seconds)
        self._pool.drain_address(server.address)

    def mark_up(self, target: object) -> None:
        """Use the address *target* again, and forget that it ever failed."""
        self._pool._runtime.assert_usable_here(self._pool)
        self.servers[address(target)].mark_up(monotonic())

    # Looking, and the end

    def traffic(self, target: object) -> Traffic:
        """What went through all sockets to the address *target*."""
        return self._pool.traffic_of(self.servers[address(target)])

    def stats(self) -> PoolStats:
        """How its pool stands, and what that has counted."""
        return self._pool.stats()

    def __repr__(self) -> str:
        stats = self._pool.stats()
        down = sum(server.down_until is not None for server in self.servers.values())
        return (
            f"<{type(self).__name__} {self._pool.name!r} {stats.in_use} in use, {stats.idle} idle,"
            f" {stats.connecting} connecting | {len(self.servers)} servers, {down} down>"
        )

    def close(self, timeout: float | None = None) -> None:
        """Close it for good: as ``ConnectionPool.close``; afterwards calls get PoolClosed."""
        self._pool._runtime.assert_usable_here(self._pool)
        self._names.close()
        self._pool.close(timeout)

    def __enter__(self) -> ConnectionManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Inside

    def _ends_at(self, timeout: float | None) -> float:
        check_seconds("timeout", None if timeout is DEFAULT else timeout, zero=True)
        seconds = self.timeout if timeout is DEFAULT else timeout
        return math.inf if seconds is None else monotonic() + seconds

    def _changed(self, gone: Collection[AnyAddress], joined: Collection[AnyAddress]) -> None:
        """No name leads to those *gone* any more; to others, those *joined*, a new one has come."""
        for each in gone:
            self._pool.drain_address(each)
        if self.rebalance is not None:
            for each in joined:
                self._pool.drain_address(each, over=self.rebalance)

    def _context(self, tls: Tls) -> ssl.SSLContext | None:
        """The SSLContext that *tls* asks for; one for all, as it is a part of what is shared."""
        if isinstance(tls, _SSLContext):
            return cast("ssl.SSLContext", tls)
        if tls is False:
            return None
        if tls is True and self.ssl_context is not None:
            return cast("ssl.SSLContext", self.ssl_context)
        if tls is not True and tls != "unverified":
            expected = 'False, True, "unverified" or an SSLContext'
            raise TypeError(f"ssl must be {expected}, not {tls!r}")
        if tls not in self._contexts:
            self._contexts[tls] = SocketFactory("localhost:1", tls=tls).context
        return self._contexts[tls]

    def _held(self, sock: Any) -> MonitoredSocket | None:
        """The socket in *sock*, which must be in use."""
        self._pool._runtime.assert_usable_here(self._pool)
        self._pool._runtime.find(self._pool, sock)
        return self._pool.socket_of(sock)

    def _failed(self, use: _Use, error: BaseException | None) -> None:
        use.failed(error)
        server = use.attempt.server
        if use.counts and server.down_until is not None:
            self._pool.drain_address(server.address)

    def _end_lease(self, sock: Any, uses: int, exc: BaseException | None) -> None:
        """End a ``with``; do nothing if *sock* was given back in it."""
        pool = self._pool
        slot = pool.slots_by_id.get(id(sock))
        if slot is None or slot.state is not IN_USE or slot.uses != uses:
            return
        if exc is None:
            self.release_connection(sock)
            return
        monitored = pool.socket_of(sock)
        if monitored is not None:
            if _blames_server(exc) and monitored.use.outcome is not False:
                self._failed(monitored.use, exc)
            else:
                monitored.use.cancelled()
        if pool._breaks_connection(exc):
            pool._runtime.discard(pool, slot, sock, Reason.ERROR, exc)
        else:
            pool._runtime.checkin(pool, slot, sock, suspect=True)


class ManagedLease:
    """What ``manager.connection()`` returns: in a ``with`` it is a connection, for a while."""

    __slots__ = ("_arguments", "_manager", "_options", "_sock", "_uses")

    def __init__(
        self, manager: ConnectionManager, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._manager = manager
        self._arguments = arguments
        self._options = options

    def __enter__(self) -> Any:
        manager = self._manager
        self._sock = sock = manager.get_connection(*self._arguments, **self._options)
        self._uses = manager._pool.slots_by_id[id(sock)].uses
        return sock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sock, self._sock = self._sock, None
        self._manager._end_lease(sock, self._uses, exc)


class _Use:
    """One use of a socket: the *attempt* that led to it, and what was said of it.

    *counts*: failures do.  *outcome*: how the last request ended, once that was reported.
    """

    __slots__ = ("attempt", "counts", "outcome")

    def __init__(self, attempt: Attempt, counts: bool) -> None:
        self.attempt = attempt
        self.counts = counts
        self.outcome: bool | None = None

    def succeeded(self) -> None:
        now = monotonic()
        if self.outcome is None:
            self.attempt.succeeded(now)
        else:
            self.attempt.server.succeeded(now)
        self.outcome = True

    def failed(self, error: BaseException | None) -> None:
        now, server = monotonic(), self.attempt.server
        if not self.counts:
            self.attempt.cancelled(now)
        elif self.outcome is None:
            self.attempt.failed(now, error)
        elif server.state(now) == "up":  # else it is known: each would have it down for longer
            server.failed(now, error)
        self.outcome = False

    def cancelled(self) -> None:
        self.attempt.cancelled(monotonic())


class _AddressWalk:
    """One call of get_connection: from address to address until one can be connected to."""

    def __init__(
        self,
        servers: ServerModelDirectory,
        pool: SocketPool,
        found: Target,
        endpoint_at: Callable[[AnyAddress], Endpoint],
        ends_at: float,
        read_timeout: float | None,
    ) -> None:
        self.servers, self.pool = servers, pool
        self.name, self.group, _, self.info = found
        self.endpoint_at = endpoint_at
        self.ends_at, self.read_timeout = ends_at, read_timeout
        self.tried: set[AnyAddress] = set()
        self.errors: list[tuple[AnyAddress, BaseException]] = []

    def run(self) -> Any:
        """A connection; raises what all the addresses came to."""
        for again in range(1 + self.info.max_connect_retry):
            if again and not self._pause(again):
                break
            self.tried.clear()
            for attempt in self._attempts():
                conn = self._try_address(attempt)
                if conn is not None:
                    return conn
        raise self._failure()

    def _attempts(self) -> Iterator[Attempt]:
        """One at each address, the best of those left first.

        Which that is changes as others make attempts; but to rank them anew at each step would be a
        million looks at a thousand addresses of which none answers.
        """
        while True:
            now = monotonic()
            stale_at = now + _FRESH
            if now < self.ends_at:
                stale_at = min(stale_at, self.ends_at)
            else:
                self._pass_over_what_is_not_open(now)
            is_first = True
            for server, usable in self.servers.ranked(self.group, now, self.tried):
                if usable and not is_first and not server.admits(monotonic()):
                    break  # perhaps it has gone down since
                attempt = server.admit(monotonic(), panic=True)
                if attempt is not None:
                    self.tried.add(server.address)
                    yield attempt
                    is_first = False
                    if monotonic() >= stale_at:
                        break
            else:
                return

    def _pass_over_what_is_not_open(self, now: float) -> None:
        """Nothing is left of the time, and only what lies idle can be had."""
        if len(self.group.addresses) == 1:
            return  # it has an error of its own
        for each in sorted(self.group.addresses.difference(self.tried), key=str):
            if not self.pool.has_idle(self.endpoint_at(each)):
                self.tried.add(each)
                server = self.servers[each]
                error: OSError = PoolTimeout(f"{each}: no time was left", pool=self.pool.name)
                if server.down_until is not None:
                    error = server.marked_down_error(now)
                self.errors.append((each, error))

    def _try_address(self, attempt: Attempt) -> Any:
        """A connection to one address; None if there is none, and ``errors`` says why."""
        endpoint = self.endpoint_at(attempt.address)
        max_wait = self._max_wait()
        failed: BaseException
        blamed = self.info.transient_markdown_enabled
        try:
            self.pool.factory(endpoint)  # what can be told now need not cost a dial
            slot, conn = self.pool._acquire(endpoint, max_wait)
        except OutOfSockets as error:
            failed, blamed = error, False
        except PoolTimeout as error:
            failed = error
            blamed = blamed and max_wait >= min(_IMPATIENT, self._most)
        except DialError as error:
            failed = error.cause_for_caller()
            blamed = blamed and error.claim_blame()
        except ConnectError as error:  # what it connected to has hung up at once, several times
            failed = error
        except BaseException:  # and no other OSError is the server's: see DialError
            attempt.cancelled(monotonic())
            raise
        else:
            self._hand_out(conn, attempt, fresh=slot.uses == 1)
            return conn
        self.errors.append((attempt.address, failed.with_traceback(None)))
        if blamed:
            attempt.failed(monotonic(), failed)
        else:
            attempt.cancelled(monotonic())
        return None

    def _hand_out(self, conn: Any, attempt: Attempt, fresh: bool) -> None:
        attempt.connected(monotonic(), reused=not fresh)
        monitored = self.pool.socket_of(conn)
        if monitored is not None:
            monitored.new_sock = fresh
            monitored.use = _Use(attempt, self.info.transient_markdown_enabled)
            monitored.settimeout(self.read_timeout)
            if monitored.detached and callable(set_timeout := getattr(conn, "settimeout", None)):
                set_timeout(self.read_timeout)

    @property
    def _most(self) -> float:
        """Seconds for one address at most."""
        return self.info.connect_timeout_ms / 1000.0

    def _max_wait(self) -> float:
        """Seconds for this address: a part of what is left, so that there is some for the others.

        Once nothing is left, only what lies idle can be had.
        """
        left = max(self.ends_at - monotonic(), 0.0)
        others = max(len(self.group.addresses) - len(self.tried), 0)
        part = left if not others else max(left / (1 + others), min(_LEAST_PART, left / 2))
        return min(part, self._most)

    def _pause(self, again: int) -> bool:
        """Wait a moment before all are tried again; False if there is no time for that."""
        seconds = min(0.05 * 2 ** min(again - 1, 9), 1.0)
        if monotonic() + seconds >= self.ends_at:
            return False
        gevent.sleep(seconds)
        return True

    def _failure(self) -> BaseException:
        """What all the addresses came to."""
        now = monotonic()
        for each in sorted(self.group.addresses.difference(self.tried), key=str):
            self.errors.append((each, self.servers[each].marked_down_error(now)))
        errors, self.errors = self.errors, []
        last = errors[-1][1]
        if len(self.group.addresses) == 1 or all(isinstance(e, OutOfSockets) for _, e in errors):
            return last
        shown = "; ".join(about(each, error) for each, error in errors[:5])
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        message = f"{self.name}: no connection to any of {len(self.group.addresses)} addresses"
        return MultiConnectFailure(f"{message}: {shown}{more}", errors=errors)


def _longest(connect_timeout: float | None, infos: Mapping[str, ConnectInfo]) -> float | None:
    """A bound for a connect that no name's own bound is longer than."""
    check_seconds("connect_timeout", connect_timeout)
    if connect_timeout is None:
        return None
    return max([connect_timeout, *(info.connect_timeout_ms / 1000.0 for info in infos.values())])


def _certified(name: str) -> str:
    """The host in *name*, as the one whose certificate is asked for; a resolver, which may have
    asked anybody, has no say in that."""
    try:
        known = address(name, default_port=1)
    except ValueError as error:
        message = f"ssl needs server_hostname: {name!r} says not whose certificate it should be"
        raise ValueError(message) from error
    if not isinstance(known, Address):
        raise ValueError(f"ssl needs server_hostname: {name!r} has no host")
    return known.ip.removesuffix(".")


def _blames_server(exc: BaseException) -> bool:
    """Whether *exc*, which left a ``with``, says that the server did not do its work.

    Not if it is of another connection, or a file that is not there, or the caller's own.
    """
    if isinstance(exc, (ConnectError, PoolError)):
        return False
    failures = (ConnectionError, TimeoutError, ssl.SSLError, gevent.Timeout)
    return isinstance(exc, failures) or type(exc) is OSError
