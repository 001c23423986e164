"""ThriftPool: clients of thriftpy2."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Callable
from typing import Any

from thriftpy2.protocol import TBinaryProtocolFactory
from thriftpy2.protocol.exc import TProtocolException
from thriftpy2.thrift import TClient, TException
from thriftpy2.transport import TBufferedTransportFactory, TSocket, TTransportException

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import check_callable
from geventpool.sockets import SocketFactory

__all__ = ["ThriftPool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}
_LOST = (TTransportException, TProtocolException)


class ThriftPool(ConnectionPool[TClient]):
    """A pool of clients of a Thrift service, each with a transport of its own.

        calculator = thriftpy2.load("calculator.thrift", module_name="calculator_thrift")
        pool = ThriftPool(calculator.Calculator, ("10.0.0.7", 9090), 10)
        with pool.get() as client:
            total = client.add(1, 2)

    - *service*: as for ``thriftpy2.rpc.make_client``; *target*: where its server is, and *tls*, as
      for SocketFactory.
    - *proto_factory*, *trans_factory*: as for ``make_client``.  The transport must be one that
      needs no opening: buffered or framed, not SASL, not HTTP.
    - *ping*: what *keepalive* and *check_after* call, with the client: ``lambda c: c.ping()``.
    - *settings*: those of ConnectionPool.

    Sockets are opened by SocketFactory; nothing needs to be patched.  An exception of the service's
    own, or a TApplicationException, is an answer; after any other one that comes out of a call, as
    of an argument of the wrong type or of an answer that cannot be read, what is next on the
    transport is not known: that client is closed, though nobody let the exception out.
    """

    def __init__(
        self,
        service: Any,
        target: object,
        size: int = 10,
        *,
        proto_factory: Any = None,
        trans_factory: Any = None,
        tls: bool | str | ssl.SSLContext = False,
        server_hostname: str | None = None,
        ping: Callable[[TClient], object] | None = None,
        **settings: Any,
    ) -> None:
        if unknown := set(settings) - _SETTINGS:
            raise TypeError(f"ThriftPool has no argument {min(unknown)!r}")
        if not hasattr(service, "thrift_services"):
            raise TypeError(f"service must be a service of a loaded module, not {service!r}")
        if ping is not None:
            check_callable("ping", ping)
        for name in ("keepalive", "check_after"):
            if ping is None and settings.get(name) is not None:
                raise ValueError(f"{name} is set, but ping is not: what is to be called?")
        self._service = service
        self._protocols = proto_factory or TBinaryProtocolFactory()
        self._transports = trans_factory or TBufferedTransportFactory()
        self._ping: Any = ping
        self._connect_socket = SocketFactory(
            target,
            tls=tls,
            server_hostname=server_hostname,
            connect_timeout=settings.setdefault("connect_timeout", 10.0),
        )
        super().__init__(size, **settings)

    # Hooks

    def _new_connection(self) -> TClient:
        socket = TSocket(sock=self._connect_socket())
        try:
            protocol = self._protocols.get_protocol(self._transports.get_transport(socket))
        except BaseException:
            socket.close()
            raise
        return _Client(self._service, protocol, socket)

    def _socket(self, conn: Any) -> Any:
        return conn._tsocket.sock  # None once it was closed

    def _keepalive(self, conn: TClient) -> None:
        self._ping(conn)

    def _reset_connection(self, conn: Any) -> None:
        if not conn._in_step:
            raise TTransportException(message="given back after a call that came to no answer")

    def _classify_error(self, error: Exception) -> Verdict:
        lost = isinstance(error, _LOST)
        return Verdict.BROKEN if lost else super()._classify_error(error)


class _Client(TClient):  # type: ignore[misc]
    """A client that knows whether its last call came to an answer, an exception of the service's
    own included."""

    # Names that no service has: they would hide its methods.
    def __init__(self, service: Any, protocol: Any, socket: TSocket) -> None:
        super().__init__(service, protocol)
        self._tsocket = socket
        self._in_step = True

    def _send(self, _api: str, **kwargs: Any) -> None:
        self._in_step = False
        super()._send(_api, **kwargs)
        self._in_step = getattr(self._service, f"{_api}_result").oneway

    def _recv(self, _api: str) -> Any:
        try:
            answer = super()._recv(_api)
        except TException as error:
            self._in_step = not isinstance(error, _LOST)
            raise
        self._in_step = True
        return answer
