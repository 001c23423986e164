"""Where a server is: one address, in any spelling; and the group of them behind one name.

No I/O and no gevent: nothing here looks a name up (``discovery`` does) or connects to what it
says (``sockets`` does).
"""

from __future__ import annotations

import ipaddress
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, Union

from geventpool._util.errors import text_of
from geventpool.errors import ConnectError, NameNotFound

__all__ = [
    "Address",
    "AddressGroup",
    "AnyAddress",
    "Resolver",
    "Tier",
    "UnixAddress",
    "address",
    "described",
    "is_host_name",
    "is_own",
    "resolve_by",
    "weighted_order",
]

T = TypeVar("T")

_LONGEST_REPR = 200  # characters


class Address(NamedTuple):
    """A host and a port: a tuple, as sockets take it.  *ip* may also be the name of a host.

    Made by hand it is not looked at; ``address()`` checks what it is given.
    """

    ip: str
    port: int

    def __str__(self) -> str:
        """``host:port`` or ``[v6]:port``, which ``address()`` reads again."""
        # A host of the name "unix" would read as a path.
        bare = ":" not in self.ip and self.ip != "unix"
        return f"{self.ip}:{self.port}" if bare else f"[{self.ip}]:{self.port}"


class UnixAddress(NamedTuple):
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        """``unix:/path``, which ``address()`` reads again."""
        return f"unix:{self.path}"


# Not `Address | UnixAddress`: isinstance() and Python 3.10 take both, older type checkers do not.
AnyAddress: TypeAlias = Union[Address, UnixAddress]  # noqa: UP007

#: Pairs of a weight and an address.
Tier: TypeAlias = tuple[tuple[float, AnyAddress], ...]


