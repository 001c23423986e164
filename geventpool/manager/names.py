"""What a name leads to: its addresses, how to connect to them, and which of them come and go.

Names is what a ConnectionManager knows of names.  It asks a resolver, follows aliases, keeps an eye
on the names it was asked for, and tells when their addresses have changed.
"""

from __future__ import annotations

import ipaddress
import math
from collections import UserDict
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakMethod

import gevent

from geventpool._util.arguments import check_seconds, check_whole
from geventpool._util.clock import monotonic
from geventpool._util.errors import text_of
from geventpool.addresses import (
    Address,
    AddressGroup,
    AnyAddress,
    Resolver,
    address,
    described,
    is_own,
    resolve_by,
)
from geventpool.discovery.static import StaticResolver
from geventpool.discovery.watcher import Watcher
from geventpool.errors import ConnectError, NameNotFound

__all__ = ["AddressGroupMap", "ConnectInfo", "Names", "Target", "longest_connect"]

#: As many names are watched without asking whether anybody still wants them.
_FEW = 64

#: Seconds after which a name that was not asked for need not be watched.
_KEPT = 600.0

#: Seconds that a caller waits for names to be asked for anew.
_REFRESH = 1.0


class ConnectInfo(NamedTuple):
    """How to connect to one name.

    - *connect_timeout_ms*: how long to wait for one address, in milliseconds, before the next one
      is tried.
    - *response_timeout_ms*: the timeout of the socket, in milliseconds, where the caller gives no
      *read_timeout*; None for none.
    - *max_connect_retry*: how many times more, in one call, all addresses are tried if none of
      them could be connected to.
    - *transient_markdown_enabled*: whether failures count towards marking an address down.
    - *markdown*: the name is out of use: each call gets a MarkedDownError.
    """

    connect_timeout_ms: float = 3000.0
    response_timeout_ms: float | None = 30000.0
    max_connect_retry: int = 0
    transient_markdown_enabled: bool = True
    markdown: bool = False


