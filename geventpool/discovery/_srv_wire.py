"""SRV records, asked for at name servers.

Only the format of the messages is dnspython's: what it sends and waits for by itself would block
every greenlet of a program that is not monkey-patched.  So what imports this file needs
dnspython, and does it as late as it can.
"""

from __future__ import annotations

import math
import socket as constants
import struct
from collections.abc import Sequence
from contextlib import closing
from typing import BinaryIO

import gevent
import gevent.socket
from dns import flags, rcode
from dns.exception import DNSException
from dns.message import Message, Truncated, from_wire, make_query
from dns.name import Name, from_text, root
from dns.rdataclass import IN
from dns.rdatatype import AAAA, A

from geventpool.addresses import Address, AddressGroup, AnyAddress, address
from geventpool.discovery.lookup_cache import Absent, Answer, Failed, reason

__all__ = ["SrvLookup", "nameservers_of_the_system"]

_ROUNDS = 2  # so that one lost datagram, of a single server, is not a failure

# What crosses every network in one piece (DNS flag day 2020).  Without EDNS it would be 512 bytes,
# and Consul, of those who have no EDNS, keeps all but a few records to itself.
_DATAGRAM = 1232

Server = tuple[str, int]


def nameservers_of_the_system() -> list[str]:
    """Their IP addresses.  Raises ValueError if there are none."""
    # As late as can be: it brings every transport of dnspython with it, HTTPS for instance.
    from dns.resolver import NoResolverConfiguration, get_default_resolver

    try:
        return [str(each) for each in get_default_resolver().nameservers]
    except NoResolverConfiguration as error:
        raise ValueError(f"nameservers must be given: the system has none: {error}") from error


class SrvLookup:
    """Asks *servers* one after the other; each has *attempt_timeout* seconds for an exchange."""

    def __init__(
        self, servers: Sequence[Server], tcp: bool, min_ttl: float, attempt_timeout: float
    ) -> None:
        self.servers = list(servers)
        self.tcp = tcp
        self.min_ttl = min_ttl
        self.attempt_timeout = attempt_timeout

    def __str__(self) -> str:
        return "SRV at " + ", ".join(str(Address(*server)) for server in self.servers)

    def without_lookup(self, name: str) -> None:
        """An SRV record is never known without asking.  Raises ValueError if *name* is no name."""
        _dns_name(name)

    def lookup(self, name: str) -> Answer:
        dns_name = _dns_name(name)
        failures: dict[str, Exception] = {}  # by server; of one asked twice, the last
        for server in self.servers * _ROUNDS:
            asked = f"SRV of {name} at {Address(*server)}"
            try:
                return self._read(self._exchange(dns_name, server), asked)
            except (OSError, EOFError, ValueError, DNSException) as error:
                failures[asked] = error
        why = "; ".join(dict.fromkeys(map(reason, failures.values())))
        tried = [f"{asked}: {reason(error)}" for asked, error in failures.items()]
        raise Failed(why, tried) from next(iter(failures.values()))

    def _exchange(self, name: Name, server: Server) -> Message:
        """What *server* says of *name*.  Raises OSError if it does not know."""
        query = make_query(name, "SRV", use_edns=0, payload=_DATAGRAM)
        reply = self._send(query, server)
        if reply.rcode() == rcode.FORMERR:  # a server that has never heard of EDNS
            query.use_edns(False)
            reply = self._send(query, server)
        if reply.rcode() not in (rcode.NOERROR, rcode.NXDOMAIN):
            raise OSError(rcode.to_text(reply.rcode()))
        return reply

    def _send(self, query: Message, server: Server) -> Message:
        """The reply to *query*.  Raises OSError, EOFError or a DNSException if there is none."""
        with gevent.Timeout(self.attempt_timeout, TimeoutError("timed out")):
            reply = None if self.tcp else _by_udp(query, server)
            if reply is None or reply.flags & flags.TC:
                reply = _by_tcp(query, server)
            return reply

    def _read(self, reply: Message, asked: str) -> Answer:
        """The tiers of the SRV records in *reply*.

        Raises Absent if it says that there are none, and ValueError or a DNSException if it makes
        no sense.
        """
        chain = reply.resolve_chaining()  # type: ignore[attr-defined]
        ttl = max(chain.minimum_ttl, self.min_ttl)
        if chain.answer is None:
            missing = reply.rcode() == rcode.NXDOMAIN
            raise Absent("no such name" if missing else "it has no SRV records", (asked,), ttl)
        records = [each for each in chain.answer if each.target != root]
        if not records:
            raise Absent("the service is decidedly not available (SRV .)", (asked,), ttl)
        tiers: dict[int, list[tuple[float, AnyAddress]]] = {}
        known = _known_hosts(reply)
        for record in sorted(records, key=lambda record: record.priority):
            hosts, host_ttl = known.get(record.target) or _unknown_host(record.target)
            try:
                targets = [address((host, record.port)) for host in hosts]
            except ValueError:
                continue  # no name of a host, or port 0: it must not spoil the others
            ttl = min(ttl, max(host_ttl, self.min_ttl))
            # The share of a target is that of all its addresses together.
            weight = record.weight / len(targets)
            tiers.setdefault(record.priority, []).extend((weight, each) for each in targets)
        if not tiers:
            raise ValueError("no target of its SRV records can be connected to")
        return Answer(AddressGroup([_balanced(tier) for tier in tiers.values()]), ttl)


