"""From a name to its addresses: static, DNS, SRV, a file; and a Watcher, who tells of changes.

Every resolver has ``resolve(name) -> AddressGroup`` and raises NameNotFound, with the name and what
was tried.  What is asked over the network is asked in a greenlet of its own and kept: many callers
cause one look-up, and none of them, killed or timed out, takes the answer from the others.

Must never be done here: connect to what was found, or block the hub.  DnsResolver asks gevent's
own resolver; SrvResolver uses dnspython for the format of the messages only, as what dnspython
sends and waits for by itself would block every greenlet of a program that is not monkey-patched.
"""

from __future__ import annotations

import importlib
import inspect
import ipaddress
import json
import logging
import math
import os
import socket as constants
import struct
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gevent
import gevent.hub
import gevent.socket
from gevent import Timeout
from gevent.event import Event

from geventpool.addresses import Address, AddressGroup, AnyAddress, Resolver, address
from geventpool.errors import NameNotFound

if TYPE_CHECKING:
    from dns.message import Message
    from dns.name import Name

__all__ = ["DnsResolver", "FileResolver", "SrvResolver", "StaticResolver", "Watcher"]

_log = logging.getLogger("geventpool.resolver")

#: Seconds that a caller waits for a look-up when there is a stale answer to give him instead: the
#: "client response timer" of RFC 8767.
_PATIENCE = 1.8

Clock = Callable[[], float]


