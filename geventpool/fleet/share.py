"""How many connections of one cap each process may have: decided from what all of them report.

Pure: no clock and no I/O.  A store holds the records and calls ``grant`` while nobody else can;
``renew.lua`` and ``postgres.sql`` say the same in the store's own language, and a test holds all of
them equal.

*Max-min fair*: nobody gets more as long as one that wants more has less (D. Bertsekas, R. Gallager,
*Data Networks*, 1987, section 6.5.2).
"""

from __future__ import annotations

import itertools
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

    *used*: how many connections it has open; *has*: how many it may open just now; *needs*: how
    many callers hold or wait for; *wants*: how many it would like to have, some of them to spare;
    *lease*: for how many seconds the answer is to hold; *number*: it grows with each report.
    """

    name: str
    cap: int
    id: str
    used: int
    has: int
    needs: int
    wants: int
    weight: int = 1
    floor: int = 1
    lease: float = 10.0
    generation: int = 0
    number: int = 1
    place: int | None = None


class Grant(NamedTuple):
    """How many connections it may have, its floor included; how many processes there are;
    which store that was: an *epoch* that changes if the store was emptied; and the *place* of the
    process: the lowest number that no other has, and its own for as long as it lives."""

    share: int
    members: int
    epoch: str
    place: int | None = None


@dataclass(frozen=True)
class Record:
    """What the store knows of a process; *expires* by the store's clock, in seconds."""

    expires: float
    used: int
    has: int
    share: int
    needs: int
    wants: int
    weight: int
    floor: int
    lease: float
    generation: int
    number: int = 1
    place: int = 0

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
    if sum(each.wants for each in claims) <= whole:
        return {each.id: each.wants for each in claims}
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

    What callers need comes first: what some would like to spare is shared of the rest.  Until
    *learns_until*, in a store that was emptied, it gets what it says it has, and a new one its
    floor if there is room for it.  A report that comes after a later one changes nothing: the
    process has gone on from there.
    """
    last = records.get(report.id)
    if last is not None and report.number <= last.number:
        return last.share, dict(records)
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
        floors = report.floor + sum(each.floor for each in kept.values())
        beyond = _beyond_floor({**live, report.id: report}, report.cap - floors)
        wanted = report.floor + beyond[report.id]
        share = max(0, min(wanted, free))
    kept[report.id] = Record(
        expires=now + report.lease,
        used=report.used,
        has=report.has,
        share=share,
        needs=report.needs,
        wants=report.wants,
        weight=report.weight,
        floor=report.floor,
        lease=report.lease,
        generation=report.generation,
        number=report.number,
        place=_place(kept, report.place if last is None else last.place),
    )
    return share, kept


def _place(others: Mapping[str, Record], had: int | None) -> int:
    """The one that it *had*, or else the lowest that is free."""
    taken = {each.place for each in others.values()}
    if had is not None and had not in taken:
        return had
    return next(place for place in itertools.count() if place not in taken)


def _beyond_floor(live: Mapping[str, Record | Report], whole: int) -> dict[str, int]:
    """What each is to have beyond its floor, out of *whole*: nothing, if processes of a newer
    generation are there."""
    newest = max(each.generation for each in live.values())
    current = {id: each for id, each in live.items() if each.generation == newest}
    needed = {id: max(0, each.needs - each.floor) for id, each in current.items()}
    liked = {id: max(0, each.wants - each.floor) - needed[id] for id, each in current.items()}
    first = max_min([Claim(id, needed[id], each.weight) for id, each in current.items()], whole)
    rest = max_min(
        [Claim(id, max(0, liked[id]), each.weight) for id, each in current.items()],
        whole - sum(first.values()),
    )
    return {id: first.get(id, 0) + rest.get(id, 0) for id in live}
