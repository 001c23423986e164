"""How many connections of one cap each process may have: decided from what all of them report.

Pure: no clock and no I/O.  A store holds the records and calls ``grant`` while nobody else can;
``redis.lua`` and ``postgres.sql`` say the same in the store's own language, and a test holds all of
them equal.

*Max-min fair*: nobody gets more as long as one that wants more has less (D. Bertsekas, R. Gallager,
*Data Networks*, 1987, section 6.5.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["MEMORY", "Claim", "Grant", "Record", "Report", "grant", "max_min"]

#: For so many leases after its own has ended the floor of a process is kept for it: it may be cut
#: off from the store, and goes on with its floor.
MEMORY = 6


@dataclass(frozen=True)
class Report:
    """What a process tells the store, and asks for.

    *used*: how many connections it has open; *has*: how many it may open just now; *wants*: how
    many it could use; *lease*: for how many seconds the answer is to hold.
    """

    name: str
    cap: int
    id: str
    used: int
    has: int
    wants: int
    weight: int = 1
    floor: int = 1
    lease: float = 10.0
    generation: int = 0


class Grant(NamedTuple):
    """How many connections it may have, its floor included; how many processes there are; and
    which store that was: an *epoch* that changes if the store was emptied."""

    share: int
    members: int
    epoch: str


@dataclass(frozen=True)
class Record:
    """What the store knows of a process; *expires* by the store's clock, in seconds."""

    expires: float
    used: int
    has: int
    share: int
    wants: int
    weight: int
    floor: int
    lease: float
    generation: int

    def counted(self, now: float) -> int:
        """How many connections of the cap it may have open at that time."""
        return max(self.share, self.used, self.has) if now < self.expires else self.floor


class Claim(NamedTuple):
    """What one of several wants of a whole."""

    id: str
    wants: int
    weight: int = 1


def max_min(claims: Sequence[Claim], whole: int) -> dict[str, int]:
    """How *whole* units are divided among *claims*, by their ids.

    The k-th unit of a claim has the rank k / weight; the units that rank first are given, of equal
    ones that of the lower id.  So each gets what it wants, or as much as the others by its weight.
    Weights are whole numbers from 1.  O(n log n).
    """
    given = {each.id: 0 for each in claims}
    if whole <= 0:
        return given
    level = _water_level(claims, whole)
    ranked = []
    for each in claims:
        # All units up to the water level have a place.
        least = min(each.wants, math.floor(each.weight * level * (1.0 - 1e-12)))
        given[each.id] = least
        most = min(each.wants, least + each.weight + 1)
        ranked += [(unit / each.weight, each.id) for unit in range(least + 1, most + 1)]
    left = whole - sum(given.values())
    for _, id in sorted(ranked)[: max(left, 0)]:
        given[id] += 1
    return given


def _water_level(claims: Sequence[Claim], whole: int) -> float:
    """The level that *whole* reaches, poured into vessels as wide as the weights and as high as
    what is wanted for each unit of weight."""
    level, width = 0.0, float(sum(each.weight for each in claims))
    left = float(whole)
    for each in sorted(claims, key=lambda each: each.wants / each.weight):
        height = each.wants / each.weight
        if (height - level) * width >= left:
            return level + left / width
        left -= (height - level) * width
        level = height
        width -= each.weight
    return level


def grant(
    records: Mapping[str, Record], report: Report, now: float, *, learns_until: float = -math.inf
) -> tuple[int, dict[str, Record]]:
    """What the process that reports may have, and what is known then.

    Until *learns_until*, in a store that was emptied, it gets what it says it has, and a new one
    its floor if there is room for it.
    """
    kept = {
        id: each
        for id, each in records.items()
        if id != report.id and now < each.expires + MEMORY * each.lease
    }
    free = report.cap - sum(each.counted(now) for each in kept.values())
    live = {id: each for id, each in kept.items() if now < each.expires}
    if now < learns_until:
        share = report.has or min(report.floor, max(free, 0))
    else:
        newest = max([report.generation, *(each.generation for each in live.values())])
        floors = report.floor + sum(each.floor for each in kept.values())
        claims = [Claim(id, _beyond_floor(each, newest), each.weight) for id, each in live.items()]
        own = Claim(report.id, _beyond_floor(report, newest), report.weight)
        wanted = report.floor + max_min([*claims, own], report.cap - floors)[report.id]
        share = max(0, min(wanted, free))
    kept[report.id] = Record(
        expires=now + report.lease,
        used=report.used,
        has=report.has,
        share=share,
        wants=report.wants,
        weight=report.weight,
        floor=report.floor,
        lease=report.lease,
        generation=report.generation,
    )
    return share, kept


def _beyond_floor(each: Record | Report, newest: int) -> int:
    """What it wants beyond its floor: nothing, if processes of a newer generation are there."""
    return 0 if each.generation < newest else max(0, each.wants - each.floor)