class StaticResolver:
    """Names that the program knows.

    *groups* maps a name to an AddressGroup, or to the tiers of one.  *aliases* maps a name to
    another name (of either kind) or to one address, in any spelling that ``addresses.address``
    takes; an alias goes before a group of the same name.  Both are read once.

    Raises ValueError for aliases that go round in a circle or lead nowhere.
    """

    def __init__(
        self,
        groups: Mapping[str, Any],
        aliases: Mapping[str, Any] | None = None,
    ) -> None:
        self._groups = {
            name: group if isinstance(group, AddressGroup) else AddressGroup(group)
            for name, group in groups.items()
        }
        aliases = {} if aliases is None else aliases
        found = {name: self._follow(name, aliases) for name in aliases}
        self._tried = (_listed("groups", self._groups), _listed("aliases", aliases))
        self._groups |= found

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if it is neither a group nor an alias."""
        group = self._groups.get(_text(name))
        if group is None:
            raise _not_found(name, "it is not one of the names given", self._tried)
        return group

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._groups)} names>"

    def _follow(self, alias: str, aliases: Mapping[str, Any]) -> AddressGroup:
        """The addresses at the end of the chain that begins with *alias*."""
        chain = [alias]
        while True:
            target = aliases[chain[-1]]
            chain.append(target)
            text = " -> ".join(map(str, chain))
            if isinstance(target, str) and target in chain[:-1]:
                raise ValueError(f"aliases go round in a circle: {text}")
            if isinstance(target, str) and target in aliases:
                continue
            if isinstance(target, str) and target in self._groups:
                return self._groups[target]
            try:
                return AddressGroup.of(address(target))
            except (TypeError, ValueError) as error:
                raise ValueError(f"aliases lead nowhere: {text}: {error}") from error


# What DNS says, and how it is kept.


class _Found(NamedTuple):
    """The answer to a question: it may be kept for *ttl* seconds (None: the asker decides)."""

    group: AddressGroup
    ttl: float | None


class _Absent(Exception):
    """There is no such name, on the authority of who was asked; kept for at most *ttl* seconds."""

    def __init__(self, why: str, tried: Sequence[str], ttl: float = math.inf) -> None:
        super().__init__(why)
        self.tried = tuple(tried)
        self.ttl = ttl


class _Failed(Exception):
    """Nobody could say whether there is such a name."""

    def __init__(self, why: str, tried: Sequence[str]) -> None:
        super().__init__(why)
        self.tried = tuple(tried)


class _Question(Protocol):
    """Asks about a name, in a greenlet of its own.  Must not hold the resolver that it is for."""

    def numeric(self, name: str) -> AddressGroup | None:
        """The addresses, if *name* needs no question; ValueError if it is no name."""

    def ask(self, name: str) -> _Found:
        """The answer.  Raises _Absent or _Failed; any other Exception is a failure, too."""


@dataclass
class _Entry:
    """What is known of a name.

    Until *fresh_until* that is the answer.  Until *prompt_until* it still is, while a look-up goes
    on in the background; until *stale_until* it is if that look-up fails, or takes too long.
    """

    group: AddressGroup | None
    fresh_until: float
    prompt_until: float
    stale_until: float
    why: str = ""
    tried: Sequence[str] = ()
    cause: Exception | None = None

    def give(self, name: str) -> AddressGroup:
        if self.group is None:
            raise _not_found(name, self.why, self.tried) from self.cause
        return self.group


class _LookUp:
    """A question under way, its greenlet, and those who wait for the answer."""

    def __init__(self, resolver: _CachingResolver, name: str, hub: Any) -> None:
        self.hub = hub
        self.outcome: _Entry | None = None  # for ever, if the greenlet is killed
        self.done = Event()
        self.greenlet = gevent.spawn(
            _look_up, self, weakref.ref(resolver), resolver._question, resolver.timeout, name
        )
        # It may be killed before it has begun, or left behind by a fork.
        self.greenlet.rawlink(partial(_ended, self.done))


def _look_up(
    look_up: _LookUp,
    reference: weakref.ref[_CachingResolver],
    question: _Question,
    timeout: float | None,
    name: str,
) -> None:
    """Ask, and tell the resolver, unless nobody has it any more."""
    answer: _Found | Exception
    alarm = Timeout(timeout)
    try:
        with alarm:
            answer = question.ask(name)
    except Timeout as expired:  # nobody else has this greenlet, so nobody else's can strike here
        why = f"no answer in {timeout} s" if expired is alarm else f"{type(expired).__name__}"
        answer = _Failed(why, (f"{question}: {name}",))
    except Exception as error:
        answer = error
    resolver = reference()
    if resolver is not None:
        resolver._learn(look_up, name, answer)


def _ended(done: Event, greenlet: object) -> None:
    done.set()


class _CachingResolver:
    """Keeps what a question brought, and asks again when it is old: DnsResolver and SrvResolver.

    An answer older than its time to live is stale.  For as long again it is given out at once,
    while one look-up goes on in the background.  After that callers wait for the look-up; a stale
    answer is what they get if it fails or takes longer than 1.8 s, up to *max_stale* seconds after
    its time (RFC 8767).  That there is no such name, or that nobody could say so, is kept for
    *negative_ttl* seconds.
    """

    def __init__(
        self,
        question: _Question,
        *,
        ttl: float,
        negative_ttl: float,
        max_stale: float,
        timeout: float | None,
        max_names: int,
        clock: Clock,
    ) -> None:
        self._question = question
        self._ttl = ttl
        self.negative_ttl = _seconds("negative_ttl", negative_ttl)
        self.max_stale = _seconds("max_stale", max_stale)
        self.timeout = None if timeout is None else _seconds("timeout", timeout, positive=True)
        if isinstance(max_names, bool) or not isinstance(max_names, int):
            raise TypeError(f"max_names must be a whole number, not {max_names!r}")
        if max_names < 1:
            raise ValueError(f"max_names must be at least 1, not {max_names!r}")
        self.max_names = max_names
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        # By hub, too: a greenlet cannot well wait for one of another thread.
        self._under_way: dict[tuple[int, str], _LookUp] = {}
        _caching.add(self)

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*, those known already if they are not too old.

        Else blocks until the look-up has ended, for at most *timeout* seconds, and raises
        NameNotFound, whose ``__cause__`` is the error of the look-up, if it brought nothing.
        A caller who does not want to wait that long may have a ``gevent.Timeout``, or be killed:
        the look-up goes on for the others.
        """
        entry = self._entries.get(_text(name))
        now = self._clock()
        if entry is not None and now < entry.fresh_until:
            return entry.give(name)
        if entry is None:
            group = self._question.numeric(name)
            if group is not None:
                self._keep(name, _Entry(group, math.inf, math.inf, math.inf))
                return group
        return self._ask(name, entry, now)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._question}, {len(self._entries)} names known>"

    def _ask(self, name: str, entry: _Entry | None, now: float) -> AddressGroup:
        stale = entry if entry is not None and entry.group and now < entry.stale_until else None
        while True:
            look_up = self._start_or_join(name)
            if stale is not None and now < stale.prompt_until:
                return stale.give(name)
            ended = look_up.done.wait(None if stale is None else _PATIENCE)
            if look_up.outcome is not None:
                return look_up.outcome.give(name)
            if stale is not None:
                if not ended:
                    stale.prompt_until = stale.stale_until  # one caller who waited is enough
                return stale.give(name)
            # Somebody killed the look-up: ask again.

    def _start_or_join(self, name: str) -> _LookUp:
        hub = gevent.get_hub()
        key = id(hub), name
        look_up = self._under_way.get(key)
        if look_up is None or look_up.hub is not hub or look_up.greenlet.ready():
            look_up = self._under_way[key] = _LookUp(self, name, hub)
        return look_up

    def _learn(self, look_up: _LookUp, name: str, answer: _Found | Exception) -> None:
        """Keep what *look_up* brought, and hand it to those who wait."""
        key = id(look_up.hub), name
        if self._under_way.get(key) is not look_up:
            return  # a fork has made this greenlet a copy of the parent's
        now = self._clock()
        old = self._entries.get(name)
        if isinstance(answer, _Found):
            ttl = self._ttl if answer.ttl is None else answer.ttl
            end = now + ttl
            entry = _Entry(answer.group, end, end + min(ttl, self.max_stale), end + self.max_stale)
        elif not isinstance(answer, _Absent) and old and old.group and now < old.stale_until:
            # Not asked again before negative_ttl is over; nor does anybody wait for that then.
            again = min(now + self.negative_ttl, old.stale_until)
            entry = _Entry(old.group, again, old.stale_until, old.stale_until, _reason(answer))
            if not old.why:  # once for each outage
                _say(logging.WARNING, "%r: %s; its last addresses serve on", name, entry.why)
        else:
            ttl = self.negative_ttl
            if isinstance(answer, _Absent):
                ttl = min(ttl, answer.ttl)
            end = now + ttl
            tried = getattr(answer, "tried", (f"{self._question}: {name}",))
            entry = _Entry(None, end, end, end, _reason(answer), tried, _bare(answer))
        self._keep(name, entry)
        look_up.outcome = entry
        del self._under_way[key]

    def _keep(self, name: str, entry: _Entry) -> None:
        # Put at the end: the first is the one whose look-up is longest ago.
        self._entries.pop(name, None)
        self._entries[name] = entry
        while len(self._entries) > self.max_names:
            try:
                del self._entries[next(iter(self._entries))]
            except (KeyError, RuntimeError):
                pass  # another thread was quicker

    def _forked(self, hub: Any) -> None:
        """In a child: look-ups of the parent bring nothing here, and must not read its answers."""
        strays, self._under_way = self._under_way, {}
        for stray in strays.values():
            if stray.hub is hub:
                stray.greenlet.kill(block=False)


