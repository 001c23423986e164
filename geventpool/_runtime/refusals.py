"""What a caller is told that gets no connection; the one place where such callers are counted."""

from __future__ import annotations

from collections import Counter
from heapq import nsmallest

from gevent import getcurrent

from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.introspection import holder_of, longest_holders
from geventpool._runtime.slots import ConnectionSlot, Look, PoolBucket
from geventpool._scheduler.state import IN_USE
from geventpool._util.clock import perf_counter
from geventpool._util.deadlines import nearest
from geventpool._util.errors import text_of, to_ms
from geventpool.errors import (
    ConnectError,
    MarkedDownError,
    OutOfSockets,
    PoolClosed,
    PoolDeadlock,
    PoolDown,
    PoolFull,
    PoolOverloaded,
    PoolTimeout,
)
from geventpool.events import Refusal

__all__ = ["count", "no_connection", "not_full", "pool_closed", "pool_full"]

_KINDS: tuple[tuple[type[BaseException], Refusal], ...] = (
    (PoolTimeout, "timeout"),
    (PoolOverloaded, "shed"),  # a PoolFull, too
    (PoolFull, "full"),
    (OutOfSockets, "limit"),
    (PoolDown, "down"),
    (MarkedDownError, "down"),
)


def count(owner: PoolHooks, bucket: PoolBucket, error: BaseException) -> None:
    """Count a caller that gets *error* instead of a connection, by the kind of that."""
    kind: Refusal = "down" if error is bucket.outage.fatal else "dial"
    kind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), kind)
    bucket.refusals[kind] += 1
    owner.outages.turned_away(bucket.key)


_DEADLOCK = (
    "every connection is held by a greenlet that waits in line for another one, so none would ever"
    " come free; of these greenlets this one came last"
)


def pool_closed(bucket: PoolBucket) -> PoolClosed:
    """It was closed, before the caller came or while it waited."""
    return PoolClosed(f"pool {bucket.name!r} is closed", pool=bucket.name)


def pool_full(bucket: PoolBucket, max_waiting: int, now: float) -> PoolFull:
    """As many wait already as may."""
    waited = now - bucket.waiters.oldest.came if bucket.waiters else 0.0
    return PoolFull(
        f"pool {bucket.name!r}: {len(bucket.waiters)} callers are waiting already ({bucket!r})",
        pool=bucket.name,
        max_waiting=max_waiting,
        retry_after=_retry_after(bucket, waited),
    )


def no_connection(
    bucket: PoolBucket,
    timeout: float | None,
    now: float,
    began: float,
    kind: type[PoolTimeout] = PoolTimeout,
) -> tuple[PoolTimeout, BaseException | None]:
    """None came free in time for a caller that came at *began*; and its cause, if a dial's."""
    seen = _look_at_holders(bucket, now)
    held_for, own = seen.held_for, seen.holders[id(getcurrent())]
    in_use, idle, connecting = bucket.in_use, bucket.idle, bucket.connecting
    why = _too_late(bucket, now) or f"no connection came free in {to_ms(timeout)} s"
    if kind is PoolDeadlock:
        why = _DEADLOCK
    text = (
        f"pool {bucket.name!r}: {why}"
        f" ({in_use} in use, {idle} idle, {connecting} connecting, {len(bucket.waiters)} waiting)"
    )
    if bucket.salvaging:
        text += f"; {bucket.salvaging} being salvaged"
    if held_for:
        text += f"; held for up to {held_for[0]:.3f} s"
    if seen.longest:
        text += f"; held longest by {seen.longest}"
    if own:
        text += f"; the caller itself holds {own}, which it cannot give back while it waits"
    if (failed := bucket.check_error) is not None and bucket.check_failed_at >= began:
        text += f"; checks failed, the last one with {failed}"
    last = bucket.last_error or _died_unused(bucket)
    if last is None and bucket.own.full:
        last = bucket.ceiling.error  # it is the server that has no more
    if last is not None:
        text += f"; last dial: {type(last).__name__}: {text_of(last)}"
    error = kind(
        text,
        pool=bucket.name,
        timeout=timeout,
        in_use=in_use,
        idle=idle,
        connecting=connecting,
        waiting=len(bucket.waiters),
        held_for=held_for,
        retry_after=_retry_after(bucket, now - began),
    )
    return error, last


def _too_late(bucket: PoolBucket, now: float) -> str:
    """What a caller is told of which a Deadline leaves too little time; empty for any other."""
    me = getcurrent()
    bound = nearest(me)
    if bound is None or bucket.useless_after(me) > now:
        return ""
    text = f"too little is left of a Deadline of {to_ms(bound.length)} s, {bound.at - now:.3f} s"
    if typical := bucket.long_use():
        text += f", as nine in ten uses take up to {typical:.3f} s"
    return text


_ENOUGH = 10  # uses, to tell by them how long one takes


def _retry_after(bucket: PoolBucket, waited: float) -> float | None:
    """In how many seconds those in line will have been served, at random half of that more or less,
    lest all come back together; None if that cannot be told.

    By how long the uses so far have lasted; but a caller that has *waited* far longer than that
    would explain has shown that they are no measure any more.
    """
    if bucket.use_count < _ENOUGH or not bucket.in_use:
        return None
    seconds = (len(bucket.waiters) + 1) * bucket.use_sum / bucket.use_count / bucket.in_use
    if waited > 2 * seconds:
        return None
    return seconds * (0.5 + float(bucket.rng.random()))


def _died_unused(bucket: PoolBucket) -> BaseException | None:
    """What is wrong if dials succeed and their connections are dead before anybody uses them."""
    if not bucket.failures:
        return None
    peer = bucket.endpoint if bucket.last_peer is None else bucket.last_peer
    where = "" if peer is None else f" {peer}"
    return ConnectError(
        f"pool {bucket.name!r}: the server{where} accepts and closes: the connections opened last"
        " were closed by their peer before they were used"
    )


_NAMED = 3  # holders are named, those that hold for longest
_MANY = 100
_SHARE = 0.01  # of the time, at most, is spent on looking at the holders of many connections


def _look_at_holders(bucket: PoolBucket, now: float) -> Look:
    """For how long each connection is held, the longest first, and by whom.

    To look at 10,000 takes milliseconds.  Callers that time out by the hundred are told what was
    seen a moment ago.
    """
    seen = bucket.last_look
    if seen is None or now >= seen.until:
        began = perf_counter()
        in_use = [slot for slot in bucket.slots if slot.state is IN_USE]
        held_for = tuple(sorted((now - slot.since for slot in in_use), reverse=True))
        holders = Counter(id(greenlet) for slot in in_use if (greenlet := holder_of(slot)))
        valid_for = (perf_counter() - began) / _SHARE if len(in_use) > _MANY else 0.0
        taken = (slot for slot in in_use if slot.conn is None)
        longest = longest_holders(nsmallest(_NAMED, taken, key=_since), now)
        seen = Look(now + valid_for, held_for, holders, longest)
        bucket.last_look = seen if valid_for else None
    return seen


def _since(slot: ConnectionSlot) -> float:
    return slot.since


def not_full(bucket: PoolBucket, timeout: float | None) -> PoolTimeout:
    """Its connections were not all open in time."""
    return PoolTimeout(
        f"pool {bucket.name!r}: {bucket.open} of {bucket.size} connections are open after"
        f" {to_ms(timeout)} s ({bucket!r})",
        pool=bucket.name,
        timeout=timeout,
        in_use=bucket.in_use,
        idle=bucket.idle,
        connecting=bucket.connecting,
        waiting=len(bucket.waiters),
    )
