"""What callers get that the scheduler sends away."""

from __future__ import annotations

from geventpool._scheduler.model import Bucket
from geventpool.errors import ConnectError, OutOfSockets, PoolOverloaded

__all__ = ["backing_off", "no_place", "out_of_sockets", "overloaded"]


def overloaded(bucket: Bucket, waited: float, retry_after: float) -> PoolOverloaded:
    """What a caller gets that has waited too long in a slow line."""
    return PoolOverloaded(
        f"pool {bucket.name!r}: more is asked than can be served, and this caller has waited for"
        f" {waited:.3f} s ({bucket!r})",
        pool=bucket.name,
        waited=waited,
        retry_after=retry_after,
    )


def backing_off(bucket: Bucket) -> BaseException:
    """What a caller that will not wait gets during a back-off."""
    text = f"pool {bucket.name!r}: its last connections broke at once, and it waits a moment"
    return bucket.last_error or ConnectError(text)


def no_place(bucket: Bucket) -> BaseException:
    """What a caller that will not wait gets where there is no place."""
    if bucket.ceiling.error is not None and bucket.own.spare <= 0:
        return bucket.ceiling.error  # it is the server that has none
    return out_of_sockets(bucket)


def out_of_sockets(bucket: Bucket) -> OutOfSockets:
    """What one gets where a limit has no place."""
    # Its own limit, if it is that, comes first: the widest tells most.
    limit = next((x for x in reversed(bucket.limits) if x.spare <= 0), bucket.own)
    return OutOfSockets(
        f"pool {bucket.name!r}: limit {limit.name!r} is reached, {limit.used} of {limit.maximum}"
        " connections, and none of them is idle",
        pool=bucket.name,
        limit=limit.name,
        used=limit.used,
        maximum=limit.maximum,
    )