_caching: weakref.WeakSet[_CachingResolver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    hub: Any = gevent.hub._get_hub()  # type: ignore[attr-defined]
    resolvers = list(_caching)
    if not resolvers or getattr(hub, "loop", None) is None:
        return
    # As gevent's own fork does.  After a raw one the hub would sleep on the parent's epoll, and the
    # first look-up of a name wait for threads that are not here.
    gevent.reinit(hub)
    for resolver in resolvers:
        resolver._forked(hub)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# A and AAAA


class DnsResolver(_CachingResolver):
    """The A and AAAA records of a host, by way of gevent's resolver: hosts file, search list, all.

    A name is ``"host:port"``, or ``"host"`` if there is a default *port*.  All its addresses make
    one tier, with equal weights.  Numeric addresses and ``"unix:/path"`` cost no look-up.

    As getaddrinfo does not tell how long an answer is good for, *ttl* says so, in seconds.  A stale
    answer is still given out at once for as long again, while one look-up in the background brings
    a new one; later, callers wait for that, and get the stale one if it fails or takes longer than
    1.8 s, up to *max_stale* seconds after its time.  That there is no such name is believed for
    *negative_ttl* seconds.  A look-up may take *timeout* seconds (None: as long as it likes), and
    of more than *max_names* names those asked for longest ago are forgotten.

    *family* may be ``AF_INET`` or ``AF_INET6``, for addresses of one kind.  *resolver* is the
    gevent resolver to ask, a ``gevent.resolver.ares.Resolver(servers=[...])`` for instance, which
    belongs to one hub; by default that of the caller's hub.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        family: int = constants.AF_UNSPEC,
        ttl: float = 30.0,
        negative_ttl: float = 1.0,
        max_stale: float = 3600.0,
        timeout: float | None = 10.0,
        max_names: int = 1000,
        resolver: Any = None,
        clock: Clock = monotonic,
    ) -> None:
        families = (constants.AF_UNSPEC, constants.AF_INET, constants.AF_INET6)
        if family not in families:
            raise ValueError(f"family must be AF_UNSPEC, AF_INET or AF_INET6, not {family!r}")
        if resolver is not None and not callable(getattr(resolver, "getaddrinfo", None)):
            raise TypeError(f"resolver must be a resolver of gevent or None, not {resolver!r}")
        super().__init__(
            _AddressQuestion(None if port is None else _port("port", port), family, resolver),
            ttl=_seconds("ttl", ttl),
            negative_ttl=negative_ttl,
            max_stale=max_stale,
            timeout=timeout,
            max_names=max_names,
            clock=clock,
        )

    @property
    def ttl(self) -> float:
        """Seconds for which an answer is fresh; if set, from the next look-up on."""
        return self._ttl

    @ttl.setter
    def ttl(self, ttl: float) -> None:
        self._ttl = _seconds("ttl", ttl)


class _AddressQuestion:
    def __init__(self, port: int | None, family: int, resolver: Any) -> None:
        self.port = port
        self.family = family
        self.resolver = resolver

    def __str__(self) -> str:
        kinds = {constants.AF_INET: "A", constants.AF_INET6: "AAAA"}
        return kinds.get(constants.AddressFamily(self.family), "A and AAAA")

    def numeric(self, name: str) -> AddressGroup | None:
        target = self._split(name)
        if isinstance(target, Address):
            try:
                ipaddress.ip_address(target.ip)
            except ValueError:
                return None
        return AddressGroup.of(target)

    def ask(self, name: str) -> _Found:
        target: Any = self._split(name)
        tried = (f"{self} of {target.ip}",)
        resolver = gevent.get_hub().resolver if self.resolver is None else self.resolver
        try:
            infos = resolver.getaddrinfo(target.ip, target.port, self.family, constants.SOCK_STREAM)
        except constants.gaierror as error:
            kind = _Absent if error.errno in _NO_SUCH_NAME else _Failed
            raise kind(error.strerror or str(error), tried) from error
        except Exception as error:
            raise _Failed(str(error) or repr(error), tried) from error
        hosts = dict.fromkeys(_host(info[4]) for info in infos)
        if not hosts:
            raise _Absent("no address", tried)
        return _Found(AddressGroup.of(*[Address(host, target.port) for host in hosts]), None)

    def _split(self, name: str) -> AnyAddress:
        """The host and port that *name* spells.  Raises ValueError if it does not."""
        try:
            return address(name, self.port)
        except ValueError as error:
            raise ValueError(f"name {name!r} is no host and port: {error}") from error


# Those that say so: others (EAI_AGAIN, EAI_FAIL) tell of a server that did not answer, or not well.
_NO_SUCH_NAME = {constants.EAI_NONAME, getattr(constants, "EAI_NODATA", constants.EAI_NONAME)}


def _host(sockaddr: Sequence[Any]) -> str:
    """The host of what getaddrinfo returned, a link-local one with its interface."""
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == 4 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host


# SRV


class SrvResolver(_CachingResolver):
    """Services by their SRV records, as Consul, Kubernetes (headless services) and Nomad have them.

    A name is taken as it is, from the root (no search list): ``"_http._tcp.web.example.com"``,
    ``"web.service.consul"``.  The records of a priority are a tier, the lowest priority first; the
    weights are theirs (RFC 2782).  A target that comes with its addresses in the same answer
    stands for these, as nobody else may know them; of another, the host name is in the
    AddressGroup, for the one who connects to look up.  A target of "." means that there is
    decidedly no such service: NameNotFound.

    *nameservers* are IP addresses, by default those of the system, and *port* is where they
    listen.  They are asked one after the other, twice, by UDP, and by TCP if the answer is
    truncated (*tcp*: by TCP only, for servers that shorten answers and do not say so).  Each has
    *attempt_timeout* seconds, the whole look-up has *timeout*.

    An answer is fresh for its own time to live, at least *min_ttl* seconds: of the many servers
    that say 0, a busy client would ask all the time.  For what then follows, see DnsResolver.
    There is no such name for as long as the answer says, at most *negative_ttl*.

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
        attempt_timeout: float = 1.0,
        timeout: float | None = 5.0,
        max_names: int = 1000,
        clock: Clock = monotonic,
    ) -> None:
        try:
            importlib.import_module("dns.message")
        except ImportError as error:
            raise ImportError(
                "SrvResolver needs dnspython: pip install geventpool[dns]", name="dns"
            ) from error
        super().__init__(
            _SrvQuestion(
                [(_ip(each), _port("port", port)) for each in _servers(nameservers)],
                tcp,
                _seconds("min_ttl", min_ttl),
                _seconds("attempt_timeout", attempt_timeout, positive=True),
            ),
            ttl=min_ttl,
            negative_ttl=negative_ttl,
            max_stale=max_stale,
            timeout=timeout,
            max_names=max_names,
            clock=clock,
        )


