"""From a name to its addresses: by a mapping, by DNS (A and AAAA, or SRV), by a file.

Every resolver has ``resolve(name) -> AddressGroup`` and raises NameNotFound, with the name and what
was tried.  What is asked over the network is asked once for all callers, and kept: ``_cache.py``.
How SRV records are asked for: ``_dns.py``.  Who tells when a name changes: ``watcher.py``.

Must never be done here: connect to what was found, or block the hub.
"""

from __future__ import annotations

import importlib
import ipaddress
import json
import logging
import os
import socket as constants
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import gevent

from geventpool._arguments import check_port, check_seconds, check_text
from geventpool._cache import Absent, CachingResolver, Failed, Found, not_found
from geventpool._log import say
from geventpool.addresses import Address, AddressGroup, AnyAddress, address
from geventpool.watcher import Watcher  # here, too, for those who import it from here

__all__ = ["DnsResolver", "FileResolver", "SrvResolver", "StaticResolver", "Watcher"]

_log = logging.getLogger("geventpool.resolver")

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
        check_text("name", name)
        group = self._groups.get(name)
        if group is None:
            raise not_found(name, "it is not one of the names given", self._tried)
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


# A and AAAA


class DnsResolver(CachingResolver):
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

    _question: _AddressQuestion

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
        if port is not None:
            check_port("port", port)
        check_seconds("ttl", ttl, zero=True, none=False)
        super().__init__(
            _AddressQuestion(port, family, ttl, resolver),
            negative_ttl=negative_ttl,
            max_stale=max_stale,
            timeout=timeout,
            max_names=max_names,
            clock=clock,
        )

    @property
    def ttl(self) -> float:
        """Seconds for which an answer is fresh; if set, from the next look-up on."""
        return self._question.ttl

    @ttl.setter
    def ttl(self, ttl: float) -> None:
        check_seconds("ttl", ttl, zero=True, none=False)
        self._question.ttl = ttl


class _AddressQuestion:
    def __init__(self, port: int | None, family: int, ttl: float, resolver: Any) -> None:
        self.port = port
        self.family = family
        self.ttl = ttl
        self.resolver = resolver

    def __str__(self) -> str:
        kinds: dict[int, str] = {constants.AF_INET: "A", constants.AF_INET6: "AAAA"}
        return kinds.get(self.family, "A and AAAA")

    def without_asking(self, name: str) -> AddressGroup | None:
        target = self._split(name)
        if isinstance(target, Address):
            try:
                ipaddress.ip_address(target.ip)
            except ValueError:
                return None
        return AddressGroup.of(target)

    def ask(self, name: str) -> Found:
        target: Any = self._split(name)
        tried = (f"{self} of {target.ip}",)
        resolver = gevent.get_hub().resolver if self.resolver is None else self.resolver
        try:
            infos = resolver.getaddrinfo(target.ip, target.port, self.family, constants.SOCK_STREAM)
        except constants.gaierror as error:
            kind = Absent if error.errno in _NO_SUCH_NAME else Failed
            raise kind(error.strerror or str(error), tried) from error
        hosts = dict.fromkeys(_host(info[4]) for info in infos)
        if not hosts:
            raise Absent("no address", tried)
        return Found(AddressGroup.of(*[Address(host, target.port) for host in hosts]), self.ttl)

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


class SrvResolver(CachingResolver):
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
            from geventpool._dns import SrvQuestion, nameservers_of_the_system
        except ImportError as error:
            raise ImportError(
                "SrvResolver needs dnspython: pip install geventpool[dns]", name="dns"
            ) from error
        check_port("port", port)
        check_seconds("min_ttl", min_ttl, zero=True, none=False)
        check_seconds("attempt_timeout", attempt_timeout, none=False)
        hosts = nameservers_of_the_system() if nameservers is None else _ips(nameservers)
        super().__init__(
            SrvQuestion([(host, port) for host in hosts], tcp, min_ttl, attempt_timeout),
            negative_ttl=negative_ttl,
            max_stale=max_stale,
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
    what it said last stays in force, and a warning says why: once for each broken version, once
    until it can be read again.  Replace it by a rename, and nobody will see half of it.

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
        check_seconds("interval", interval, zero=True, none=False)
        self.path = os.fspath(path)
        self.interval = interval
        self._parse = _parser(self.path)
        self._clock = clock
        self._version: tuple[int, ...] | None  # None: it could not be read, and that was said
        self._version, text = self._read()
        self._groups = self._understand(text)
        self._next_look = clock() + self.interval

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if the file has no such name."""
        check_text("name", name)
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + self.interval
            self._look()
        group = self._groups.get(name)
        if group is None:
            tried = (f"{self.path}: {_listed('names', self._groups)}",)
            raise not_found(name, f"it is not in {self.path}", tried)
        return group

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {len(self._groups)} names>"

    def _look(self) -> None:
        """Read the file if it is not the version that was read, well or badly, before."""
        try:
            if _version(os.stat(self.path)) == self._version:
                return
            self._version, text = self._read()
            self._groups = self._understand(text)
        except OSError as error:
            # It may pass and leave the file as it was: one file too many open, for instance.
            before, self._version = self._version, None
            if before is not None:
                self._complain(f"{self.path}: {error.strerror}")
        except ValueError as error:
            self._complain(str(error))

    def _complain(self, why: str) -> None:
        say(_log, logging.WARNING, "%s; what it said before stays in force", why)

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


def _listed(kind: str, names: Iterable[str]) -> str:
    """All the names, or so many that a message can take."""
    some = sorted(map(str, names))
    more = f" and {len(some) - 10} more" if len(some) > 10 else ""
    return f"{kind}: {', '.join(some[:10]) or 'none'}{more}"
