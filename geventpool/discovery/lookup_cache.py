"""A look-up of a name: done once for all who want to know, and its answer kept for a while.

It is asked in a greenlet of its own, so that a caller that is killed or timed out takes the answer
from no other.  What is asked, and whom, is for others to say: ``dns.py`` and ``_srv_wire.py``.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gevent
import gevent.hub
from gevent import Timeout

from geventpool._util.arguments import check_seconds, check_text, check_whole
from geventpool._util.errors import forget_frames, to_ms
from geventpool._util.forks import Fork, in_child
from geventpool._util.log import log_safely
from geventpool._util.one_at_a_time import OneAtATime
from geventpool.addresses import AddressGroup
from geventpool.discovery.messages import not_found

__all__ = [
    "Absent",
    "Answer",
    "Clock",
    "Failed",
    "Lookup",
    "LookupCache",
    "TimedCache",
    "TimedLookup",
    "reason",
]

_log = logging.getLogger("geventpool.resolver")

Clock = Callable[[], float]

#: Seconds that a caller waits for a look-up when there is a stale answer to give it instead: the
#: "client response timer" of RFC 8767.
_MAX_WAIT = 1.8

#: Seconds for which an answer is too new to be asked for anew.
_NEW = 1.0


# What there is to say about a name


class Answer(NamedTuple):
    """The answer, which may be kept for *ttl* seconds."""

    group: AddressGroup
    ttl: float


class LookupFailed(Exception):
    """There is no answer; *tried* says what was asked."""

    def __init__(self, why: str, tried: Sequence[str]) -> None:
        super().__init__(why)
        self.tried = tuple(tried)


class Absent(LookupFailed):
    """There is no such name, on the authority of who was asked; kept for at most *ttl* seconds."""

    def __init__(self, why: str, tried: Sequence[str], ttl: float = math.inf) -> None:
        super().__init__(why, tried)
        self.ttl = ttl


class Failed(LookupFailed):
    """No server could say whether there is such a name."""


class Lookup(Protocol):
    """How to look up a name.  Must not hold the resolver that it is for."""

    def without_lookup(self, name: str) -> AddressGroup | None:
        """The addresses, if *name* itself says them.  Raises ValueError if it can be no name."""

    def lookup(self, name: str) -> Answer:
        """The answer.  Raises Absent or Failed; any other Exception is a failure, too."""


class TimedLookup(Lookup, Protocol):
    """One whose source does not say how long an answer is good for: *ttl* seconds."""

    ttl: float


def reason(failure: Exception) -> str:
    return str(failure) or repr(failure)


@dataclass
class _Entry:
    """What is known of a name: its addresses, or why there are none, or no newer ones.

    Until *fresh_until* that is the answer.  Until *prompt_until* it still is, while a look-up goes
    on in the background; until *stale_until* it is if that look-up fails, or takes too long.
    *stored_at* is when the last look-up ended.
    """

    group: AddressGroup | None
    fresh_until: float
    prompt_until: float
    stale_until: float
    why: str = ""
    tried: Sequence[str] = ()
    cause: BaseException | None = None
    stored_at: float = -math.inf

    def give(self, name: str) -> AddressGroup:
        if self.group is None:
            raise not_found(name, self.why, self.tried) from self.cause
        return self.group


class LookupCache:
    """Keeps what a look-up brought, and looks up again when it is old: what DnsResolver,
    SrvResolver and CachingResolver are.

    An answer older than its time to live is stale.  For as long again it is given out at once,
    while one look-up goes on in the background.  After that callers wait for the look-up; a stale
    answer is what they get if it fails or takes longer than 1.8 s, up to *max_stale* seconds after
    its time (RFC 8767).  That there is no such name, or that no server could say so, is kept for
    *negative_ttl* seconds.  With *stale_if_absent* the last answer serves on if there is no such
    name any more, too.
    """

    _is_own = True

    def __init__(
        self,
        lookup: Lookup,
        *,
        negative_ttl: float,
        max_stale: float,
        stale_if_absent: bool,
        timeout: float | None,
        max_names: int,
        clock: Clock,
    ) -> None:
        check_seconds("negative_ttl", negative_ttl, zero=True, none=False)
        check_seconds("max_stale", max_stale, zero=True, none=False)
        check_seconds("timeout", timeout)
        check_whole("max_names", max_names, least=1)
        self._lookup = lookup
        self.negative_ttl = negative_ttl
        self.max_stale = max_stale
        self.stale_if_absent = bool(stale_if_absent)
        self.timeout = timeout
        self.max_names = max_names
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        # By hub, too: a greenlet cannot well wait for one of another thread.
        self._lookups: OneAtATime[tuple[Any, str], gevent.Greenlet[..., Any]] = OneAtATime()
        _resolvers.add(self)

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*, those known already if they are not too old.

        Else blocks until the look-up has ended, for at most *timeout* seconds, and raises
        NameNotFound, whose ``__cause__`` is the error of the look-up, if it brought nothing.
        A caller that does not want to wait that long may have a ``gevent.Timeout``, or be killed:
        the look-up goes on for the others.  Raises ValueError at once if *name* can be no name.
        """
        check_text("name", name)
        entry = self._entries.get(name)
        now = self._clock()
        if entry is not None and now < entry.fresh_until:
            return entry.give(name)
        if entry is None:
            group = self._lookup.without_lookup(name)
            if group is not None:
                self._keep(name, _Entry(group, math.inf, math.inf, math.inf))
                return group
        return self._wait_for_lookup(name, entry, now)

    def refresh(self, name: str, /) -> AddressGroup:
        """The addresses of *name* asked for anew, however fresh those are that are known.

        For when none of them can be connected to.  A look-up that ended within the last second, or
        is under way, counts as that, so that this may be called as often as you like.  Blocks until
        it has ended, and raises what ``resolve`` does.
        """
        check_text("name", name)
        entry = self._entries.get(name)
        now = self._clock()
        if entry is not None and now - entry.stored_at < _NEW:
            return entry.give(name)
        group = self._lookup.without_lookup(name)
        return self._wait_for_lookup(name, None, now) if group is None else group

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._lookup}, {len(self._entries)} names known>"

    def _wait_for_lookup(self, name: str, entry: _Entry | None, now: float) -> AddressGroup:
        stale = entry if entry is not None and entry.group and now < entry.stale_until else None
        while True:
            greenlet = self._start_or_join(name)
            if stale is not None and now < stale.prompt_until:
                return stale.give(name)
            greenlet.join(None if stale is None else _MAX_WAIT)
            stored = greenlet.value
            if isinstance(stored, _Entry):
                return stored.give(name)
            if stale is not None:
                if not greenlet.ready():
                    stale.prompt_until = stale.stale_until  # one caller that waited is enough
                return stale.give(name)
            # The look-up was killed: ask again.

    def _start_or_join(self, name: str) -> gevent.Greenlet[..., Any]:
        key = gevent.get_hub(), name
        return self._lookups.start_or_join(
            key,
            lambda: gevent.spawn(_run_lookup, weakref.ref(self), self._lookup, self.timeout, key),
        )

    def _store(self, key: tuple[Any, str], answer: Answer | LookupFailed) -> _Entry | None:
        """Keep what this greenlet has brought."""
        if self._lookups.running.get(key) is not gevent.getcurrent():
            return None  # a fork has made this greenlet a copy of the parent's
        name = key[1]
        now = self._clock()
        old = self._entries.get(name)
        if isinstance(answer, Answer):
            end = now + answer.ttl
            prompt = min(answer.ttl, self.max_stale)
            entry = _Entry(answer.group, end, end + prompt, end + self.max_stale)
        elif (
            (self.stale_if_absent or isinstance(answer, Failed))
            and old
            and old.group
            and now < old.stale_until
        ):
            # Not asked again before negative_ttl is over; nor does anybody wait for that then.
            again = min(now + self.negative_ttl, old.stale_until)
            entry = _Entry(old.group, again, old.stale_until, old.stale_until, reason(answer))
        else:
            ttl = answer.ttl if isinstance(answer, Absent) else math.inf
            end = now + min(ttl, self.negative_ttl)
            if (cause := answer.__cause__) is not None:
                forget_frames(cause)
                cause.__cause__ = cause.__context__ = None
            entry = _Entry(None, end, end, end, reason(answer), answer.tried, cause)
        entry.stored_at = now
        self._keep(name, entry)
        self._lookups.running.pop(key)
        if entry.group and entry.why and old and not old.why:  # once for each outage
            log_safely(
                _log, logging.WARNING, "%r: %s; its last addresses serve on", name, entry.why
            )
        return entry

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
        strays, self._lookups = self._lookups.running, OneAtATime()
        for key, stray in strays.items():
            if key[0] is hub:
                stray.kill(block=False)