def _servers(nameservers: Iterable[str] | None) -> list[str]:
    if nameservers is None:
        from dns.resolver import NoResolverConfiguration, get_default_resolver

        try:
            return [str(each) for each in get_default_resolver().nameservers]
        except NoResolverConfiguration as error:
            raise ValueError(f"nameservers must be given: the system has none: {error}") from error
    if isinstance(nameservers, str):
        raise TypeError(f"nameservers must be a list of IP addresses, not {nameservers!r}")
    found = list(nameservers)
    if not found:
        raise ValueError("nameservers must be at least one IP address")
    return found


_ROUNDS = 2  # so that one lost datagram, of a single server, is not a failure

# What crosses every network in one piece (DNS flag day 2020).  Without EDNS it would be 512 bytes,
# and Consul, of those who have no EDNS, keeps all but a few records to itself.
_DATAGRAM = 1232


class _SrvQuestion:
    def __init__(
        self, servers: list[tuple[str, int]], tcp: bool, min_ttl: float, attempt_timeout: float
    ) -> None:
        self.servers = servers
        self.tcp = tcp
        self.min_ttl = min_ttl
        self.attempt_timeout = attempt_timeout

    def __str__(self) -> str:
        return "SRV at " + ", ".join(str(Address(*server)) for server in self.servers)

    def numeric(self, name: str) -> None:
        _dns_name(name)

    def ask(self, name: str) -> _Found:
        from dns import rcode
        from dns.exception import DNSException
        from dns.message import make_query

        failures: dict[str, Exception | str] = {}  # by server; of one asked twice, the last
        for server in self.servers * _ROUNDS:
            question = f"SRV of {name} at {Address(*server)}"
            query = make_query(_dns_name(name), "SRV", use_edns=0, payload=_DATAGRAM)
            try:
                reply = self._exchange(query, server)
                if reply.rcode() == rcode.FORMERR:  # a server that has never heard of EDNS
                    query.use_edns(False)
                    reply = self._exchange(query, server)
                if reply.rcode() in (rcode.NOERROR, rcode.NXDOMAIN):
                    return self._read(reply, question)
                failures[question] = rcode.to_text(reply.rcode())
            except (OSError, EOFError, DNSException) as error:
                failures[question] = error
        cause = next((e for e in failures.values() if isinstance(e, Exception)), None)
        why = "; ".join(dict.fromkeys(_reason(failure) for failure in failures.values()))
        raise _Failed(why, tuple(f"{q}: {_reason(e)}" for q, e in failures.items())) from cause

    def _read(self, reply: Any, question: str) -> _Found:
        """The tiers of the SRV records in *reply*.  Raises _Absent if they say there are none."""
        from dns import rcode
        from dns.name import root

        chain = reply.resolve_chaining()
        ttl = max(chain.minimum_ttl, self.min_ttl)
        if chain.answer is None:
            missing = reply.rcode() == rcode.NXDOMAIN
            why = "no such name" if missing else "it has no SRV records"
            raise _Absent(why, (question,), ttl)
        # A port of 0 can be meant no other way, and one such record must not spoil the others.
        records = [each for each in chain.answer if each.target != root and each.port]
        if not records:
            raise _Absent("the service is decidedly not available (SRV .)", (question,), ttl)
        tiers: dict[int, list[tuple[float, Address]]] = {}
        for record in sorted(records, key=lambda record: record.priority):
            hosts, host_ttl = _hosts(reply, record.target)
            ttl = min(ttl, max(host_ttl, self.min_ttl))
            tier = tiers.setdefault(record.priority, [])
            # The share of a target is that of all its addresses together.
            tier += [(record.weight / len(hosts), Address(host, record.port)) for host in hosts]
        return _Found(AddressGroup([_balanced(tier) for tier in tiers.values()]), ttl)

    def _exchange(self, query: Message, server: tuple[str, int]) -> Message:
        """Send *query*, return the reply.  OSError, EOFError or a DNSException if there is none."""
        from dns import flags

        deadline = monotonic() + self.attempt_timeout
        reply = None if self.tcp else _by_udp(query, server, deadline)
        if reply is None or reply.flags & flags.TC:
            reply = _by_tcp(query, server, deadline)
        return reply


