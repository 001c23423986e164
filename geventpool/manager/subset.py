"""Which servers of a large service are for this process, and which come next.

Pure: no I/O and no clock.  The machinery, and where it is from:

* By a key: each process ranks the servers by a hash of its key and the address, and takes the first
  of them (D. Thaler, C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998).  The
  rank of a server does not depend on the others; so when one goes, only its place is filled anew.
  Weights are drawn by *priority sampling* (N. Duffield, C. Lund, M. Thorup, "Priority Sampling for
  Estimation of Arbitrary Subset Sums", 2007): over many processes, each server gets its part.
* By a place: all processes have the servers on the same ring, and each begins at its own point of
  it.  The points of the places 0, 1, 2, ... are van der Corput's sequence: it is even however many
  there are, and so are the subsets (compare "Reinventing Backend Subsetting at Google", 2022).
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

from geventpool._util.arguments import check_text, check_whole
from geventpool.addresses import AddressGroup, AnyAddress, Tier

__all__ = ["Candidate", "Subset", "WithPlace"]

_MOST_ORDERS = 64  # tiers of which the order is kept
_ALL = 1 << 64  # so many values has a hash


class WithPlace(Protocol):
    """Whatever knows the place of this process among all of a fleet, as a FleetLimit does."""

    @property
    def place(self) -> int | None:
        """0, 1, 2, ...: no other process has the same; None while that is not known."""


class Candidate(NamedTuple):
    """A server of a tier; those of the highest *rank* come first."""

    rank: float
    weight: float
    address: AnyAddress


class Subset:
    """A stable part of a large service, for each process another one: a setting of a
    ConnectionManager::

        manager = ConnectionManager(resolver, subset=Subset(12))

    Of each tier that has more than *size* servers, this process uses *size* that are up; of 200
    servers and 400 processes, each server has the connections of about 24 processes, and not of
    400.  Tiers keep their order, and weights their meaning.

    Which servers that are follows from *key*, by default one that is drawn at random for each
    process, and anew in a forked child.  Give one for the same servers after a restart; no two
    processes should have the same, so give it where no process forks afterwards.

    With a *fleet*, as a FleetLimit, its place among all processes decides instead, once it is
    known: then servers of equal weights get, as near as can be, equally many processes.
    """

    def __init__(
        self, size: int, *, key: str | None = None, fleet: WithPlace | None = None
    ) -> None:
        check_whole("size", size, least=1)
        if key is not None:
            check_text("key", key)
        if fleet is not None and not hasattr(fleet, "place"):
            raise TypeError(f"fleet must have a place, as a FleetLimit has, not be {fleet!r}")
        self.size = size
        self.key = key
        self.fleet = fleet
        self._orders: dict[int, _Order] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size})"

    def near(
        self, tier: Tier, admits: Callable[[AnyAddress], bool]
    ) -> tuple[Tier, Sequence[Candidate]]:
        """The first of *tier* for this process, with the weights that they have among each other,
        and the rest in their order.

        *admits* says whether a server is up.  One that is not is passed over, and another comes in
        its place: so there are *size* that are up, if there are as many.  Those passed over come
        with the first.
        """
        if len(tier) <= self.size:
            return tier, ()
        order = self._order(tier)
        usable = count = 0
        for candidate in order.candidates:
            count += 1
            usable += admits(candidate.address)
            if usable == self.size:
                break
        return order.first(count), order.candidates[count:]

    def of(self, group: AddressGroup) -> frozenset[AnyAddress]:
        """The addresses of *group* that come first for this process, if all are up."""
        return frozenset(
            each for tier in group.tiers for _, each in self.near(tier, lambda _: True)[0]
        )

    def _order(self, tier: Tier) -> _Order:
        """It is kept until the place of this process changes, or it forks."""
        place = None if self.fleet is None else self.fleet.place
        if place is not None and len({weight for weight, _ in tier}) > 1:
            place = None  # on the ring, none is more likely to be chosen than another
        identity = (self.key or _key_of_process()) if place is None else place
        known = self._orders.get(id(tier))
        if known is None or known.tier is not tier or known.identity != identity:
            self._orders.pop(id(tier), None)
            while len(self._orders) >= _MOST_ORDERS:
                del self._orders[next(iter(self._orders))]
            known = self._orders[id(tier)] = _Order(tier, identity)
        return known


class _Order:
    """All servers of a tier as this process ranks them."""

    def __init__(self, tier: Tier, identity: str | int) -> None:
        self.tier, self.identity = tier, identity
        weights = {each: weight for weight, each in reversed(tier)}  # the first of each counts
        self.candidates: tuple[Candidate, ...]
        if isinstance(identity, str):
            self.candidates = _by_key(identity, weights)
        else:
            self.candidates = _by_place(identity, weights)
        self._first: Tier = ()

    def first(self, count: int) -> Tier:
        """So many of them, as a tier: the same object if that was asked for last."""
        if len(self._first) != count:
            # By its rank, a server was as likely to be among them as its weight says.  So all of
            # these are equal now, but for those that are heavier than any rank left out.
            left = self.candidates[count:]
            least = left[0].rank if left else 0.0
            firsts = self.candidates[:count]
            self._first = tuple((max(each.weight, least), each.address) for each in firsts)
        return self._first


def _by_key(key: str, weights: Mapping[AnyAddress, float]) -> tuple[Candidate, ...]:
    found = []
    for each, weight in weights.items():
        chance = (_hash(f"{key}\0{each}") + 1) / _ALL  # above 0, and at most 1
        # Those of weight 0 come last, whatever the hash; of each other, it decides.
        found.append((chance, Candidate(weight / chance, weight, each)))
    found.sort(key=lambda pair: (-pair[1].rank, pair[0]))
    return tuple(candidate for _, candidate in found)


def _by_place(place: int, weights: Mapping[AnyAddress, float]) -> tuple[Candidate, ...]:
    ring = [Candidate(weight, weight, each) for each, weight in weights.items()]
    ring.sort(key=lambda candidate: _hash(str(candidate.address)))
    first = int(_van_der_corput(place) * len(ring))
    return tuple(ring[first:] + ring[:first])


def _van_der_corput(number: int) -> float:
    """Its bits in reverse order, behind the point: 1/2, 1/4, 3/4, 1/8, ..."""
    value, part = 0.0, 0.5
    while number:
        value += part * (number & 1)
        number >>= 1
        part /= 2
    return value


def _hash(text: str) -> int:
    """The same in every process: Python's own is not."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


_keys: dict[int, str] = {}


def _key_of_process() -> str:
    """As long as the process lives, the same; in a forked child another one."""
    pid = os.getpid()  # asked anew: no hook of Python's tells of every fork
    if pid not in _keys:
        _keys.setdefault(pid, f"{socket.gethostname()}-{pid}-{secrets.token_hex(8)}")
    return _keys[pid]