class Resolver(Protocol):
    """Whatever knows the addresses behind a name."""

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if it has none.  May block."""
        ...


@lru_cache(maxsize=1024)
def is_host_name(known: AnyAddress) -> bool:
    """Whether its host is to be looked up."""
    if not isinstance(known, Address):
        return False
    try:
        ipaddress.ip_address(known.ip)
    except ValueError:
        return True
    return False


def is_own(resolver: object) -> bool:
    """Whether it is one of this package: it raises what it says it does, and no Timeout."""
    return getattr(resolver, "_is_own", False) is True


def described(resolver: object) -> str:
    """What to call a resolver in an error, whatever its repr does."""
    try:
        text = repr(resolver)
    except Exception:
        text = f"<{type(resolver).__name__}>"
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}..."


def resolve_by(resolver: Resolver, name: str, method: str = "resolve") -> AddressGroup:
    """What *resolver* says of *name*, asked by one of its methods.

    A program's own resolver may do anything: what it raises, or returns in the place of an
    AddressGroup, is the cause of a ConnectError that names it; a LookupError, by which many say
    that they know nothing, that of a NameNotFound.
    """
    try:
        group: object = getattr(resolver, method)(name)
    except ConnectError:
        raise
    except LookupError as error:
        raise NameNotFound(f"{name!r} was not found: {described(error)}", name=name) from error
    except Exception as error:
        if is_own(resolver):
            raise  # ValueError or TypeError: it can be no name
        message = f"{name!r}: {described(resolver)} raised {type(error).__name__}: {text_of(error)}"
        raise ConnectError(message) from error
    if not isinstance(group, AddressGroup):
        message = f"{name!r}: {described(resolver)} returned {described(group)}, no AddressGroup"
        raise ConnectError(message)
    return group


def address(target: object, default_port: int | None = None) -> AnyAddress:
    """The one address that *target* spells.

    It may be an Address or a UnixAddress, ``("host", port)``, a pair of an IPv4Address or
    IPv6Address and a port, ``"host:port"``, ``"[::1]:80"``, ``"unix:/path"`` or a path object.
    With a *default_port*, a text may do without its port: ``"host"``, ``"[::1]"``, ``"::1"``.

    A host is an IP address or a name that a host can have, international ones included; whether
    there is one is not asked.  IPv6 addresses come out in their one canonical spelling (RFC 5952).

    Raises TypeError if *target* is none of these, and ValueError if it is one, but none that can be
    connected to.  The error names *target*, and says what is expected and what was wrong.
    """
    if default_port is not None and (
        not isinstance(default_port, int) or not 0 < default_port < 65536
    ):
        raise ValueError(f"default_port must be 1 to 65535 or None, not {default_port!r}")
    match target:
        case Address() | UnixAddress():
            parts: tuple[object, ...] = target
        case str() if target.startswith("unix:"):
            parts = (target.removeprefix("unix:"),)
        case str():
            parts = _host_and_port(target, default_port)
        case os.PathLike():
            parts = (os.fsdecode(target),)
        case (host, port):
            parts = (host, port)
        case _:
            raise TypeError(_expected(target))
    match parts:
        case (str(path),):
            return UnixAddress(_path(path, target))
        case (str() | ipaddress.IPv4Address() | ipaddress.IPv6Address() as host, int(port)) if (
            not isinstance(port, bool)
        ):
            return Address(_host(str(host), target), _port(int(port), target))
    raise TypeError(_expected(target))


class AddressGroup:
    """The addresses behind one name, in tiers: ``[[(weight, address), ...], ...]``.

    Each address may be spelled in any way that ``address()`` reads.  A tier is for when all of the
    one before it is of no use.  Within a tier, an address is the first one to try in proportion to
    its weight: 9 against 1 means nine times of ten.  An address of weight 0 comes after all others
    of its tier.

    Iterating gives all of them in the order in which to try them, a new one each time.  Groups
    are equal if their tiers have the same addresses with the same weights, in whatever order.
    They never change.  *raced*: they are those of one host, of which the first to answer is as good
    as any other, and they are tried as such (RFC 8305); else each is tried in its turn.

    Raises ValueError if there is no tier, a tier is empty or a weight is negative or not finite,
    and TypeError if *tiers* has another shape; the error says where in *tiers*.
    """

    __slots__ = ("addresses", "raced", "tiers")

    tiers: tuple[Tier, ...]
    addresses: frozenset[AnyAddress]
    raced: bool

    def __init__(
        self, tiers: Iterable[Iterable[tuple[float, object]]], *, raced: bool = False
    ) -> None:
        self.raced = raced
        self.tiers = tuple(
            tuple(_weighted(item, f"{place}[{number}]") for number, item in enumerate(tier))
            for place, tier in _named(tiers)
        )
        if not self.tiers:
            raise ValueError("tiers must have at least one tier, and are empty")
        for number, tier in enumerate(self.tiers):
            if not tier:
                raise ValueError(f"tiers[{number}] must have at least one address, and is empty")
        self.addresses = frozenset(each for tier in self.tiers for _, each in tier)

    @classmethod
    def of(cls, *targets: object, raced: bool = False) -> AddressGroup:
        """A group of one tier of equal weights: ``AddressGroup.of("a:80", ("b", 80))``."""
        if not targets:
            raise ValueError("targets must be at least one address, and there is none")
        return cls([[(1.0, target) for target in targets]], raced=raced)

    def connect_ordering(
        self, draw: Callable[[float], float] = random.expovariate
    ) -> list[AnyAddress]:
        """All addresses in the order in which to try them, drawn anew at each call.

        Sorting by an exponentially distributed number of rate *weight* is a weighted draw without
        replacement: each of those left comes next with a probability proportional to its weight
        (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).

        Give a *draw* (the ``expovariate`` of a ``random.Random(seed)``) to make it repeatable.
        """
        return [each for tier in self.tiers for each in weighted_order(tier, draw)]

    def __iter__(self) -> Iterator[AnyAddress]:
        return iter(self.connect_ordering())

    def __len__(self) -> int:
        return sum(map(len, self.tiers))

    def __contains__(self, item: object) -> bool:
        return item in self.addresses

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AddressGroup):
            return NotImplemented
        return self._sorted() == other._sorted()

    def __hash__(self) -> int:
        return hash(self._sorted())

    def __repr__(self) -> str:
        """What makes an equal group: ``AddressGroup([[(9, 'a:80'), (1, '[::1]:80')]])``."""
        tiers = [
            ", ".join(f"({_short(weight)}, {str(each)!r})" for weight, each in tier)
            for tier in self.tiers
        ]
        return f"{type(self).__name__}([[{'], ['.join(tiers)}]])"

    def _sorted(self) -> tuple[Tier, ...]:
        return tuple(tuple(sorted(tier)) for tier in self.tiers)


def weighted_order(items: Iterable[tuple[float, T]], draw: Callable[[float], float]) -> list[T]:
    """The things in pairs of ``(weight, thing)``, in an order drawn as ``connect_ordering()`` does.

    *draw* returns a random number for a rate; weights are not negative.
    """

    def key(item: tuple[float, T]) -> tuple[bool, float]:
        weight = item[0]
        return not weight, draw(weight or 1.0)

    return [each for _, each in sorted(items, key=key)]


def _short(weight: float) -> str:
    return repr(weight).removesuffix(".0")


# What a target may be.


def _host_and_port(text: str, default_port: int | None) -> tuple[str, int]:
    """Take ``host:port`` or ``[host]:port`` apart."""
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed is not None:
        host, digits = bracketed.groups()
    elif text.count(":") > 1 and default_port is not None:
        host, digits = text, None  # a port behind an IPv6 address needs the brackets: RFC 5952, 6
    else:
        host, colon, digits = text.rpartition(":")
        if not colon:
            host, digits = text, None
        if ":" in host:
            why = "a URL is no target, and an IPv6 address goes into brackets"
            raise ValueError(f"{_expected(text)}: {why}")
    if digits is None:
        if default_port is None:
            raise ValueError(f"{_expected(text)}: there is no port")
        return host, default_port
    if not _DIGITS.fullmatch(digits):
        raise ValueError(f"{_expected(text)}: the port is no number")
    return host, int(digits)


_BRACKETED = re.compile(r"\[(.*)\](?::(.*))?", re.DOTALL)
_DIGITS = re.compile(r"[0-9]{1,5}")
_HOST = re.compile(r"[A-Za-z0-9_.-]+")
_SCOPE = re.compile(r"[^%]*(%[A-Za-z0-9_.-]+)?")

#: Characters that the name of a host has room for in a DNS message, without the dot at its end.
_LONGEST_NAME = 253

#: Bytes that the path of a Unix socket has room for on Linux: 108, of which one ends it.
_LONGEST_PATH = 107


def _host(host: str, target: object) -> str:
    if ":" in host:
        try:
            found = str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise ValueError(f"{_expected(target)}: {error}") from error
        if not _SCOPE.fullmatch(found):
            raise ValueError(f"{_expected(target)}: {host!r} has no scope that can be")
        return found
    if not host:
        raise ValueError(f"{_expected(target)}: there is no host")
    try:
        # Cut, as the time that "idna" takes grows with the square of the length.
        known_as = host[: _LONGEST_NAME + 2].encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"{_expected(target)}: {error}") from error
    if not _HOST.fullmatch(known_as) or known_as == ".":
        raise ValueError(f"{_expected(target)}: {host!r} is no name of a host")
    if len(known_as.removesuffix(".")) > _LONGEST_NAME:
        raise ValueError(f"{_expected(target)}: the name of the host is too long")
    return host


def _port(port: int, target: object) -> int:
    if not 0 < port < 65536:
        raise ValueError(f"{_expected(target)}: a port is 1 to 65535")
    return port


def _path(path: str, target: object) -> str:
    try:
        size = len(os.fsencode(path))
    except UnicodeError as error:
        raise ValueError(f"{_expected(target)}: {error}") from error
    if not path or "\0" in path or size > _LONGEST_PATH:
        why = f"the path of a Unix socket has 1 to {_LONGEST_PATH} bytes, none of them NUL"
        raise ValueError(f"{_expected(target)}: {why}")
    return path


def _expected(target: object) -> str:
    return (
        'target must be ("host", port), "host:port", "[v6]:port", "unix:/path" or a path object, '
        f"not {_without_login(repr(target))}"
    )


def _without_login(text: str) -> str:
    """It may be a URL with a password."""
    login, _, rest = text.rpartition("@")
    return f"'***@{rest}" if ":" in login else text


# What the tiers of a group may be.


def _named(tiers: object) -> Iterator[tuple[str, Iterable[object]]]:
    """Each tier, and what to call it."""
    for number, tier in enumerate(_iterable(tiers, "tiers")):
        yield f"tiers[{number}]", _iterable(tier, f"tiers[{number}]")


def _iterable(value: object, place: str) -> Iterable[object]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        expected = "[[(weight, address), ...], ...]" if place == "tiers" else "a list of pairs"
        raise TypeError(f"{place} must be {expected}, not {value!r}")
    return value


def _weighted(item: object, place: str) -> tuple[float, AnyAddress]:
    match item:
        case (int() | float() as weight, target) if not isinstance(weight, bool):
            pass
        case _:
            raise TypeError(f"{place} must be (weight, address), not {item!r}")
    try:
        number = float(weight)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{place}: weight must be finite and not negative, not {weight!r}")
    try:
        return number, address(target)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{place}: {error}") from error