class AddressGroupMap(UserDict[str, AddressGroup]):
    """The address groups by name: a mapping that may change while it is in use, and a resolver.

    Values may be AddressGroups or the tiers of one.  A name that is not there is asked of
    *missing*, a callable that takes the name and returns a group or raises NameNotFound; its
    answer is kept.
    """

    def __init__(
        self,
        groups: Mapping[str, Any] | None = None,
        missing: Callable[[str], Any] | None = None,
    ) -> None:
        if missing is not None and not callable(missing):
            raise TypeError(f"missing must be callable, not {missing!r}")
        self.missing = missing
        super().__init__({} if groups is None else groups)

    @property
    def _is_own(self) -> bool:
        """What *missing* does is the program's."""
        return self.missing is None

    def __setitem__(self, name: str, group: Any) -> None:
        self.data[name] = group if isinstance(group, AddressGroup) else AddressGroup(group)

    def __missing__(self, name: str) -> AddressGroup:
        if self.missing is None:
            raise KeyError(name)
        self[name] = self.missing(name)
        return self.data[name]

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if there are none."""
        try:
            return self[name]
        except LookupError as error:
            raise NameNotFound(f"{name!r} was not found: {described(error)}", name=name) from error


class Target(NamedTuple):
    """What a target leads to.

    *name* is what to call it.  *host* is the host in the name, where a resolver that might have
    asked anybody has found the addresses; None if they are what the program itself has said.
    """

    name: str
    group: AddressGroup
    host: str | None
    info: ConnectInfo


class _Watched:
    """A name that is watched."""

    __slots__ = ("asked_at", "group")

    def __init__(self, group: AddressGroup) -> None:
        self.group = group
        self.asked_at = 0.0


class Names:
    """What the names of a manager lead to.

    *groups* maps them to AddressGroups or to tiers, or it is a resolver; *aliases* maps a name to
    another one, or to one address; *infos* says how to connect to each.  An alias without a
    ConnectInfo of its own has that of the name it leads to.

    What a resolver was asked for is watched: *on_change*, a method whose object is held weakly, is
    told which addresses no name leads to any more, and what the name that has changed led to before
    and leads to now.  A name that was not asked for in ten minutes is forgotten.
    """

    def __init__(
        self,
        groups: Mapping[str, Any] | Resolver | None,
        aliases: Mapping[str, Any] | None,
        infos: Mapping[str, ConnectInfo] | None,
        *,
        on_change: Callable[[Collection[AnyAddress], AddressGroup, AddressGroup], object],
        watch_interval: float,
        watch_hold: float,
    ) -> None:
        self.infos = _checked(infos)
        self._resolver = _resolver(groups, aliases)
        self._aliases = {alias: _chain(alias, aliases) for alias in aliases} if aliases else {}
        self._on_change = WeakMethod(on_change)
        self._watched: dict[str, _Watched] = {}
        self._tidy_at = _FEW
        self._refreshing: set[str] = set()
        #: None: the program has said all that there is to be known.
        self._watcher: Watcher | None = None
        if not isinstance(self._resolver, StaticResolver):
            self._watcher = Watcher(
                self._resolver, self._changed, interval=watch_interval, hold=watch_hold
            )

    def find(self, target: object, ends_at: float) -> Target:
        """What *target* leads to: a name, an AddressGroup, or one address in any spelling.

        A text is a name first.  Blocks until *ends_at* at most.  Raises NameNotFound, another
        ConnectError if that takes too long, and TypeError or ValueError if *target* is no target.
        """
        if isinstance(target, AddressGroup):
            return Target("addresses", target, None, _PLAIN)
        if not isinstance(target, str):
            known = address(target)
            return Target(str(known), _alone(known), None, self._info(str(known)))
        end = self._aliases[target][-1] if target in self._aliases else target
        group, host = (end, None) if isinstance(end, AddressGroup) else self._look_up(end, ends_at)
        return Target(target, group, host, self._info(target))

    def refresh(self, target: object, ends_at: float) -> AddressGroup | None:
        """The addresses of *target* asked for anew, as none of those known is of use.

        None if there is no resolver that could say more, or if another caller is asking.  Blocks
        for a second at most, and not after *ends_at*; the look-up goes on, if the resolver's does.
        """
        if not isinstance(target, str) or not hasattr(self._resolver, "refresh"):
            return None
        end = self._aliases[target][-1] if target in self._aliases else target
        if not isinstance(end, str):
            return None
        if end in self._refreshing or self._watcher is None:
            return None
        self._refreshing.add(end)
        try:
            return self._ask(end, min(ends_at, monotonic() + _REFRESH), "refresh")
        except (ConnectError, ValueError, TypeError):
            return None  # what all the addresses came to says more
        finally:
            self._refreshing.discard(end)

    def close(self) -> None:
        """Watch nothing any more."""
        if self._watcher is not None:
            self._watcher.close()

    def forget(self, now: float) -> None:
        """Let go of names that were not asked for; done by itself as they become many."""
        for name, watched in list(self._watched.items()):
            if now - watched.asked_at >= _KEPT:
                del self._watched[name]
                if self._watcher is not None:
                    self._watcher.discard(name)
        self._tidy_at = max(2 * len(self._watched), _FEW)

    # Inside

    def _info(self, name: str) -> ConnectInfo:
        for each in self._aliases.get(name, (name,)):
            if isinstance(each, str) and each in self.infos:
                return self.infos[each]
        return _PLAIN

    def _look_up(self, text: str, ends_at: float) -> tuple[AddressGroup, str | None]:
        """The addresses of *text*, and whose host is in it: see Found."""
        try:
            return self._resolve(text, ends_at), None if self._watcher is None else text
        except NameNotFound:
            spelled = self._spelled(text)
            if spelled is None:
                raise
            return spelled, None

    def _resolve(self, name: str, ends_at: float) -> AddressGroup:
        if self._watcher is None:
            return self._resolver.resolve(name)
        group = self._ask(name, ends_at)
        self._watch(self._watcher, name, group)
        return group

    def _ask(self, name: str, ends_at: float, method: str = "resolve") -> AddressGroup:
        """What the resolver says; raises a ConnectError that names it if it does not, in time."""
        began = monotonic()
        timer = gevent.Timeout(None if ends_at == math.inf else max(ends_at - began, 0.0))
        try:
            with timer:
                if is_own(self._resolver):
                    return resolve_by(self._resolver, name, method)
                return _ask_apart(self._resolver, name, method)
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
            who = described(self._resolver)
            took = monotonic() - began
            message = f"{name!r}: not resolved after {took:.3f} s by {who}"
            raise ConnectError(message) from None

    def _spelled(self, text: str) -> AddressGroup | None:
        """The address that *text* spells, if it is no name; None if it must be one: that a resolver
        knows of no such host is not for the system's to decide again."""
        try:
            known = address(text)
            if isinstance(known, Address) and self._watcher is not None:
                ipaddress.ip_address(known.ip)
        except ValueError:
            return None
        return _alone(known)

    def _watch(self, watcher: Watcher, name: str, group: AddressGroup) -> None:
        if watcher.closed:
            return  # while its manager asked
        now = monotonic()
        watched = self._watched.get(name)
        if watched is None:
            if len(self._watched) >= self._tidy_at:
                self.forget(now)
            watcher.add(name, group)
            watched = self._watched[name] = _Watched(group)
        watched.asked_at = now

    def _changed(
        self,
        name: str,
        added: frozenset[AnyAddress],
        removed: frozenset[AnyAddress],
        group: AddressGroup,
    ) -> None:
        watched, on_change = self._watched.get(name), self._on_change()
        if watched is None or on_change is None:
            return
        before, watched.group = watched.group, group
        known = [other.group.addresses for other in self._watched.values()]
        gone = [each for each in removed if not any(each in other for other in known)]
        on_change(gone, before, group)