def _hosts(reply: Message, target: Name) -> tuple[list[str], float]:
    """What to connect to for *target*, its addresses in *reply* or else itself; and for how long
    that is good."""
    found: list[str] = []
    ttl = math.inf
    for rrset in reply.additional:
        if rrset.name == target and rrset.rdtype.name in ("A", "AAAA"):
            found += [str(record.address) for record in rrset]
            ttl = min(ttl, rrset.ttl)
    return found or [target.to_text(omit_final_dot=True)], ttl


def _balanced(tier: list[tuple[float, Address]]) -> list[tuple[float, Address]]:
    """Records that all have the weight 0 have "no server selection to do": equal ones then."""
    if any(weight for weight, _ in tier):
        return tier
    return [(1.0, target) for _, target in tier]


def _by_udp(query: Message, server: tuple[str, int], deadline: float) -> Message:
    from dns.exception import DNSException
    from dns.message import Truncated, from_wire

    # Connected: the kernel drops what others send, and tells of a port where nobody listens.
    with closing(gevent.socket.socket(_family(server), constants.SOCK_DGRAM)) as sock:
        sock.connect(server)
        sock.send(query.to_wire())
        while True:
            data = _before(deadline, sock).recv(65535)
            try:
                reply = from_wire(data, ignore_trailing=True, raise_on_truncation=True)
            except Truncated as cut:  # in the middle of a record, perhaps
                reply = cut.message()  # type: ignore[no-untyped-call]
            except DNSException:
                continue  # not by our server: it may yet answer
            if query.is_response(reply):
                return reply


