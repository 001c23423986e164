"""WebSocketPool: connections of websocket-client."""

from __future__ import annotations

import inspect
import ssl
from typing import Any
from urllib.parse import SplitResult, urlsplit

from websocket import ABNF, WebSocket, WebSocketBadStatusException, WebSocketException

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

__all__ = ["WebSocketPool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}
_PORTS = {"ws": 80, "wss": 443}


class WebSocketPool(ConnectionPool[WebSocket]):
    """A pool of ``websocket.WebSocket`` connections, for a protocol of requests and replies.

        pool = WebSocketPool("wss://api.example.org/quotes", 10, subprotocols=["quotes.v1"])
        with pool.get() as ws:
            ws.send("EUR")
            rate = ws.recv()

    - *url*: where to connect: ``ws://…``, or ``wss://…``, where *tls* is as for SocketFactory.
    - *target*: the server to connect to, if it is not the one that *url* names.
    - *arguments*: the settings of ConnectionPool, of which *keepalive* is 10 s here, and the
      arguments of ``websocket.create_connection`` (those of proxies and sockets excepted).

    Sockets are opened by SocketFactory; nothing needs to be patched.  Nobody knows whether a server
    owes a message: what is given back with one on its way must be discarded.  One that has arrived
    is seen, and one whose wait was cut short, and a message sent or read by half; these are closed.

    *keepalive* answers the pings of the server, too, so it should be well below what that waits
    for an answer.  What lies there unread, even if it is a ping, costs the connection.
    """

    def __init__(
        self,
        url: str,
        size: int = 10,
        *,
        target: object = None,
        tls: bool | str | ssl.SSLContext = True,
        **arguments: Any,
    ) -> None:
        settings = {name: arguments.pop(name) for name in _SETTINGS & set(arguments)}
        settings.setdefault("keepalive", 10.0)
        parts, port = _split(url)
        self._url = url
        self._arguments = arguments
        of_object = inspect.signature(WebSocket).parameters
        self._of_object = {name: arguments.pop(name) for name in set(of_object) & set(arguments)}
        secure = parts.scheme == "wss"
        self._connect_socket = SocketFactory(
            (parts.hostname, port or _PORTS[parts.scheme]) if target is None else target,
            tls=tls if secure else False,
            server_hostname=parts.hostname if secure else None,
            connect_timeout=settings.setdefault("connect_timeout", 10.0),
        )
        super().__init__(size, **settings)

    # Hooks

    def _new_connection(self) -> WebSocket:
        # One greenlet at a time has it: no lock is wanted.
        conn = _WebSocket(**{"enable_multithread": False, **self._of_object})
        sock = self._connect_socket()
        try:
            # Else it would go where it is sent to, by a socket of its own.
            conn.connect(self._url, **{"redirect_limit": 0, **self._arguments}, socket=sock)
        except BaseException:
            sock.close()
            raise
        return conn

    def _socket(self, conn: Any) -> Any:
        return conn.sock  # None once it was closed

    def _keepalive(self, conn: Any) -> None:
        conn.ping()
        opcode = ABNF.OPCODE_PING
        while opcode == ABNF.OPCODE_PING:  # the server's own, which is answered in there
            opcode, _ = conn.recv_data_frame(control_frame=True)
        if opcode != ABNF.OPCODE_PONG:
            raise WebSocketException(f"{ABNF.OPCODE_MAP[opcode]} in place of a pong")

    def _reset_connection(self, conn: Any) -> None:
        if not conn.connected:
            raise WebSocketException("the server has said goodbye")
        if conn.in_message or conn.frame_buffer.recv_buffer or conn.cont_frame.cont_data:
            raise WebSocketException("given back with a message that is sent or read by half")
        conn.settimeout(None)

    def _close_connection(self, conn: Any) -> None:
        if not getattr(conn.sock, "cut_short", True):
            conn.close(timeout=1)
        conn.shutdown()

    def _classify_error(self, error: Exception) -> Verdict:
        if isinstance(error, WebSocketBadStatusException):
            refused = error.status_code in (400, 401, 403, 404)
            return Verdict.FATAL if refused else Verdict.BROKEN
        if isinstance(error, WebSocketException):
            return Verdict.BROKEN
        return super()._classify_error(error)


class _WebSocket(WebSocket):  # type: ignore[misc]
    """One that knows whether it is in the middle of a message that it sends in parts."""

    in_message = False

    def send_frame(self, frame: ABNF) -> int:
        if frame.opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY, ABNF.OPCODE_CONT):
            self.in_message = not frame.fin
        return super().send_frame(frame)  # type: ignore[no-any-return]


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Its parts, and its port.  What is wrong with it is said without it: it may hold a password,
    or a token."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a string, not a {type(url).__name__}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("url must have a host, and a port from 0 to 65535, if any") from None
    if "@" in parts.netloc:
        raise ValueError("url must not hold a user and password: give them in header")
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("url must be ws://… or wss://…")
    return parts, port
