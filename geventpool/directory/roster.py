"""Which servers of a service are given out, by what its directory says and has said.

Pure: the time is passed in.

A server that is gone from the directory is gone.  But a service that is gone *as a whole* is kept
for a while: mostly it is the directory that has lost it (it was started anew or restored, or all
sessions and leases ended as it was away), and servers that are really gone cost a caller no more
than a refused connect, which would have failed in any case.  As they vanish one after the other,
those that went just before the last one are kept with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from geventpool.addresses import AddressGroup, AnyAddress

__all__ = ["Roster"]

#: Seconds in which the servers of a service vanish together: about as long as sessions and leases
#: take to end, one after the other.
_TOGETHER = 30.0


class Roster:
    """The servers of one service; *group* is what was given out last, None before the first.

    *keep_emptied*: seconds that a service without any server keeps its last ones.
    """

    def __init__(self, keep_emptied: float) -> None:
        self.keep_emptied = keep_emptied
        self.is_known = False  # the directory has answered, if only that there are none
        self._group: AddressGroup | None = None
        self._ends_at = math.inf  # it is emptied, and gives out what it had until then
        self._members: dict[AnyAddress, float] = {}
        self._left: dict[AnyAddress, tuple[float, float]] = {}  # the weight, and when it went

    def update(self, members: Mapping[AnyAddress, float], now: float) -> bool:
        """The directory has these, by address with their weights.  Whether that is a change."""
        before = self.group(now)
        group = _group(members) if members else None  # what this raises changes nothing
        for each, weight in self._members.items():
            if each not in members:
                self._left[each] = weight, now
        was_emptied = self.is_known and not self._members
        self.is_known, self._members = True, dict(members)
        self._left = {
            each: (weight, at)
            for each, (weight, at) in self._left.items()
            if each not in members and now - at < _TOGETHER
        }
        if group is not None:
            self._group, self._ends_at = group, math.inf
        elif self._left and not was_emptied:
            self._group = _group({each: weight for each, (weight, _) in self._left.items()})
            self._ends_at = now + self.keep_emptied
        return self.group(now) != before

    def group(self, now: float) -> AddressGroup | None:
        """What is given out; None if there is nothing."""
        return self._group if now < self._ends_at else None

    @property
    def is_emptied(self) -> bool:
        """Whether the directory has no server, and had some."""
        return self._ends_at < math.inf


def _group(members: Mapping[AnyAddress, float]) -> AddressGroup:
    return AddressGroup([[(weight, each) for each, weight in members.items()]])