def _by_tcp(query: Message, server: tuple[str, int], deadline: float) -> Message:
    from dns.message import from_wire

    wire = query.to_wire()
    with closing(gevent.socket.socket(_family(server), constants.SOCK_STREAM)) as sock:
        _before(deadline, sock).connect(server)
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        (length,) = struct.unpack("!H", _read_exactly(sock, 2, deadline))
        reply = from_wire(_read_exactly(sock, length, deadline))
    if not query.is_response(reply):
        raise EOFError("the reply is to another question")
    return reply


def _read_exactly(sock: Any, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        more = _before(deadline, sock).recv(count - len(data))
        if not more:
            raise EOFError(f"the server hung up after {len(data)} of {count} bytes")
        data += more
    return data


def _before(deadline: float, sock: Any) -> Any:
    """*sock*, which from now on raises TimeoutError when *deadline* has come."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(left)
    return sock


def _family(server: tuple[str, int]) -> int:
    return constants.AF_INET6 if ":" in server[0] else constants.AF_INET


def _dns_name(name: str) -> Name:
    from dns.exception import DNSException
    from dns.name import from_text

    try:
        return from_text(name)
    except DNSException as error:
        raise ValueError(f"name {name!r} is no DNS name: {error}") from error


# A file


class FileResolver:
    """The names in a JSON or TOML file (by its suffix), read again when it has changed.

    The file has one object, or table, from a name to its addresses::

        {"web": ["10.0.0.1:80", "10.0.0.2:80"],
         "db":  [[[9, "10.0.1.1:5432"], [1, "10.0.1.2:5432"]], ["10.0.2.1:5432"]]}

    Either a list of addresses, one tier with equal weights; or a list of tiers, each a list of
    addresses and of ``[weight, address]``.  Addresses are spelled as in ``addresses.address``.

    At most every *interval* seconds a look-up asks the system whether the file has changed (its
    time, size and inode); reading it blocks, as reading any file does.  If it is broken, or gone,
    what it said last stays in force, and a warning says why, once for each broken version.
    Replace it by a rename, and nobody will see half of it.

    Raises at construction what is wrong with it: OSError, or ValueError that names the file.
    TOML, before Python 3.11, needs ``tomli``: ImportError if that is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        interval: float = 1.0,
        clock: Clock = monotonic,
    ) -> None:
        self.path = os.fspath(path)
        self.interval = _seconds("interval", interval)
        self._parse = _parser(self.path)
        self._clock = clock
        self._version: tuple[int, ...] | None  # None: there was no file
        self._version, text = self._read()
        self._groups = self._understand(text)
        self._next_look = clock() + interval

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if the file has no such name."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + self.interval
            self._look()
        group = self._groups.get(_text(name))
        if group is None:
            tried = (f"{self.path}: {_listed('names', self._groups)}",)
            raise _not_found(name, f"it is not in {self.path}", tried)
        return group

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {len(self._groups)} names>"

    def _look(self) -> None:
        """Read the file if it is not the version that was read, well or badly, before."""
        version = None
        try:
            version = _version(os.stat(self.path))
            if version == self._version:
                return
            version, text = self._read()
            self._groups = self._understand(text)
        except (OSError, ValueError) as error:
            if version != self._version:
                self._version = version
                _say(logging.WARNING, "%s; what it said before stays in force", error)
        else:
            self._version = version

    def _read(self) -> tuple[tuple[int, ...], bytes]:
        with open(self.path, "rb") as file:
            # Of the open file, and before reading: whatever is written later makes it another.
            return _version(os.fstat(file.fileno())), file.read()

    def _understand(self, text: bytes) -> dict[str, AddressGroup]:
        try:
            names = self._parse(text.decode())
            if not isinstance(names, dict):
                raise ValueError("an object of names is expected")
            return {name: _group(name, value) for name, value in names.items()}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: {error}") from error


def _version(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _parser(path: str) -> Callable[[str], Any]:
    match os.path.splitext(path)[1].lower():
        case ".json":
            return json.loads
        case ".toml":
            return _toml_parser(path)
        case suffix:
            raise ValueError(f"path must end in .json or .toml, not {suffix!r}: {path!r}")


def _toml_parser(path: str) -> Callable[[str], Any]:
    for module in ("tomllib", "tomli"):  # the standard library's, from Python 3.11 on
        try:
            parse: Callable[[str], Any] = importlib.import_module(module).loads
            return parse
        except ImportError:
            pass
    raise ImportError(f"{path}: TOML needs Python 3.11, or tomli: pip install tomli; or use JSON")


def _group(name: str, value: Any) -> AddressGroup:
    """What the file says of *name*."""
    try:
        if not isinstance(value, list) or not value:
            raise ValueError("a list of addresses or of tiers is expected")
        tiers = value if all(isinstance(tier, list) for tier in value) else [value]
        return AddressGroup([[_weighted(item) for item in tier] for tier in tiers])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r}: {error}") from error


