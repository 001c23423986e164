"""Who may look: by default clients on this machine that came without a proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

__all__ = ["Allow", "Environ", "access_check"]

Environ: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[Environ], bool]
#: Networks and addresses, or a function that is given the WSGI environ.
Allow: TypeAlias = Iterable[str] | Check | None

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: What a proxy tells of the client.  Anybody can write it, so it is never a reason to let one in;
#: but who is local needs no proxy, so that it is there is a reason to keep one out.
_OF_A_PROXY = (
    *("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA", "HTTP_X_CLIENT_IP"),
    *("HTTP_CF_CONNECTING_IP", "HTTP_TRUE_CLIENT_IP", "HTTP_X_REQUEST_ID"),
)


def access_check(allow: Allow) -> Check:
    """The function that says of a WSGI environ whether that client may look.

    Raises TypeError or ValueError if *allow* is not what it may be.
    """
    if allow is None:
        return _is_local
    if callable(allow):
        return lambda environ: bool(allow(environ))
    if isinstance(allow, (str, bytes)):
        raise TypeError(f"allow: a list of networks, or a function, not {allow!r}")
    networks = [_network(each) for each in allow]
    return lambda environ: _is_in(environ, networks)


def _network(each: object) -> _Network:
    try:
        return ipaddress.ip_network(each, strict=False)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"allow: {error}") from None


def _is_in(environ: Environ, networks: list[_Network]) -> bool:
    client = _ip(environ.get("REMOTE_ADDR"))
    return client is not None and any(client in network for network in networks)


def _is_local(environ: Environ) -> bool:
    """Whether a client on this machine asks by a local name.

    The name is looked at because a page of somebody else's, open in a browser here, might have its
    own name resolve to 127.0.0.1 and read what is answered ("DNS rebinding").
    """
    client = _ip(environ.get("REMOTE_ADDR"))
    if client is None or not client.is_loopback:
        return False
    if any(name.startswith(_OF_A_PROXY) for name in environ):
        return False
    host = environ.get("HTTP_HOST", "localhost")
    name = host.rpartition("]")[0].lstrip("[") if "]" in host else host.partition(":")[0]
    address = None if "%" in name else _ip(name)
    return name.lower() == "localhost" or (address is not None and address.is_loopback)


def _ip(text: object) -> _Ip | None:
    """The address; None for what is none, as behind a Unix socket."""
    try:
        found = ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
