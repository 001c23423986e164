"""EtcdGateway: etcd by its v3 JSON gateway, over connections of http.client."""

from __future__ import annotations

import http.client
import re
from base64 import b64encode
from collections.abc import Generator, Mapping
from contextlib import closing
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from geventpool.coordination.json_api import ApiError, JsonConnection, check_header, host_of
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

__all__ = ["EtcdGateway", "text64"]

_TIMEOUT = 4.0  # seconds for a connect, and for an answer
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # of a header: a token of RFC 9110


class EtcdGateway:
    """etcd 3.4 or later, at *target*: what SocketFactory takes, an address or several, of which one
    that answers is used.  *tls*: as there.  *headers*: sent with each request, as an Authorization.
    *use*: what it is for, in the name of its pool.

    What it raises: OSError, of which ApiError is one, http.client.HTTPException or PoolError.
    """

    def __init__(
        self,
        target: object,
        *,
        tls: Any = False,
        headers: Mapping[str, str] | None = None,
        use: str = "",
    ) -> None:
        self.target = target
        self._headers = {"Content-Type": "application/json", **_checked(headers)}
        self._dial = SocketFactory(target, tls=tls, connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT)
        self._host = host_of(target)
        # One is enough for it; the second is for an answer that was given up and is still due.
        self._pool = ConnectionPool(
            2,
            min_size=0,
            connect=partial(_connect, self._host, self._dial),
            name=f"etcd at {self._host} {use}".strip(),
            timeout=_TIMEOUT,
            fail_fast=True,
            exc_classes=(OSError, http.client.HTTPException),
        )

    def ask(self, path: str, question: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """The answer, and the time that it bears.  Of a stream, the first and only one."""
        with self._pool.get() as conn:
            found, headers = conn.ask(path, self._headers, _TIMEOUT, question)
            if conn.sock is None:  # that was the last answer on it
                self._pool.discard(conn)
        return _result(found), parsedate_to_datetime(headers["Date"]).timestamp()

    def stream(
        self, path: str, question: Mapping[str, Any], silence: float
    ) -> Generator[dict[str, Any], None, None]:
        """One answer after the other, over a connection of its own, until etcd ends that.

        Raises TimeoutError once nothing has come for *silence* seconds.  To be closed by who takes
        it.
        """
        with closing(JsonConnection(self._host, self._dial)) as conn:
            with closing(conn.stream(path, self._headers, silence, question)) as answers:
                for found in answers:
                    yield _result(found)

    def close(self) -> None:
        """Close its connections, but for streams."""
        self._pool.close(0)

    def __str__(self) -> str:
        return f"etcd at {self.target}"


def text64(text: str | bytes) -> str:
    """As the gateway takes keys and values."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def _checked(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    """Raises TypeError or ValueError, which shows no value."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping, not of type {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"headers must have names of headers, not {name!r}")
        check_header(f"headers[{name!r}]", value)
    return headers


def _connect(host: str, dial: SocketFactory) -> JsonConnection:
    conn = JsonConnection(host, dial)
    conn.connect()
    return conn


def _result(found: Any) -> dict[str, Any]:
    """What of a stream comes in an object of its own."""
    if not isinstance(found, dict) or "error" in found:
        raise ApiError(200, f"an error of etcd: {found}")
    return dict(found.get("result", found))
