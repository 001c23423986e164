"""What a Pool keeps: Connection, to be derived from, and TcpConnection."""

from __future__ import annotations

import logging
from time import monotonic, time
from typing import Any

from gevent import socket

__all__ = ["Connection", "TcpConnection"]


class Connection:
    """What a Pool keeps.  Override at least ``open``, ``close`` and ``is_connected``."""

    def open(self) -> object:
        """Open it.  Any exception: it could not be opened."""
        raise NotImplementedError

    def close(self) -> object:
        """Close it."""
        raise NotImplementedError

    def get(self) -> Any:
        """The raw connection.  If that is a socket, or has a ``fileno()``, it is watched."""
        raise NotImplementedError

    def is_connected(self) -> bool:
        """Whether it is open.  One that was used and says False is not handed out again."""
        raise NotImplementedError

    def is_expired(self) -> bool:
        """Whether it is too old: one that says True is not handed out again.  Must not switch."""
        return False

    def reconnect(self) -> None:
        """Close it if it is open, and open it; an Exception is logged and leaves it closed."""
        try:
            if self.is_connected():
                self.close()
            self.open()
        except Exception:
            logging.exception("Failed to reconnect")


class TcpConnection(Connection):
    """A TCP connection, by IPv4 or, where the host has no such address, by IPv6.

    *lifetime*: seconds after which it is expired; *timeout*: seconds that connecting, sending and
    receiving may take (None: no bound of their own).
    """

    def __init__(
        self, host: str, port: int, lifetime: float = 600, timeout: float | None = None
    ) -> None:
        self._sock: Any = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._host = host
        self._port = port
        self._lifetime = lifetime
        self._timeout = timeout
        self._connected = False
        self._created: float | None = None  # wall clock, for subclasses that look at it
        self._expires_at: float | None = None

    @property
    def socket(self) -> Any:
        """The socket; another one after a reconnect."""
        return self._sock

    def get(self) -> Any:
        return self._sock

    def open(self) -> None:
        if self._sock.fileno() == -1:  # a closed one cannot be opened again
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._connect()
        except socket.gaierror:
            self._sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            self._connect()
        self._connected = True
        self._created = time()
        self._expires_at = monotonic() + self._lifetime

    def _connect(self) -> None:
        try:
            if self._timeout:
                self._sock.settimeout(self._timeout)
            self._sock.connect((self._host, self._port))
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        self._connected = False
        self._sock.close()

    def is_connected(self) -> bool:
        return self._connected

    def is_expired(self) -> bool:
        return self._expires_at is not None and monotonic() > self._expires_at

    def send(self, data: Any) -> None:
        """Send all of *data*."""
        assert self._connected
        sent = self._sock.send(data)  # by this name, which the mocks in users' tests know
        if sent != len(data):
            self._sock.sendall(data[sent:])

    def recv(self, size: int = 1024) -> bytes:
        """Receive up to *size* bytes; ``b""`` once the peer has closed."""
        assert self._connected
        data: bytes = self._sock.recv(size)
        return data