def _weighted(item: Any) -> tuple[float, AnyAddress]:
    match item:
        case str():
            return 1.0, address(item)
        case [int() | float() as weight, str(target)] if not isinstance(weight, bool):
            return weight, address(target)
        case _:
            raise ValueError(f'"host:port" or [weight, "host:port"] is expected, not {item!r}')


# Who is told of changes

Placement = tuple[tuple[int, float], ...]  # the tiers that an address is in, and its weight there
OnChange = Callable[[str, frozenset[AnyAddress], frozenset[AnyAddress], AddressGroup], object]


class Watcher:
    """Looks at names every *interval* seconds, and tells of what has changed.

    ``on_change(name, added, removed, group)`` gets two frozensets of addresses, and an AddressGroup
    of all that is known now; both sets are empty if only weights or tiers have changed.  Each
    address counts for itself: it is added, or removed, once it has been there, or gone, at every
    look of *hold* seconds.  One that comes and goes is left as it was, and holds up no other.  A
    look-up that fails, or finds no such name, says nothing and removes nothing.

    It is called in the watcher's own greenlet, one for all names, which looks at one after the
    other; while *on_change*, or a look-up, blocks, no other is looked at.  What it raises is
    logged.  If it is a method, its object is held weakly.  When that is gone, or the watcher is,
    or on ``close()``, the greenlet ends.
    """

    def __init__(
        self,
        resolver: Resolver,
        on_change: OnChange,
        *,
        interval: float = 1.0,
        hold: float = 5.0,
        clock: Clock = monotonic,
    ) -> None:
        if not callable(getattr(resolver, "resolve", None)):
            raise TypeError(f"resolver must have a resolve(name), not {resolver!r}")
        if not callable(on_change):
            raise TypeError(f"on_change must be callable, not {on_change!r}")
        self.resolver = resolver
        self.interval = _seconds("interval", interval, positive=True)
        self.hold = _seconds("hold", hold)
        self.closed = False
        self._clock = clock
        self._names: dict[str, _Watched] = {}
        self._bell = _Bell()
        self._asked: list[Event] = []  # who waits in look()
        self._telling = False
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._on_change: Callable[[], OnChange | None]
        if inspect.ismethod(on_change):
            self._on_change = weakref.WeakMethod(on_change, self._bell.ring)
        else:
            self._on_change = lambda: on_change

    def add(self, name: str, group: AddressGroup | None = None) -> None:
        """Watch *name*, too.  Does not block; nothing happens if it is watched already.

        *group* is what the caller knows of it; by default, what the first look-up finds is taken
        for known.  Raises RuntimeError after ``close()``.
        """
        if self.closed:
            raise RuntimeError("the watcher is closed")
        if _text(name) in self._names:
            return
        self._names[name] = _Watched(None if group is None else _placements(group))
        if self._greenlet is None or self._greenlet.ready():
            reference = weakref.ref(self, self._bell.ring)
            self._bell.hub = gevent.get_hub()
            self._greenlet = gevent.spawn(_watch, reference, self._bell)
        self._bell.event.set()

    def discard(self, name: str) -> None:
        """Watch *name* no longer, if it was watched; nothing more is told of it."""
        self._names.pop(name, None)

    def look(self) -> None:
        """Look at every name now, not only when the interval is over; blocks until that is done."""
        if self._greenlet is None or self._greenlet.ready() or self.closed:
            return
        if gevent.getcurrent() is self._greenlet:
            raise RuntimeError("on_change must not wait for the next look: it is in the way")
        done = Event()
        self._asked.append(done)
        self._bell.event.set()
        done.wait()

    def close(self) -> None:
        """Tell nothing more.  Does not block; a call of *on_change* under way is not cut short."""
        self.closed = True
        self._names.clear()
        asked, self._asked = self._asked, []
        for done in asked:
            done.set()
        self._bell.event.set()
        # In the middle of a look-up it would go on for as long as that takes.
        if self._greenlet not in (None, gevent.getcurrent()) and not self._telling:
            self._greenlet.kill(block=False)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._names)} names"
        return f"<{type(self).__name__} {state}, {self.resolver!r}>"

    # What its greenlet does

    def _round(self) -> bool:
        """Look at every name once.  False if that was the last time."""
        if self._on_change() is None:
            self.close()
        asked, self._asked = self._asked, []
        try:
            for name in list(self._names):
                self._look_at(name)
            return not self.closed
        finally:
            for done in asked:
                done.set()

    def _look_at(self, name: str) -> None:
        watched = self._names.get(name)
        if watched is None:
            return
        try:
            group = self.resolver.resolve(name)
        except (Exception, Timeout) as error:
            # A Timeout, too: in this greenlet it can only be the resolver's.
            _say(logging.DEBUG, "watching %r: %r", name, error)
            return
        if self._names.get(name) is not watched:
            return  # discarded meanwhile
        change = watched.changed(group, self._clock(), self.hold)
        on_change = self._on_change()
        if change is None or on_change is None:
            return
        self._telling = True
        try:
            on_change(name, *change)
        except (Exception, Timeout):
            _say(logging.ERROR, "on_change raised, told of %r", name, exc_info=True)
        finally:
            self._telling = False


