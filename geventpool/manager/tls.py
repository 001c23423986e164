"""Whether TLS is spoken, by which context, and whose certificate is asked for."""

from __future__ import annotations

import ssl
from typing import TypeAlias

from geventpool.addresses import Address, address
from geventpool.sockets.factory import SocketFactory
from geventpool.sockets.tls import is_context

__all__ = ["Tls", "certified_host", "check_context", "context_of"]

#: What a caller may say about TLS: no; yes, verified; by this context; yes, with whomever.
Tls: TypeAlias = "bool | str | ssl.SSLContext"


def context_of(
    tls: Tls, default: ssl.SSLContext | None, made: dict[object, ssl.SSLContext | None]
) -> ssl.SSLContext | None:
    """The SSLContext that *tls* asks for; one for all, as it is a part of what is shared.

    *default* is what True means, and *made* has what was made before.
    """
    if is_context(tls):
        return tls
    if tls is False:
        return None
    if tls is True and default is not None:
        return default
    if tls is not True and tls != "unverified":
        expected = 'False, True, "unverified" or an SSLContext'
        raise TypeError(f"ssl must be {expected}, not {tls!r}")
    if tls not in made:
        made[tls] = SocketFactory("localhost:1", tls=tls).context
    return made[tls]


def check_context(name: str, value: object) -> None:
    if value is not None and not is_context(value):
        raise TypeError(f"{name} must be an SSLContext or None, not {value!r}")


def certified_host(name: str) -> str:
    """The host in *name*, as the one whose certificate is asked for; a resolver, which may have
    asked anybody, has no say in that."""
    try:
        known = address(name, default_port=1)
    except ValueError as error:
        message = f"ssl needs server_hostname: {name!r} says not whose certificate it should be"
        raise ValueError(message) from error
    if not isinstance(known, Address):
        raise ValueError(f"ssl needs server_hostname: {name!r} has no host")
    return known.ip.removesuffix(".")