class TimedCache(LookupCache):
    """A LookupCache of answers that are all good for as long; ``ttl`` is to be set first of all."""

    _lookup: TimedLookup

    @property
    def ttl(self) -> float:
        """Seconds for which an answer is fresh; if set, from the next look-up on."""
        return self._lookup.ttl

    @ttl.setter
    def ttl(self, ttl: float) -> None:
        check_seconds("ttl", ttl, zero=True, none=False)
        self._lookup.ttl = ttl


def _run_lookup(
    reference: weakref.ref[LookupCache],
    lookup: Lookup,
    timeout: float | None,
    key: tuple[Any, str],
) -> _Entry | None:
    """Ask, and tell the resolver, if it is still there."""
    answer: Answer | LookupFailed
    timer = Timeout(timeout)
    try:
        with timer:
            answer = lookup.lookup(key[1])
    except LookupFailed as failure:
        answer = failure
    except (Exception, Timeout) as error:  # no other has this greenlet, so no Timeout is its own
        if error is timer:
            why = f"no answer in {to_ms(timeout)} s"
        elif isinstance(error, Timeout):
            why = f"a Timeout of its own: {error}"
        else:
            why = reason(error)
        answer = Failed(why, (f"{lookup}: {key[1]}",))
        answer.__cause__ = error
    resolver = reference()
    return None if resolver is None else resolver._store(key, answer)


_resolvers: weakref.WeakSet[LookupCache] = weakref.WeakSet()


@in_child
def _in_child(fork: Fork) -> None:
    hub: Any = gevent.hub._get_hub()  # type: ignore[attr-defined]
    resolvers = list(_resolvers)
    if not resolvers or getattr(hub, "loop", None) is None:
        return
    # As gevent's own fork does.  After a raw one the hub would sleep on the parent's epoll, and the
    # first look-up of a name wait for threads that are not here.
    fork.once(gevent.reinit, hub)
    for resolver in resolvers:
        resolver._forked(hub)
