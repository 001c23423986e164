"""EtcdGateway: etcd by its v3 JSON gateway, over connections of http.client."""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from collections.abc import Generator, Mapping
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any

from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

__all__ = ["EtcdError", "EtcdGateway", "text64"]

_TIMEOUT = 4.0  # seconds for a connect, and for an answer


class EtcdError(OSError):
    """etcd answered, but not with what was asked for; *status* is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"etcd answered with status {status}: {text[:200]}")
        self.status = status


class EtcdGateway:
    """etcd 3.4 or later, at *target*: what SocketFactory takes, an address or several, of which one
    that answers is used.  *tls*: as there.  *headers*: sent with each request, as an Authorization.

    What it raises: OSError, of which EtcdError is one, http.client.HTTPException or PoolError.
    """

    def __init__(
        self, target: object, *, tls: Any = False, headers: Mapping[str, str] | None = None
    ) -> None:
        factory = SocketFactory(target, tls=tls, connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT)
        self.target = target
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._factory = factory
        # One is enough for it; the second is for an answer that was given up and is still due.
        self._pool = ConnectionPool(
            2,
            min_size=0,
            connect=lambda: _Connection(factory),
            name="etcd",
            timeout=_TIMEOUT,
            fail_fast=True,
            exc_classes=(OSError, http.client.HTTPException),
        )

    def ask(self, path: str, question: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """The answer, and the time that it bears.  Of a stream, the first and only one."""
        with self._pool.get() as conn:
            conn.request("POST", path, json.dumps(question), self._headers)
            answer = conn.getresponse()
            text = answer.read()
            if answer.will_close:
                self._pool.discard(conn)
        if answer.status != 200:
            raise EtcdError(answer.status, text.decode(errors="replace"))
        found = _parsed(text)
        return found, parsedate_to_datetime(answer.headers["Date"]).timestamp()

    def stream(
        self, path: str, question: Mapping[str, Any], silence: float
    ) -> Generator[dict[str, Any], None, None]:
        """One answer after the other, over a connection of its own, until etcd ends that.

        Raises TimeoutError once nothing has come for *silence* seconds; before the first one, for
        4 s.  To be closed by who takes it.
        """
        with closing(_Connection(self._factory)) as conn:
            conn.request("POST", path, json.dumps(question), self._headers)
            with conn.getresponse() as answer:
                if answer.status != 200:
                    raise EtcdError(answer.status, answer.read().decode(errors="replace"))
                while line := answer.readline():
                    yield _parsed(line)
                    conn.sock.settimeout(silence)

    def close(self) -> None:
        """Close its connections, but for streams."""
        self._pool.close(0)

    def __str__(self) -> str:
        return f"etcd at {self.target}"


def text64(text: str | bytes) -> str:
    """As the gateway takes keys and values."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def _parsed(text: bytes) -> dict[str, Any]:
    """What of a stream comes in an object of its own."""
    try:
        found: dict[str, Any] = json.loads(text)
        if "error" in found:
            raise EtcdError(200, str(found["error"]))
        return dict(found.get("result", found))
    except (ValueError, TypeError) as error:
        raise EtcdError(200, f"no JSON object: {text[:100]!r}") from error


class _Connection(http.client.HTTPConnection):
    """One over a socket of gevent's, whether or not the program is patched."""

    def __init__(self, factory: SocketFactory) -> None:
        super().__init__("etcd")
        self.auto_open = 0
        self.sock = factory()

    def fileno(self) -> int:
        return int(self.sock.fileno())
