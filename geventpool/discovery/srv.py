"""From a service to its SRV records.  How they are asked for: ``_srv_wire.py``, with dnspython.

Must never be done here: connect to what was found, or block the hub.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from time import monotonic

from geventpool._util.arguments import check_port, check_seconds, check_text
from geventpool.discovery.lookup_cache import Clock, LookupCache

__all__ = ["SrvResolver"]


class SrvResolver(LookupCache):
    """Services by their SRV records, as Consul, Kubernetes (headless services) and Nomad have them.

    A name is taken as it is, from the root (no search list): ``"_http._tcp.web.example.com"``,
    ``"web.service.consul"``.  The records of a priority are a tier, the lowest priority first; the
    weights are theirs (RFC 2782).  A target that comes with its addresses in the same answer
    stands for these, as no other server may know them; of another, the host name is in the
    AddressGroup, for the one that connects to look up.  A target of "." means that there is
    decidedly no such service: NameNotFound.

    *nameservers* are IP addresses, by default those of the system, and *port* is where they
    listen.  They are asked one after the other, twice, by UDP, and by TCP if the answer is
    truncated (*tcp*: by TCP only, for servers that shorten answers and do not say so).  Each has
    *attempt_timeout* seconds, the whole look-up has *timeout*.

    An answer is fresh for its own time to live, at least *min_ttl* seconds: of the many servers
    that say 0, a busy client would ask all the time.  For what then follows, see DnsResolver.
    There is no such name for as long as the answer says, at most *negative_ttl*.
    ``refresh(name)`` asks at once.

    Needs dnspython: raises ImportError if it is not there (``pip install geventpool[dns]``).
    """

    def __init__(
        self,
        *,
        nameservers: Iterable[str] | None = None,
        port: int = 53,
        tcp: bool = False,
        min_ttl: float = 1.0,
        negative_ttl: float = 1.0,
        max_stale: float = 3600.0,
        stale_if_absent: bool = False,
        attempt_timeout: float = 1.0,
        timeout: float | None = 5.0,
        max_names: int = 1000,
        clock: Clock = monotonic,
    ) -> None:
        try:
            from geventpool.discovery._srv_wire import SrvLookup, nameservers_of_the_system
        except ImportError as error:
            raise ImportError(
                "SrvResolver needs dnspython: pip install geventpool[dns]", name="dns"
            ) from error
        check_port("port", port)
        check_seconds("min_ttl", min_ttl, zero=True, none=False)
        check_seconds("attempt_timeout", attempt_timeout, none=False)
        hosts = nameservers_of_the_system() if nameservers is None else _ips(nameservers)
        super().__init__(
            SrvLookup([(host, port) for host in hosts], tcp, min_ttl, attempt_timeout),
            negative_ttl=negative_ttl,
            max_stale=max_stale,
            stale_if_absent=stale_if_absent,
            timeout=timeout,
            max_names=max_names,
            clock=clock,
        )


def _ips(nameservers: Iterable[str]) -> list[str]:
    if isinstance(nameservers, str):
        raise TypeError(f"nameservers must be a list of IP addresses, not {nameservers!r}")
    found = list(nameservers)
    if not found:
        raise ValueError("nameservers must be at least one IP address")
    for each in found:
        check_text("nameservers", each)
        try:
            ipaddress.ip_address(each)
        except ValueError as error:
            raise ValueError(f"nameservers must be IP addresses, not {each!r}") from error
    return found