_PLAIN = ConnectInfo()


@lru_cache(maxsize=256)
def _alone(known: AnyAddress) -> AddressGroup:
    """The group of one address; to make it takes longer than all the rest of a call."""
    return AddressGroup.of(known)


def _resolver(groups: Any, aliases: Mapping[str, Any] | None) -> Resolver:
    """What knows the addresses behind a name."""
    if callable(getattr(groups, "resolve", None)):
        resolver: Resolver = groups
        return resolver
    if groups is not None and not isinstance(groups, Mapping):
        raise TypeError(f"address_groups must be a mapping or have resolve(name), not {groups!r}")
    return StaticResolver({} if groups is None else groups, aliases)


def _chain(alias: str, aliases: Mapping[str, Any]) -> tuple[Any, ...]:
    """The names from *alias* to the first that is none, or to the group of the one address."""
    chain: list[Any] = [alias]
    while isinstance(chain[-1], str) and chain[-1] in aliases:
        chain.append(aliases[chain[-1]])
        if chain[-1] in chain[:-1]:
            raise ValueError(f"aliases go round in a circle: {' -> '.join(map(str, chain))}")
    if not isinstance(chain[-1], str):
        chain[-1] = AddressGroup.of(chain[-1])
    return tuple(chain)


def _ask_apart(resolver: Resolver, name: str, method: str) -> AddressGroup:
    """What a program's own resolver says, asked by a greenlet of its own.

    That is how one knows a Timeout that it lets out from one that is thrown at who waits for it.
    """
    asking = gevent.spawn(_outcome_of, resolver, name, method)
    try:
        asking.join()
    finally:
        asking.kill(block=False)
    outcome = asking.value
    if isinstance(outcome, AddressGroup):
        return outcome
    if isinstance(outcome, ConnectError):
        raise outcome
    who, what = described(resolver), "was killed"
    if isinstance(outcome, gevent.Timeout):
        what = f"raised a Timeout of its own: {text_of(outcome)}"
    raise ConnectError(f"{name!r}: {who} {what}")


def _outcome_of(resolver: Resolver, name: str, method: str) -> object:
    try:
        return resolve_by(resolver, name, method)
    except (ConnectError, gevent.Timeout) as error:
        return error


def _checked(infos: Mapping[str, ConnectInfo] | None) -> dict[str, ConnectInfo]:
    found = {} if infos is None else dict(infos)
    for name, info in found.items():
        if not isinstance(info, ConnectInfo):
            raise TypeError(f"connect_infos[{name!r}] must be a ConnectInfo, not {info!r}")
        place = f"connect_infos[{name!r}]."
        check_seconds(f"{place}connect_timeout_ms", info.connect_timeout_ms, none=False)
        check_seconds(f"{place}response_timeout_ms", info.response_timeout_ms)
        check_whole(f"{place}max_connect_retry", info.max_connect_retry)
    return found


def longest_connect(
    connect_timeout: float | None, infos: Mapping[str, ConnectInfo]
) -> float | None:
    """A bound for a connect that no name's own bound is longer than."""
    check_seconds("connect_timeout", connect_timeout)
    if connect_timeout is None:
        return None
    return max([connect_timeout, *(info.connect_timeout_ms / 1000.0 for info in infos.values())])
