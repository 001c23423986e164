"""``python -m geventpool check ADDRESS``: what it is like to connect to a server from here."""

from __future__ import annotations

import argparse
import socket as stdlib_socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import gevent
from gevent import socket
from gevent import ssl as gevent_ssl

from geventpool.addresses import Address, address
from geventpool.sockets import SocketFactory

__all__ = ["main"]

PROGRAM = "python -m geventpool check"
WELL, FAILED, ENDING = 0, 1, 3

#: Options whose value is told, where the platform has them, and what they are counted in.
_OPTIONS = (
    ("SOL_SOCKET", "SO_KEEPALIVE", ""),
    ("IPPROTO_TCP", "TCP_KEEPIDLE", " s"),
    ("IPPROTO_TCP", "TCP_KEEPINTVL", " s"),
    ("IPPROTO_TCP", "TCP_KEEPCNT", ""),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", " ms"),
    ("IPPROTO_TCP", "TCP_NODELAY", ""),
    ("SOL_SOCKET", "SO_RCVBUF", " bytes"),
    ("SOL_SOCKET", "SO_SNDBUF", " bytes"),
)
T = TypeVar("T")


class Trouble(Exception):
    """What is said before the end, and the exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def main(words: Sequence[str]) -> int:
    """Run the command line *words*; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(words)
    if options.sni is not None and not options.tls:
        parser.error("--sni is of no use without --tls")
    try:
        target = address(options.address)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    try:
        with _connect(target, options) as sock:
            _tell_options(sock)
            with _tell_tls(sock, target, options) if options.tls else sock as secured:
                if options.idle is not None:
                    _tell_idle(secured, options.idle)
    except Trouble as trouble:
        print(trouble)
        return trouble.status
    return WELL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Resolves, connects, shakes hands, and tells how long each took.",
        epilog="Exit status: 0 if all is well; 1 if the server cannot be used, or its certificate"
        " is not valid for --days more; 2 for a wrong command line; 3 if it closed the connection"
        " within --idle seconds.",
    )
    parser.add_argument("address", metavar="ADDRESS", help="host:port, [v6]:port or unix:/path")
    parser.add_argument("--tls", action="store_true", help="speak TLS, and look at the certificate")
    parser.add_argument("--sni", metavar="NAME", help="the name to ask for (default: the host)")
    parser.add_argument(
        "--days", type=_seconds, default=0.0, help="days the certificate must be valid for yet"
    )
    parser.add_argument(
        "--idle", type=_seconds, help="seconds to wait and see whether the server hangs up"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=10.0, help="seconds for each step (default: 10)"
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError(text)
    return value


def _timed(what: str, step: Callable[[], T], timeout: float) -> T:
    """What *step* returns; says how long it took."""
    began = time.monotonic()
    try:
        with gevent.Timeout(timeout, TimeoutError(f"took longer than {timeout:g} s")):
            found = step()
    except (OSError, ValueError) as error:
        took = time.monotonic() - began
        raise Trouble(f"{what:<12} FAILED after {took * 1000:.1f} ms: {error}") from error
    print(f"{what:<12} {(time.monotonic() - began) * 1000:.1f} ms")
    return found


def _connect(target: Any, options: argparse.Namespace) -> Any:
    if isinstance(target, Address):
        found = _timed(
            "resolve",
            lambda: socket.getaddrinfo(*target, type=socket.SOCK_STREAM),
            options.timeout,
        )
        print("             " + ", ".join(dict.fromkeys(str(each[4][0]) for each in found)))
    factory = SocketFactory(target, connect_timeout=options.timeout)
    sock = _timed("connect", factory, options.timeout + 1)
    with suppress(OSError):
        peer = sock.getpeername()
        print(f"             to {peer if isinstance(peer, str) else peer[0]}")
    return sock


def _tell_options(sock: Any) -> None:
    told = []
    for level, name, unit in _OPTIONS:
        with suppress(AttributeError, OSError):
            value = sock.getsockopt(getattr(stdlib_socket, level), getattr(stdlib_socket, name))
            told.append(f"{name} {value}{unit}")
    print("options      " + ", ".join(told))


def _tell_tls(sock: Any, target: Any, options: argparse.Namespace) -> Any:
    """Shake hands over *sock*, which then is the result's; tell of the certificates."""
    name = options.sni or (target[0] if isinstance(target, Address) else None)
    trouble: str | None = None
    try:
        secured = _timed("tls", lambda: _shake_hands(sock, name, verify=True), options.timeout)
    except Trouble as error:
        if not isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise
        print(error)
        trouble = f"verify       FAILED: {error.__cause__.verify_message}"
        again = SocketFactory(target, connect_timeout=options.timeout)()
        secured = _shake_hands(again, name, verify=False)
    try:
        print(f"             {secured.version()}, {secured.cipher()[0]}")
        days_left = [_tell_certificate(place, each) for place, each in enumerate(_chain(secured))]
        if trouble is not None:
            raise Trouble(trouble)
        print("verify       ok")
        if days_left and min(days_left) < options.days:
            least = f"{min(days_left):.0f}"
            raise Trouble(f"days left    FAILED: {least}, wanted are {options.days:g}")
    except BaseException:
        secured.close()
        raise
    return secured


def _shake_hands(sock: Any, name: str | None, verify: bool) -> Any:
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    if not verify or name is None:
        context.check_hostname = False
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(sock, server_hostname=name)


def _chain(secured: Any) -> Iterable[dict[str, Any]]:
    """The certificates, the server's own first, as far as this Python lets them be seen: all of
    them have been public since 3.13, and were private before."""
    inside = getattr(secured, "_sslobj", None)
    for method in ("get_unverified_chain", "get_verified_chain"):
        with suppress(AttributeError, ssl.SSLError):
            return [each.get_info() for each in getattr(inside, method)() or ()]
    return [found] if (found := secured.getpeercert()) else []


def _tell_certificate(place: int, certificate: dict[str, Any]) -> float:
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86400
    names = {key: value for part in certificate["subject"] for key, value in part}
    subject = names.get("commonName") or names.get("organizationName") or "without a name"
    also = [value for kind, value in certificate.get("subjectAltName", ())]
    shown = f"; for {', '.join(also[:8])}{', ...' if len(also) > 8 else ''}" if also else ""
    print(f"certificate  {place}: {subject}, {days:.0f} days left{shown}")
    return days


def _tell_idle(sock: Any, seconds: float) -> None:
    began = time.monotonic()
    sock.settimeout(None)
    while (left := seconds - (time.monotonic() - began)) > 0:
        try:
            with gevent.Timeout(left, TimeoutError()):
                data = sock.recv(65536)
        except TimeoutError:
            break
        except OSError as error:
            raise Trouble(f"idle         reset after {_since(began)}: {error}", ENDING) from error
        if not data:
            raise Trouble(f"idle         closed by the server after {_since(began)}", ENDING)
        print(f"idle         {len(data)} bytes came unasked after {_since(began)}")
    print(f"idle         still open after {seconds:g} s")


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
