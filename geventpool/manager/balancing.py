"""Which server of a group to try next: a directory of what is known of each of them.

No I/O, no greenlets and no clock, as in ``health.py``.

Who wants a connection asks a ServerModelDirectory for one Attempt after the other, and tells each
how it went::

    tried = []
    while (attempt := servers.attempt(group, now(), tried)) is not None:
        tried.append(attempt.address)
        try:
            connection = connect(attempt.address)
        except OSError as error:
            attempt.failed(now(), error)
        except BaseException:  # killed, or timed out by the caller's caller
            attempt.cancelled(now())
            raise
        else:
            attempt.connected(now())
            return connection, attempt

and when the caller is done with the connection, ``succeeded()``, ``failed()`` or, if it was killed,
``cancelled()``.

The machinery, and where it is from:

* *Panic*: with nothing left, those that are down are tried rather than failing blind (Envoy's
  panic threshold).
* *Slow start*: a server that is new or back gets a share that grows with time (Envoy).
* *p2c*: of two servers drawn at random, the less loaded one (M. Mitzenmacher, "The Power of Two
  Choices in Randomized Load Balancing", 1996), where load is the peak-sensitive moving average of
  latency times the requests outstanding (Finagle's PeakEwma).  Beyond Finagle, a request that has
  no answer yet counts by its age, so a server that turns slow is avoided before its first slow
  answer is there.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, get_args
from weakref import WeakValueDictionary

from geventpool.addresses import AddressGroup, AnyAddress, Tier, address, weighted_order
from geventpool.manager.health import Attempt, ServerModel
from geventpool.manager.journal import Journal
from geventpool.manager.policy import HealthPolicy
from geventpool.manager.subset import Candidate, Subset

__all__ = ["Balance", "ServerModelDirectory"]

Balance: TypeAlias = Literal["weighted", "p2c"]

#: Of two servers drawn, the second is taken if the load of the first is more than this times its
#: own.  With 1.0, the noise of two equal latencies would overrule the weights they were drawn by;
#: with 2.0 or more, one request outstanding against none would not be noticed.
_CLEARLY = 1.5

#: Weights may be so far apart that a quotient of them is 0.
_LEAST_SHARE = 1e-9

#: A tier of so many is not looked at as a whole for each attempt.
_MANY = 32
_FRESH = 0.05  # seconds for which it is known how such a tier stands
_MOST_VIEWS = 64  # tiers of which that is kept
_DRAWS = 8  # from such a tier, before all those left are put in order

#: A directory that is smaller forgets no server by itself.
_SMALL = 64


class ServerModelDirectory(dict[AnyAddress, ServerModel]):
    """The ServerModel of each address, made when it is first asked for; and which to try next.

    *policy* is that of all servers.  *balance* says which server of a tier comes first: "weighted",
    in proportion to the weights; or "p2c", the less loaded of two drawn by weight.  That one takes
    the end of an attempt for the answer of the server: it is for connections that are acquired for
    a request, and not for those that are held for hours.  With *draw*, the ``expovariate`` of a
    ``random.Random(seed)``, the draws are repeatable.  With a *subset*, a part of each tier
    comes first, and the rest of it if none of that has served.

    Of a server that was not looked for in ten minutes, that is not in use, was not marked down by
    hand and whose model nothing else holds, nothing is kept.
    """

    def __init__(
        self,
        policy: HealthPolicy | None = None,
        *,
        balance: Balance = "weighted",
        subset: Subset | None = None,
        draw: Callable[[float], float] = random.expovariate,
    ) -> None:
        super().__init__()
        if policy is not None and not isinstance(policy, HealthPolicy):
            raise TypeError(f"policy must be a HealthPolicy or None, not {policy!r}")
        if balance not in get_args(Balance):
            raise ValueError(f'balance must be "weighted" or "p2c", not {balance!r}')
        if subset is not None and not isinstance(subset, Subset):
            raise TypeError(f"subset must be a Subset or None, not {subset!r}")
        self.policy = HealthPolicy() if policy is None else policy
        self.balance = balance
        self.subset = subset
        self.journal = Journal()
        self._draw = draw
        # Also those it has forgotten, for as long as another has them: a second model of
        # the same server would know half of it.
        self._alive: WeakValueDictionary[AnyAddress, ServerModel] = WeakValueDictionary()
        self._tidy_at = _SMALL
        self._views: dict[int, _TierView] = {}

    def __missing__(self, key: object) -> ServerModel:
        known = address(key)
        server = self._alive.get(known)
        if server is None:
            server = self._alive[known] = ServerModel(known, self.policy, self.journal)
        self[known] = server
        return server

    def attempt(
        self,
        group: AddressGroup,
        now: float,
        tried: Collection[AnyAddress] = (),
        *,
        avoid: Collection[AnyAddress] = (),
        panic: bool = True,
    ) -> Attempt | None:
        """Begin an attempt at the best server of *group* that is not among those *tried*.

        None if none is left: each of *group* was tried, is marked down by hand or, without
        *panic*, is down.
        """
        for server, usable in self.ranked(group, now, tried, avoid):
            attempt = server.admit(now, panic=usable or panic)
            if attempt is not None:
                return attempt
        return None

    def order(
        self,
        group: AddressGroup,
        now: float,
        *,
        tried: Collection[AnyAddress] = (),
        avoid: Collection[AnyAddress] = (),
    ) -> list[AnyAddress]:
        """Every address of *group* that was not *tried*, in the order in which to try them.

        One tier after the other, those that are down left out; then the ones to *avoid*; then what
        is down, the one first that failed longest ago.  To try them, ask ``attempt()`` for one
        after the other instead: it has an eye on what happens in the meantime.
        """
        return [server.address for server, _ in self.ranked(group, now, tried, avoid)]

    def ranked(
        self,
        group: AddressGroup,
        now: float,
        tried: Collection[AnyAddress] = (),
        avoid: Collection[AnyAddress] = (),
    ) -> Iterator[tuple[ServerModel, bool]]:
        """Each server as in ``order()``; and whether it may be used without a panic.

        Lazily: the second-best of a thousand is not looked for until it is asked for.
        """
        if len(self) > self._tidy_at:
            self.forget(now)
        seen = set(tried)
        last: list[ServerModel] = []
        rest: Sequence[Candidate]
        for tier in group.tiers:
            near, rest = tier, ()
            if self.subset is not None:
                near, rest = self.subset.near(tier, lambda each: self[each].admits(now))
            for server in self._usable(near, len(tier), now, seen, avoid, last):
                yield server, True
            for candidate in rest:  # as none of those has served
                server = self[candidate.address]
                if server.address in seen:
                    continue
                seen.add(server.address)
                if server.address in avoid or not server.admits(now):
                    last.append(server)
                else:
                    yield server, True
        for server in sorted(last, key=_longest_ago):
            yield server, False

    def down(self, group: AddressGroup, now: float) -> list[ServerModel]:
        """The servers of *group* that are not up."""
        servers = map(self.__getitem__, sorted(group.addresses))
        return [server for server in servers if server.state(now) != "up"]

    def forget(self, now: float) -> None:
        """Let go of what is not needed; done by itself as the directory grows."""
        for server in list(self.values()):
            if server._is_forgettable(now):
                del self[server.address]
        self._tidy_at = max(2 * len(self), _SMALL)

    # How it chooses.

    def _usable(
        self,
        tier: Tier,
        count: int,
        now: float,
        seen: set[AnyAddress],
        avoid: Collection[AnyAddress],
        last: list[ServerModel],
    ) -> Iterator[ServerModel]:
        """Those of *tier*, of which there are *count* all in all, that were not *seen* and are of
        use, the best first; the others are for the *last*."""
        if count >= _MANY and not avoid:
            view = self._view(tier, count, now)
            for server in self._balanced_lazily(view, seen, now):
                seen.add(server.address)
                yield server
            last += [server for server in view.down if server.address not in seen]
            seen.update(server.address for server in view.down)
            return
        usable = []
        for share, server in self._shares(tier, count, now):
            if server.address in seen:
                continue
            seen.add(server.address)
            if share is None or server.address in avoid:
                last.append(server)
            else:
                usable.append((share, server))
        yield from self._balanced(usable, now)

    def _shares(self, tier: Tier, count: int, now: float) -> list[tuple[float | None, ServerModel]]:
        """Each server of *tier* with its weight, as it counts now; None if it is down."""
        servers = [(weight, self[each]) for weight, each in tier]
        spared = self._spared([server for _, server in servers], count, now)
        shares: list[tuple[float | None, ServerModel]] = []
        for weight, server in servers:
            server._asked_for = now
            if server in spared:
                shares.append((weight, server))
            elif server.admits(now):
                shares.append((weight * server.share(now), server))
            else:
                shares.append((None, server))
        return shares

    def _view(self, tier: Tier, count: int, now: float) -> _TierView:
        """How a tier of many stands: for a moment, or until something happens."""
        view = self._views.get(id(tier))
        if view is None or view.tier is not tier or not view.is_valid(self.journal.version, now):
            shares = self._shares(tier, count, now)
            self._views.pop(id(tier), None)
            while len(self._views) >= _MOST_VIEWS:
                del self._views[next(iter(self._views))]
            view = self._views[id(tier)] = _TierView(tier, shares, self.journal.version, now)
        return view

    def _balanced_lazily(
        self, view: _TierView, seen: Collection[AnyAddress], now: float
    ) -> Iterator[ServerModel]:
        """As ``_balanced`` of those in *view* that were not *seen*, in a time that does not grow
        with how many there are, unless most of them are asked for."""
        drawn = self._drawn(view, seen)
        if self.balance == "weighted":
            return (server for _, server in drawn)
        without = (pair for pair in view.without_weight if pair[1].address not in seen)
        return itertools.chain(
            self._p2c_of(drawn, view.average, now), self._p2c(list(without), now)
        )

    def _drawn(
        self, view: _TierView, seen: Collection[AnyAddress]
    ) -> Iterator[tuple[float, ServerModel]]:
        """Those with weight, drawn by it one after the other; then, if weights alone decide, those
        without.

        To draw again what was drawn before, and to draw once more, is a draw from those left.
        """
        had = set(seen)
        for _ in range(_DRAWS if view.cumulative else 0):
            # From a number drawn exponentially to one between 0 and 1.
            point = (1.0 - math.exp(-self._draw(1.0))) * view.cumulative[-1]
            found = bisect.bisect_right(view.cumulative, point)
            pair = view.with_weight[min(found, len(view.with_weight) - 1)]
            if pair[1].address not in had:
                had.add(pair[1].address)
                yield pair
        left = view.with_weight if self.balance == "p2c" else view.usable
        rest = [(pair[0], pair) for pair in left if pair[1].address not in had]
        yield from weighted_order(rest, self._draw)

    def _spared(
        self, servers: Collection[ServerModel], count: int, now: float
    ) -> Collection[ServerModel]:
        """Those that are down, and used all the same, as too many of the *count* of their tier
        would be down."""
        if all(server._down_until is None for server in servers):
            return ()
        candidates = [server for server in servers if not server._held_down(now)]
        down = [server for server in candidates if server._down_until is not None]
        if len(down) == len(candidates):
            return ()
        count -= len(servers) - len(candidates)
        may_be_down = max(int(self.policy.max_down * count + 1e-9), 1)
        return set(sorted(down, key=_longest_ago)[: max(len(down) - may_be_down, 0)])

    def _balanced(
        self, usable: list[tuple[float, ServerModel]], now: float
    ) -> Iterable[ServerModel]:
        if self.balance == "weighted":
            return weighted_order(usable, self._draw)
        with_weight = [(weight, server) for weight, server in usable if weight]
        without = [(1.0, server) for weight, server in usable if not weight]
        return itertools.chain(self._p2c(with_weight, now), self._p2c(without, now))

    def _p2c(self, usable: list[tuple[float, ServerModel]], now: float) -> Iterator[ServerModel]:
        """Of the next two in an order drawn by weight, the less loaded one; and so on."""
        if not usable:
            return
        average = sum(weight for weight, _ in usable) / len(usable)
        order = weighted_order([(pair[0], pair) for pair in usable], self._draw)
        yield from self._p2c_of(iter(order), average, now)

    def _p2c_of(
        self, drawn: Iterator[tuple[float, ServerModel]], average: float, now: float
    ) -> Iterator[ServerModel]:
        def load(weight: float, server: ServerModel) -> float:
            return server.load(now, max(weight / average, _LEAST_SHARE))

        first = next(drawn, None)
        for second in drawn:
            assert first is not None
            if load(*second) * _CLEARLY < load(*first):
                yield second[1]
            else:
                yield first[1]
                first = second
        if first is not None:
            yield first[1]


class _TierView:
    """How the servers of a tier stand, found out once for all that ask in the next moment."""

    def __init__(
        self,
        tier: Tier,
        shares: Iterable[tuple[float | None, ServerModel]],
        version: int,
        now: float,
    ) -> None:
        self.tier = tier
        self.usable: list[tuple[float, ServerModel]] = []
        self.down: list[ServerModel] = []
        known: set[ServerModel] = set()
        self._version, self._at, self._ends_at = version, now, now + _FRESH
        for share, server in shares:
            if server in known:
                continue
            known.add(server)
            self._ends_at = min(self._ends_at, server.changes_at(now))
            if share is None:
                self.down.append(server)
            else:
                self.usable.append((share, server))
        self.with_weight = [pair for pair in self.usable if pair[0]]
        self.without_weight = [(1.0, server) for weight, server in self.usable if not weight]
        # As parts of the heaviest: the sum of weights may be more than a number can be.
        heaviest = max((weight for weight, _ in self.with_weight), default=1.0)
        parts = (weight / heaviest for weight, _ in self.with_weight)
        self.cumulative = list(itertools.accumulate(parts))
        count = len(self.cumulative)
        self.average = heaviest * (self.cumulative[-1] / count) if count else 1.0

    def is_valid(self, version: int, now: float) -> bool:
        return version == self._version and self._at <= now < self._ends_at


def _longest_ago(server: ServerModel) -> tuple[bool, float]:
    """Sorts those that are up first, and then by how long ago they failed."""
    failed_at = -math.inf if server.last_error is None else server.last_error
    return server.down_until is not None, failed_at
