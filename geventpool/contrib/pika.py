"""PikaPool: connections of pika to RabbitMQ, each with a channel at hand."""

from __future__ import annotations

import functools
import inspect
import socket
from collections.abc import Callable, Sequence
from typing import Any

from gevent import Timeout, monkey
from pika import BlockingConnection, exceptions
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.connection import Parameters, URLParameters

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import check_callable
from geventpool.sockets import UNREAD

__all__ = ["PikaPool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}
_FINE = (exceptions.AMQPChannelError, exceptions.UnroutableError, exceptions.NackError)
_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"  # AMQP 0-9-1, 4.2.7: a frame of its own type
#: How a server says no, and what pika makes of it; without the code it may have gone away, too.
_REFUSED = (
    exceptions.AuthenticationError,
    exceptions.ProbableAuthenticationError,
    exceptions.ProbableAccessDeniedError,
    exceptions.ConnectionClosedByBroker,
)
_CODES = ("(403)", "(530)")  # ACCESS_REFUSED, NOT_ALLOWED


class PikaPool(ConnectionPool[BlockingConnection]):
    """A pool of pika's BlockingConnection.

        pool = PikaPool("amqp://shop:secret@mq.example.org/%2F", 10)
        with pool.get() as conn:
            channel = conn.channel()
            channel.basic_publish("orders", "new", b"…")

    - *parameters*: an AMQP URL, or pika's parameters; of several, the first that can be reached.
    - *configure*: called with each new channel: ``lambda channel: channel.confirm_delivery()``.
    - *settings*: those of ConnectionPool.  *keepalive* is a quarter of the heartbeat here.

    The first ``conn.channel()`` of each use is one that the connection keeps, and costs no round
    trip.  On return it is closed, so that the next use gets a new one, only if something was set in
    it (consumers, prefetch, confirms, a transaction, callbacks) or messages were got without
    ``auto_ack``, which then go back to their queue; any other channel is closed, and exclusive
    queues are deleted.

    The program must be patched by gevent: pika opens its sockets itself, and waits by ``select``.
    Else RuntimeError is raised.
    """

    _may_poll = True  # it waits by select: the connection sees itself what is cut short

    def __init__(
        self,
        parameters: str | Parameters | Sequence[Parameters],
        size: int = 10,
        *,
        configure: Callable[[BlockingChannel], object] | None = None,
        **settings: Any,
    ) -> None:
        if unknown := set(settings) - _SETTINGS:
            raise TypeError(f"PikaPool has no argument {min(unknown)!r}")
        if not (monkey.is_module_patched("select") and monkey.is_module_patched("socket")):
            raise RuntimeError(
                "pika would block gevent's hub, as the program is not patched: call"
                " gevent.monkey.patch_all() at its beginning"
            )
        if configure is not None:
            check_callable("configure", configure)
        if isinstance(parameters, str):
            parameters = URLParameters(parameters)
        one = isinstance(parameters, Parameters)
        self._parameters: Any = [parameters] if one else list(parameters)
        if not all(isinstance(each, Parameters) for each in self._parameters):
            raise TypeError(f"parameters must be a URL or pika's parameters, not {parameters!r}")
        self._configure = configure
        beats = [each.heartbeat for each in self._parameters]
        shortest = min(beat if isinstance(beat, int) and beat else 60 for beat in beats)
        settings.setdefault("keepalive", shortest / 4)
        if any(each.ssl_options is not None for each in self._parameters):
            # What lies unread there cannot be looked at without reading it: let pika read it.
            settings.setdefault("check_after", 0.5)
        super().__init__(size, **settings)

    # Hooks

    def _new_connection(self) -> BlockingConnection:
        conn = _Connection(self._parameters, self._configure)
        try:
            conn.keep_channel()
        except BaseException:
            self._hang_up(conn)
            raise
        return conn

    def _socket(self, conn: Any) -> Any:
        transport = conn._impl._transport  # None once it was closed
        return None if transport is None else transport._sock

    def _make_probe(self, conn: Any, ask: Callable[[Any], Any]) -> Any:
        return _Probe(super()._make_probe(conn, ask), self._socket(conn))

    def _keepalive(self, conn: Any) -> None:
        conn.process_data_events(0)
        conn.ask()

    def _reset_connection(self, conn: Any) -> None:
        if conn.cut_short or not conn.is_open:
            raise exceptions.ConnectionWrongStateError("closed, or given back in mid-air")
        conn.tidy_up()

    def _close_connection(self, conn: Any) -> None:
        try:
            if conn.is_open and not conn.cut_short:
                with Timeout(1.0, _TooLong):
                    conn.close()
        except (exceptions.AMQPError, _TooLong):
            pass  # it is broken
        finally:
            self._hang_up(conn)

    def _classify_error(self, error: Exception) -> Verdict:
        text = repr(error)  # str() leaves out what pika quotes
        if isinstance(error, _REFUSED) and any(code in text for code in _CODES):
            return Verdict.SERVER_FULL if "limit" in text else Verdict.FATAL
        if isinstance(error, exceptions.AMQPError):
            return Verdict.FINE if isinstance(error, _FINE) else Verdict.BROKEN
        return super()._classify_error(error)

    def _hang_up(self, conn: Any) -> None:
        sock = self._socket(conn)
        conn._cleanup()
        if sock is not None:
            sock.close()


class _TooLong(Exception):
    """The server has not said goodbye."""


class _Connection(BlockingConnection):  # type: ignore[misc]
    """One that keeps a channel, and knows what its user has to have tidied up."""

    def __init__(self, parameters: Any, configure: Any) -> None:
        self.cut_short = False  # a wait was: some reply may be due
        self.exclusive: set[str] = set()
        self._configure = configure
        self._opened: list[_Channel] = []
        self._kept: _Channel | None = None
        self._lent = False  # the kept one, to this user
        super().__init__(parameters)

    def channel(self, channel_number: int | None = None) -> BlockingChannel:
        if channel_number is not None or self._lent:
            return self._open_channel(channel_number)
        self._lent = True
        return self.keep_channel()

    def keep_channel(self) -> _Channel:
        if self._kept is None or not self._kept.is_open:
            self._kept = self._open_channel()
        return self._kept

    def _open_channel(self, channel_number: int | None = None) -> _Channel:
        channel: Any = super().channel(channel_number)
        channel.__class__ = _Channel  # pika has no place to say which
        self._opened.append(channel)
        if self._configure is not None:
            self._configure(channel)
        channel.touched = False
        return channel  # type: ignore[no-any-return]

    def ask(self) -> None:
        """A round trip that needs no permission."""
        super().channel().close()

    def tidy_up(self) -> None:
        self._lent = False
        for queue in self.exclusive:
            self.keep_channel().queue_delete(queue)
        self.exclusive.clear()
        for channel in self._opened:
            unfit = channel is not self._kept or channel.touched or channel._pending_events
            if channel.is_open and unfit:
                channel.close()
        self._opened = [channel for channel in self._opened if channel.is_open]

    def _flush_output(self, *waiters: Any) -> None:
        """Every wait of pika's is in here, those of channels, too."""
        try:
            super()._flush_output(*waiters)
        except BaseException:
            self.cut_short = True
            raise

    def _create_connection(self, configs: Any = None, impl_class: Any = None) -> Any:
        """As pika does, but nothing stays open if it is cut short."""
        done: list[Any] = []
        loop = IOLoop()
        services = _Services(loop)
        loop.activate_poller()
        try:
            SelectConnection._start_connection_workflow(
                connection_configs=configs,
                connection_factory=lambda parameters: SelectConnection(
                    parameters, custom_ioloop=services, internal_connection_workflow=False
                ),
                nbio=services,
                workflow=None,
                on_done=done.append,
            )
            while not done:
                loop.poll()
                loop.process_timeouts()
            if isinstance(done[0], BaseException):
                raise self._reap_last_connection_workflow_error(done[0])
        except BaseException:
            loop.close()
            for sock in services.sockets:
                sock.close()
            raise
        return done[0]


class _Services(SelectorIOServicesAdapter):  # type: ignore[misc]
    """Those of pika's loop, which remember the sockets that were to be connected."""

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self.sockets: list[Any] = []

    def connect_socket(self, sock: Any, resolved_addr: Any, on_done: Any) -> Any:
        self.sockets.append(sock)
        return super().connect_socket(sock, resolved_addr, on_done)


class _Channel(BlockingChannel):  # type: ignore[misc]
    """One that knows whether something was set in it that its next user must not find."""

    touched = False

    def basic_get(self, queue: str, auto_ack: bool = False) -> Any:
        self.touched = self.touched or not auto_ack
        return super().basic_get(queue, auto_ack)

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Any = None,
    ) -> Any:
        declared = super().queue_declare(queue, passive, durable, exclusive, auto_delete, arguments)
        if exclusive and not passive:
            self.connection.exclusive.add(declared.method.queue)
        return declared


def _touching(method: Any) -> Any:
    @functools.wraps(method)
    def touching(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.touched = True
        return method(self, *args, **kwargs)

    return touching


for _name in (
    *("basic_consume", "consume", "basic_qos", "flow", "confirm_delivery", "tx_select"),
    *("add_on_cancel_callback", "add_on_return_callback"),
):
    setattr(_Channel, _name, _touching(getattr(BlockingChannel, _name)))


class _Probe:
    """The pool's own look, but for heartbeats, which are unread bytes and no reply."""

    __slots__ = ("_probe", "_sock")

    def __init__(self, probe: Any, sock: Any) -> None:
        self._probe = probe
        self._sock = sock

    def __call__(self, conn: Any) -> object:
        why = self._probe(conn)
        return None if why == UNREAD and self._only_heartbeats() else why

    def _only_heartbeats(self) -> bool:
        unread = self._sock.recv(1024, socket.MSG_PEEK)
        return bool(unread) and unread == _HEARTBEAT * (len(unread) // len(_HEARTBEAT))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)
