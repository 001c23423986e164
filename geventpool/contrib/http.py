"""HttpPool: connections of the standard library's http.client to one server."""

from __future__ import annotations

import http.client
import inspect
import math
import re
import ssl
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import DEFAULT, check_whole
from geventpool.sockets import SocketFactory

__all__ = ["HttpConnection", "HttpPool", "HttpResponse", "ResponseTooLarge"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}
#: Those for which it makes no difference whether the server has had them twice: RFC 9110, 9.2.2.
_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
_CHUNK = 65536


class HttpResponse(NamedTuple):
    """An answer, read to its end."""

    status: int
    reason: str
    headers: http.client.HTTPMessage  # ``headers["Content-Type"]``, whatever the case of letters
    body: bytes  # as it was sent: what is compressed is so still


class ResponseTooLarge(http.client.HTTPException):
    """The body of an answer is longer than *max_body*; its connection is closed."""


class HttpConnection(http.client.HTTPConnection):
    """A connection of http.client's that connects once only, and knows whether it is idle."""

    auto_open = 0
    #: The answer that came last, None while a request waits for it.
    response: Any = None
    idle = True
    uses = 0
    expires_at = math.inf  # by the monotonic clock: then the server may close it
    max_body = _CHUNK

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        self.idle, self.response = False, None
        self.expires_at = math.inf
        super().putrequest(*args, **kwargs)

    def getresponse(self) -> http.client.HTTPResponse:
        self.response = super().getresponse()
        # https://www.rfc-editor.org/rfc/rfc2068#section-19.7.1.1
        limit = re.search(r"\btimeout=(\d+)", self.response.getheader("Keep-Alive", ""))
        if limit is not None:
            self.expires_at = monotonic() + 0.8 * int(limit[1])
        if self.response.status == http.client.SWITCHING_PROTOCOLS:
            self.close()
        return self.response  # type: ignore[no-any-return]

    def is_idle(self) -> bool:
        """Whether nothing has been asked on it, or the last answer was read to its end."""
        return self.idle or (self.response is not None and self.response.isclosed())

    def exchange(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """Send a request, and read the answer to its end.

        Raises ResponseTooLarge, what http.client raises, or an OSError; the connection is closed
        on return then.
        """
        self.uses += 1
        self.request(method, path, body, headers or {})
        response = self.getresponse()
        if response.length is not None:
            if response.length > self.max_body:
                raise ResponseTooLarge(f"{response.length} bytes, max_body is {self.max_body}")
            found = response.read()
        else:
            found = b""
            while part := response.read(_CHUNK):
                found += part
                if len(found) > self.max_body:
                    raise ResponseTooLarge(f"max_body is {self.max_body} bytes")
        return HttpResponse(response.status, response.reason, response.headers, found)


class _HttpsConnection(HttpConnection):
    default_port = 443


class HttpPool(ConnectionPool[HttpConnection]):
    """A pool of connections to an HTTP server.

        api = HttpPool("https://api.example.org/v1", 20)
        answer = api.request("GET", "/customers/42")
        print(answer.status, answer.headers["Content-Type"], answer.body)

        with api.get() as conn:  # http.client's own, for several requests, or a long body
            conn.request("GET", "/export")

    - *base_url*: ``http://host:port/prefix`` or ``https://…``; *prefix* goes before every path of
      ``request``.
    - *headers*: sent with every ``request``, unless that has its own of the same name, whatever
      the case of letters.
    - *tls*: for https, True (verified), an SSLContext, or "unverified", as in SocketFactory.
    - *read_timeout*: how long to wait for anything from the server, in seconds.
    - *max_body*: the longest body that ``request`` reads, in bytes.
    - *ping_path*: where ``_keepalive`` asks, by HEAD; any answer will do.
    - *settings*: those of ConnectionPool; *min_size* is 0 here, as servers close idle connections.

    Sockets are opened by SocketFactory, and nothing needs to be patched.  A connection goes back
    only if the answer was read to its end and the server has not said ``Connection: close``; it is
    not used again once four fifths of the server's ``Keep-Alive: timeout=…`` are over.  Redirects,
    cookies and compression are up to you.
    """

    def __init__(
        self,
        base_url: str,
        size: int = 10,
        *,
        headers: Mapping[str, str] | None = None,
        tls: bool | str | ssl.SSLContext = True,
        read_timeout: float | None = 30.0,
        max_body: int = 64 * 2**20,
        ping_path: str = "/",
        **settings: Any,
    ) -> None:
        if unknown := set(settings) - _SETTINGS:
            raise TypeError(f"HttpPool has no argument {', '.join(sorted(unknown))}")
        check_whole("max_body", max_body, least=1)
        url, port = _split(base_url)
        secure = url.scheme == "https"
        self._make = _HttpsConnection if secure else HttpConnection
        self._address = url.hostname or "", port or self._make.default_port
        self._prefix = url.path.rstrip("/")
        self._headers = dict(headers or {})
        self._max_body = max_body
        self._ping_path = ping_path
        self._connect_socket = SocketFactory(
            self._address,
            tls=tls if secure else False,
            connect_timeout=settings.get("connect_timeout", 10.0),
            read_timeout=read_timeout,
        )
        self._read_timeout = read_timeout
        super().__init__(size, **{"min_size": 0, **settings})

    def request(
        self,
        method: str,
        path: str = "",
        body: bytes | str | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float | None = DEFAULT,
    ) -> HttpResponse:
        """Send a request over a connection of the pool, and return the answer, whatever its status.

        *path* begins with ``/``, and may have a query; *body* is as in http.client.  Waits at most
        *timeout* seconds for a connection, and at most *read_timeout* each time for the server.

        A connection that was idle may be closed by the server just as a request is on its way.  If
        not a byte of an answer has come, the request is sent once more over another connection,
        provided that its method is idempotent (GET, HEAD, OPTIONS, TRACE, PUT, DELETE) and *body*
        can be sent again: RFC 9110, section 9.2.2.  Any other is not, as it may have been served.

        Raises the errors of ``acquire``, OSError, http.client.HTTPException or ResponseTooLarge.
        """
        headers = self._with_its_own(headers or {})
        again = method in _IDEMPOTENT and (body is None or isinstance(body, (bytes, str)))
        began = monotonic()
        while True:
            with self.get(timeout) as conn:
                again = again and conn.uses > 0
                try:
                    return conn.exchange(method, self._prefix + path or "/", body, headers)
                except (ConnectionResetError, BrokenPipeError):
                    if not again or conn.response is not None:
                        raise
                    conn.close()
            again = False
            limit = self.timeout if timeout is DEFAULT else timeout
            timeout = None if limit is None else max(limit - (monotonic() - began), 0.0)

    def _with_its_own(self, headers: Mapping[str, str]) -> dict[str, str]:
        given = {name.lower() for name in headers}
        ours = {name: text for name, text in self._headers.items() if name.lower() not in given}
        return {**ours, **headers}

    # Hooks

    def _new_connection(self) -> HttpConnection:
        conn = self._make(*self._address)
        conn.max_body = self._max_body
        conn.sock = self._connect_socket()
        return conn

    def _socket(self, conn: HttpConnection) -> Any:
        return conn.sock if conn.is_idle() and monotonic() < conn.expires_at else None

    def _keepalive(self, conn: HttpConnection) -> None:
        conn.exchange("HEAD", self._prefix + self._ping_path, None, self._headers)

    def _needs_reset(self, conn: HttpConnection) -> bool:
        return bool(conn.sock.gettimeout() != self._read_timeout)

    def _reset_connection(self, conn: HttpConnection) -> None:
        conn.sock.settimeout(self._read_timeout)

    def _classify_error(self, error: Exception) -> Verdict:
        if isinstance(error, http.client.HTTPException):
            return Verdict.BROKEN
        return super()._classify_error(error)


def _split(base_url: str) -> tuple[SplitResult, int | None]:
    """Its parts, and its port.  What is wrong with it is said without it: it may hold a password,
    and a slash in that makes a port of what comes before."""
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a string, not a {type(base_url).__name__}")
    try:
        url = urlsplit(base_url)
        port = url.port
    except ValueError:
        raise ValueError("base_url must have a host, and a port from 0 to 65535, if any") from None
    if "@" in url.netloc:
        raise ValueError("base_url must not hold a user and password: give them in headers")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("base_url must be http(s)://host[:port][/prefix]")
    if url.query or url.fragment:
        raise ValueError("base_url must end with its path: it has a query or a fragment")
    return url, port
