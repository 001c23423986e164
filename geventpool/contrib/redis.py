"""GeventConnectionPool: what ``redis.Redis(connection_pool=…)`` takes, on this package's engine."""

from __future__ import annotations

import functools
import inspect
import os
import socket
import ssl
from contextlib import suppress
from typing import Any

import redis
from gevent import monkey
from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import CacheProxyConnection
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from geventpool.errors import NotInUse, PoolUnavailable, Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import Fork, in_child
from geventpool.sockets import SocketFactory

__all__ = ["GeventConnectionPool", "GeventSentinelConnectionPool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}
_ONCE = Retry(NoBackoff(), 0)
_pid = os.getpid()  # which is asked for at each return: to ask the system takes as long as a look

#: What leaves a connection in a state that its next user must not find it in.
_STATEFUL = {
    *("SELECT", "AUTH", "HELLO", "RESET", "READONLY", "READWRITE"),
    *("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "SYNC", "PSYNC", "REPLCONF"),
    *("CLIENT REPLY", "CLIENT TRACKING", "CLIENT CACHING", "CLIENT SETNAME", "CLIENT SETINFO"),
    *("CLIENT NO-EVICT", "CLIENT NO-TOUCH", "SCRIPT DEBUG"),
}
_WITH_SUBCOMMANDS = {name.split()[0] for name in _STATEFUL if " " in name}
#: What may begin or end a state.
_NOTED = {name.split()[0] for name in _STATEFUL} | {
    *("WATCH", "UNWATCH", "MULTI", "EXEC", "DISCARD", "ASKING"),
}


class GeventConnectionPool(ConnectionPool[Any], redis.ConnectionPool):  # type: ignore[misc]
    """A pool for redis-py.

        pool = GeventConnectionPool.from_url("redis://cache.example.org/0", size=10)
        client = redis.Redis(connection_pool=pool)

    It takes the settings of ConnectionPool and the arguments of ``redis.ConnectionPool`` (those of
    a connection, that is) together; *size* is *max_connections* if that is given instead, else 10.
    Commands, pipelines, transactions, pub/sub, locks and scripts are redis-py's, and each borrows a
    connection from here; a PubSub has its own until it is closed.  A RedisCluster has a pool for
    each node: ``RedisCluster.from_url(url, connection_pool_class=GeventConnectionPool)``.

    What cannot be served raises the errors of ConnectionPool, which are redis-py's, too: a
    PoolTimeout is a ``redis.ConnectionError``, and a ``redis.exceptions.MaxConnectionsError``
    unless a dial has failed.

    Sockets are opened by SocketFactory, and the arguments ``socket_keepalive…`` mean nothing.
    Nothing needs to be patched, but for what sleeps in redis-py: locks, and retries with a
    back-off.  The *retry* of the arguments is for commands: a dial is tried once, as the pool has
    its own back-off.  A connection is closed on return if replies lie unread in its parser, pushes
    of RESP3 included, if redis-py has disconnected it, or connected it anew, if SELECT, AUTH,
    CLIENT SETNAME, SUBSCRIBE, RESET and the like were sent on it, alone or in a pipeline, or if a
    MULTI or WATCH has not come to its end; if bytes lie unread on its socket, before it would be
    handed out again.

    Redis Enterprise's notifications of maintenance are off, unless *maint_notifications_config*
    is given: with them each connection keeps the pool alive, which must be closed then.
    """

    def __init__(
        self, connection_class: Any = redis.Connection, size: int | None = None, **arguments: Any
    ) -> None:
        settings, arguments = _split(arguments)
        redis.ConnectionPool.__init__(self, connection_class=connection_class, **arguments)
        self._start(size or arguments.get("max_connections") or 10, settings)

    connection_class: Any

    def _start(self, size: int, settings: dict[str, Any]) -> None:
        self.connection_class = _gevent_class(self.connection_class)
        self._sockets = _Sockets()
        ConnectionPool.__init__(self, size, **settings)
        self.max_connections = size

    # What redis-py calls

    pid = property(lambda self: _pid)

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Return a connection, as ``acquire`` does."""
        try:
            return self.acquire()
        except PoolUnavailable as error:
            _make_redis_error(error)
            raise

    def release(self, connection: Any) -> None:
        """Take *connection* back; nothing happens if it is none of this pool's."""
        if connection.should_reconnect() or not self.owns_connection(connection):
            connection.disconnect()
        try:
            super().release(connection)
        except NotInUse:
            pass  # as redis-py promises

    def make_connection(self) -> Any:
        conn = self.connection_class(**self.connection_kwargs)
        conn._sockets = self._sockets
        return conn if self.cache is None else CacheProxyConnection(conn, self.cache, self._lock)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the idle connections, and those in use under their users; others are opened."""
        self.dispose()
        for conn in self._held_connections() if inuse_connections else ():
            _hang_up(conn)

    def disconnect_free_connections(self, moving_address_src: str | None = None) -> None:
        self.dispose()

    def reset(self) -> None:
        """Replace every connection opened so far."""
        if getattr(self, "_bucket", None) is not None:  # it is called before there is anything, too
            self.drain()

    def close(self, timeout: float | None = 0.0) -> None:
        """Close the pool for good, at once: unlike redis-py's it cannot be used any more."""
        super().close(timeout)

    def re_auth_callback(self, token: Any) -> None:
        """There is a new token, and each dial asks for it: replace what has the old one."""
        self.drain()

    @property
    def _available_connections(self) -> list[Any]:
        return list(self._idle_connections())

    @property
    def _in_use_connections(self) -> set[Any]:
        return set(self._held_connections())

    # Hooks

    def _new_connection(self) -> Any:
        conn = self.make_connection()
        real = _real(conn)
        real.retry, retry = _ONCE, real.retry
        try:
            conn.connect()
        except BaseException:
            conn.disconnect()
            raise
        real.retry = retry
        real.forget()
        return conn

    @staticmethod
    def _socket(conn: Any) -> Any:
        real = getattr(conn, "_conn", conn)  # as _real(): it is asked twice a request
        dirty = real.has_state or real.unfinished or _has_unread(real._parser)
        return None if dirty else real._sock

    def _keepalive(self, conn: Any) -> None:
        conn.send_command("PING", check_health=False)
        conn.read_response()

    def _close_connection(self, conn: Any) -> None:
        # Its parser stays: who still waits for a reply shall hear that it was closed.
        _hang_up(conn)
        if conn is not _real(conn):
            conn.disconnect()  # forgets what is in the cache
        elif conn._sock is not None:
            conn._sock.close()

    def _classify_error(self, error: Exception) -> Verdict:
        if not isinstance(error, exceptions.RedisError):
            return super()._classify_error(error)
        # Sentinel's connections close themselves on it, and say something else.
        if isinstance(error, exceptions.ReadOnlyError) or isinstance(
            error.__context__, exceptions.ReadOnlyError
        ):
            return Verdict.WRONG_SERVER
        wrong = (exceptions.AuthenticationError, exceptions.AuthenticationWrongNumberOfArgsError)
        if isinstance(error, wrong):
            return Verdict.FATAL
        if "max number of clients" in str(error):
            return Verdict.SERVER_FULL
        kinds = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse)
        return Verdict.BROKEN if isinstance(error, kinds) else Verdict.FINE


class GeventSentinelConnectionPool(GeventConnectionPool, SentinelConnectionPool):  # type: ignore[misc]
    """The same for a service that Sentinels watch, and whose master may move.

        sentinel = redis.sentinel.Sentinel([("sentinel.example.org", 26379)])
        master = sentinel.master_for(
            "shop", connection_pool_class=GeventSentinelConnectionPool, size=10
        )

    The Sentinels are asked at each dial, by redis-py's own connections: so gevent must have patched
    the program, else RuntimeError is raised.  Once they name another master, or the old one refuses
    a write, all connections to the old one are replaced.
    """

    def __init__(
        self, service_name: str, sentinel_manager: Any, size: int | None = None, **arguments: Any
    ) -> None:
        if not monkey.is_module_patched("socket"):
            raise RuntimeError(
                "redis-py would stop all greenlets while it asks a Sentinel: call"
                " gevent.monkey.patch_all() first, before anything else is imported"
            )
        settings, arguments = _split(arguments)
        SentinelConnectionPool.__init__(self, service_name, sentinel_manager, **arguments)
        self._start(size or arguments.get("max_connections") or 10, settings)

    def _classify_error(self, error: Exception) -> Verdict:
        verdict = super()._classify_error(error)
        # A replica is meant to be read-only.
        return Verdict.FINE if verdict is Verdict.WRONG_SERVER and not self.is_master else verdict


class _Sockets:
    """Opens the sockets of a pool's connections, wherever they lead: a master may move."""

    def __init__(self) -> None:
        self._factories: dict[Any, SocketFactory] = {}

    def open(self, conn: Any) -> Any:
        path = getattr(conn, "path", None)
        where = f"unix:{path}" if path is not None else (conn.host, conn.port)
        if where not in self._factories:
            self._factories[where] = SocketFactory(
                where,
                tls=_context(conn) if isinstance(conn, redis.SSLConnection) else False,
                connect_timeout=conn.socket_connect_timeout,
                read_timeout=conn.socket_timeout,
            )
        return self._factories[where]()


class _GeventConnection:
    """What is different in a connection: where its socket comes from, and that it is noted when a
    command is sent on it that leaves it in a state of its own.

    Every command goes by one of three methods: pipelines are packed first, and sent as bytes."""

    _sockets: _Sockets
    #: Whether something was sent that only a new connection undoes.
    has_state = False
    #: What was sent and waits for its end: WATCH, MULTI, ASKING.
    unfinished: frozenset[str] = frozenset()

    def _connect(self) -> Any:
        return self._sockets.open(self)

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self._note(args)
        super().send_command(*args, **kwargs)  # type: ignore[misc]

    def pack_command(self, *args: Any) -> Any:
        self._note(args)
        return super().pack_command(*args)  # type: ignore[misc]

    def pack_commands(self, commands: Any) -> Any:
        commands = list(commands)
        for args in commands:
            self._note(args)
        return super().pack_commands(commands)  # type: ignore[misc]

    def forget(self) -> None:
        """What was sent so far belongs to the dial."""
        self.has_state, self.unfinished = False, frozenset()

    def _note(self, args: Any) -> None:
        if not self.unfinished and args and type(args[0]) is str and not _may_be_noted(args[0]):
            return  # nearly always
        words = _words(args)
        if self.unfinished:
            self.unfinished -= {"ASKING"}  # it is for one command
        if not words or words[0] not in _NOTED:
            return  # most are none of them, and a pipeline has many
        if " ".join(words) in _STATEFUL:
            self.has_state = True
        elif words[:1] in (["WATCH"], ["MULTI"], ["ASKING"]):
            self.unfinished |= {words[0]}
        elif words == ["UNWATCH"]:
            self.unfinished -= {"WATCH"}
        elif words in (["EXEC"], ["DISCARD"]) and "MULTI" in self.unfinished:
            self.unfinished = frozenset()


@in_child
def _note_pid(fork: Fork) -> None:
    global _pid
    _pid = os.getpid()


@functools.cache
def _gevent_class(base: type) -> type:
    return type(base.__name__, (_GeventConnection, base), {"__module__": base.__module__})


def _make_redis_error(error: Any) -> None:
    """Have *error*, of the pool, be one of redis-py's, too: those who catch these catch it."""
    down = error.__cause__ is not None
    kind = exceptions.ConnectionError if down else exceptions.MaxConnectionsError
    error.__class__ = _both(type(error), kind)  # type: ignore[arg-type]
    for name, value in vars(kind()).items():
        vars(error).setdefault(name, value)


@functools.cache
def _both(error: Any, kind: Any) -> Any:
    namespace = {"__module__": error.__module__, "__repr__": Exception.__repr__}
    return type(error.__name__, (error, kind), namespace)


def _split(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a pool, and what redis-py shall have."""
    settings = {name: each for name, each in arguments.items() if name in _SETTINGS}
    others = {name: each for name, each in arguments.items() if name not in _SETTINGS}
    others.setdefault("maint_notifications_config", MaintNotificationsConfig(enabled=False))
    return settings, others


def _real(conn: Any) -> Any:
    """What is wrapped if there is a cache at the client."""
    return getattr(conn, "_conn", conn)


@functools.lru_cache(1024)
def _may_be_noted(name: str) -> bool:
    """Whether a command of that name may begin or end a state."""
    words = name.upper().split()
    return not words or words[0] in _NOTED


def _words(args: Any) -> list[str]:
    """A command's name, and its subcommand if it has such: what redis-py makes of *args*."""
    words: list[str] = []
    for place, each in enumerate(args):
        text = (each if isinstance(each, str) else _decoded(each)).upper()
        words += [text] if place else text.split()
        if words and words[0] not in _WITH_SUBCOMMANDS:
            return words[:1]
        if len(words) > 1:
            break
    return words[:2]


def _decoded(part: Any) -> str:
    is_bytes = isinstance(part, (bytes, bytearray, memoryview))
    return bytes(part).decode("latin-1") if is_bytes else str(part)


def _hang_up(conn: Any) -> None:
    if (sock := _real(conn)._sock) is not None:
        with suppress(OSError):  # its peer has hung up already
            sock.shutdown(socket.SHUT_RDWR)


def _has_unread(parser: Any) -> object:
    """Whether replies lie in a parser, where the system does not see them."""
    reader = getattr(parser, "_reader", None)  # hiredis's
    if reader is not None:
        return reader.has_data()
    buffer = parser._buffer
    if buffer is None or not buffer._buffer.getvalue():
        return False  # nearly always: it is emptied after each reply that was read to its end
    return buffer.unread_bytes()


def _context(conn: Any) -> ssl.SSLContext:
    """What redis-py makes anew for each dial, which takes 45 ms."""
    if conn.ssl_validate_ocsp or conn.ssl_validate_ocsp_stapled:
        raise ValueError("ssl_validate_ocsp… is not supported: redis-py opens sockets for it")
    context = ssl.create_default_context()
    context.check_hostname = conn.check_hostname
    context.verify_mode = conn.cert_reqs
    for flag in conn.ssl_include_verify_flags or ():
        context.verify_flags |= flag
    for flag in conn.ssl_exclude_verify_flags or ():
        context.verify_flags &= ~flag
    if conn.certfile or conn.keyfile:
        context.load_cert_chain(conn.certfile, conn.keyfile, conn.certificate_password)
    if conn.ca_certs or conn.ca_path or conn.ca_data:
        context.load_verify_locations(conn.ca_certs, conn.ca_path, conn.ca_data)
    if conn.ssl_min_version is not None:
        context.minimum_version = conn.ssl_min_version
    if conn.ssl_ciphers:
        context.set_ciphers(conn.ssl_ciphers)
    return context
