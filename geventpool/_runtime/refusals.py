"""What a caller is told that gets no connection."""

from __future__ import annotations

from geventpool._runtime.slots import PoolBucket
from geventpool._scheduler.state import IN_USE
from geventpool._util.errors import text_of
from geventpool.errors import PoolClosed, PoolFull, PoolTimeout

__all__ = ["no_connection", "not_full", "pool_closed", "pool_full"]


def pool_closed(bucket: PoolBucket) -> PoolClosed:
    """It was closed, before the caller came or while it waited."""
    return PoolClosed(f"pool {bucket.name!r} is closed", pool=bucket.name)


def pool_full(bucket: PoolBucket, max_waiting: int) -> PoolFull:
    """As many wait already as may."""
    return PoolFull(
        f"pool {bucket.name!r}: {len(bucket.waiters)} callers are waiting already ({bucket!r})",
        pool=bucket.name,
        max_waiting=max_waiting,
    )


def no_connection(bucket: PoolBucket, timeout: float | None, now: float) -> PoolTimeout:
    """None came free in time."""
    held_for = sorted((now - s.since for s in bucket.slots if s.state is IN_USE), reverse=True)
    in_use, idle, connecting = bucket.in_use, bucket.idle, bucket.connecting
    text = (
        f"pool {bucket.name!r}: no connection came free in {timeout} s ({in_use} in use,"
        f" {idle} idle, {connecting} connecting, {len(bucket.waiters)} waiting)"
    )
    if held_for:
        text += f"; held for up to {held_for[0]:.3f} s"
    if (last := bucket.last_error) is not None:
        text += f"; last dial: {type(last).__name__}: {text_of(last)}"
    return PoolTimeout(
        text,
        pool=bucket.name,
        timeout=timeout,
        in_use=in_use,
        idle=idle,
        connecting=connecting,
        waiting=len(bucket.waiters),
        held_for=held_for,
    )


def not_full(bucket: PoolBucket, timeout: float | None) -> PoolTimeout:
    """Its connections were not all open in time."""
    return PoolTimeout(
        f"pool {bucket.name!r}: {bucket.open} of {bucket.size} connections are open after"
        f" {timeout} s ({bucket!r})",
        pool=bucket.name,
        timeout=timeout,
        in_use=bucket.in_use,
        idle=bucket.idle,
        connecting=bucket.connecting,
        waiting=len(bucket.waiters),
    )
