"""What stands in a directory of one server: how it is read, and written.

Below the folder of a service each process of a server has an entry, as ``10.0.0.1:443-3f9a1c2b``.
It holds ``{"address": "10.0.0.1:443", "weight": 2.0}``.  What other systems write is read as well:
an entry that holds the address as plain text, or nothing and has it for its name; a JSON object
with *host* or *address* and *port* (Curator), *Addr* (gRPC's for etcd), or a *serviceEndpoint*
(Finagle's ServerSets); in such an object *weight* is optional, and one that is no number from 0 on
counts as 1.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Mapping
from typing import Any

from geventpool.addresses import Address, AnyAddress, address
from geventpool.pools.extension import check_text

__all__ = ["check_name", "member_of", "read_member", "weight_of", "write_member"]


def check_name(name: str) -> None:
    """Raises ValueError if *name* can be no service: texts with a slash between each two; TypeError
    if it is no text."""
    check_text("name", name)
    bad = {"", ".", ".."} & set(name.split("/"))
    if bad or not name.isprintable():
        raise ValueError(
            f'name must be that of a service, as "web" or "shop/web", and not {name!r}'
        )


def member_of(target: object) -> Address:
    """The address that a server announces.  Raises ValueError or TypeError if it is of no use to
    others, as a Unix socket is, 0.0.0.0, or an address of a group."""
    found = address(target)
    if not isinstance(found, Address):
        raise ValueError(f"address must be a host and a port, which others can reach: {target!r}")
    if not _can_be_reached(found.ip):
        raise ValueError(
            f"address must be one that others can reach, not that of all or of a group: {target!r}"
        )
    return found


def _can_be_reached(host: str) -> bool:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return True  # a name
    inner = getattr(found, "ipv4_mapped", None) or found
    return not (inner.is_unspecified or inner.is_multicast)


def write_member(member: Address, weight: float) -> bytes:
    """What an entry holds."""
    return json.dumps({"address": str(member), "weight": weight}).encode()


def read_member(entry: str, held: bytes) -> tuple[AnyAddress, float] | None:
    """The address of an entry of this name, that holds this, with its weight; None: it has none."""
    try:
        text = held.decode().strip()
        parsed = json.loads(text) if text.startswith("{") else text or entry
        if isinstance(parsed, str):
            return address(parsed), 1.0
        return _address_in(parsed, entry), weight_of(parsed.get("weight", 1.0))
    except (ValueError, TypeError, RecursionError):
        return None


def weight_of(said: Any) -> float:
    """The weight that a directory says a server has; 1.0 if that is none."""
    try:
        weight = 1.0 if isinstance(said, bool) else float(said)
    except (TypeError, ValueError, OverflowError):
        return 1.0
    return weight if 0 <= weight < math.inf else 1.0


def _address_in(found: Mapping[str, Any], entry: str) -> AnyAddress:
    endpoint = found.get("serviceEndpoint")
    if isinstance(endpoint, dict):
        return address((endpoint.get("host"), endpoint.get("port")))
    text = found.get("address", found.get("Addr", found.get("host", entry)))
    port = found.get("port")
    check_text("address", text)
    return address(text) if port is None else address((text, port))