class _Bell:
    """Wakes the greenlet of a watcher; may be rung by the garbage collector, in any thread."""

    def __init__(self) -> None:
        self.event = Event()
        self.hub: Any = None

    def ring(self, reference: object) -> None:
        loop = getattr(self.hub, "loop", None)
        if loop is not None:
            loop.run_callback_threadsafe(self.event.set)


def _watch(reference: weakref.ref[Watcher], bell: _Bell) -> None:
    """The greenlet of a watcher, which is held only while it looks."""
    while True:
        watcher = reference()
        if watcher is None or not watcher._round():
            return
        interval = watcher.interval
        del watcher
        bell.event.wait(interval)
        bell.event.clear()


class _Watched:
    """What was told of a name, and what is yet to hold."""

    def __init__(self, told: dict[AnyAddress, Placement] | None) -> None:
        self.told = told
        self.since: dict[AnyAddress, tuple[Placement | None, float]] = {}

    def changed(
        self, group: AddressGroup, now: float, hold: float
    ) -> tuple[frozenset[AnyAddress], frozenset[AnyAddress], AddressGroup] | None:
        """What to tell now that *group* is seen: (added, removed, group); None if nothing."""
        seen = _placements(group)
        if self.told is None:
            self.told = seen
        told = self.told
        differing = {a: seen.get(a) for a in [*told, *seen] if told.get(a) != seen.get(a)}
        self.since = {
            a: self.since[a] if a in self.since and self.since[a][0] == place else (place, now)
            for a, place in differing.items()
        }
        held = {a: place for a, (place, since) in self.since.items() if now - since >= hold}
        placed = {a: place for a, place in {**told, **held}.items() if place is not None}
        if not held or not placed:  # the last one stays until another has held
            return None
        self.told = placed
        current = group if placed == seen else _placed(placed)
        added, removed = placed.keys() - told.keys(), told.keys() - placed.keys()
        return frozenset(added), frozenset(removed), current


def _placements(group: AddressGroup) -> dict[AnyAddress, Placement]:
    found: dict[AnyAddress, Placement] = {}
    for number, tier in enumerate(group.tiers):
        for weight, target in tier:
            found[target] = (*found.get(target, ()), (number, weight))
    return found


def _placed(placements: Mapping[AnyAddress, Placement]) -> AddressGroup:
    """The group whose placements these are, without its empty tiers."""
    tiers: dict[int, list[tuple[float, AnyAddress]]] = {}
    for target, place in placements.items():
        for number, weight in place:
            tiers.setdefault(number, []).append((weight, target))
    return AddressGroup([tiers[number] for number in sorted(tiers)])


# What the arguments mean, and how things are said


def _text(value: object, name: str = "name") -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    return value


def _seconds(name: str, value: object, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not math.isfinite(value) or value < 0 or (positive and not value):
        least = "more than 0" if positive else "0 or more"
        raise ValueError(f"{name} must be {least} seconds, not {value!r}")
    return float(value)


def _port(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a port number, not {value!r}")
    if not 0 < value < 65536:
        raise ValueError(f"{name} must be from 1 to 65535, not {value!r}")
    return value


def _ip(value: object) -> str:
    try:
        return str(ipaddress.ip_address(_text(value, "nameservers")))
    except ValueError as error:
        raise ValueError(f"nameservers must be IP addresses, not {value!r}") from error


def _listed(kind: str, names: Iterable[str]) -> str:
    """All the names, or so many that a message can take."""
    some = sorted(map(str, names))
    more = f" and {len(some) - 10} more" if len(some) > 10 else ""
    return f"{kind}: {', '.join(some[:10]) or 'none'}{more}"


def _not_found(name: str, why: str, tried: Sequence[str]) -> NameNotFound:
    message = f"{name!r} was not found: {why} (tried {'; '.join(tried)})"
    return NameNotFound(message, name=name, tried=tried)


def _reason(failure: Exception | str) -> str:
    return str(failure) or repr(failure)


def _bare(failure: Exception) -> Exception | None:
    """The cause of *failure*, or itself if it is none of ours, without its traceback: kept, that
    would keep alive every frame of the look-up."""
    cause = failure.__cause__ if isinstance(failure, (_Absent, _Failed)) else failure
    if not isinstance(cause, Exception):
        return None
    cause.__traceback__ = cause.__cause__ = cause.__context__ = None
    return cause


def _say(level: int, text: str, *args: object, exc_info: bool = False) -> None:
    """Log it; a log handler that raises breaks nothing."""
    try:
        _log.log(level, text, *args, exc_info=exc_info)
    except Exception:
        traceback.print_exc()
