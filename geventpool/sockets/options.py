"""What to set on a socket before it connects, and where its near end is: the arguments, checked."""

from __future__ import annotations

import ipaddress
import socket as stdlib_socket
from collections.abc import Iterable

from gevent.socket import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SOL_SOCKET,
    TCP_NODELAY,
)

__all__ = ["Option", "check_options", "check_source", "tcp_options"]

#: level, name and value, as ``setsockopt`` takes them.
Option = tuple[int, int, "int | bytes"]


def check_source(given: object) -> tuple[int, tuple[str, int] | None]:
    """The family and the address to bind to, or AF_UNSPEC and None.

    A host name is none: to bind to it would be to look it up at each dial, in the hub.
    """
    match given:
        case None:
            return AF_UNSPEC, None
        case str(host):
            port = 0
        case (str(host), int(port)) if not isinstance(port, bool):
            pass
        case _:
            raise TypeError(f'source_address must be "ip" or ("ip", port), not {given!r}')
    try:
        version = ipaddress.ip_address(host).version
    except ValueError as error:
        raise ValueError(f"source_address {given!r}: {error}") from None
    if not 0 <= port < 65536:
        raise ValueError(f"source_address {given!r}: a port is 0 (any) to 65535")
    return AF_INET if version == 4 else AF_INET6, (host, port)


def tcp_options(keepalive: object, user_timeout: float | None) -> list[tuple[int, int, int]]:
    """What to set on each TCP socket, as far as the platform has it."""
    options = [(IPPROTO_TCP, TCP_NODELAY, 1)]  # else a request in two pieces takes 40 ms more
    named: dict[str, int] = {}
    match keepalive:
        case None:
            pass
        case (int(idle), int(interval), int(count)):
            if not (0 < idle <= 32767 and 0 < interval <= 32767 and 0 < count <= 127):
                raise ValueError(
                    "keepalive must be (idle, interval, count), two times 1 to 32767 seconds and"
                    f" 1 to 127 probes, not {keepalive!r}"
                )
            options.append((SOL_SOCKET, SO_KEEPALIVE, 1))
            named |= {"TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": interval, "TCP_KEEPCNT": count}
        case _:
            raise TypeError(f"keepalive must be (idle, interval, count) or None, not {keepalive!r}")
    if user_timeout is not None:
        # 0 would mean the system's own, and the kernel takes no more than an int.
        named["TCP_USER_TIMEOUT"] = min(max(1, round(user_timeout * 1000)), 2**31 - 1)
    for name, value in named.items():
        if hasattr(stdlib_socket, name):
            options.append((IPPROTO_TCP, getattr(stdlib_socket, name), value))
    return options


def check_options(given: object) -> tuple[Option, ...]:
    if not isinstance(given, Iterable):
        raise TypeError(f"options must be a list of (level, name, value), not {given!r}")
    options = tuple(given)
    for option in options:
        match option:
            case (int(), int(), int() | bytes()):
                pass
            case _:
                raise TypeError(
                    f"options: {option!r} is no (level, name, value), two ints and an int or bytes"
                )
    return options