def _dns_name(name: str) -> Name:
    try:
        return from_text(name)
    except DNSException as error:
        raise ValueError(f"name {name!r} is no DNS name: {error}") from error


def _known_hosts(reply: Message) -> dict[Name, tuple[list[str], float]]:
    """The addresses of each target that *reply* has them of, and for how long they are good."""
    found: dict[Name, tuple[list[str], float]] = {}
    for rrset in reply.additional:
        if rrset.rdclass == IN and rrset.rdtype in (A, AAAA):
            hosts, ttl = found.get(rrset.name, ([], math.inf))
            hosts += [str(record.address) for record in rrset]
            found[rrset.name] = hosts, min(ttl, rrset.ttl)
    return found


def _unknown_host(target: Name) -> tuple[list[str], float]:
    """What to connect to for a *target* whose addresses the reply does not have."""
    return [target.to_text(omit_final_dot=True)], math.inf


def _balanced(tier: list[tuple[float, AnyAddress]]) -> list[tuple[float, AnyAddress]]:
    """Records that all have the weight 0 have "no server selection to do": equal ones then."""
    if any(weight for weight, _ in tier):
        return tier
    return [(1.0, target) for _, target in tier]


# Transport


def _by_udp(query: Message, server: Server) -> Message:
    # Connected: the kernel drops what others send, and tells of a port where nothing listens.
    with closing(gevent.socket.socket(_family(server), constants.SOCK_DGRAM)) as sock:
        sock.connect(server)
        sock.send(query.to_wire())
        while True:
            data = sock.recv(65535)
            try:
                reply = from_wire(data, ignore_trailing=True, raise_on_truncation=True)
            except Truncated as cut:  # in the middle of a record, perhaps
                reply = cut.message()  # type: ignore[no-untyped-call]
            except DNSException:
                reply = None  # not by our server: it may yet answer
            if reply is not None and query.is_response(reply):
                return reply
            gevent.sleep(0)  # recv does not switch while there is more, and there may be a flood


def _by_tcp(query: Message, server: Server) -> Message:
    wire = query.to_wire()
    with closing(gevent.socket.socket(_family(server), constants.SOCK_STREAM)) as sock:
        sock.connect(server)
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        with sock.makefile("rb") as stream:
            (length,) = struct.unpack("!H", _read_exactly(stream, 2))
            reply = from_wire(_read_exactly(stream, length))
    if not query.is_response(reply):
        raise EOFError("the reply is to another question")
    return reply


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError(f"the server hung up after {len(data)} of {count} bytes")
    return data


def _family(server: Server) -> int:
    return constants.AF_INET6 if ":" in server[0] else constants.AF_INET
